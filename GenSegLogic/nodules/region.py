"""One region of interest: from a point in the scan to the residual round it.

Two passes of the frozen flow. The first is guided [N] and says where the nodule is; the second paints that place anew
from its surroundings (ours, see :mod:`.inpainting`), and the scan less that painting is what the whole nodule adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from ..networks.predictors import NodulePredictor
from ..volume import Volume, resample
from .counterfactual import Counterfactual, Guidance, ball, counterfactual
from .fields import field_volume, look_at_click, sigmoid, to_tensor
from .inpainting import inpaint
from .models import LatentFlow
from .segments import Finding, as_point, component_at, dense_enough

REGION_RADIUS = 0.34
"""Radius of the region of interest as a fraction of the field's edge; the rest of the field is context."""
RESIDUAL_BLUR_VOXELS = 0.5
EVIDENCE_RANGE = 12.0
"""Where the predictor's map lies this many logits below its peak in the middle, it sees nothing of the nodule there."""
SHELL_SHARE = 0.1
"""A nodule that fills more of the shell under the region's edge is too large for the spacing (from validation)."""
UNSEEN, SEEN = 0.2, 0.5
"""p(nodule) below which the predictor sees none in a field, and above which it sees one: what fills the whole field is
only seen from farther off (from validation)."""
SMALL_FOR_SPACING = 9.0
"""A nodule of fewer voxels across than this is outlined better at a finer spacing."""
GUIDED_REACH_MM = 4.0
"""The guided residual is less sharp than a scan: what is above a part of the peak within this reach is the nodule's
place (from validation)."""
PLACE_SHARE = 0.7
"""Guidance takes only part of what a faint nodule adds: its place begins at this part of the threshold (from
validation)."""
ANEW_MARGIN_MM = 3.5
"""Round what guidance took, so much is painted anew besides: guidance leaves the rim (from validation)."""


@dataclass(frozen=True)
class Region:
    """What was painted round one point.

    Attributes:
        point: (3,) LPS mm, the place that was pointed at: what is outlined lies there.
        center: (3,) LPS mm, of the region and its field: a click seldom is the nodule's middle.
        spacing_mm: at which it was painted.
        residual: HU that the nodule adds, smoothed, on a grid of its own; 0 outside the region.
        radius_mm: of the region of interest.
        probability_before, probability_after: p(nodule) of the field and of its counterfactual.
        evidence: p(nodule) that the predictor sees at a click, by which it is decided whether anything is painted; None
            for what a search has found.
    """

    point: np.ndarray
    center: np.ndarray
    spacing_mm: float
    residual: Volume
    radius_mm: float
    probability_before: float
    probability_after: float
    evidence: float | None = None

    def finding(self, probability: float) -> Finding:
        """The finding that is looked for in the residual: at the point, and as far from it as the region reaches."""
        reach = self.radius_mm + float(np.linalg.norm(self.center - self.point))
        return Finding(as_point(self.point), reach, probability)


def paint(
    image: Volume,
    center: np.ndarray,
    spacing_mm: float,
    flow: LatentFlow,
    predictor: NodulePredictor,
    guidance: Guidance,
    generator: torch.Generator,
    callback: Callable[[int, int], None] = lambda step, steps: None,
    point: np.ndarray | None = None,
) -> tuple[Region, Counterfactual]:
    """Paint the surroundings of ``center`` (LPS mm) without the nodule at ``point`` (None: there), at one spacing."""
    field = field_volume(image, center, spacing_mm, flow.field_voxels, flow.orientation)
    device = next(flow.autoencoder.parameters()).device
    latents = flow.field_voxels // flow.downsampling
    middle, radius = (latents - 1) / 2, REGION_RADIUS * latents
    region = ball((latents,) * 3, (middle,) * 3, radius - 1, 2.0).to(device)
    tensor = to_tensor(field, flow.window_hu, device)
    painted = counterfactual(flow, predictor, tensor, region, spacing_mm, guidance, generator, callback)
    # Against the reconstruction, so that the autoencoder's error cancels.
    residual = residual_between(painted.reconstruction, painted.image, flow)
    radius_mm = (radius + 1) * flow.downsampling * spacing_mm
    residual[(_distance_mm(field) > radius_mm) | ~evidence(predictor, tensor)] = 0
    result = Region(
        point=np.asarray(center if point is None else point, float),
        center=np.asarray(center, float),
        spacing_mm=spacing_mm,
        residual=field.with_voxels(residual.astype(np.float32), "residual"),
        radius_mm=radius_mm,
        probability_before=painted.probability_before,
        probability_after=painted.probability_after,
    )
    return result, painted


