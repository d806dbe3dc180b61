"""The organ panel as a user meets it: real widgets, real scene, the real service on small random networks."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import panel_stand_in
import psutil
import pytest
import slicer
import vtk

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.errors import GenSegError
from GenSegScene import display, runs

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "GenSegExtension" / "GenSegOrgans" / "GenSegOrgans.py"
PRIOR, SAM2 = "tiny-ct", "tiny-sam2"


@pytest.fixture(scope="module")
def organ_bundles():
    """A SAM 2 and two priors with random weights where fetched bundles lie; they do not know the pancreas."""
    from GenSegLogic.bundles.folders import cached_bundles_folder
    from Testing.logic.organ_bundles import write_organ_bundles

    return write_organ_bundles(cached_bundles_folder(), names=(SAM2, PRIOR, "tiny-mr"))


@pytest.fixture(scope="module")
def organ_service(organ_bundles):
    """GenSeg's own service, shared by the panels while these tests run."""
    from GenSegPanel import service as module

    before, module._shared = module._shared, module.PanelService()
    yield module._shared
    module._shared.stop()
    module._shared = before


@pytest.fixture(scope="module")
def phantom():
    """A small CT phantom of the abdomen."""
    from GenSegLogic.phantoms.abdomen import abdomen_phantom

    return abdomen_phantom(3, "ct", "test", size=48, slices=6).image


@pytest.fixture
def abdomen(phantom):
    """The phantom as a CT in the scene."""
    from GenSegScene.volumes import volume_to_node

    node = volume_to_node(phantom.with_voxels(phantom.voxels.astype(np.int16)), "Abdomen")
    node.SetAttribute("DICOM.Modality", "CT")
    return node


@pytest.fixture
def panel(organ_service):
    """The panel of GenSegOrgans, entered, on an empty scene, set to the random prior and its least work."""
    module = panel_stand_in.add_module(MODULE)
    slicer.util.selectModule("GenSegOrgans")
    widget = module.self()
    widget.ui.bundleCombo.currentIndex = widget.ui.bundleCombo.findText(PRIOR)
    widget.ui.stepsSpinBox.value = widget.ui.samplesSpinBox.value = 1
    yield widget
    slicer.util.selectModule("SegmentEditor")
    service, jobs = organ_service, list(organ_service.jobs)
    service.jobs.add("keep the process for the next test")
    module.unload()
    service.jobs.discard("keep the process for the next test")
    assert not jobs


def tick(panel, *names):
    """Tick these organs alone, as a user does."""
    import qt

    panel.ui.noOrgansButton.click()
    for name in names:
        panel.ui.organsList.item(list(ORGANS).index(name)).setCheckState(qt.Qt.Checked)


def apply_and_wait(panel):
    """Press Apply and wait until the job has ended."""
    panel.ui.applyButton.click()
    assert panel.controls.busy, panel.ui.statusLabel.text
    assert panel_stand_in.process_events(240, lambda: not panel.controls.busy), "it did not end in time"
    return panel.controls.job


def nodes():
    """All nodes of the scene but those of views and parameters, which come and go by themselves."""
    return {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")
            if not node.IsA("vtkMRMLScriptedModuleNode")}


@pytest.fixture
def done(panel, abdomen):
    """The panel after a job on two organs, one of which the random prior never sees."""
    panel.ui.inputSelector.setCurrentNode(abdomen)
    tick(panel, "liver", "gallbladder")
    job = apply_and_wait(panel)
    assert job.state == "done", job.error
    return panel


def test_apply_is_off_and_says_why_until_there_is_a_scan(panel, abdomen):
    assert not panel.ui.applyButton.enabled
    assert "Choose a CT or MR of the abdomen above" in panel.ui.preflightLabel.text
    panel.ui.inputSelector.setCurrentNode(abdomen)
    assert panel.ui.applyButton.enabled, panel.ui.preflightLabel.text
    for part in ("CT, 48 × 48 × 6 voxels", f"{PRIOR} + {SAM2}", "GB", "takes about"):
        assert part in panel.ui.preflightLabel.text


