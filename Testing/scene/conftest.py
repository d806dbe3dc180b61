"""Scene tests run on real MRML: the ``slicer-core`` wheel, completed by ``slicer_stand_in``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "GenSegExtension"), str(ROOT)]

try:
    import slicer_stand_in

    slicer = slicer_stand_in.install()
except ImportError:  # there is no slicer-core for this Python or this system
    collect_ignore_glob = ["test_*.py"]


def pytest_report_header() -> str:
    """Say when scene tests are left out, since files that are not collected leave no other trace."""
    return "scene tests left out: slicer-core is not installed" if "collect_ignore_glob" in globals() else ""


@pytest.fixture(autouse=True)
def scene():
    """A new, empty scene for every test."""
    return slicer_stand_in.new_scene()


def rotation(axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """4x4 rotation about an axis (Rodrigues' formula)."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return matrix


def grids() -> dict[str, np.ndarray]:
    """IJK-to-RAS matrices that ordinary scans come with."""
    plain = np.diag([0.7, 0.8, 1.5, 1.0])
    plain[:3, 3] = [-12.0, 20.0, 300.0]
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ plain
    return {
        "ras": plain,
        "dicom": lps,
        "left-handed": plain @ np.diag([1.0, 1.0, -1.0, 1.0]),
        "oblique": rotation((1, 2, 3), 25) @ lps,
        "sagittal": plain[:, [2, 0, 1, 3]],
    }


@pytest.fixture(params=sorted(grids()))
def ijk_to_ras(request) -> np.ndarray:
    """Each of :func:`grids` in turn."""
    return grids()[request.param]


@pytest.fixture
def linear_transform():
    """A transform node that turns and shifts."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "Moved")
    matrix = rotation((0, 1, 1), 40)
    matrix[:3, 3] = [5.0, -7.0, 11.0]
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    return node


@pytest.fixture
def chest(ijk_to_ras):
    """A small CT-like volume node called Chest, in each geometry."""
    return make_chest(ijk_to_ras)


@pytest.fixture
def plain_chest():
    """A small CT-like volume node called Chest, as DICOM would place it."""
    return make_chest(grids()["dicom"])


def make_chest(ijk_to_ras: np.ndarray):
    """Noise round -800 HU, 12 x 20 x 24 voxels."""
    voxels = np.random.default_rng(5).normal(-800, 30, (12, 20, 24)).astype("int16")
    node = slicer.util.addVolumeFromArray(voxels, ijk_to_ras, "Chest")
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevel(1400, -500)
    return node


NODULE_BOXES = {1: np.s_[2:5, 4:8, 5:9], 2: np.s_[7:10, 12:17, 14:18]}


@pytest.fixture
def make_results():
    """``make_results(volume)``: what the nodule task hands back, with two box-shaped nodules of known place."""
    from GenSegLogic.results import Code, Results, Segment, Segmentation

    def make(volume):
        labels = np.zeros(volume.shape, np.uint8)
        for label, box in NODULE_BOXES.items():
            labels[box] = label
        residual = np.where(labels == 1, 120.0, np.where(labels == 2, 60.0, -5.0)).astype(np.float32)
        segments = tuple(
            Segment(label, f"Nodule {label}", (1.0, 0.5, 0.25 * label),
                    Code("SCT", "49755003", "Morphologically Abnormal Structure"),
                    Code("SCT", "27925004", "Nodule"), Code("SCT", "39607008", "Lung"))
            for label in NODULE_BOXES)
        rows = []
        for label in NODULE_BOXES:
            left, posterior, superior = volume.to_lps(np.argwhere(labels == label)[:, ::-1].mean(axis=0))
            rows.append({"name": f"Nodule {label}", "center_l_mm": float(left), "center_p_mm": float(posterior),
                         "center_s_mm": float(superior), "volume_mm3": float((labels == label).sum())})
        return Results(
            volumes={"counterfactual": volume.with_voxels(volume.voxels - np.int16(1)),
                     "residual": volume.with_voxels(residual)},
            segmentations={"nodules": Segmentation(volume.with_voxels(labels), segments)},
            tables={"nodules": rows},
            columns={"nodules": tuple(rows[0])},
            synthetic=frozenset({"counterfactual"}),
            summary="2 nodules",
            provenance={"task": "nodules", "parameters": {"threshold": 30.0}, "bundles": ["chest-flow; 100 % & <new>"]})

    return make
