"""From residuals to segments and numbers, on analytic shapes in every orientation; and the search with a detector."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from GenSegLogic.evaluation.metrics import dice
from GenSegLogic.networks.predictors import NodulePredictor
from GenSegLogic.nodules.fields import FINE_MM, PLACE_VOXELS, field_volume, look, look_at_click, sigmoid
from GenSegLogic.nodules.measure import COLUMNS, measure
from GenSegLogic.nodules.region import Region
from GenSegLogic.nodules.residual import combine, without
from GenSegLogic.nodules.search import PLACES, TILE_VOXELS, Candidate, find_candidates, logit_volume
from GenSegLogic.nodules.segments import (
    RELATIVE_THRESHOLD,
    Finding,
    component_at,
    ground_glass,
    nodules_from_residual,
    window_around,
)
from GenSegLogic.volume import Volume
from Testing.logic.grids import ORIENTATIONS, draw, soft_ball

SPACING = (0.9, 0.8, 1.6)
SHAPE = (36, 64, 56)
FIRST, SECOND = (4.0, -24.0, 24.0), (22.0, -12.0, 40.0)
WINDOW = (-1000.0, 400.0)


def two_balls(points: np.ndarray) -> np.ndarray:
    """HU that two nodules of 10 and 6 mm add."""
    return soft_ball(FIRST, 5.0, 800, 0)(points) + soft_ball(SECOND, 3.1, 500, 0)(points)


def nodule_mask(points: np.ndarray) -> np.ndarray:
    """What belongs to them: above 200 HU and above a part of each one's own peak."""
    first, second = soft_ball(FIRST, 5.0, 800, 0)(points), soft_ball(SECOND, 3.1, 500, 0)(points)
    return (first > max(200, RELATIVE_THRESHOLD * 800)) | (second > max(200, RELATIVE_THRESHOLD * 500))


FINDINGS = (Finding(FIRST, 14.0, 0.9), Finding(SECOND, 14.0, 0.6))


# Residual


def region(center: tuple[float, float, float], radius_mm: float, height: float) -> Region:
    """A region of interest whose residual is a ball in its middle."""
    blank = Volume(np.zeros((2, 2, 2), np.float32), np.eye(4))
    field = field_volume(blank, np.array(center), 0.75, 40)
    indices = np.moveaxis(np.indices(field.shape), 0, -1)[..., ::-1]
    values = soft_ball(center, radius_mm, height, 0)(field.to_lps(indices)).astype(np.float32)
    return Region(np.array(center), np.array(center), 1.0, field.with_voxels(values), 12.0, 0.9, 0.1)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_residuals_arrive_at_their_place_on_the_scans_grid(orientation: str) -> None:
    image = draw(lambda points: np.full(points.shape[:-1], -850), orientation, SPACING, SHAPE, np.int16)
    residual = combine(image, [region(FIRST, 5.0, 800), region(SECOND, 3.1, 500)])
    expected = draw(two_balls, orientation, SPACING, SHAPE)
    assert residual.voxels.dtype == np.float32 and np.array_equal(residual.affine, image.affine)
    error = np.abs(residual.voxels - expected.voxels)
    assert error.mean() < 1.0 and np.percentile(error[expected.voxels > 0], 95) < 150
    sure = (expected.voxels > 499) | (expected.voxels == 0)
    assert np.median(error[sure]) == 0 and ((residual.voxels > 250) == (expected.voxels > 250)).mean() > 0.999


def test_where_regions_overlap_the_larger_residual_counts() -> None:
    image = draw(lambda points: np.zeros(points.shape[:-1]), "LPS", SPACING, SHAPE)
    low, high = region(FIRST, 6.0, 100), region(FIRST, 3.0, 700)
    both = [combine(image, order).voxels for order in ([low, high], [high, low])]
    assert np.array_equal(*both) and both[0].max() == pytest.approx(700, abs=1)
    assert np.isclose(both[0], 100, atol=1).sum() > 200
    assert not combine(image, []).voxels.any()
    outside = combine(image, [region((500.0, 0.0, 0.0), 5.0, 800)])
    assert not outside.voxels.any()