def test_every_control_of_a_parameter_has_the_tasks_range_and_tool_tip(panel):
    from GenSegLogic.organs.diffusam.task import OrgansTask

    ui, fields = panel.ui, OrgansTask.parameters()
    for name, widget in {"steps": ui.stepsSpinBox, "samples": ui.samplesSpinBox, "seed": ui.seedSpinBox}.items():
        assert widget.toolTip == fields[name].metadata["help"]
        assert widget.minimum == fields[name].metadata["minimum"]
        assert fields[name].metadata["maximum"] in (widget.maximum, None)
    assert ui.bundleCombo.toolTip == fields["bundle"].metadata["help"]
    assert ui.organsList.toolTip == fields["organs"].metadata["help"]
    assert ui.bundleCombo.itemText(0) == "auto" and ui.bundleCombo.findText(SAM2) < 0


def test_the_list_offers_what_the_bundle_knows_and_none_is_refused(panel, abdomen):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    hidden = [name for row, name in enumerate(ORGANS) if panel.ui.organsList._object.isRowHidden(row)]
    assert hidden == ["pancreas"]
    assert panel.taskParameters()["organs"] == ()  # all that it knows
    tick(panel, "liver", "spleen")
    assert panel.taskParameters()["organs"] == ("spleen", "liver")
    panel.ui.noOrgansButton.click()
    assert not panel.ui.applyButton.enabled and "Tick at least one organ." in panel.ui.preflightLabel.text
    panel.ui.allOrgansButton.click()
    assert panel.ui.applyButton.enabled and panel.taskParameters()["organs"] == ()


def test_a_bundle_that_is_not_here_is_named(panel, abdomen):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    panel._parameterNode.bundle = "prior-of-another-computer"
    assert not panel.ui.applyButton.enabled
    assert "prior-of-another-computer" in panel.ui.preflightLabel.text


def test_a_bundle_of_another_kind_is_named(panel, abdomen):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    panel._parameterNode.bundle = SAM2
    assert panel.knownOrgans() == tuple(ORGANS)
    assert not panel.ui.applyButton.enabled
    assert f"{SAM2} is a bundle of kind sam2" in panel.ui.preflightLabel.text


def test_auto_takes_the_bundle_of_the_scans_modality(panel, abdomen):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    panel.ui.bundleCombo.currentIndex = 0
    assert panel._parameterNode.bundle == "auto" and "abdomen-ct" in panel.ui.preflightLabel.text
    abdomen.SetAttribute("DICOM.Modality", "MR")
    panel.checkCanApply()
    assert "abdomen-mr" in panel.ui.preflightLabel.text


def test_apply_ends_with_segments_table_and_confidence(done, abdomen):
    node = done.review.node
    assert node.GetName() == "Abdomen organs" and "1 of 2 organs found." in done.ui.statusLabel.text
    segmentation = node.GetSegmentation()
    assert [segmentation.GetNthSegment(index).GetName() for index in range(2)] == ["Gallbladder", "Liver"]
    terminology = vtk.reference("")
    assert segmentation.GetNthSegment(1).GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology)
    assert "10200004" in str(terminology)  # SNOMED's liver
    table = done.ui.findingsTable
    assert [table.horizontalHeaderItem(column).text() for column in range(4)] == [
        "Organ", "Volume (ml)", "Mean intensity", "Confidence"]
    assert [table.item(row, 0).text() for row in range(2)] == ["Gallbladder", "Liver"]
    assert float(table.item(0, 1).text()) == 0 < float(table.item(1, 1).text())
    assert runs.provenance_of(node)["parameters"]["organs"] == ["gallbladder", "liver"]
    assert runs.related(node, "confidence").GetName() == "Abdomen confidence"
    assert done.ui.applyButton.text == "Apply" and done.ui.applyButton.enabled


