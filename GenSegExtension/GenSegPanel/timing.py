"""How long a job will take, from how long the last one took on this computer."""

from __future__ import annotations

import slicer

# Seconds before anything was measured here: what the shipped bundles take on a laptop's CPU.
_FIRST_GUESS = {"start": 12.0, "per_million_voxels": 1.0, "per_step": 2.0}


def expected_seconds(task: str, steps: int, million_voxels: float, device: str) -> float:
    """Estimate for a job.

    Args:
        task: its name.
        steps: sampler steps in all, over all regions, as far as is known.
        million_voxels: size of the scan.
        device: as the user chose it.
    """
    guess = (_FIRST_GUESS["start"] + _FIRST_GUESS["per_million_voxels"] * million_voxels
             + _FIRST_GUESS["per_step"] * steps)
    return guess * slicer.util.settingsValue(_key(task, device), 1.0, float)


def remember(task: str, steps: int, million_voxels: float, device: str, seconds: float) -> None:
    """Correct later estimates by how long a job took, half and half with what was known."""
    import qt

    ratio = seconds / expected_seconds(task, steps, million_voxels, device)
    factor = slicer.util.settingsValue(_key(task, device), 1.0, float)
    qt.QSettings().setValue(_key(task, device), min(max(factor * (1.0 + ratio) / 2.0, 0.01), 100.0))


def _key(task: str, device: str) -> str:
    return f"GenSeg/{task}/{device}/SecondsFactor"
