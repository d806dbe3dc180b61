"""What the organ benchmarks measure: overlap and borders per organ, flicker from slice to slice, and the confidence."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from ..anatomy import ORGANS
from ..volume import Volume
from .metrics import auroc, bootstrap_interval, dice, surface_distances

Row = dict[str, Any]
FOUR = ("spleen", "right_kidney", "left_kidney", "liver")
"""The organs of [D] and of CHAOS, by which methods are compared."""
NEAR_MM = 10.0
"""The confidence is judged among voxels that lie this near to the predicted borders."""


def organ_rows(predicted: Volume, truth: Volume, organs: Sequence[str], **about: Any) -> list[Row]:
    """One row per organ: ``about``, ``organ``, ``dice`` in [0, 1] and ``hausdorff95_mm`` (None where one is empty).

    Args:
        predicted, truth: numbers of ORGANS, on one grid.
        organs: names.
        about: what the rows start with (method, case).
    """
    rows = []
    for name in organs:
        masks = [labels.voxels == ORGANS[name].label for labels in (predicted, truth)]
        distances = surface_distances(masks[0], masks[1], truth.spacing)
        rows.append({**about, "organ": name, "dice": round(dice(*masks), 4),
                     "hausdorff95_mm": None if distances is None else round(distances.percentile95, 2)})
    return rows


def mean_rows(rows: Sequence[Row], by: Sequence[str] = ("method",)) -> list[Row]:
    """Means over cases and seeds, per organ and over all organs (``all``).

    The interval is a bootstrap over cases: the organs and seeds of one case are no independent samples.
    """
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in by)
        for organ in (row["organ"], "all"):
            groups.setdefault((*key, organ), []).append(row)
    means = []
    for key, members in groups.items():
        of_case: dict[str, list[float]] = {}
        for row in members:
            of_case.setdefault(row["case"], []).append(row["dice"])
        distances = [row["hausdorff95_mm"] for row in members if row["hausdorff95_mm"] is not None]
        means.append({
            **dict(zip((*by, "organ"), key, strict=True)),
            "dice": float(np.mean([row["dice"] for row in members])),
            "dice_ci": list(bootstrap_interval([float(np.mean(values)) for values in of_case.values()])),
            "hausdorff95_mm": float(np.mean(distances)) if distances else None,
            "not_measured": len(members) - len(distances),
            "cases": len(of_case),
        })
    order = {name: number for number, name in enumerate(("all", *ORGANS))}
    return sorted(means, key=lambda row: ([str(row[name]) for name in by], order[row["organ"]]))


def flicker(labels: Volume, organ: str) -> float | None:
    """Mean Dice of an organ's masks in neighbouring axial slices, over pairs that show it at all; None without."""
    axis = 2 - int(np.abs(labels.affine[2, :3]).argmax())  # the array axis that runs most along S
    masks = np.moveaxis(labels.voxels == ORGANS[organ].label, axis, 0)
    pairs = [dice(a, b) for a, b in itertools.pairwise(masks) if a.any() or b.any()]
    return float(np.mean(pairs)) if pairs else None


def flicker_row(predicted: Volume, truth: Volume, organs: Sequence[str], **about: Any) -> Row:
    """Mean flicker over the organs that both show, and how far it is from the truth's."""
    both = [(flicker(predicted, name), flicker(truth, name)) for name in organs]
    known = np.array([pair for pair in both if None not in pair], float)
    found, true = known.mean(0).tolist() if len(known) else (None, None)
    return {**about, "neighbour_dice": found, "neighbour_dice_truth": true,
            "difference": None if found is None else abs(found - true)}


def confidence_row(
    predicted: Volume, truth: Volume, confidence: Volume, organs: Sequence[str], **about: Any
) -> Row:
    """How well confidence, and distance to the border, rank the wrong voxels near the predicted borders.

    Both as the area under the ROC curve in [0, 1]: 0.5 is chance. None where no voxel near a border is wrong.
    """
    numbers = [ORGANS[name].label for name in organs]
    labels = [np.where(np.isin(volume.voxels, numbers), volume.voxels, 0) for volume in (predicted, truth)]
    sampling = tuple(predicted.spacing[::-1])
    distance = np.full(predicted.shape, np.inf, np.float32)
    for number in np.unique(labels[0][labels[0] > 0]):
        inside = labels[0] == number
        border = (ndimage.distance_transform_edt(inside, sampling)
                  + ndimage.distance_transform_edt(~inside, sampling))
        np.minimum(distance, border, out=distance)
    near = distance <= NEAR_MM
    wrong = (labels[0] != labels[1])[near]
    by_confidence, by_distance = auroc(-confidence.voxels[near], wrong), auroc(-distance[near], wrong)
    return {**about, "auroc_confidence": by_confidence, "auroc_distance": by_distance,
            "difference": None if by_confidence is None or by_distance is None else by_confidence - by_distance,
            "voxels": int(near.sum()), "wrong_percent": 100 * float(wrong.mean()) if wrong.size else None}


def means_of(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], by: Sequence[str]) -> list[Row]:
    """Means of number columns over rows that share ``by``; rows without a number are passed over."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in by), []).append(row)
    means = []
    for key, members in groups.items():
        known = {name: [row[name] for row in members if row[name] is not None] for name in columns}
        means.append({**dict(zip(by, key, strict=True)),
                      **{name: float(np.mean(values)) if values else None for name, values in known.items()},
                      "cases": len(members)})
    return means