def test_a_row_moves_the_views_and_an_empty_organ_says_so(done):
    slice_node = slicer.util.getNodesByClass("vtkMRMLSliceNode")[0]
    liver = done.review.currentSegment()  # the first organ that was found is shown at once
    wanted = pytest.approx(done.review.node.GetSegmentCenterRAS(liver)[2])
    assert done.review.currentRow() == 1 and slice_node.GetSliceToRAS().GetElement(2, 3) == wanted
    done.ui.findingsTable.selectRow(0)
    assert "was not found" in done.ui.statusLabel.text
    display.jump_to((0.0, 0.0, 1000.0))
    done.ui.findingsTable.selectRow(1)
    assert done.review.currentSegment() == liver and slice_node.GetSliceToRAS().GetElement(2, 3) == wanted
    done.ui.editButton.click()
    assert slicer.modules.segmenteditor.segment == liver
    slicer.util.selectModule("GenSegOrgans")


def test_the_confidence_is_an_overlay_that_colours_only_what_is_doubtful(done):
    confidence = runs.related(done.review.node, "confidence")
    assert not done.ui.confidenceCheckBox.checked
    done.ui.confidenceCheckBox.checked = True
    assert {composite.GetForegroundVolumeID() for composite in display.composites()} == {confidence.GetID()}
    shown = confidence.GetDisplayNode()
    assert 0 < shown.GetLowerThreshold() < 0.01 and 0.9 < shown.GetUpperThreshold() < 1
    assert (shown.GetWindowLevelMin(), shown.GetWindowLevelMax()) == (0, 1)
    doubtful, sure = [0.0] * 4, [0.0] * 4
    shown.GetColorNode().GetColor(0, doubtful)
    shown.GetColorNode().GetColor(shown.GetColorNode().GetNumberOfColors() - 1, sure)
    assert doubtful[:3] == [1.0, 0.0, 0.0] and sure[1] > 0.5  # as the box's tool tip promises: what is doubtful is red
    done.ui.confidenceCheckBox.checked = False
    assert all(composite.GetForegroundVolumeID() is None for composite in display.composites())


def test_a_saved_scene_opens_as_it_was_left(done, tmp_path):
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    assert done.ui.findingsTable.rowCount == 0 and done.review.node is None
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert done.ui.inputSelector.currentNode().GetName() == "Abdomen"
    assert done.ui.bundleCombo.currentText == PRIOR
    assert done.taskParameters()["organs"] == ("gallbladder", "liver")
    assert done.ui.findingsTable.rowCount == 2


def test_cancel_leaves_the_scene_as_it_was(panel, abdomen):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    panel.ui.samplesSpinBox.value, panel.ui.stepsSpinBox.value = 4, 8
    before = nodes()
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancel"
    assert panel_stand_in.process_events(120, lambda: "slice by slice" in panel.ui.statusLabel.text)
    panel.ui.applyButton.click()
    assert panel_stand_in.process_events(120, lambda: not panel.controls.busy)
    assert panel.controls.job.state == "cancelled" and nodes() == before
    assert panel.ui.statusLabel.text == "Stopped; the scene is as it was."


def test_the_logic_runs_without_the_panel_and_refuses_in_one_sentence(panel, abdomen):
    from GenSegOrgans import GenSegOrgansLogic

    logic = GenSegOrgansLogic()
    made = logic.run(abdomen, bundle=PRIOR, organs=("spleen",), steps=1, samples=1)
    assert set(made) == {"organs_segmentation", "organs_table", "confidence"}
    before = nodes()
    with pytest.raises(GenSegError, match="There is no organ 'heart'"):
        logic.run(abdomen, organs=("heart",))
    with pytest.raises(GenSegError, match="organs has no such parameter"):
        logic.run(abdomen, speed=3)
    with pytest.raises(GenSegError, match="No volume is selected"):
        logic.run(None)
    assert nodes() == before


