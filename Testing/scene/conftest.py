"""Scene tests run on real MRML: the ``slicer-core`` wheel, completed by ``slicer_stand_in``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "Testing"), str(ROOT / "GenSegExtension"), str(ROOT)]

pytest.importorskip("slicer", reason="slicer-core is not installed")

import slicer_stand_in  # noqa: E402

slicer = slicer_stand_in.install()


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
