"""From the records of cases to the rows that are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .cases import KINDS
from .methods import ATTRIBUTIONS, TASK
from .metrics import FROC_RATES, Mark, bootstrap_interval, froc, operating_point

Row = dict[str, Any]
SIZES: dict[str, Callable[[float], bool]] = {
    "4-8 mm": lambda diameter: diameter < 8,
    ">= 8 mm": lambda diameter: diameter >= 8,
}
DETECTED_FROM_MM = 6.0
SCAN_RATE = 1.0
"""False positives per scan at which the sensitivity is read."""


def subsets(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Records with ``diameter_mm`` and ``kind``: all, by size, by kind; empty ones left out."""
    parts = {"all": list(records)}
    parts |= {name: [r for r in records if fits(r["diameter_mm"])] for name, fits in SIZES.items()}
    parts |= {kind: [r for r in records if r["kind"] == kind] for kind in KINDS}
    return {name: part for name, part in parts.items() if part}


def segmentation_rows(predictor: str, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per subset and method: mean Dice with its 95 % interval, mean distances where something was segmented.

    Args:
        predictor: its name.
        records: one per nodule: ``diameter_mm``, ``kind``, ``methods`` (name -> figures of
            :func:`~GenSegLogic.evaluation.methods.measure`).
    """
    rows = []
    for subset, part in subsets(records).items():
        for method in part[0]["methods"]:
            figures = [record["methods"][method] for record in part]
            values = [f["dice"] for f in figures]
            rows.append(
                {
                    "method": method,
                    "predictor": predictor,
                    "subset": subset,
                    "dice": float(np.mean(values)),
                    "dice_ci": list(bootstrap_interval(values)),
                    "surface_distance_mm": _mean_of_known(figures, "surface_distance_mm"),
                    "hausdorff95_mm": _mean_of_known(figures, "hausdorff95_mm"),
                    "nothing_found": sum(f["surface_distance_mm"] is None for f in figures),
                    "n": len(part),
                }
            )
    return rows


def _mean_of_known(figures: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [f[name] for f in figures if f[name] is not None]
    return float(np.mean(known)) if known else None


def paired_rows(predictor: str, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Guided against the attribution method that is best on these very nodules, and against unguided, by subset."""
    rows = []
    for subset, part in subsets(records).items():
        scores = {name: np.array([r["methods"][name]["dice"] for r in part]) for name in part[0]["methods"]}
        best = max(ATTRIBUTIONS, key=lambda name: scores[name].mean())
        difference = scores["guided"] - scores[best]
        unguided = float(scores["unguided"].mean())
        rows.append(
            {
                "predictor": predictor,
                "subset": subset,
                "best_attribution": best,
                "guided_minus_best": float(difference.mean()),
                "guided_minus_best_ci": list(bootstrap_interval(difference)),
                "guided_to_unguided": float(scores["guided"].mean()) / unguided if unguided > 0 else None,
                "n": len(part),
            }
        )
    return rows


def clean_rows(predictor: str, records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Scans without a nodule and those among them without a false voxel, at all places looked at and at each kind.

    Args:
        predictor: its name.
        records: one per scan: ``places``, kind of place -> false voxels of the guided method.
    """
    rows = []
    for place in ("any", *records[0]["places"]):
        counts = [sum(n for name, n in record["places"].items() if place in ("any", name)) for record in records]
        rows.append(
            {
                "method": "guided",
                "predictor": predictor,
                "place": place,
                "scans_without_false_voxel": sum(count == 0 for count in counts),
                "false_voxels_per_scan": float(np.mean(counts)),
                "n": len(counts),
            }
        )
    return rows


def detection(predictor: str, records: Sequence[Mapping[str, Any]]) -> Row:
    """Sensitivity at one false positive per scan, for nodules of 6 mm and more; hits on smaller ones do not count.

    Besides, what a search with the task's own ``probability`` finds (``default_...``).

    Args:
        predictor: its name.
        records: one per scan: ``diameters_mm`` of its nodules, ``marks`` by predictor: (probability, nodule) of its
            candidates, with nodule numbers from 1, 0 for none, negative for findings that do not count.
    """
    scans, wanted, empty = [], 0, 0
    for record in records:
        diameters = record["diameters_mm"]
        wanted += sum(diameter >= DETECTED_FROM_MM for diameter in diameters)
        marks = []
        for probability, nodule in record["marks"][predictor]:
            small = nodule > 0 and diameters[nodule - 1] < DETECTED_FROM_MM
            marks.append(Mark(probability, -1 if small else nodule))
        scans.append(marks)
        empty += not diameters and all(mark.probability < TASK.probability for mark in marks)
    curve = froc(scans, wanted)
    false_positives, sensitivity, probability = operating_point(curve, SCAN_RATE)
    # Along the curve both only rise as the probability falls.
    default = max((point[:2] for point in curve if point[2] >= TASK.probability), default=(0.0, 0.0))
    return {
        "predictor": predictor,
        "sensitivity": sensitivity,
        "false_positives_per_scan": false_positives,
        "probability": probability,
        "default_probability": TASK.probability,
        "default_sensitivity": default[1],
        "default_false_positives_per_scan": default[0],
        "froc": [[rate, operating_point(curve, rate)[1]] for rate in FROC_RATES],
        "nodules": wanted,
        "nodules_of_all_sizes": sum(len(record["diameters_mm"]) for record in records),
        "scans": len(records),
        "clean_scans": sum(not record["diameters_mm"] for record in records),
        "clean_scans_left_empty": empty,
    }


def chosen_rows(predictor: str, chosen: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """What the validation split chose, one row a method."""
    return [
        {
            "method": method,
            "predictor": predictor,
            "threshold": choice["threshold"],
            **{name: choice["setting"].get(name) for name in ("layer", "baseline", "smoothing_voxels")},
        }
        for method, choice in chosen.items()
    ]