def test_the_modules_self_test_passes(panel):
    import GenSegOrgans

    slicer.util.selectModule("SegmentEditor")
    test = GenSegOrgans.GenSegOrgansTest()
    test.runTest()
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


@pytest.fixture
def marked(phantom, abdomen):
    """A segmentation of two organs of the phantom, as a person would name its segments."""
    from GenSegLogic.phantoms.abdomen import abdomen_phantom
    from GenSegLogic.results import Segmentation
    from GenSegScene.segmentations import segmentation_to_node

    labels = abdomen_phantom(3, "ct", "test", size=48, slices=6).labels
    kept = np.where(np.isin(labels.voxels, [ORGANS["liver"].label, ORGANS["spleen"].label]), labels.voxels, 0)
    return segmentation_to_node(
        Segmentation(labels.with_voxels(kept), (ORGANS["liver"].segment(), ORGANS["spleen"].segment())), "Marked",
        abdomen)


def add_case(panel, scan, segmentation):
    """Choose a scan and, unless the scan stands alone, its segmentation, and add it."""
    panel.ui.caseScanSelector.setCurrentNode(scan)
    panel.ui.caseSegmentationSelector.setCurrentNode(segmentation)
    panel.ui.addCaseButton.click()


def listed(panel):
    """The lines of the list of cases."""
    return [panel.ui.casesList.item(row).text() for row in range(panel.ui.casesList.count)]


def test_cases_are_picked_kept_and_refused_in_words(panel, abdomen, marked):
    from GenSegPanel.adaptation import filling

    assert not panel.ui.adaptButton.enabled
    panel.ui.addCaseButton.click()
    assert "Choose a scan and the segmentation" in panel.ui.adaptStatusLabel.text
    add_case(panel, abdomen, marked)
    add_case(panel, abdomen, marked)  # the same scan is one case
    assert listed(panel) == ["Abdomen + Marked"]
    labels = np.zeros((6, 48, 48), np.uint8)
    assert len(list(filling(labels, abdomen, marked))) == 2  # steps, one for each segment
    assert set(np.unique(labels)) == {0, ORGANS["liver"].label, ORGANS["spleen"].label}
    panel.ui.adaptNameEdit.text = "My Organs"
    panel.ui.adaptButton.click()
    assert "Choose a new name" in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    for taken in (PRIOR, SAM2, "abdomen-sam2", "maisi-rflow-ct", "auto"):  # the last but one is fetched, not here yet
        panel.ui.adaptNameEdit.text = taken
        panel.ui.adaptButton.click()
        assert f"The name {taken} is taken" in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    panel.ui.adaptNameEdit.text = "gone"
    slicer.mrmlScene.RemoveNode(marked)
    panel.ui.adaptButton.click()
    assert "Abdomen has no segmentation" in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    assert listed(panel) == ["Abdomen, no labels"]
    slicer.mrmlScene.RemoveNode(abdomen)
    panel.adaptation.refresh()
    assert listed(panel) == [] and not panel.ui.adaptButton.enabled


def test_cases_without_labels_are_told_apart_and_refused_unless_asked_for(panel, phantom, abdomen, marked, tmp_path):
    from GenSegScene.volumes import volume_to_node

    other = volume_to_node(phantom, "Other")
    add_case(panel, abdomen, marked)
    assert not panel.ui.caseSegmentationSelector._object.isHidden()
    panel.ui.sourceFreeCheckBox.checked = True
    assert panel.ui.caseSegmentationSelector._object.isHidden() and panel.ui.caseSegmentationLabel._object.isHidden()
    panel.ui.caseScanSelector.setCurrentNode(None)
    panel.ui.addCaseButton.click()
    assert panel.ui.adaptStatusLabel.text == "Choose a scan first."
    add_case(panel, other, marked)  # a segmentation that was chosen before it was hidden is not taken
    add_case(panel, abdomen, None)  # and one that is there already is kept
    assert listed(panel) == ["Abdomen + Marked, labels not used", "Other, no labels"]

    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    assert listed(panel) == []
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert listed(panel) == ["Abdomen + Marked, labels not used", "Other, no labels"]
    assert panel.ui.sourceFreeCheckBox.checked

    panel.ui.sourceFreeCheckBox.checked = False
    assert listed(panel) == ["Abdomen + Marked", "Other, no labels"]
    panel.ui.adaptNameEdit.text = "half-labelled"
    panel.ui.adaptButton.click()
    assert "Other has no segmentation" in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    add_case(panel, slicer.util.getNode("Other"), slicer.util.getNode("Marked"))
    assert listed(panel) == ["Abdomen + Marked", "Other + Marked"]
    panel.ui.clearCasesButton.click()
    assert listed(panel) == []