def test_the_counterfactual_is_the_scan_without_the_residual_in_the_scans_type() -> None:
    image = draw(lambda points: points[..., 0] * 7 - 500, "oblique", SPACING, SHAPE, np.int16)
    residual = draw(two_balls, "oblique", SPACING, SHAPE)
    result = without(image, residual)
    assert result.voxels.dtype == np.int16 and np.array_equal(result.affine, image.affine)
    untouched = residual.voxels == 0
    assert np.array_equal(result.voxels[untouched], image.voxels[untouched])
    assert np.abs(result.voxels - (image.voxels - residual.voxels))[~untouched].max() <= 0.5
    assert untouched.mean() > 0.9 and (result.voxels != image.voxels).any()


def test_the_counterfactual_stays_within_the_scans_type() -> None:
    image = Volume(np.array([[[5, 250, 100]]], np.uint8), np.eye(4))
    residual = image.with_voxels(np.array([[[60.0, -30.0, 0.4]]], np.float32))
    assert without(image, residual).voxels.tolist() == [[[0, 255, 100]]]


# Segments


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_finding_gets_its_own_segment(orientation: str) -> None:
    residual = draw(two_balls, orientation, SPACING, SHAPE)
    segmentation = nodules_from_residual(residual, None, FINDINGS, 200.0)
    assert [segment.label for segment in segmentation.segments] == [1, 2]
    assert [segment.name for segment in segmentation.segments] == ["Nodule 1", "Nodule 2"]
    assert {segment.type.value for segment in segmentation.segments} == {"27925004"}
    labels = segmentation.labelmap.voxels
    assert np.array_equal(labels > 0, draw(nodule_mask, orientation, SPACING, SHAPE, np.uint8).voxels > 0)
    assert (labels > 0).sum() < (residual.voxels > 200).sum()  # the part of the peak did count
    for label, finding in enumerate(FINDINGS, start=1):
        points = residual.to_lps(np.argwhere(labels == label)[:, ::-1])
        assert np.linalg.norm(points.mean(0) - finding.center) < 0.5


def test_a_higher_threshold_never_adds_a_voxel() -> None:
    rng = np.random.default_rng(0)
    noise = 150 * rng.standard_normal(SHAPE)
    residual = draw(two_balls, "oblique", SPACING, SHAPE)
    residual = residual.with_voxels((residual.voxels + noise).astype(np.float32))
    masks = [nodules_from_residual(residual, None, FINDINGS[:1], threshold).labelmap.voxels > 0
             for threshold in (450.0, 530.0, 600.0, 700.0)]
    for wide, narrow in pairwise(masks):
        assert narrow.any() and wide.sum() > narrow.sum()
        assert not (narrow & ~wide).any()


