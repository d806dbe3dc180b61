"""Training, validation and test phantoms: disjoint seeds and shifted ranges of the generator's parameters."""

from __future__ import annotations

from dataclasses import dataclass

from .chest import ChestOptions


@dataclass(frozen=True)
class Split:
    """A population of chest phantoms.

    Attributes:
        first_seed: seeds count up from here; splits lie far apart.
        options: what the phantoms contain.
        thickness_mm: range of slice thickness.
    """

    first_seed: int
    options: ChestOptions
    thickness_mm: tuple[float, float] = (0.7, 5.0)


SPLITS: dict[str, Split] = {
    "train": Split(0, ChestOptions(nodules=(12, 18), lung_hu=(-890.0, -780.0))),
    # As training, other patients: for the curves of the recipes.
    "held-out": Split(500_000, ChestOptions(nodules=(12, 18), lung_hu=(-890.0, -780.0))),
    "validation": Split(1_000_000, ChestOptions(lung_hu=(-900.0, -800.0)), (0.8, 3.0)),
    # Test patients reach beyond what training saw: denser and lighter lungs, more clutter.
    "test": Split(2_000_000, ChestOptions(lung_hu=(-910.0, -760.0), clutter=4), (0.7, 3.0)),
}


def first_phantom(seed: int) -> int:
    """Number of the first phantom of a training seed: no seed reaches into the next split, 500 000 further on."""
    return seed % 40 * 10_000