def test_learning_without_labels_ends_with_a_bundle_that_says_so(panel, abdomen):
    from GenSegLogic.bundles import find_bundle

    panel.ui.inputSelector.setCurrentNode(abdomen)
    panel.ui.sourceFreeCheckBox.checked = True
    add_case(panel, abdomen, None)
    panel.ui.adaptNameEdit.text = "my-scans"
    panel.ui.adaptMinutesSpinBox.value = 0.1
    panel.ui.adaptButton.click()
    assert panel_stand_in.process_events(600, lambda: not panel.adaptation.busy)
    assert panel.adaptation.adaptation.state == "done", panel.ui.adaptStatusLabel.toolTip  # what Python said
    assert "agreed on" in panel.ui.adaptStatusLabel.text and panel.ui.bundleCombo.currentText == "my-scans"
    learned = find_bundle("my-scans")
    assert learned.metadata["training"]["recipe"] == "genseg adapt organs --source-free"
    assert panel.knownOrgans() == tuple(learned.metadata["organs"]) == tuple(find_bundle(PRIOR).metadata["organs"])


def test_a_segmentation_without_an_organs_name_or_terminology_is_refused(panel, abdomen, marked):
    from GenSegPanel.adaptation import marked_organs

    segments = [marked.GetSegmentation().GetNthSegment(index) for index in range(2)]
    for segment in segments:
        segment.SetName("Leber")
    organs = marked_organs(abdomen, marked)
    assert list(organs.values()) == [ORGANS["liver"].label, ORGANS["spleen"].label]
    for segment in segments:
        segment.RemoveTag(slicer.vtkSegment.GetTerminologyEntryTagName())
    add_case(panel, abdomen, marked)
    panel.ui.adaptButton.click()
    assert "Marked marks no organ on Abdomen" in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy


def test_a_segmentation_of_another_place_is_refused(panel, abdomen, marked):
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 5000.0)
    moved.SetMatrixTransformToParent(matrix)
    marked.SetAndObserveTransformNodeID(moved.GetID())
    add_case(panel, abdomen, marked)
    panel.ui.adaptNameEdit.text = "elsewhere"
    panel.ui.adaptButton.click()
    assert panel.adaptation.busy, panel.ui.adaptStatusLabel.text
    assert panel_stand_in.process_events(30, lambda: not panel.adaptation.busy)
    assert "Marked marks no voxel of Abdomen" in panel.ui.adaptStatusLabel.text
    assert panel.adaptation.adaptation.state == "failed" and panel.ui.adaptButton.text == "Adapt"


def begin_to_learn(panel, name):
    """Press Adapt; the cases are not handed over yet."""
    panel.ui.adaptNameEdit.text = name
    panel.ui.adaptMinutesSpinBox.value = 0.1
    panel.ui.adaptButton.click()
    assert panel.adaptation.adaptation.state == "preparing", panel.ui.adaptStatusLabel.text