def test_a_segment_never_takes_voxels_of_another_finding() -> None:
    # The second finding's shell surrounds the first one's ball: filling its hole must leave the ball alone.
    def shell(points: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(points - np.array(FIRST), axis=-1)
        return 800.0 * (distance < 4) + 500.0 * ((distance > 7) & (distance < 9))

    residual = draw(shell, "LPS", SPACING, SHAPE)
    beside = Finding((FIRST[0] + 8.0, *FIRST[1:]), 20.0, 0.5)
    alone = nodules_from_residual(residual, None, (Finding(FIRST, 5.0, 0.9),), 200.0).labelmap.voxels == 1
    both = nodules_from_residual(residual, None, (Finding(FIRST, 5.0, 0.9), beside), 200.0)
    assert [segment.label for segment in both.segments] == [1, 2]
    assert np.array_equal(both.labelmap.voxels == 1, alone)


def test_touching_findings_share_no_voxel_and_one_component_has_one_owner() -> None:
    residual = draw(soft_ball(FIRST, 6.0, 800, 0), "RAS", SPACING, SHAPE)
    twice = (Finding(FIRST, 14.0, 0.9), Finding((FIRST[0] + 3, *FIRST[1:]), 14.0, 0.8))
    segmentation = nodules_from_residual(residual, None, twice, 200.0)
    assert [segment.label for segment in segmentation.segments] == [1]
    assert np.array_equal(segmentation.labelmap.voxels > 0, residual.voxels > RELATIVE_THRESHOLD * 800)


def test_lungs_and_size_limit_what_a_nodule_is() -> None:
    residual = draw(two_balls, "left-handed", SPACING, SHAPE)
    half = draw(lambda points: points[..., 0] < FIRST[0], "left-handed", SPACING, SHAPE, np.uint8)
    segmentation = nodules_from_residual(residual, half, FINDINGS, 200.0)
    assert [segment.label for segment in segmentation.segments] == [1]
    expected = draw(nodule_mask, "left-handed", SPACING, SHAPE, np.uint8).voxels & half.voxels
    assert np.array_equal(segmentation.labelmap.voxels, expected)
    speck = draw(soft_ball(FIRST, 0.9, 800, 0, 0.1), "LPS", SPACING, SHAPE)
    assert (speck.voxels > 200).any()
    assert nodules_from_residual(speck, None, FINDINGS, 200.0).segments == ()


def rod(points: np.ndarray) -> np.ndarray:
    """A vessel of 2.4 mm that runs through the first finding along a slanted line."""
    along = np.array([1.0, 2.0, 0.5]) / np.linalg.norm([1.0, 2.0, 0.5])
    offset = points - np.array(FIRST)
    return 700.0 * (np.linalg.norm(offset - (offset @ along)[..., None] * along, axis=-1) < 1.2)


def slab(points: np.ndarray) -> np.ndarray:
    """What the first finding touches from below."""
    return 700.0 * (points[..., 2] > FIRST[2] + 5.0)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("attached", "grid"), [
    (rod, ((0.8, 0.8, 0.8), (64, 64, 56))), (slab, ((0.8, 0.8, 0.8), (64, 64, 56))),
    (rod, ((0.8, 0.8, 4.0), (14, 64, 56)))], ids=["vessel", "wall", "vessel in thick slices"])
def test_what_hangs_on_a_nodule_is_left_out(orientation: str, attached: Callable, grid: tuple) -> None:
    ball, grid = soft_ball(FIRST, 5.0, 800, 0), (orientation, *grid)
    truth = draw(ball, *grid).voxels > RELATIVE_THRESHOLD * 800
    residual = draw(lambda points: np.maximum(ball(points), attached(points)), *grid)
    found = nodules_from_residual(residual, None, FINDINGS[:1], 200.0).labelmap.voxels > 0
    whole = component_at(residual.voxels > 200, residual, (slice(0, None),) * 3, FINDINGS[0])
    assert whole is not None and whole.sum() > 1.1 * found.sum()
    assert dice(found, truth) > 0.9


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_axial_slice_of_a_nodule_has_no_hole(orientation: str) -> None:
    ball, grid = soft_ball(FIRST, 6.0, 800, 0), (orientation, (0.8, 0.8, 1.0), (64, 64, 56))

    def tunnelled(points: np.ndarray) -> np.ndarray:  # from below to its upper half, so that it is no closed cavity
        offset = points - np.array(FIRST)
        tunnel = (np.linalg.norm(offset[..., :2], axis=-1) < 1.0) & (offset[..., 2] < 3.0)
        return np.where(tunnel, 0.0, ball(points))

    found = nodules_from_residual(draw(tunnelled, *grid), None, FINDINGS[:1], 200.0).labelmap.voxels > 0
    truth = draw(ball, *grid).voxels > RELATIVE_THRESHOLD * 800
    assert (truth & ~(draw(tunnelled, *grid).voxels > 200)).sum() > 20
    assert dice(found, truth) > 0.97


