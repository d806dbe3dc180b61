"""Abdomen phantoms: procedural CT and MR of the upper abdomen with exact truth for thirteen organs.

Anatomy first, look second: a seed and a split give one patient on one grid; a look only says what that patient's
tissues look like. Coordinates are LPS mm with the origin in the middle of the abdomen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import GenSegError
from ..volume import Volume
from .abdomen_bowel import paint_bowel, paint_stomach
from .abdomen_canvas import Canvas, bspline_field, rotation
from .abdomen_looks import LOOKS, render
from .abdomen_organs import Variation, paint_organs
from .abdomen_tissues import Tissue
from .abdomen_wall import allowed_in, paint_frame

EXTENT_MM = 360.0
"""Half the width of the cube in which the random displacement is defined."""


@dataclass(frozen=True)
class AbdomenSplit:
    """A population of abdomen phantoms; every range is (low, high).

    Attributes:
        first_seed: seeds count up from here; splits lie far apart.
        size: of patients, relative to the standard body.
        fatness: 0 (lean) to 1 (obese).
        warp_mm: standard deviation of the smooth random displacement.
        turn_degrees: standard deviation of the patient's posture about each axis.
        thickness_mm: distance between slices.
        field_mm: width of the field of view.
        variation: of organs.
    """

    first_seed: int
    size: tuple[float, float] = (0.88, 1.12)
    fatness: tuple[float, float] = (0.0, 0.9)
    warp_mm: tuple[float, float] = (2.5, 6.5)
    turn_degrees: float = 3.0
    thickness_mm: tuple[float, float] = (3.0, 8.5)
    field_mm: tuple[float, float] = (310.0, 430.0)
    variation: Variation = field(default_factory=Variation)


ABDOMEN_SPLITS: dict[str, AbdomenSplit] = {
    "train": AbdomenSplit(0),
    "held-out": AbdomenSplit(500_000),
    "validation": AbdomenSplit(1_000_000, size=(0.9, 1.1), fatness=(0.1, 0.8)),
    # Test patients reach beyond what training saw: larger and smaller, fatter, more displaced.
    "test": AbdomenSplit(2_000_000, size=(0.86, 1.14), fatness=(0.0, 1.0), warp_mm=(2.5, 7.5), turn_degrees=3.5,
                         variation=Variation(shift_mm=6.0, size=0.09, lesions=0.4)),
}


@dataclass(frozen=True)
class AbdomenPhantom:
    """One scan with its truth.

    Attributes:
        image: float32; HU for the look "ct", arbitrary and not negative for the others.
        labels: uint8, numbered as :data:`GenSegLogic.anatomy.ORGANS`, on the image's grid.
        tissues: uint8 of :class:`.abdomen_tissues.Tissue`, on the image's grid; for training in ever new contrasts.
        look: one of :data:`.abdomen_looks.LOOKS`.
        parameters: what was drawn for this patient and this scan, for tables and tests.
    """

    image: Volume
    labels: Volume
    tissues: Volume
    look: str
    parameters: dict[str, Any]


def abdomen_phantom(
    seed: int,
    look: str = "ct",
    split: str | AbdomenSplit = "train",
    size: int = 160,
    slices: int = 32,
    field_mm: float | None = None,
    thickness_mm: float | None = None,
    oblique: float = 0.0,
) -> AbdomenPhantom:
    """Scan one procedural patient.

    Args:
        seed: of the patient within the split, 0 and up.
        look: "ct", "t1", "t2" or "t2-spir".
        split: name in :data:`ABDOMEN_SPLITS`, or a population.
        size: pixels along both axes of a slice, 32 to 1024.
        slices: number of slices, 4 to 400.
        field_mm: width of a slice, 200 to 600 mm; None: drawn from the split.
        thickness_mm: distance between slices, 1 to 12 mm; None: drawn from the split.
        oblique: degrees by which the planes of the scan are turned about the L axis, and half as much about S.

    Returns:
        The scan. The same seed, split and grid give the same labels in every look.

    Raises:
        GenSegError: if an argument lies outside its range.
    """
    if look not in LOOKS:
        raise GenSegError(f"There is no look {look!r} of abdomen phantoms; the looks are {', '.join(LOOKS)}.")
    if isinstance(split, str) and split not in ABDOMEN_SPLITS:
        raise GenSegError(f"There is no split {split!r} of abdomen phantoms; they are {', '.join(ABDOMEN_SPLITS)}.")
    for what, value, low, high in (
        ("size of a slice in pixels", size, 32, 1024), ("number of slices", slices, 4, 400),
        ("width of a slice in mm", field_mm, 200, 600), ("distance between slices in mm", thickness_mm, 1, 12),
        ("angle of the planes in degrees", oblique, -45, 45),
    ):
        if value is not None and not low <= value <= high:
            raise GenSegError(f"The {what} of an abdomen phantom is {low} to {high}, not {value:g}.")
    population = ABDOMEN_SPLITS[split] if isinstance(split, str) else split
    number = population.first_seed + seed
    protocol = np.random.default_rng([4101, number])
    drawn = (float(protocol.uniform(*population.field_mm)), float(protocol.uniform(*population.thickness_mm)))
    field_mm = field_mm or drawn[0]
    thickness_mm = thickness_mm or drawn[1]
    spacing = np.array([thickness_mm, field_mm / size, field_mm / size])
    affine = _grid(size, slices, spacing, oblique, protocol)
    canvas, repeats = _canvas(affine, (slices, size, size), spacing, population, number)
    anatomy = np.random.default_rng([4102, number])
    fatness = float(anatomy.uniform(*population.fatness))
    frame = paint_frame(canvas, fatness, np.random.default_rng([4103, number]))
    paint_bowel(canvas, frame, np.random.default_rng([4104, number]))
    paint_stomach(canvas, frame, np.random.default_rng([4105, number]))
    paint_organs(canvas, frame, population.variation, np.random.default_rng([4106, number]))
    _beside(canvas, np.random.default_rng([4107, number]))
    image = render(canvas.tissue, look, repeats, spacing, np.random.default_rng([4108, LOOKS.index(look), number]))
    middle = slice(repeats // 2, None, repeats)
    name = f"abdomen-{look}-{number}"
    modality = "CT" if look == "ct" else "MR"
    parameters = {"seed": number, "look": look, "fatness": fatness, "dome_mm": frame.dome,
                  "spacing_mm": [float(spacing[2]), float(spacing[1]), float(spacing[0])]}
    return AbdomenPhantom(
        Volume(image, affine, name, {"modality": modality}),
        Volume(np.ascontiguousarray(canvas.label[middle]), affine, f"{name}-labels", {}),
        Volume(np.ascontiguousarray(canvas.tissue[middle]), affine, f"{name}-tissues", {}),
        look, parameters,
    )


def _grid(
    size: int, slices: int, spacing: np.ndarray, oblique: float, rng: np.random.Generator
) -> np.ndarray:
    """4x4 affine ijk -> LPS mm of a scan whose slices cover the liver where there are enough of them."""
    affine = np.eye(4)
    affine[:3, :3] = rotation((oblique, 0, oblique / 2)) * spacing[::-1]
    length = slices * spacing[0]
    # Long scans begin near the dome of the diaphragm; short ones hold some of the organs' middle.
    middle = rng.uniform(130, 195) - length / 2 if length > 200 else 55 + rng.uniform(-30, 30)
    center = np.array([rng.normal(0, 5), rng.normal(0, 8), middle])
    index = (np.array([size, size, slices]) - 1) / 2
    affine[:3, 3] = center - affine[:3, :3] @ index
    return affine


def _canvas(
    affine: np.ndarray, shape: tuple[int, int, int], spacing: np.ndarray, population: AbdomenSplit, number: int
) -> tuple[Canvas, int]:
    """The canvas of a patient on the scan's grid, with thick slices split in three, and into how many they are."""
    rng = np.random.default_rng([4109, number])
    repeats = 3 if spacing[0] > 3.5 else 1
    fine = np.array([spacing[0] / repeats, spacing[1], spacing[2]])
    counts = (shape[0] * repeats, shape[1], shape[2])
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(counts, fine, strict=True)]
    scale = rng.uniform(*population.size) * np.exp(rng.normal(0, 0.035, 3))
    posture = rotation(rng.normal(0, population.turn_degrees, 3))
    direction = affine[:3, :3] / spacing[::-1]
    index = (np.array(shape[::-1]) - 1) / 2
    center = affine[:3, :3] @ index + affine[:3, 3]
    # standard = diag(1 / scale) · postureᵀ · (direction · offset + center - pivot) + pivot
    pivot = np.array([0.0, 10.0, 50.0])
    linear = (posture.T @ direction) / scale[:, None]
    start = (posture.T @ (center - pivot)) / scale + pivot
    z, y, x = (axis.astype(np.float32) for axis in axes)
    warp = rng.uniform(*population.warp_mm)
    reach = np.zeros(3)
    coordinates = []
    breath = rng.normal(0, rng.uniform(0, 1.0), (shape[0], 3)) * [0.6, 0.6, 1.0]  # between slices of one scan
    for row in range(3):
        plane = (linear[row, 1] * y)[None, :, None] + (linear[row, 0] * x)[None, None, :]
        values = plane + ((linear[row, 2] * z) + start[row])[:, None, None].astype(np.float32)
        move = warp * bspline_field(axes, 90.0, rng, EXTENT_MM) + 1.6 * bspline_field(axes, 32.0, rng, EXTENT_MM)
        move += np.repeat(breath[:, row], repeats).astype(np.float32)[:, None, None]
        reach[row] = float(np.abs(move).max())
        coordinates.append((values + move).astype(np.float32))
    to_offset = np.linalg.inv(linear)
    to_index = np.zeros((3, 4))
    for row, axis in enumerate((2, 1, 0)):  # k, j, i from z, y, x
        to_index[row, :3] = to_offset[axis] / fine[row]
        to_index[row, 3] = (counts[row] - 1) / 2 - to_offset[axis] @ start / fine[row]
    moved = np.abs(to_index[:, :3]) @ reach
    lumps = [bspline_field(axes, step, rng, EXTENT_MM) for step in (70.0, 45.0, 30.0, 20.0, 14.0, 25.0)]
    return Canvas(coordinates[0], coordinates[1], coordinates[2], to_index, moved, lumps), repeats


def _beside(canvas: Canvas, rng: np.random.Generator) -> None:
    """Arms at the side of some patients."""
    for side in (-1, 1):
        present, place = rng.random() < 0.12, (side * rng.uniform(192, 215), rng.uniform(0, 40))
        if not present:
            continue
        line = np.array([(*place, -200), (place[0], place[1] + 10, 240)])
        window, distance = canvas.tube(line, np.full(2, 42.0))
        free = allowed_in(canvas, window, Tissue.AIR)
        for depth, tissue in ((0, Tissue.SKIN), (2, Tissue.FAT_UNDER_SKIN), (10, Tissue.MUSCLE),
                              (32, Tissue.CORTICAL_BONE), (36, Tissue.MARROW)):
            canvas.paint(window, free & (distance < -depth), tissue)
