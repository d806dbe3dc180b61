"""Where a nodule's outline lies, and at which spacing it is painted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from GenSegLogic import Volume
from GenSegLogic.evaluation.cases import nodule_case
from GenSegLogic.evaluation.jobs import ModelNames, autocast, load_models
from GenSegLogic.evaluation.methods import TASK, Situation, as_the_task
from GenSegLogic.evaluation.metrics import dice
from GenSegLogic.nodules.region import paint_at_click
from GenSegLogic.nodules.residual import combine
from GenSegLogic.nodules.segments import Finding, nodules_from_residual

SPACING_KJI = np.array([1.25, 0.8, 0.8])
BLUR_MM = 0.7
EDGE_MM = 32.0


def blurred_balls(*balls: tuple[float, float]) -> Volume:
    """Residual of concentric balls of a radius in mm and HU each, the last on top, blurred as scans are."""
    shape = np.round(EDGE_MM / SPACING_KJI).astype(int)
    distance = distance_to_middle(shape)
    values = np.zeros(shape, np.float32)
    for radius_mm, hu in balls:
        values[distance <= radius_mm] = hu
    blurred = ndimage.gaussian_filter(values, BLUR_MM / SPACING_KJI)
    return Volume(blurred, np.diag([*SPACING_KJI[::-1], 1.0]), "residual", {})


def distance_to_middle(shape: np.ndarray) -> np.ndarray:
    """Distance in mm of every voxel (K, J, I) to the middle one."""
    offsets = (np.indices(shape) - (shape // 2)[:, None, None, None]) * SPACING_KJI[:, None, None, None]
    return np.linalg.norm(offsets, axis=0)


def outlined(residual: Volume) -> np.ndarray:
    middle = residual.to_lps(np.array(residual.shape[::-1]) // 2)
    finding = Finding(tuple(float(c) for c in middle), 12.0, 1.0)
    return nodules_from_residual(residual, None, [finding], TASK.threshold).labelmap.voxels > 0


@pytest.mark.parametrize(("core_mm", "whole_mm"), [(2.5, 5.5), (3.0, 6.0), (4.0, 7.0)])
def test_ground_glass_round_a_dense_core_belongs_to_the_nodule(core_mm: float, whole_mm: float) -> None:
    residual = blurred_balls((whole_mm, 280.0), (core_mm, 900.0))
    truth = distance_to_middle(np.array(residual.shape)) <= whole_mm
    assert dice(outlined(residual), truth) > 0.9


@pytest.mark.parametrize("radius_mm", [2.5, 4.0, 8.0])
@pytest.mark.parametrize("hu", [300.0, 900.0])
def test_the_blur_round_a_nodule_without_ground_glass_does_not(radius_mm: float, hu: float) -> None:
    residual = blurred_balls((radius_mm, hu))
    truth = distance_to_middle(np.array(residual.shape)) <= radius_mm
    assert dice(outlined(residual), truth) > 0.9


@pytest.mark.parametrize(("number", "spacing_mm"), [(66, 0.75), (67, 1.5)], ids=["7 mm", "25 mm"])
def test_a_nodule_is_painted_at_the_spacing_that_suits_it(number: int, spacing_mm: float) -> None:
    names = ModelNames("chest-flow", "nodule-cnn", None, "cpu")
    models = load_models(names)
    case = nodule_case("validation", number, 38.0)
    with autocast("cpu"):
        region = paint_at_click(
            case.image, case.seed_point, models.flow, models.predictor, TASK.guidance_settings(),
            torch.Generator().manual_seed(case.seed), TASK.threshold, 0.0,
        )
    assert region.spacing_mm == spacing_mm
    finest = models.flow.spacings_mm[0]
    assert np.allclose(region.residual.spacing, finest), "the outline is as sharp as the scan at every spacing"
    situation = Situation(case, models, painted={TASK.guidance: region})
    assert dice(as_the_task(combine(case.image, [region]), situation, TASK.threshold), case.truth) > 0.8