def test_where_there_is_no_ground_glass_none_is_added() -> None:
    core = np.zeros((4, 4, 4), bool)
    core[0, 0, 1] = True
    dense = core.copy()
    dense[0, 0, 0] = True
    assert not ground_glass(np.zeros_like(core), dense, core, np.ones(3)).any()


@pytest.mark.parametrize("shape", ["ball", "ellipsoid", "lobulated", "smallest"])
def test_a_nodule_with_nothing_on_it_stays_whole(shape: str) -> None:
    def solid(points: np.ndarray) -> np.ndarray:
        offset = points - np.array(FIRST)
        inside = {
            "ball": np.linalg.norm(offset, axis=-1) < 6,
            "ellipsoid": np.linalg.norm(offset / [4.0, 4.0, 7.0], axis=-1) < 1,
            "lobulated": (np.linalg.norm(offset, axis=-1) < 5) | (np.linalg.norm(offset - [4.0, 0, 0], axis=-1) < 3.5),
            "smallest": np.linalg.norm(offset, axis=-1) < 2,
        }
        return 800.0 * inside[shape]

    residual = draw(solid, "oblique", SPACING, SHAPE)
    found = nodules_from_residual(residual, None, FINDINGS[:1], 200.0).labelmap.voxels > 0
    assert np.array_equal(found, residual.voxels > 0)


def test_a_window_holds_its_ball_and_is_empty_outside_of_the_scan() -> None:
    for orientation in ORIENTATIONS:
        volume = draw(soft_ball(FIRST, 6.0, 1, 0, 0.01), orientation, SPACING, SHAPE)
        window = window_around(volume, np.array(FIRST), 6.0)
        assert volume.voxels[window].sum() == volume.voxels.sum() > 0
        assert volume.voxels[window].size < 0.2 * volume.voxels.size
        far = window_around(volume, np.array([900.0, 0, 0]), 6.0)
        assert volume.voxels[far].size == 0


# Measurements


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_ellipsoid_is_measured_in_millimetres(orientation: str) -> None:
    # Long axis 20 mm and short axis 12 mm in the axial plane, at 30 degrees; 16 mm along S.
    c, s = np.cos(np.pi / 6), np.sin(np.pi / 6)
    spacing, shape = (0.6, 0.6, 0.7), (40, 60, 60)

    def ellipsoid(points: np.ndarray) -> np.ndarray:
        x, y, z = np.moveaxis(points - np.array(FIRST), -1, 0)
        return ((c * x + s * y) / 10) ** 2 + ((c * y - s * x) / 6) ** 2 + (z / 8) ** 2 < 1

    center = np.array([10.0, -20.0, 30.0])
    mask = draw(lambda points: ellipsoid(points - center + np.array(FIRST)), orientation, spacing, shape, np.uint8)
    image = mask.with_voxels(np.where(mask.voxels > 0, 25, -850).astype(np.int16))
    finding = Finding(tuple(center), 14.0, 0.87654)
    segmentation = nodules_from_residual(mask.with_voxels(800.0 * mask.voxels), None, (finding,), 200.0)
    [row] = measure(image, segmentation, (finding,))
    assert tuple(row) == COLUMNS
    assert [row[f"center_{axis}_mm"] for axis in "lps"] == pytest.approx(center, abs=0.15)
    assert row["volume_mm3"] == pytest.approx(4 / 3 * np.pi * 10 * 6 * 8, rel=0.02)
    assert (row["mean_hu"], row["solid_percent"], row["probability"]) == (25.0, 100.0, 0.8765)
    if orientation == "oblique":  # its slices cut the ellipsoid askew
        assert 18 < row["long_axis_mm"] < 21.5 and 11 < row["short_axis_mm"] < 18
    else:
        assert row["long_axis_mm"] == pytest.approx(20, abs=1.0)
        assert row["short_axis_mm"] == pytest.approx(12, abs=1.0)
    assert row["mean_axis_mm"] == pytest.approx((row["long_axis_mm"] + row["short_axis_mm"]) / 2, abs=0.01)


