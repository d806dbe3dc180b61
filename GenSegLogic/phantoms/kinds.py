"""The phantoms of ``genseg phantom``: whole scans with their truth, as volumes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import GenSegError
from ..results import Code, Segment, Segmentation
from ..volume import Volume
from .chest import ChestOptions, make_chest, make_scan
from .primitives import Axes, Scanner

FIRST_SEED = 3_000_000
"""Apart from the seeds of all SPLITS: no phantom that is drawn here has been trained on."""
PIXEL_MM = 0.8
MOST_NODULES = 30
COLORS = ((0.90, 0.25, 0.20), (0.95, 0.65, 0.10), (0.20, 0.60, 0.90), (0.55, 0.30, 0.80), (0.15, 0.70, 0.45))
MORPHOLOGIC = Code("SCT", "49755003", "Morphologically Altered Structure")
NODULE = Code("SCT", "27925004", "Nodule")
LUNG = Code("SCT", "39607008", "Lung")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`chest` for ``genseg phantom chest``."""
    parser.add_argument("--nodules", type=int, metavar="N", help="number of nodules (default: 1 to 3, by the seed)")
    parser.add_argument("--thickness", type=float, default=1.5, metavar="MM", help="slice thickness (default 1.5)")
    parser.add_argument(
        "--oblique", type=float, default=0.0, metavar="DEGREES", help="turn the patient on the table (default 0)"
    )


def chest(
    seed: int, nodules: int | None = None, thickness: float = 1.5, oblique: float = 0.0
) -> dict[str, Volume | Segmentation | list[dict[str, Any]]]:
    """A chest CT on a scanner with 0.8 mm pixels.

    Args:
        seed: of the patient, the texture and the noise.
        nodules: how many to place, 0 to 30; None: 1 to 3, drawn from the seed. Where no room is left, fewer are placed.
        thickness: of the slices and between them, 0.5 to 10 mm.
        oblique: degrees by which the patient is turned about the S axis, and half as much about L.

    Returns:
        ``chest`` (int16 HU), ``lungs`` (uint8 mask), ``nodules`` (the truth, one segment each), and the truth's table
        ``truth``: per nodule ``nodule``, ``kind``, ``center_l_mm``, ``center_p_mm``, ``center_s_mm``, ``diameter_mm``.

    Raises:
        GenSegError: if an option lies outside its range.
    """
    if nodules is not None and not 0 <= nodules <= MOST_NODULES:
        raise GenSegError(f"A chest phantom takes 0 to {MOST_NODULES} nodules, not {nodules}.")
    if not 0.5 <= thickness <= 10:
        raise GenSegError(f"The slice thickness of a phantom is 0.5 to 10 mm, not {thickness:g}.")
    if not -90 <= oblique <= 90:
        raise GenSegError(f"A phantom is turned by -90 to 90 degrees, not {oblique:g}.")
    options = ChestOptions() if nodules is None else replace(ChestOptions(), nodules=(nodules, nodules))
    patient = make_chest(FIRST_SEED + seed, options)
    scanner = Scanner(spacing_mm=PIXEL_MM, thickness_mm=thickness)
    image, lungs, labels, axes = make_scan(patient, FIRST_SEED + seed, scanner)
    turn = _turn(oblique)
    scan = Volume(np.round(image).astype(np.int16), turn @ affine_of(axes), "chest", {"modality": "CT"})
    rows, segments = [], []
    for number, nodule in enumerate(patient.nodules, start=1):
        center = turn[:3, :3] @ nodule.center
        name, color = f"{nodule.kind.capitalize()} {number}", COLORS[(number - 1) % len(COLORS)]
        segments.append(Segment(number, name, color, MORPHOLOGIC, NODULE, LUNG))
        rows.append(
            {
                "nodule": number,
                "kind": nodule.kind,
                "center_l_mm": round(float(center[0]), 2),
                "center_p_mm": round(float(center[1]), 2),
                "center_s_mm": round(float(center[2]), 2),
                "diameter_mm": round(nodule.diameter_mm, 2),
            }
        )
    return {
        "chest": scan,
        "lungs": scan.with_voxels(lungs, "lungs"),
        "nodules": Segmentation(scan.with_voxels(labels, "nodules"), tuple(segments)),
        "truth": rows,
    }


def affine_of(axes: Axes) -> np.ndarray:
    """4x4 affine, ijk -> LPS mm, of an axis-aligned grid (z, y, x)."""
    affine = np.eye(4)
    for column, axis in enumerate(reversed(axes)):
        affine[column, column] = (axis[-1] - axis[0]) / (len(axis) - 1)
        affine[column, 3] = axis[0]
    return affine


def _turn(degrees: float) -> np.ndarray:
    """4x4 rotation about the middle of the chest."""
    from scipy.spatial.transform import Rotation

    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zx", (degrees, degrees / 2), degrees=True).as_matrix()
    return turn
