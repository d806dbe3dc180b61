"""The abdomen phantoms of ``genseg phantom``: whole scans with the truth of all organs, as volumes."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from ..results import Segmentation
from ..volume import Volume
from .abdomen import AbdomenSplit, abdomen_phantom
from .abdomen_tissues import LABEL, ORGANS

POPULATION = AbdomenSplit(3_000_000)
"""Apart from the seeds of all ABDOMEN_SPLITS: no phantom that is drawn here has been trained on."""

Parts = dict[str, Volume | Segmentation | list[dict[str, Any]]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of all kinds of this module."""
    parser.add_argument("--slices", type=int, default=40, metavar="N", help="number of slices (default 40)")
    parser.add_argument("--thickness", type=float, default=6.0, metavar="MM", help="slice thickness (default 6)")
    parser.add_argument(
        "--oblique", type=float, default=0.0, metavar="DEGREES", help="turn the planes of the scan (default 0)"
    )


def ct(seed: int, slices: int = 40, thickness: float = 6.0, oblique: float = 0.0) -> Parts:
    """An abdominal CT; its phase of contrast varies with the seed. See :func:`scan`."""
    return scan(seed, "ct", slices, thickness, oblique)


def mr(seed: int, slices: int = 40, thickness: float = 6.0, oblique: float = 0.0) -> Parts:
    """An abdominal T2-weighted MR with the fat suppressed (as T2-SPIR). See :func:`scan`."""
    return scan(seed, "t2-spir", slices, thickness, oblique)


def mr_t1(seed: int, slices: int = 40, thickness: float = 6.0, oblique: float = 0.0) -> Parts:
    """An abdominal T1-weighted MR. See :func:`scan`."""
    return scan(seed, "t1", slices, thickness, oblique)


def mr_t2(seed: int, slices: int = 40, thickness: float = 6.0, oblique: float = 0.0) -> Parts:
    """An abdominal T2-weighted MR with bright fat. See :func:`scan`."""
    return scan(seed, "t2", slices, thickness, oblique)


def scan(seed: int, look: str, slices: int, thickness: float, oblique: float) -> Parts:
    """A scan of one patient; the same seed is the same patient in every look.

    Args:
        seed: of the patient, the grey values and the noise.
        look: of :func:`~.abdomen.abdomen_phantom`.
        slices: 4 to 400.
        thickness: of the slices and between them, 1 to 12 mm.
        oblique: degrees by which the planes are turned about the L axis, and half as much about S, -45 to 45.

    Returns:
        ``abdomen`` (256 x 256 pixels, float32), ``organs`` (the truth, one segment for each of ORGANS, empty ones
        included), and the truth's table ``truth``: ``organ``, ``volume_ml``.

    Raises:
        GenSegError: if an option lies outside its range.
    """
    phantom = abdomen_phantom(seed, look, POPULATION, 256, slices, None, thickness, oblique)
    labels = phantom.labels
    voxel_ml = abs(float(np.linalg.det(labels.affine[:3, :3]))) / 1000
    rows = [
        {"organ": name, "volume_ml": round(int((labels.voxels == LABEL[name]).sum()) * voxel_ml, 2)} for name in ORGANS
    ]
    segments = tuple(organ.segment() for organ in ORGANS.values())
    return {
        "abdomen": phantom.image.with_voxels(phantom.image.voxels, "abdomen"),
        "organs": Segmentation(labels.with_voxels(labels.voxels, "organs"), segments),
        "truth": rows,
    }
