"""Panel tests run the panels' own code on real Qt (PySide6) and real MRML (slicer-core)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(ROOT / "GenSegExtension"), str(ROOT)]

try:
    import panel_stand_in

    slicer = panel_stand_in.install()
except ImportError:  # there is no slicer-core or no PySide6 for this Python or this system
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    """Say when panel tests are left out, since files that are not collected leave no other trace."""
    return "panel tests left out: slicer-core or PySide6 is not installed" if "collect_ignore_glob" in globals() else ""


MODULE = ROOT / "GenSegExtension" / "GenSegNodules" / "GenSegNodules.py"
SERVICE = Path(__file__).with_name("nodule_service.py")
RAS_FROM_IJK = ((-1.0, 0, 0, 20), (0, -1.0, 0, 30), (0, 0, 2.0, -40), (0, 0, 0, 1))


@pytest.fixture(autouse=True)
def scene():
    """A new, empty scene for every test."""
    import slicer_stand_in

    return slicer_stand_in.new_scene()


@pytest.fixture(scope="session")
def bundles():
    """The bundles that the panel starts with: those that ship or, in a checkout without, ones of the same names."""
    from GenSegLogic.bundles import list_bundles, write_bundle
    from GenSegLogic.bundles.folders import cached_bundles_folder
    from GenSegLogic.networks import build

    arguments = {"channels": [8, 8, 16]}
    for name, kind in (("chest-flow", "flow"), ("nodule-cnn", "predictor")):
        if name not in [bundle.name for bundle in list_bundles()]:
            metadata = {"kind": kind, "task": "nodules", "description": "Random weights.", "licence": "Apache-2.0",
                        "commercial_use": True, "source": "made by a test",
                        "image": {"modality": "CT", "window_hu": [-1000, 400], "spacing_mm": [1, 1, 1],
                                  "orientation": "LPS"}}
            network = build("predictor-cnn", arguments)
            write_bundle(cached_bundles_folder() / name, metadata, {"predictor": ("predictor-cnn", arguments, network)},
                         "# Random\n", "Apache-2.0\n")
    return [bundle.name for bundle in list_bundles()]


@pytest.fixture(scope="session")
def service():
    """One real service process for all tests that leave it alive, with the task of ``nodule_service.py``."""
    from GenSegPanel import service as module

    module._shared = module.PanelService(program=SERVICE)
    yield module._shared
    module._shared.stop()


@pytest.fixture
def launcher(tmp_path, monkeypatch):
    """A PythonSlicer that starts Python as its child and hands no standard input on; its bin folder."""
    if os.name != "posix":
        pytest.skip("a shell script stands in for PythonSlicer")
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "PythonSlicer").write_text(f'#!/bin/sh\n"{sys.executable}" "$@" < /dev/null\nexit $?\n')
    (folder / "PythonSlicer").chmod(0o755)
    monkeypatch.setattr(slicer.app, "slicerHome", str(tmp_path))
    return folder


@pytest.fixture
def chest():
    """A CT of lung with two bright balls of known place, 40 x 48 x 48 voxels of 1 x 1 x 2 mm."""
    return make_chest()


def make_chest(name: str = "Chest"):
    """See :func:`chest`; balls of 4 and 6 voxels' radius in plane."""
    import numpy as np

    voxels = np.random.default_rng(5).normal(-850, 15, (40, 48, 48)).astype("int16")
    k, j, i = np.ogrid[:40, :48, :48]
    voxels[((k - 10) * 2) ** 2 + (j - 14) ** 2 + (i - 12) ** 2 < 16] = 40
    voxels[((k - 28) * 2) ** 2 + (j - 30) ** 2 + (i - 33) ** 2 < 36] = 20
    node = slicer.util.addVolumeFromArray(voxels, np.array(RAS_FROM_IJK), name)
    node.SetAttribute("DICOM.Modality", "CT")
    return node


@pytest.fixture
def panel(service, bundles):
    """The panel of GenSegNodules, entered, on an empty scene."""
    module = panel_stand_in.add_module(MODULE)
    slicer.util.selectModule("GenSegNodules")
    yield module.self()
    if module.self() is not None:
        slicer.util.selectModule("SegmentEditor")
        jobs = list(service.jobs)
        module.unload()
        assert not service.jobs, jobs
