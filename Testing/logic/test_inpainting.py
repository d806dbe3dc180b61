"""Painting a place anew where everything is exact: an identity for the autoencoder, a mixture's own velocity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from GenSegLogic.errors import Cancelled
from GenSegLogic.evaluation.metrics import dice
from GenSegLogic.nodules.counterfactual import ball
from GenSegLogic.nodules.fields import field_volume
from GenSegLogic.nodules.inpainting import STEPS, inpaint
from GenSegLogic.nodules.models import LatentFlow
from GenSegLogic.nodules.region import ANEW_MARGIN_MM, Region, paint_anew
from GenSegLogic.nodules.segments import Finding, as_point, nodules_from_residual
from GenSegLogic.volume import Volume
from Testing.logic.gaussian_mixture import ExactVelocity, GaussianMixture, Identity

EDGE = 20
SHAPE = (EDGE,) * 3
CENTER = ((EDGE - 1) / 2,) * 3
DEVIATION = 0.02
LEVELS = (0.1, 0.6)
"""Tissues are of one density throughout: what surrounds a hole says what belongs into it."""
SPACING_MM = 0.75


def tissues() -> LatentFlow:
    """A flow that knows fields of either level, with a little noise."""
    mixture = GaussianMixture(
        torch.tensor([0.5, 0.5]),
        torch.stack([torch.full((EDGE**3,), level) for level in LEVELS]),
        torch.full((2,), DEVIATION),
    )
    return LatentFlow(Identity(), ExactVelocity(mixture), 1.0, 1, (-1000.0, 400.0), field_voxels=EDGE)


def with_nodule(level: float, radius: float = 4.0) -> Tensor:
    """A field of a level, and a ball of another density in its middle."""
    noise = DEVIATION * torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(0))
    return torch.lerp(level + noise, torch.full((1, 1, *SHAPE), 0.9), ball(SHAPE, CENTER, radius, 1.0))


def painted(image: Tensor, hole: Tensor, seed: int = 1, **other) -> Tensor:
    return inpaint(tissues(), image, hole, SPACING_MM, torch.Generator().manual_seed(seed), **other)


@pytest.mark.parametrize("level", LEVELS)
def test_what_surrounds_the_hole_says_what_is_painted_into_it(level: float) -> None:
    image, hole = with_nodule(level), (ball(SHAPE, CENTER, 6.0, 0.0) > 0).float()
    result = painted(image, hole)
    inside = result[hole > 0]
    assert float((inside - level).abs().mean()) < 2 * DEVIATION  # nothing of the nodule's 0.9 is left
    torch.testing.assert_close(result[hole == 0], image[hole == 0], atol=1e-5, rtol=0)


def test_without_a_hole_the_image_returns() -> None:
    image = with_nodule(LEVELS[0])
    torch.testing.assert_close(painted(image, torch.zeros_like(image)), image, atol=1e-5, rtol=0)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not() -> None:
    image, hole = with_nodule(LEVELS[0]), ball(SHAPE, CENTER, 6.0, 0.0)
    first, again, other = (painted(image, hole, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_callback_counts_to_the_end_and_cancels_within_a_step() -> None:
    image, told = with_nodule(LEVELS[0]), []
    painted(image, torch.ones_like(image), callback=lambda step, steps: told.append((step, steps)))
    assert told == [(step, STEPS) for step in range(1, STEPS + 1)]

    def cancel(step: int, steps: int) -> None:
        if step == 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        painted(image, torch.ones_like(image), callback=cancel)


# The second pass of a region


def scan_with_nodule() -> tuple[Volume, np.ndarray]:
    """A scan in HU of the lower level with a nodule of 4 voxels' radius in its middle, and that nodule."""
    field = field_volume(Volume(np.zeros((2, 2, 2), np.float32), np.eye(4)), np.zeros(3), SPACING_MM, EDGE)
    hu = with_nodule(LEVELS[0])[0, 0].numpy() * 1400 - 1000
    return field.with_voxels(hu, "scan"), ball(SHAPE, CENTER, 4.0, 1.0)[0, 0].numpy() >= 0.5


def guided_region(scan: Volume, taken_hu: float) -> Region:
    """What guidance may leave behind: it took a part of one side of the nodule."""
    middle = (CENTER[0], CENTER[1], CENTER[2] - 1.5)
    residual = taken_hu * ball(SHAPE, middle, 2.0, 1.0)[0, 0].numpy()
    return Region(np.zeros(3), np.zeros(3), SPACING_MM, scan.with_voxels(residual.astype(np.float32)), 7.0, 0.9, 0.1)


def segmented(region: Region) -> np.ndarray:
    finding = Finding(as_point(region.center), region.radius_mm, 1.0)
    return nodules_from_residual(region.residual, None, [finding], 125.0).labelmap.voxels > 0


def test_the_second_pass_outlines_the_nodule_that_guidance_took_a_part_of() -> None:
    scan, truth = scan_with_nodule()
    region = guided_region(scan, 300.0)
    whole = paint_anew(scan, region, tissues(), torch.Generator().manual_seed(1), 125.0)
    assert dice(segmented(region), truth) < 0.6
    assert dice(segmented(whole), truth) > 0.95
    residual = whole.residual.voxels
    core = ball(SHAPE, CENTER, 2.0, 0.0)[0, 0].numpy() > 0
    assert np.median(residual[core]) == pytest.approx((0.9 - LEVELS[0]) * 1400, abs=60)
    assert residual.min() == 0
    # Nothing beyond the margin round what guidance took.
    taken = np.argwhere(region.residual.voxels > 125.0)
    changed = np.argwhere(residual > 0)
    gaps = np.linalg.norm(changed[:, None] - taken[None], axis=-1).min(1) * SPACING_MM
    assert gaps.max() <= ANEW_MARGIN_MM


def test_where_guidance_took_nothing_its_residual_stays() -> None:
    scan, _ = scan_with_nodule()
    region = guided_region(scan, 80.0)
    assert paint_anew(scan, region, tissues(), torch.Generator(), 125.0) is region
