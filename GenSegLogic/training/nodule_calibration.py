"""Calibration of a trained predictor: the shift of its logits at which a nodule and none are equally likely.

Training weights the crops with a nodule, and the two families answer on scales of their own; what the task asks for, a
probability, must mean the same for both. The cases are places of the validation split, half a cube round nodules and
round places of lungs without any, and all that is read of the truth is the bit "there is a nodule".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..evaluation.cases import Case, clean_cases, nodule_case
from ..networks.predictors import NodulePredictor
from ..nodules.fields import COARSE_MM, LOOK_VOXELS, look_at_click
from ..progress import Progress
from .data import WINDOW_HU

NODULES = 56
CLEAN_PATIENTS = 24
"""Two places of each: anywhere in the lung, and on a vessel."""
HALF_MM = LOOK_VOXELS * COARSE_MM / 2 + 8.0
"""Half the edge of the boxes that are drawn: the larger look's cube, and the click's distance from the centre."""


def calibration_cases(nodules: int, patients: int, progress: Progress) -> list[Case]:
    """``nodules`` places with a nodule and two without in each of ``patients``, of the validation split."""
    cases = []
    for number in range(nodules):
        progress(number / (nodules + patients), "Drawing nodules to calibrate with")
        cases.append(nodule_case("validation", number, HALF_MM))
    for number in range(patients):
        progress((nodules + number) / (nodules + patients), "Drawing clean places to calibrate with")
        cases += [case for _, case in clean_cases("validation", number, HALF_MM)]
    return cases


def calibrate(network: NodulePredictor, cases: Sequence[Case]) -> dict[str, Any]:
    """Shift the bias of ``network``'s classifier, in place, and say by how much and how the cases lie after it.

    A shift of the whole map is one of its logsumexp, so that it needs no number beside the weights.

    Returns:
        ``split``, ``nodules``, ``clean_places``, ``shift`` (in logits), ``nodules_seen`` and ``places_left_empty``:
        the shares of both on the right side of even odds.
    """
    # In the precision that tasks run in on most machines; in full precision the logits differ by little.
    with torch.autocast("cpu", torch.bfloat16):
        logits = np.array([look_at_click(case.image, case.seed_point, network, WINDOW_HU).logit for case in cases])
    has_nodule = np.array([bool(case.kind) for case in cases])
    shift = balanced_shift(logits[has_nodule], logits[~has_nodule])
    bias = network.classifier.bias
    assert bias is not None  # every classifier of ours has one
    with torch.no_grad():
        bias += shift
    return {
        "split": "validation",
        "nodules": int(has_nodule.sum()),
        "clean_places": int((~has_nodule).sum()),
        "shift": round(shift, 3),
        "nodules_seen": round(float((logits[has_nodule] + shift > 0).mean()), 3),
        "places_left_empty": round(float((logits[~has_nodule] + shift <= 0).mean()), 3),
    }


def balanced_shift(positive: np.ndarray, negative: np.ndarray) -> float:
    """What to add to logits, so that both kinds, weighted equally, have the least mean cross-entropy.

    There the probability that is missing from the one kind equals what the other has too much; it falls with the shift.
    """
    low, high = -50.0, 50.0
    for _ in range(60):
        shift = (low + high) / 2
        missing = (1 / (1 + np.exp(positive + shift))).mean() - (1 / (1 + np.exp(-negative - shift))).mean()
        low, high = (shift, high) if missing > 0 else (low, shift)
    return (low + high) / 2