def test_the_solid_part_is_its_share_of_the_voxels() -> None:
    mask = draw(soft_ball(FIRST, 6.0, 800, 0, 0.01), "LPS", SPACING, SHAPE)
    left = draw(lambda points: points[..., 0] > FIRST[0], "LPS", SPACING, SHAPE, bool)
    image = mask.with_voxels(np.where(left.voxels, 50, -600).astype(np.int16))
    finding = Finding(FIRST, 14.0, 0.5)
    [row] = measure(image, nodules_from_residual(mask, None, (finding,), 200.0), (finding,))
    assert 40 < row["solid_percent"] < 60
    assert row["mean_hu"] == pytest.approx(-600 + 6.5 * row["solid_percent"], abs=0.5)


def test_one_voxel_is_measured_edge_to_edge() -> None:
    labels = np.zeros((5, 5, 5), np.float32)
    labels[2, 2, 2] = 500
    residual = Volume(labels, np.diag([3.0, 3.0, 4.0, 1.0]))
    finding = Finding((6.0, 6.0, 8.0), 6.0, 0.5)
    [row] = measure(residual, nodules_from_residual(residual, None, (finding,), 200.0), (finding,))
    assert row["long_axis_mm"] == pytest.approx(3 * 2**0.5, abs=0.01) and row["volume_mm3"] == 36.0


# Search