def test_a_scene_that_is_closed_before_its_cases_are_handed_over_ends_the_learning(panel, abdomen, marked):
    assert "Add the cases" in panel.ui.adaptButton.toolTip
    add_case(panel, abdomen, marked)
    assert "The scans stay on this computer" in panel.ui.adaptButton.toolTip
    begin_to_learn(panel, "closed")
    slicer.mrmlScene.Clear(False)
    assert panel.adaptation.adaptation.state == "cancelled" and not panel.adaptation.busy
    assert "The scene was closed" in panel.ui.adaptStatusLabel.text and panel.ui.adaptButton.text == "Adapt"
    ended, panel.adaptation.adaptation = weakref.ref(panel.adaptation.adaptation), None
    gc.collect()
    assert ended() is None  # nor does its timer hold it, with the nodes


def test_learning_outlives_the_scene_once_it_has_its_cases(panel, abdomen, marked):
    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "outlives")
    assert panel_stand_in.process_events(30, lambda: panel.adaptation.adaptation.state == "running")
    slicer.mrmlScene.Clear(False)
    assert panel.adaptation.busy
    panel.ui.adaptButton.click()


@pytest.mark.parametrize("gone", ["Abdomen", "Marked", "Moved"])
def test_a_node_that_is_removed_before_it_is_handed_over_ends_the_learning(panel, abdomen, marked, gone):
    moved = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    for node in (abdomen, marked):
        node.SetAndObserveTransformNodeID(moved.GetID())
    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "removed")
    slicer.mrmlScene.RemoveNode(slicer.util.getNode(gone))
    assert panel_stand_in.process_events(30, lambda: not panel.adaptation.busy)
    assert panel.adaptation.adaptation.state == "failed"
    assert f"{gone} was removed from the scene" in panel.ui.adaptStatusLabel.text


def test_a_disk_that_cannot_be_written_ends_as_one_sentence(panel, abdomen, marked, tmp_path, monkeypatch):
    add_case(panel, abdomen, marked)
    panel.ui.adaptNameEdit.text = "unwritten"
    panel.ui.adaptStatusLabel.toolTip = "details of an earlier failure"
    with monkeypatch.context() as missing:
        missing.setattr(slicer.app, "temporaryPath", str(tmp_path / "missing"))
        panel.ui.adaptButton.click()
    assert "Learning could not start: " in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    assert str(tmp_path / "missing") in panel.ui.adaptStatusLabel.text
    assert panel.ui.adaptStatusLabel.toolTip == "What happened last."


def test_a_mistake_of_ours_ends_as_one_sentence_with_the_rest_in_the_tool_tip(panel, abdomen, marked, monkeypatch):
    add_case(panel, abdomen, marked)
    panel.ui.adaptNameEdit.text = "unwritten"
    with monkeypatch.context() as missing:
        missing.setattr(slicer.app, "temporaryPath", 5)
        panel.ui.adaptButton.click()
    assert "Learning could not start (TypeError: " in panel.ui.adaptStatusLabel.text and not panel.adaptation.busy
    assert "Traceback" in panel.ui.adaptStatusLabel.toolTip


def test_learning_ends_with_a_bundle_that_is_chosen_and_can_be_used(panel, abdomen, marked):
    panel.ui.inputSelector.setCurrentNode(abdomen)
    add_case(panel, abdomen, marked)
    panel.ui.adaptNameEdit.text = "my-organs"
    panel.ui.adaptMinutesSpinBox.value = 0.1
    panel.ui.adaptButton.click()
    assert panel.adaptation.busy and panel.ui.adaptButton.text == "Stop learning", panel.ui.adaptStatusLabel.text
    assert panel_stand_in.process_events(300, lambda: not panel.adaptation.busy)
    assert panel.adaptation.adaptation.state == "done", panel.ui.adaptStatusLabel.toolTip  # what Python said
    assert "my-organs" in panel.ui.adaptStatusLabel.text and panel.ui.bundleCombo.currentText == "my-organs"
    assert panel.knownOrgans() == ("spleen", "liver") and panel.ui.applyButton.enabled


