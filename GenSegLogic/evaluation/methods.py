"""The methods of the nodule table: each gives a score map round a click, and a component of what exceeds a threshold.

All see the same field and the same region of interest: the ball that the guided method chose. No mask is cut by the
lungs: a phantom's exact mask would tell where a nodule ends at the pleura, which no scan does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor, nn

from ..networks.predictors import NodulePredictor
from ..nodules.fields import field_volume, to_tensor
from ..nodules.models import LatentFlow
from ..nodules.region import Region, paint_at_click
from ..nodules.residual import combine
from ..nodules.segments import nodules_from_residual, window_around
from ..nodules.task import NoduleTask
from ..volume import Volume, resample_like
from .attribution import BASELINES, LAYERS, baseline_image, grad_cam, integrated_gradients, score_cam, smoothed_map
from .cases import Case
from .metrics import dice, surface_distances

TASK = NoduleTask()
"""The nodule task as it ships: its guidance is what is evaluated."""
ATTRIBUTIONS = ("grad-cam", "score-cam", "integrated-gradients")
RELATIVE = (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
RESIDUAL_HU = (30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 125.0, 150.0, 175.0, 200.0, 250.0, 300.0, 400.0)
HU = (-800.0, -750.0, -700.0, -650.0, -600.0, -550.0, -500.0, -450.0, -400.0, -300.0, -200.0, -100.0, 0.0)
PROBABILITY = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

Setting = Mapping[str, Any]
"""What the validation split chooses besides the threshold: a layer, a baseline image, a smoothing."""


@dataclass(frozen=True)
class Models:
    """The frozen networks of one column of the table.

    Attributes:
        predictor: guides, and is what the attribution methods explain.
        segmenter: (1, 1, K, J, I) -> logits of the same shape; None leaves its row out.
    """

    flow: LatentFlow
    predictor: NodulePredictor
    segmenter: nn.Module | None


@dataclass
class Situation:
    """A case in front of a predictor; what several methods need is made once."""

    case: Case
    models: Models
    painted: dict[float, Region] = field(default_factory=dict)
    attributed: dict[str, Tensor] = field(default_factory=dict)

    def paint(self, strength: float) -> Region:
        """The region painted with a strength of guidance (0: unguided), from the case's own noise."""
        if strength not in self.painted:
            self.painted[strength] = paint_at_click(
                self.case.image,
                self.case.seed_point,
                self.models.flow,
                self.models.predictor,
                replace(TASK.guidance_settings(), strength=strength),
                torch.Generator().manual_seed(self.case.seed),
                TASK.threshold,
                TASK.evidence,
            )
        return self.painted[strength]

    @property
    def region(self) -> Region:
        """The guided region, whose spacing and ball all methods share."""
        return self.paint(TASK.guidance)

    @cached_property
    def field(self) -> Volume:
        """The field in HU on the guided region's grid."""
        flow, region = self.models.flow, self.region
        return field_volume(self.case.image, region.center, region.spacing_mm, flow.field_voxels, flow.orientation)

    @cached_property
    def tensor(self) -> Tensor:
        """The field (1, 1, K, J, I) in [0, 1]."""
        return to_tensor(self.field, self.models.flow.window_hu, next(self.models.predictor.parameters()).device)

    def baseline(self, name: str) -> Tensor:
        """The baseline image for the field."""
        if self.case.lungs is None:
            lung = torch.ones_like(self.tensor)
        else:
            voxels = resample_like(self.case.lungs, self.field, "nearest", 0).voxels
            lung = torch.from_numpy(voxels.astype(np.float32))[None, None].to(self.tensor.device)
        return baseline_image(name, self.tensor, lung)

    def path_attribution(self, baseline: str) -> Tensor:
        """Integrated Gradients from a baseline image, before they are smoothed."""
        if baseline not in self.attributed:
            start = self.baseline(baseline)
            self.attributed[baseline] = integrated_gradients(self.models.predictor, self.tensor, start)
        return self.attributed[baseline]

    def on_scan(self, values: Tensor) -> Volume:
        """A map (K, J, I) on the field, inside the region's ball, on the scan's own grid."""
        voxels = values.detach().float().cpu().numpy().copy()
        voxels[_distance(self.field, self.region.center) > self.region.radius_mm] = 0
        return combine(self.case.image, [replace(self.region, residual=self.field.with_voxels(voxels))])


def pointed_at(scores: Volume, situation: Situation, threshold: float, by_peak: bool = False) -> np.ndarray:
    """The component above the threshold that the click points at."""
    found = nodules_from_residual(scores, None, [situation.region.finding(1.0)], threshold, by_peak)
    return found.labelmap.voxels > 0


def as_the_task(residual: Volume, situation: Situation, threshold: float) -> np.ndarray:
    """:func:`pointed_at` with the parts of the peaks that the nodule task asks of a residual."""
    return pointed_at(residual, situation, threshold, by_peak=True)


def largest(scores: Volume, situation: Situation, threshold: float) -> np.ndarray:
    """The largest component above the threshold in the region's ball."""
    center, radius = situation.region.center, situation.region.radius_mm
    result = np.zeros(scores.shape, bool)
    window = window_around(scores, center, radius)
    above = (scores.voxels > threshold)[window] & (_distance(scores, center)[window] <= radius)
    labels, count = ndimage.label(above, np.ones((3, 3, 3)))
    if count:
        component = labels == 1 + int(np.bincount(labels.ravel())[1:].argmax())
        result[window] = ndimage.binary_fill_holes(component)
    return result