class BlobDetector(NodulePredictor):
    """Exact for bright blobs in dark lung: the logit is the mean brightness of the cell."""

    def __init__(self, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride = stride
        self.gain = nn.Parameter(torch.tensor(40.0), requires_grad=False)

    def logit_map(self, x: Tensor) -> Tensor:
        """Mean over cells of ``stride``, against a quarter of full brightness."""
        return self.gain * (F.avg_pool3d(x, self.stride)[:, 0] - 0.25)


def lung_scan(
    orientation: str, blobs: list[tuple[float, float, float]], size_mm: float = 100.0
) -> tuple[Volume, Volume]:
    """Dark lung with bright balls of 8 mm radius, and a mask of all but the outer 10 mm."""
    spacing = (1.4, 1.4, 2.0)
    shape = tuple(int(size_mm / step) for step in spacing[::-1])
    middle = np.array([10.0, -20.0, 30.0])

    def brightness(points: np.ndarray) -> np.ndarray:
        return np.max([soft_ball(blob, 8.0, 100, -850)(points) for blob in blobs], axis=0)

    image = draw(brightness, orientation, spacing, shape, np.int16)
    reach = size_mm / 2 - 10
    mask = draw(lambda points: np.abs(points - middle).max(-1) < reach, orientation, spacing, shape, np.uint8)
    return image, mask


@pytest.mark.parametrize("stride", [(4, 4, 4), (1, 8, 8)], ids=str)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_detector_finds_blobs_at_their_place(orientation: str, stride: tuple[int, int, int]) -> None:
    blobs = [(-8.0, -37.0, 41.0), (25.0, -3.0, 12.0)]
    image, lungs = lung_scan(orientation, blobs)
    found = [c for c in find_candidates(image, lungs, BlobDetector(stride), WINDOW) if c.probability > 0.5]
    assert len(found) == 2
    for blob in blobs:
        assert min(np.linalg.norm(candidate.center - blob) for candidate in found) < 3.0


@pytest.mark.parametrize("stride", [(4, 4, 4), (1, 8, 8)], ids=str)
def test_a_look_tells_what_lies_in_its_place_and_where(stride: tuple[int, int, int]) -> None:
    blob = np.array([4.0, -24.0, 24.0])
    image, _ = lung_scan("oblique", [tuple(blob)])
    seen = look(image, blob + np.array([3, -3, 2]), BlobDetector(stride), WINDOW)
    assert sigmoid(seen.logit) > 0.99 and np.linalg.norm(seen.center - blob) < 3.0
    # In view, but beside the place that is asked about: the logit is the logsumexp of the place's dark cells.
    beside = blob + np.array([PLACE_VOXELS * FINE_MM / 2 + 12, 0, 0])
    empty = look(image, beside, BlobDetector(stride), WINDOW)
    cells = np.prod([np.sum(np.abs((np.arange(48 // s) + 0.5) * s - 24) <= PLACE_VOXELS / 2) for s in stride])
    assert empty.logit == pytest.approx(40 * (150 / 1400 - 0.25) + np.log(cells), abs=0.01)
    assert np.abs(empty.center - beside).max() <= PLACE_VOXELS * FINE_MM / 2


class OneSidedDetector(BlobDetector):
    """Blind in the half where the index along i is smaller."""

    def logit_map(self, x: Tensor) -> Tensor:
        """As of a detector that sees, and -60 in the blind half."""
        logits = super().logit_map(x)
        logits[..., : logits.shape[-1] // 2] = -60
        return logits


class DoubtfulDetector(BlobDetector):
    """Sees what there is, and takes none of it for a nodule."""

    def logit_map(self, x: Tensor) -> Tensor:
        """As of a detector that is sure, less 60."""
        return super().logit_map(x) - 60


def test_what_is_seen_in_half_of_the_mirrored_cubes_counts_half() -> None:
    blob = np.array([4.0, -24.0, 24.0])
    image, _ = lung_scan("LPS", [tuple(blob)])
    place = blob - np.array([8, 0, 0])
    seeing = look(image, place, BlobDetector((4, 4, 4)), WINDOW)
    half_blind = look(image, place, OneSidedDetector((4, 4, 4)), WINDOW)
    dark = look(image, blob - np.array([30, 0, 0]), OneSidedDetector((4, 4, 4)), WINDOW)
    assert seeing.logit > 10 > 0 > dark.logit
    assert half_blind.logit == pytest.approx((seeing.logit + dark.logit) / 2, abs=0.1)
    assert np.linalg.norm(half_blind.center - seeing.center) < 0.5


def test_evidence_is_that_of_the_look_which_sees_the_nodule() -> None:
    image, _ = lung_scan("LPS", [(10.0, -20.0, 30.0)])
    here, beside, detector = np.array([10.0, -20.0, 30.0]), np.array([27.0, -20.0, 30.0]), BlobDetector((4, 4, 4))
    assert look_at_click(image, here, detector, WINDOW).logit == look(image, here, detector, WINDOW).logit > 10
    coarse = look(image, beside, detector, WINDOW, 1.5).logit
    assert coarse > 10 > look(image, beside, detector, WINDOW).logit, "in the larger place alone"
    assert look_at_click(image, beside, detector, WINDOW).logit == pytest.approx(coarse - np.log(8))


def test_a_click_beside_a_nodule_means_the_nodule() -> None:
    blob = np.array([10.0, -20.0, 30.0])
    image, _ = lung_scan("LPS", [tuple(blob)])
    detector = BlobDetector((4, 4, 4))
    for offset in ([4.0, 0.0, 0.0], [0.0, -3.0, 2.5]):
        found = look_at_click(image, blob + np.array(offset), detector, WINDOW)
        assert np.linalg.norm(found.center - blob) < 0.6 * np.linalg.norm(offset)
        doubtful = look_at_click(image, blob + np.array(offset), DoubtfulDetector((4, 4, 4)), WINDOW)
        assert doubtful.logit < -10 and np.allclose(doubtful.center, found.center, atol=0.1)
    nowhere = blob + np.array([40.0, 0.0, 0.0])
    assert np.allclose(look_at_click(image, nowhere, detector, WINDOW).center, nowhere, atol=0.1)


def test_of_two_nodules_close_by_the_clicked_one_is_meant() -> None:
    clicked, neighbour = np.array([10.0, -20.0, 30.0]), np.array([18.0, -20.0, 30.0])
    image, _ = lung_scan("LPS", [tuple(clicked), tuple(neighbour)])
    detector = BlobDetector((4, 4, 4))
    assert np.linalg.norm(look(image, clicked, detector, WINDOW).center - clicked) > 2, "both count for a search"
    for click in (clicked, neighbour):
        assert np.linalg.norm(look_at_click(image, click, detector, WINDOW).center - click) < 1.5


def test_a_lung_has_many_places_and_hardly_any_holds_a_nodule() -> None:
    assert Candidate(np.zeros(3), 0.0, 0.0).probability == pytest.approx(1 / (PLACES + 1))
    even = float(np.log(PLACES))
    assert Candidate(np.zeros(3), even + 3, even - 7).probability == pytest.approx(0.5)


def test_a_small_blob_is_found_by_the_fine_map_alone() -> None:
    image, lungs = lung_scan("LPS", [(10.0, -20.0, 30.0)])
    small = draw(soft_ball((-12.0, -40.0, 12.0), 2.8, 950, 0), "LPS", (1.4, 1.4, 2.0), image.shape)
    image = image.with_voxels(image.voxels + small.voxels.astype(np.int16))
    detector = BlobDetector((4, 4, 4))
    coarse = logit_volume(image, lungs, detector, WINDOW, lambda fraction: None, 1.5)
    indices = np.moveaxis(np.indices(coarse.shape), 0, -1)[..., ::-1]
    assert coarse.voxels[np.linalg.norm(coarse.to_lps(indices) - [-12, -40, 12], axis=-1) < 8].max() < 0
    found = find_candidates(image, lungs, detector, WINDOW)[:2]
    assert min(np.linalg.norm(candidate.center - [-12, -40, 12]) for candidate in found) < 2.0


def test_a_blob_outside_of_the_lungs_is_no_candidate() -> None:
    image, lungs = lung_scan("LPS", [(10.0, -20.0, 30.0)])
    detector = BlobDetector((4, 4, 4))
    assert any(c.probability > 0.5 for c in find_candidates(image, lungs, detector, WINDOW))
    far = draw(lambda points: points[..., 0] < -15, "LPS", (1.4, 1.4, 2.0), image.shape, np.uint8)
    assert not any(c.probability > 0.5 for c in find_candidates(image, far, detector, WINDOW))


def test_tiles_meet_without_a_seam() -> None:
    # A lung wider than a tile, with a blob on the border between two tiles.
    edge = 10.0 - (170.0 / 2 - 10) - 4 * 1.5 + TILE_VOXELS * 1.5
    blob = (edge, -20.0, 30.0)
    image, lungs = lung_scan("LPS", [blob], size_mm=170.0)
    told: list[float] = []
    logits = logit_volume(image, lungs, BlobDetector((4, 4, 4)), WINDOW, told.append, 1.5)
    assert len(told) > 1 and np.isfinite(logits.voxels).all()
    peak = logits.to_lps(np.array(np.unravel_index(int(logits.voxels.argmax()), logits.shape))[::-1])
    assert np.linalg.norm(peak - blob) < 6.0
    indices = np.moveaxis(np.indices(logits.shape), 0, -1)[..., ::-1]
    distance = np.linalg.norm(logits.to_lps(indices) - blob, axis=-1)
    assert logits.voxels[distance < 4].min() > 5 and logits.voxels[distance > 16].max() < -4
    [best] = [c for c in find_candidates(image, lungs, BlobDetector((4, 4, 4)), WINDOW) if c.probability > 0.5]
    assert np.linalg.norm(best.center - blob) < 3.0


def test_no_more_candidates_than_asked_for_come_back_best_first() -> None:
    image, lungs = lung_scan("LPS", [(-8.0, -37.0, 41.0), (25.0, -3.0, 12.0)])
    found = find_candidates(image, lungs, BlobDetector((4, 4, 4)), WINDOW, most=1)
    assert len(found) == 1 and found[0].probability > 0.9
    more = find_candidates(image, lungs, BlobDetector((4, 4, 4)), WINDOW, most=5)
    assert [c.probability for c in more] == sorted((c.probability for c in more), reverse=True) and len(more) <= 5