def test_learning_ends_with_slicer_however_that_ends(panel, abdomen, marked, monkeypatch):
    from GenSegPanel import adaptation

    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    monkeypatch.setattr(adaptation, "os", SimpleNamespace(getpid=lambda: parent.pid))
    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "orphaned")
    assert panel_stand_in.process_events(60, lambda: "Learning to" in panel.ui.adaptStatusLabel.text)
    learning = panel.adaptation.adaptation
    parent.kill()
    parent.wait()
    assert learning._process.wait(20) == 1
    assert not Path(learning._folder.name).exists()  # the scans of the cases
    panel.adaptation.stop()


def test_a_panel_that_goes_ends_its_learning_without_its_widgets(panel, abdomen, marked, monkeypatch):
    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "gone")
    monkeypatch.setattr(panel.adaptation, "refresh", lambda: pytest.fail("the widgets may be gone already"))
    panel.cleanup()
    assert panel.adaptation.adaptation.state == "cancelled"


def test_learning_can_be_stopped(panel, abdomen, marked):
    from GenSegPanel.parameters import bundle_names

    add_case(panel, abdomen, marked)
    panel.ui.adaptNameEdit.text = "stopped"
    panel.ui.adaptButton.click()
    assert panel_stand_in.process_events(30, lambda: panel.adaptation.adaptation.state == "running")
    panel.ui.adaptButton.click()
    assert panel.adaptation.adaptation.state == "cancelled" and panel.ui.adaptButton.text == "Adapt"
    assert "stopped" not in bundle_names("organs")


def test_stopping_ends_the_python_that_a_launcher_started(panel, abdomen, marked, launcher):
    from GenSegLogic.bundles.folders import cached_bundles_folder

    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "launched")
    assert panel_stand_in.process_events(60, lambda: "Learning to" in panel.ui.adaptStatusLabel.text)
    learning = panel.adaptation.adaptation
    (python,) = psutil.Process(learning._process.pid).children()
    assert learning._process.args[0] == str(launcher / "PythonSlicer") and "learn.py" in " ".join(python.cmdline())
    panel.ui.adaptButton.click()
    assert learning.state == "cancelled" and not Path(learning._folder.name).exists()
    assert not python.is_running()  # the same number of another process does not count
    assert not (cached_bundles_folder() / "launched").exists()


def test_learning_ends_without_its_request(panel, abdomen, marked):
    """As where it was stopped before it had said which process it is."""
    from GenSegPanel.parameters import bundle_names

    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "unwanted")
    assert panel_stand_in.process_events(60, lambda: "Learning to" in panel.ui.adaptStatusLabel.text)
    request = Path(panel.adaptation.adaptation._folder.name, "request.json")
    request.unlink()
    assert panel_stand_in.process_events(20, lambda: not panel.adaptation.busy)
    assert f"{request} was deleted while GenSeg learned" in panel.ui.adaptStatusLabel.text
    assert "unwanted" not in bundle_names("organs")


def test_learning_whose_files_are_tidied_away_fails_in_a_sentence(panel, abdomen, marked):
    add_case(panel, abdomen, marked)
    begin_to_learn(panel, "unwanted")
    assert panel_stand_in.process_events(60, lambda: "Learning to" in panel.ui.adaptStatusLabel.text)
    for path in Path(panel.adaptation.adaptation._folder.name).iterdir():
        path.unlink()
    assert panel_stand_in.process_events(20, lambda: not panel.adaptation.busy)
    assert "Learning ended unexpectedly" in panel.ui.adaptStatusLabel.text


def test_the_walkthrough_is_through(organ_bundles, tmp_path):
    """The same script that plays a user in the desktop, with the real service on the random prior."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "Testing" / "desktop" / "walkthrough.py"), "--panel", "organs", "--bundle", PRIOR,
         "--small"], capture_output=True, text=True, timeout=900, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("The walkthrough is through.")
    assert "Traceback" not in done.stderr