def _distance(grid: Volume, center: np.ndarray) -> np.ndarray:
    """Distance in mm of every voxel (K, J, I) to a point in LPS mm."""
    k, j, i = np.ogrid[tuple(slice(n) for n in grid.shape)]
    columns, origin = grid.affine[:3, :3], grid.affine[:3, 3] - center
    offsets = [columns[axis, 0] * i + columns[axis, 1] * j + columns[axis, 2] * k + origin[axis] for axis in range(3)]
    return np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + offsets[2] ** 2)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        score: situation, setting -> map on the scan's own grid.
        thresholds: to choose from, on the map.
        settings: to choose from.
        segment: map, situation, threshold -> boolean mask.
    """

    name: str
    score: Callable[[Situation, Setting], Volume]
    thresholds: tuple[float, ...]
    settings: tuple[Setting, ...] = ({},)
    segment: Callable[[Volume, Situation, float], np.ndarray] = pointed_at


def _painted(strength: float) -> Callable[[Situation, Setting], Volume]:
    return lambda situation, setting: combine(situation.case.image, [situation.paint(strength)])


def _grad_cam(situation: Situation, setting: Setting) -> Volume:
    return situation.on_scan(grad_cam(situation.models.predictor, situation.tensor, setting["layer"]))


def _score_cam(situation: Situation, setting: Setting) -> Volume:
    baseline = situation.baseline(setting["baseline"])
    return situation.on_scan(score_cam(situation.models.predictor, situation.tensor, baseline, setting["layer"]))


def _integrated_gradients(situation: Situation, setting: Setting) -> Volume:
    attribution = situation.path_attribution(setting["baseline"])
    return situation.on_scan(smoothed_map(attribution, setting["smoothing_voxels"]))


def _supervised(situation: Situation, setting: Setting) -> Volume:
    assert situation.models.segmenter is not None  # methods() leaves the row out without one
    with torch.inference_mode():
        return situation.on_scan(torch.sigmoid(situation.models.segmenter(situation.tensor))[0, 0])


def methods(with_segmenter: bool) -> tuple[Method, ...]:
    """The rows of the table, in order; the supervised upper bound only where there is a segmenter."""
    layers = tuple({"layer": layer} for layer in LAYERS)
    both = tuple({"layer": layer, "baseline": baseline} for layer in LAYERS for baseline in BASELINES)
    smooth = tuple({"baseline": name, "smoothing_voxels": s} for name in BASELINES for s in (0.5, 1.0, 2.0))
    rows = (
        Method("guided", _painted(TASK.guidance), RESIDUAL_HU, segment=as_the_task),
        Method("unguided", _painted(0.0), RESIDUAL_HU, segment=as_the_task),
        Method("grad-cam", _grad_cam, RELATIVE, layers),
        Method("score-cam", _score_cam, RELATIVE, both),
        Method("integrated-gradients", _integrated_gradients, RELATIVE, smooth),
        Method("threshold", lambda situation, setting: situation.case.image, HU, segment=largest),
        Method("supervised-unet", _supervised, PROBABILITY),
    )
    return rows if with_segmenter else rows[:-1]


@dataclass(frozen=True)
class Choice:
    """What the validation split chose for a method."""

    setting: Setting
    threshold: float


def search_settings(situation: Situation, rows: tuple[Method, ...]) -> dict[str, list[list[float]]]:
    """Dice of every method at every setting and threshold: name -> one list a setting, one number a threshold."""
    truth = situation.case.truth
    return {
        method.name: [
            [round(dice(method.segment(scores, situation, t), truth), 5) for t in method.thresholds]
            for scores in (method.score(situation, setting) for setting in method.settings)
        ]
        for method in rows
    }


def choose(rows: tuple[Method, ...], tried: list[dict[str, list[list[float]]]]) -> dict[str, Choice]:
    """For every method the setting and threshold of the highest mean Dice over the validation cases."""
    chosen = {}
    for method in rows:
        mean = np.mean([case[method.name] for case in tried], axis=0)
        setting, threshold = np.unravel_index(int(mean.argmax()), mean.shape)
        chosen[method.name] = Choice(method.settings[setting], method.thresholds[threshold])
    return chosen


def measure(situation: Situation, rows: tuple[Method, ...], chosen: Mapping[str, Choice]) -> dict[str, dict[str, Any]]:
    """Dice and surface distances in mm (None where nothing was segmented) of every method as it was chosen."""
    truth, spacing = situation.case.truth, situation.case.image.spacing
    result: dict[str, dict[str, Any]] = {}
    for method in rows:
        choice = chosen[method.name]
        mask = method.segment(method.score(situation, choice.setting), situation, choice.threshold)
        distances = surface_distances(mask, truth, spacing)
        result[method.name] = {
            "dice": dice(mask, truth),
            "surface_distance_mm": distances.mean if distances else None,
            "hausdorff95_mm": distances.percentile95 if distances else None,
        }
    return result


def false_voxels(situation: Situation, threshold_hu: float) -> int:
    """Voxels that the guided method finds where there is no nodule."""
    return int(as_the_task(combine(situation.case.image, [situation.region]), situation, threshold_hu).sum())
