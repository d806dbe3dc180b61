"""Calibration of predictors: the shift at which both kinds of places are equally likely."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from GenSegLogic.evaluation.cases import Case
from GenSegLogic.networks import build
from GenSegLogic.nodules.fields import look_at_click, sigmoid
from GenSegLogic.progress import silent
from GenSegLogic.training import nodule_calibration
from GenSegLogic.training.data import WINDOW_HU
from GenSegLogic.volume import Volume


def test_the_balanced_shift_weights_both_kinds_alike() -> None:
    rng = np.random.default_rng(0)
    for offset in (-4.0, 3.0):
        # The log likelihood ratio of two Gaussians needs no shift, however many there are of each.
        positive = 2 * rng.normal(1, 1, 20_000) - offset
        negative = 2 * rng.normal(-1, 1, 4_000) - offset
        assert nodule_calibration.balanced_shift(positive, negative) == pytest.approx(offset, abs=0.1)


def test_calibration_moves_the_predictor_to_even_odds() -> None:
    dark = Volume(np.full((40, 40, 40), -850, np.int16), np.diag([1.0, 1, 1, 1]))
    bright = dark.with_voxels(dark.voxels.copy())
    bright.voxels[17:23, 17:23, 17:23] = 50
    cases = [Case(image, None, image.voxels > 0, np.full(3, 19.5), 0, kind, 6.0)
             for image, kind in ((dark, ""), (dark, ""), (bright, "solid"))]
    torch.manual_seed(0)
    network = build("predictor-cnn", {"channels": [8, 8, 8]})
    network.classifier.weight.data *= 30  # random weights say hardly anything
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = [look_at_click(case.image, case.seed_point, network, WINDOW_HU).logit for case in cases]
        assert before[2] > before[0] + 0.1
        figures = nodule_calibration.calibrate(network, cases)
        after = [look_at_click(case.image, case.seed_point, network, WINDOW_HU).logit for case in cases]
    assert figures["shift"] == pytest.approx(after[0] - before[0], abs=0.05)
    assert after[0] < 0 < after[2]
    assert sigmoid(after[0]) == pytest.approx(1 - sigmoid(after[2]), abs=0.05)
    assert (figures["nodules"], figures["clean_places"]) == (1, 2)
    assert (figures["nodules_seen"], figures["places_left_empty"]) == (1.0, 1.0)


def test_calibration_reads_places_of_the_validation_split_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(nodule_calibration, "nodule_case", lambda *words: asked.append(words) or "nodule")
    monkeypatch.setattr(nodule_calibration, "clean_cases",
                        lambda *words: asked.append(words) or [("lung", "clean"), ("vessel", "clean")])
    cases = nodule_calibration.calibration_cases(3, 2, silent)
    assert cases == ["nodule"] * 3 + ["clean"] * 4
    assert {split for split, _, _ in asked} == {"validation"} and [number for _, number, _ in asked] == [0, 1, 2, 0, 1]
