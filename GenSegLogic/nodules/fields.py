"""Cubes cut out of the scan, and what the predictor says of the place in the middle of one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..networks.predictors import NodulePredictor
from ..volume import Volume, resample
from .models import normalise

FINE_MM, COARSE_MM = 0.75, 1.5
"""Spacings of the two looks at a place: those of the predictors' training."""
LOOK_VOXELS = 48
"""Edge of the cube that a look is taken at: that of the tiles that the predictors learn from. The networks normalise
over all that they see, so that in a cube of another size the same place has another logit."""
PLACE_VOXELS = 24
"""Edge of the place in its middle: that of the crops that have a bit "there is a nodule in here" in training."""


CLICK_DEVIATION_MM = 3.0
"""How far readers click off a nodule's middle, along every axis: of two nodules close by, the nearer one is meant."""
CLICK_REACH_MM = 6.0
"""So far from a nodule's middle may a reader click, for it to be the one that is meant."""
MIRRORED = ((), (-1,), (-2,), (-2, -1))
"""Axes along which a look mirrors its cube, left to right and front to back; the mean of all four counts. What is taken
for a nodule in one of them alone seldom is one."""


@dataclass(frozen=True)
class Look:
    """What the predictor sees at a place.

    Attributes:
        logit: of "there is a nodule in the cube of PLACE_VOXELS in the middle", the mean over MIRRORED.
        center: (3,) LPS mm, where in that cube it lies: the weighted mean of the places of the map.
    """

    logit: float
    center: np.ndarray


def sigmoid(logit: float) -> float:
    """The probability of log odds."""
    return float(1 / (1 + np.exp(-np.clip(logit, -60, 60))))


def field_volume(image: Volume, center: np.ndarray, spacing_mm: float, voxels: int, orientation: str = "LPS") -> Volume:
    """A cube of ``voxels`` at an isotropic spacing round ``center`` (LPS mm), along the patient's axes, in HU."""
    sign = 1.0 if orientation == "LPS" else -1.0
    directions = np.array([sign, sign, 1.0]) * spacing_mm
    affine = np.diag([*directions, 1.0])
    affine[:3, 3] = center - directions * (voxels - 1) / 2
    return resample(image, (voxels,) * 3, affine, "linear", -1024)


def to_tensor(field: Volume, window_hu: tuple[float, float], device: torch.device | str = "cpu") -> torch.Tensor:
    """Field in HU -> (1, 1, K, J, I) in [0, 1]."""
    return normalise(torch.from_numpy(np.ascontiguousarray(field.voxels, np.float32)), window_hu)[None, None].to(device)


def look(
    image: Volume,
    center: np.ndarray,
    predictor: NodulePredictor,
    window_hu: tuple[float, float],
    spacing_mm: float = FINE_MM,
    deviation_mm: float = math.inf,
) -> Look:
    """Ask the predictor what it was trained to answer: is there a nodule round ``center`` (LPS mm)?

    Where it lies counts by its odds, and by how likely ``center`` is so far off: normally distributed by
    ``deviation_mm`` along every axis.
    """
    field = field_volume(image, center, spacing_mm, LOOK_VOXELS)
    cube = to_tensor(field, window_hu, next(predictor.parameters()).device)
    with torch.inference_mode():
        maps = predictor.logit_map(torch.cat([cube.flip(axes) for axes in MIRRORED])).float().cpu()
    logits = np.stack([logits.flip(axes).numpy() for logits, axes in zip(maps, MIRRORED, strict=True)])
    positions = (np.indices(logits.shape[1:]).reshape(3, -1).T + 0.5) * np.array(predictor.stride, float) - 0.5
    inside = (np.abs(positions - (LOOK_VOXELS - 1) / 2) <= PLACE_VOXELS / 2).all(1)
    values = logits.reshape(len(MIRRORED), -1)[:, inside].astype(float)
    odds = np.exp(values - values.max())
    points = field.to_lps(positions[inside][:, ::-1])
    distances = np.linalg.norm(points - center, axis=1)
    weights = odds.sum(0) * np.exp(-0.5 * (distances / deviation_mm) ** 2)
    place = (points * weights[:, None]).sum(0) / weights.sum()
    return Look(float(values.max() + np.log(odds.sum(1)).mean()), place)


def look_at_click(
    image: Volume, click: np.ndarray, predictor: NodulePredictor, window_hu: tuple[float, float]
) -> Look:
    """What lies at ``click`` (LPS mm), if a nodule is as likely there as none: its log odds are what recipes calibrate.

    Large pale nodules are seen by the coarse look alone. Its place is eight times as large and as likely to hold
    something else, which its logit is lowered for (ours). The centre is where the fine look sees most of a nodule, if
    that is within CLICK_REACH_MM of the click, for readers do not hit the middle; else the click.
    """
    fine, coarse = (
        look(image, click, predictor, window_hu, spacing, CLICK_DEVIATION_MM) for spacing in (FINE_MM, COARSE_MM)
    )
    near = float(np.linalg.norm(fine.center - click)) <= CLICK_REACH_MM
    logit = max(fine.logit, coarse.logit - 3 * float(np.log(COARSE_MM / FINE_MM)))
    return Look(logit, fine.center if near else np.asarray(click, float))
