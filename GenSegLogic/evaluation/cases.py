"""Cases of the phantom benchmark: a nodule in its surroundings, places without any, whole scans.

Every case follows from its split and number alone, so that a run can be resumed and spread over processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..phantoms.chest import Chest, make_chest, make_scan
from ..phantoms.kinds import affine_of
from ..phantoms.nodules import NODULE_KINDS
from ..phantoms.primitives import Axes, Scanner
from ..phantoms.splits import SPLITS
from ..volume import Volume

KINDS = tuple(NODULE_KINDS)
DIAMETERS_MM = (4.0, 30.0)
GOLDEN_RATIO = 0.6180339887498949
"""Multiples of it, modulo 1, cover [0, 1] evenly from the first few on."""
SEED_JITTER_MM = 3.0
SLICES_ACROSS = 2.0
"""Nodules under so many slices across count for detection only."""
SEEDS_PER_CASE = 16
BLOCKS = {"segmentation": 0, "clean": 200_000, "detection": 400_000}
"""Where the seeds of each part of the benchmark begin within a split; they never meet."""
SCAN_PIXEL_MM = 0.8
SCAN_SLICES_MM = (1.0, 2.5)


@dataclass(frozen=True)
class Case:
    """A spot in a scan, and the truth there.

    Attributes:
        image: CT in HU, with enough surroundings for a field.
        lungs: uint8 mask on the same grid, for the baseline images of attribution methods; None: everywhere.
        truth: boolean (K, J, I); empty where there is no nodule.
        seed_point: (3,) LPS mm, where a reader clicked.
        seed: of the noise of the generative methods.
        kind: of the nodule ("" without one).
        diameter_mm: of the nodule (0 without one).
    """

    image: Volume
    lungs: Volume | None
    truth: np.ndarray
    seed_point: np.ndarray
    seed: int
    kind: str
    diameter_mm: float


def on_axes(axes: Axes, voxels: np.ndarray, name: str) -> Volume:
    """A volume on a phantom's grid."""
    return Volume(voxels, affine_of(axes), name)


def nodule_case(split: str, number: int, half_mm: float) -> Case:
    """Case ``number`` of a split: kinds in turn, diameters evenly log-uniform, a box of ``half_mm`` round the nodule.

    The patient, the protocol (slices of half the diameter at most) and the click (3 mm off the centre at most) are
    drawn.
    """
    low, high = DIAMETERS_MM
    diameter = low * (high / low) ** ((0.5 + number * GOLDEN_RATIO) % 1)
    population = SPLITS[split]
    options = replace(
        population.options, nodules=(1, 1), kinds=(KINDS[number % len(KINDS)],), diameter_mm=(diameter, diameter)
    )
    first = population.first_seed + BLOCKS["segmentation"] + number * SEEDS_PER_CASE
    # A large nodule does not find a place in every patient.
    seed, chest = next(
        (seed, chest)
        for seed in range(first, first + SEEDS_PER_CASE)
        if (chest := make_chest(seed, options)).nodules
    )
    (nodule,) = chest.nodules
    rng = np.random.default_rng([51, seed])
    thin, thick = population.thickness_mm
    scanner = Scanner.random(rng, (thin, min(thick, diameter / SLICES_ACROSS)))
    box = (nodule.center - half_mm, nodule.center + half_mm)
    image, lungs, labels, axes = make_scan(chest, seed, scanner, box)
    click = nodule.center + SEED_JITTER_MM * in_unit_ball(rng)
    volume = on_axes(axes, image, f"{split} {number}")
    return Case(volume, volume.with_voxels(lungs), labels > 0, click, seed, nodule.kind, diameter)


def clean_cases(split: str, number: int, half_mm: float) -> Iterator[tuple[str, Case]]:
    """Patient ``number`` without nodules: a random spot in the lung, then one on a vessel."""
    population = SPLITS[split]
    seed = population.first_seed + BLOCKS["clean"] + number
    chest = make_chest(seed, replace(population.options, nodules=(0, 0)))
    rng = np.random.default_rng([52, seed])
    scanner = Scanner.random(rng, population.thickness_mm)
    for place, point in (("lung", chest.random_lung_points(1, rng)[0]), ("vessel", _vessel_point(chest, rng))):
        image, lungs, labels, axes = make_scan(chest, seed, scanner, (point - half_mm, point + half_mm))
        volume = on_axes(axes, image, f"{split} {number} {place}")
        yield place, Case(volume, volume.with_voxels(lungs), labels > 0, point, seed, "", 0.0)


@dataclass(frozen=True)
class Scan:
    """A whole scan with the labelmap of its nodules, 1 for the first, and their diameters in mm and kinds."""

    image: Volume
    labels: np.ndarray
    diameters_mm: tuple[float, ...]
    kinds: tuple[str, ...]


def whole_scan(split: str, number: int, nodules: tuple[int, int]) -> Scan:
    """Patient ``number`` from apex to base, with a number of nodules in the range ``nodules``."""
    population = SPLITS[split]
    seed = population.first_seed + BLOCKS["detection"] + number
    chest = make_chest(seed, replace(population.options, nodules=nodules, diameter_mm=DIAMETERS_MM))
    scanner = Scanner.random(np.random.default_rng([53, seed]), SCAN_SLICES_MM)
    scanner = replace(scanner, spacing_mm=SCAN_PIXEL_MM)
    image, _, labels, axes = make_scan(chest, seed, scanner)
    return Scan(
        on_axes(axes, np.round(image).astype(np.int16), f"{split} scan {number}"),
        labels,
        tuple(nodule.diameter_mm for nodule in chest.nodules),
        tuple(nodule.kind for nodule in chest.nodules),
    )


def in_unit_ball(rng: np.random.Generator) -> np.ndarray:
    """A point drawn uniformly from the ball of radius 1."""
    direction = rng.standard_normal(3)
    return direction / np.linalg.norm(direction) * rng.random() ** (1 / 3)


def _vessel_point(chest: Chest, rng: np.random.Generator) -> np.ndarray:
    """A joint of the vessel tree, 1 to 4 mm thick in radius, inside the lung: where vessels look most like nodules."""
    points, radii = chest.tree_points[:, :3], chest.tree_points[:, 3]
    thick = points[(radii > 1.0) & (radii < 4.0)]
    inside = thick[chest.lung_distance(thick) < -3.0]
    return inside[rng.integers(len(inside))]