def evidence(predictor: NodulePredictor, image: torch.Tensor) -> np.ndarray:
    """Where the predictor sees something of the nodule in the middle of a field, boolean (K, J, I).

    Ours: guidance also thins out vessels, which the image-level gradient cannot tell from the nodule; the predictor's
    own map of logits can.

    Args:
        predictor: its map is read at the image's resolution, by trilinear interpolation.
        image: (1, 1, K, J, I) in [0, 1].
    """
    with torch.no_grad():
        logits = predictor.logit_map(image).float()[None]
    logits = functional.interpolate(logits, size=image.shape[2:], mode="trilinear")[0, 0]
    middle = tuple(slice(n // 4, n - n // 4) for n in logits.shape)
    return (logits > logits[middle].max() - EVIDENCE_RANGE).cpu().numpy()


def paint_at_click(
    image: Volume,
    click: np.ndarray,
    flow: LatentFlow,
    predictor: NodulePredictor,
    guidance: Guidance,
    generator: torch.Generator,
    threshold_hu: float,
    least_evidence: float,
    callback: Callable[[int, int], None] = lambda step, steps: None,
) -> Region:
    """Paint the nodule that a reader clicked on (LPS mm), round where the predictor sees it.

    Where its probability of a nodule lies below ``least_evidence``, nothing is painted and the residual is zero. Ours:
    the map's peak, which the residual is cut out by, is there without any nodule too.
    """
    seen = look_at_click(image, click, predictor, flow.window_hu)
    evidence_here = sigmoid(seen.logit)
    if evidence_here < least_evidence:
        return untouched(image, click, flow, evidence_here)
    region = paint_adaptively(
        image, seen.center, flow, predictor, guidance, generator, threshold_hu, callback, np.asarray(click, float)
    )
    return replace(region, evidence=evidence_here)


def paint_adaptively(
    image: Volume,
    center: np.ndarray,
    flow: LatentFlow,
    predictor: NodulePredictor,
    guidance: Guidance,
    generator: torch.Generator,
    threshold_hu: float,
    callback: Callable[[int, int], None] = lambda step, steps: None,
    point: np.ndarray | None = None,
) -> Region:
    """Paint at the finest spacing whose region holds the whole nodule; then paint the nodule's place anew.

    What reaches the region's edge, or is not seen, asks for the next spacing, and is taken from there if it is seen
    there and does not turn out small after all, only spread by the finer look. ``center`` and ``point`` are those of
    :func:`paint`.
    """
    shares = len(flow.spacings_mm) + 1
    chosen: Region | None = None
    for number, spacing in enumerate(flow.spacings_mm):
        told = _part(callback, number, shares)
        region, _ = paint(image, center, spacing, flow, predictor, guidance, generator, told, point)
        diameter_mm, on_shell = extent(region, threshold_hu)
        seen_now = region.probability_before > SEEN
        unseen_before = chosen is not None and chosen.probability_before < UNSEEN
        if chosen is None or (seen_now and (unseen_before or diameter_mm > SMALL_FOR_SPACING * spacing)):
            chosen = region
        if on_shell < SHELL_SHARE and region.probability_before >= UNSEEN:
            break
    assert chosen is not None  # a flow has at least one spacing
    return paint_anew(image, chosen, flow, generator, threshold_hu, _part(callback, shares - 1, shares))


def paint_anew(
    image: Volume,
    region: Region,
    flow: LatentFlow,
    generator: torch.Generator,
    threshold_hu: float,
    callback: Callable[[int, int], None] = lambda step, steps: None,
) -> Region:
    """The same region with the residual of the second pass: the scan less what is painted at the nodule's place.

    The place is what the guided residual segments, and ANEW_MARGIN_MM round it. Where that is nothing, the guided
    residual stays. What is painted is smooth and the scan is not: their difference is taken at the finest spacing,
    whatever the painting's, so that the nodule keeps the edge that the scan shows.
    """
    residual = region.residual
    place = component_at(
        dense_enough(residual.voxels, residual.spacing, PLACE_SHARE * threshold_hu, reach_mm=GUIDED_REACH_MM),
        residual,
        (slice(0, None),) * 3,
        region.finding(1.0),
    )
    if place is None:
        return region
    near = ndimage.distance_transform_edt(~place, sampling=region.spacing_mm) <= ANEW_MARGIN_MM
    near &= _distance_mm(residual) <= region.radius_mm
    device = next(flow.autoencoder.parameters()).device
    field = field_volume(image, region.center, region.spacing_mm, flow.field_voxels, flow.orientation)
    hole = functional.max_pool3d(torch.from_numpy(near.astype(np.float32))[None, None], flow.downsampling).to(device)
    painted = inpaint(flow, to_tensor(field, flow.window_hu, device), hole, region.spacing_mm, generator, callback)
    finest = flow.spacings_mm[0]
    size = round(flow.field_voxels * region.spacing_mm / finest)
    fine = field_volume(image, region.center, finest, size, flow.orientation)
    without = resample(field.with_voxels(painted[0, 0].float().cpu().numpy()), fine.shape, fine.affine, "linear")
    added = residual_between(to_tensor(fine, flow.window_hu), torch.from_numpy(without.voxels)[None, None], flow)
    near = resample(field.with_voxels(near.astype(np.uint8)), fine.shape, fine.affine, "nearest", 0).voxels > 0
    return replace(region, residual=fine.with_voxels(np.where(near, added, 0).astype(np.float32), "residual"))


def residual_between(image: torch.Tensor, painted: torch.Tensor, flow: LatentFlow) -> np.ndarray:
    """HU (K, J, I) by which an image (1, 1, K, J, I) is denser than the painting without a nodule, smoothed.

    A nodule only adds density; what the painting made denser is the flow's own taste, and not taken over.
    """
    difference = (image - painted)[0, 0].cpu().numpy() * flow.hu_per_unit
    return np.maximum(ndimage.gaussian_filter(difference, RESIDUAL_BLUR_VOXELS), 0)


def _part(callback: Callable[[int, int], None], number: int, parts: int) -> Callable[[int, int], None]:
    """``callback`` for part ``number`` of so many equal ones, so that progress never runs backwards."""
    return lambda step, steps: callback(number * steps + step, parts * steps)


def _distance_mm(field: Volume) -> np.ndarray:
    """Distance in mm of every voxel (K, J, I) of a cube to its middle."""
    middle = (len(field.voxels) - 1) / 2
    return np.linalg.norm(np.indices(field.shape) - middle, axis=0) * float(field.spacing[0])


def untouched(image: Volume, click: np.ndarray, flow: LatentFlow, evidence_here: float) -> Region:
    """The region round ``click`` at the finest spacing when nothing is painted: its residual is zero."""
    spacing = flow.spacings_mm[0]
    field = field_volume(image, click, spacing, flow.field_voxels, flow.orientation)
    radius = (REGION_RADIUS * (flow.field_voxels // flow.downsampling) + 1) * flow.downsampling * spacing
    residual = field.with_voxels(np.zeros(field.shape, np.float32), "residual")
    place = np.asarray(click, float)
    return Region(place, place, spacing, residual, radius, evidence_here, evidence_here, evidence_here)


def extent(region: Region, threshold_hu: float) -> tuple[float, float]:
    """Diameter in mm (of a ball of equal volume) of what lies in the region's middle; its share of the outer shell.

    It is the component above the threshold, or above 0.6 of the middle's peak where that is more.
    """
    residual = region.residual
    spacing = float(residual.spacing[0])
    distance = _distance_mm(residual)
    peak = float(np.percentile(residual.voxels[distance < 0.5 * region.radius_mm], 98))
    above = residual.voxels > max(threshold_hu, 0.6 * peak)
    component = component_at(above, residual, (slice(0, None),) * 3, region.finding(1.0))
    if component is None:
        return 0.0, 0.0
    shell = (distance > 0.6 * region.radius_mm) & (distance < 0.8 * region.radius_mm)
    diameter_mm = float(2 * (component.sum() * spacing**3 * 3 / (4 * np.pi)) ** (1 / 3))
    return diameter_mm, float(component[shell].mean())
