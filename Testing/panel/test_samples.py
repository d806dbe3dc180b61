"""Sample data: what the Sample Data module offers, drawn by the real phantoms in a process of their own."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import panel_stand_in
import pytest
import slicer

from GenSegLogic.errors import GenSegError
from GenSegPanel import samples
from GenSegScene import display
from GenSegScene.volumes import volume_from_node

EXTENSION = Path(__file__).parents[2] / "GenSegExtension"


def task_of(kind):
    """The task that a sample is for."""
    from GenSegLogic.nodules.task import NoduleTask
    from GenSegLogic.organs.diffusam.task import OrgansTask

    return NoduleTask() if kind == "chest" else OrgansTask()


@pytest.fixture
def offered(monkeypatch):
    """What both modules offer once Slicer has started: name -> arguments of the registration."""
    registered = []
    sample_data = types.ModuleType("SampleData")
    sample_data.SampleDataLogic = types.SimpleNamespace(
        registerCustomSampleDataSource=lambda **options: registered.append(options))
    monkeypatch.setitem(sys.modules, "SampleData", sample_data)
    for name in ("GenSegNodules", "GenSegOrgans"):
        panel_stand_in.add_module(EXTENSION / name / f"{name}.py").module.onStartupCompleted()
    return {options["sampleName"]: options for options in registered}


def test_every_phantom_is_offered(offered):
    assert set(offered) == {sample.name for sample in samples.SAMPLES.values()}
    for sample in offered.values():
        # The desktop's SampleDataSource takes the length of these three.
        assert all(isinstance(sample[name], str) for name in ("uris", "fileNames", "nodeNames"))
        assert Path(sample["thumbnailFileName"]).is_file() and sample["category"] == "GenSeg"
    assert len({sample["uris"] for sample in offered.values()}) == len(offered)


@pytest.mark.parametrize("kind", samples.SAMPLES)
def test_a_phantom_comes_as_a_scan_that_its_task_has_no_doubts_about(offered, kind):
    sample = samples.SAMPLES[kind]
    old = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Old").GetID()
    for composite in display.composites():  # what lies over another scan
        composite.SetForegroundVolumeID(old)
        composite.SetNthLayerVolumeID(composite.Layer_Last, old)
    (node,) = offered[sample.name]["customDownloader"](None)
    assert node.GetClassName() == "vtkMRMLScalarVolumeNode" and node.GetName() == sample.name
    assert node.GetAttribute("DICOM.Modality") == sample.modality
    scan, shown = volume_from_node(node), node.GetDisplayNode()
    assert scan.voxels.dtype == np.int16 and scan.metadata["modality"] == sample.modality
    assert list(task_of(kind).preflight({"image": scan})) == []
    # The window tells apart what matters: the body is neither all black nor all white.
    middle = scan.voxels[len(scan.voxels) // 2, 64:-64, 64:-64]
    low, high = shown.GetWindowLevelMin(), shown.GetWindowLevelMax()
    assert ((middle > low) & (middle < high)).mean() > 0.5
    black, white = (middle <= low).mean(), (middle >= high).mean()
    assert black < 0.5 and white < 0.2
    assert {(composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(),
             composite.GetNthLayerVolumeID(composite.Layer_Last))
            for composite in display.composites()} == {(node.GetID(), None, None)}


def test_the_window_lives_while_a_phantom_is_drawn_and_can_cancel(monkeypatch):
    import psutil
    import qt

    window, seen = qt.QMainWindow(), []
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: window)
    window.show()

    def look():
        """What a user sees and does some time after the click."""
        (dialog,) = [child for child in window.children() if child.className() == "QProgressDialog"]
        # Other tests of this run leave children of their own.
        drawing = [process for process in psutil.Process().children()
                   if any("GenSegLogic.phantoms" in word for word in process.cmdline())]
        modal = qt.QApplication.activeModalWidget() is not None  # or else the user can click on
        seen.append((dialog.visible and modal, dialog.maximum, dialog.labelText, drawing))
        if len(seen) == 5:
            dialog.cancel()

    timer = qt.QTimer()
    timer.interval = 100
    timer.connect("timeout()", look)
    timer.start()
    assert samples.add_sample("abdomen-mr") == []
    timer.stop()
    assert len(seen) == 5
    assert all(visible and maximum == 0 and "Drawing GenSegAbdomenMR" in text for visible, maximum, text, _ in seen)
    (process,) = seen[0][3]
    assert not process.is_running() and slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
    assert not any(child.visible for child in window.children() if child.className() == "QProgressDialog")


def test_a_phantom_that_cannot_be_drawn_says_why():
    with pytest.raises(GenSegError, match="could not be drawn: ValueError: expected non-negative"):
        samples.add_phantom("chest", seed=-4_000_000)  # more than what is added to keep phantoms apart from training
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0
