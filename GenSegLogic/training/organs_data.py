"""Abdomen phantoms for the organ recipes, drawn once onto the canonical grid."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..anatomy import ORGANS
from ..organs.diffusam.canonical import CT_WINDOW_HU, CanonicalGrid
from ..organs.diffusam.learning import LabelledScan
from ..phantoms.abdomen import ABDOMEN_SPLITS, AbdomenSplit, abdomen_phantom
from ..phantoms.abdomen_looks import LOOKS
from ..phantoms.abdomen_organs import Variation
from ..progress import Progress

GRIDS = {look: CanonicalGrid(window_hu=CT_WINDOW_HU if look == "ct" else None) for look in LOOKS}


WITHOUT_ORGANS = replace(ABDOMEN_SPLITS["train"],
                         variation=Variation(no_gallbladder=0.2, no_kidney=0.15, no_spleen=0.4))
"""Patients of whom many have lost an organ. A prior that has seen few of them finds a little spleen in whatever took
its place."""


def draw_cases(folder: Path, count: int, first_seed: int, split: str | AbdomenSplit, minutes: float,
               progress: Progress) -> list[Path]:
    """Draw phantoms in every look onto the canonical grid, a file each; those that are there already stay.

    Stops when ``minutes`` are over, but not before 2 cases are there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    files = []
    for number in range(count):
        if number >= 2 and (time.monotonic() - began) / 60 > minutes:
            break
        file = folder / f"case_{first_seed + number}.npz"
        files.append(file)
        progress(number / count, f"phantom {number + 1} of {count}")
        if file.exists():
            continue
        first = abdomen_phantom(first_seed + number, LOOKS[0], split)
        grid = GRIDS[LOOKS[0]]
        arrays: dict[str, Any] = {"labels": grid.apply_labels(first.labels, first.image),
                                  "tissues": grid.apply_labels(first.tissues, first.image)}
        for look in LOOKS:
            image = abdomen_phantom(first_seed + number, look, split).image
            arrays[look] = np.round(255 * GRIDS[look].apply(image, first.image).voxels).astype(np.uint8)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **arrays)
        partial.replace(file)
    return files


def load_scans(files: Sequence[Path], looks: Sequence[str]) -> list[LabelledScan]:
    """Read some looks of what :func:`draw_cases` wrote; all organs are known."""
    scans = []
    for file in files:
        with np.load(file) as arrays:
            labels = arrays["labels"]
            known = np.ones((len(labels), len(ORGANS)), np.uint8)
            scans.append(LabelledScan(tuple(arrays[look] for look in looks), labels, known, arrays["tissues"]))
    return scans
