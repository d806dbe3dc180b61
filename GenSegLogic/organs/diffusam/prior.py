"""Drawing memories from the prior, and what it is trained on (DiffuSAM, arXiv 2604.24719).

The prior predicts the clean memory (x0). Noise fractions and steps are those of :mod:`GenSegLogic.flow`:
x_t = (1 - t) z + t eps, and from an estimate of z follows the velocity v = (z - x_t) / t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ...flow.interpolant import interpolant, times
from ...flow.samplers import euler
from ...networks.memory_prior import Context, MemoryPrior
from ...networks.sam2 import Features, Sam2

DROP_PREVIOUS = 0.2
"""Part of the training in which the slice before is not known."""
TRUE_PREVIOUS = 0.2
"""Part of the training in which the slice before is the truth, bent. A prior that saw more of it would copy the slice
before, and a propagation that copies runs on beyond the organ's end."""
MASK_WEIGHT = 2.0
START = 0.75
"""Noise fraction that sampling starts from, at the guess. From pure noise the prior leans on the slice before: mean
Dice 0.83 instead of 0.90 on three CT patients of the validation split, since
what is copied runs on beyond the organ's end."""


def sample(prior: MemoryPrior, sam2: Sam2, features: Features, context: Context, organ: Tensor,
           previous: Tensor | None, steps: int, noise: Tensor,
           callback: Callable[[int, int], None] = lambda step, steps: None, start: float = START) -> Tensor:
    """Draw memories (n, 64, h, w), as SAM 2 takes them.

    Args:
        prior, sam2: the networks.
        features, context: of the n slices.
        organ: (n,) index.
        previous: (n, 64, h, w) memories of the slices before, or None.
        steps: evaluations of the network, >= 1; one step from pure noise gives the mean.
        noise: (n, 64, h, w) standard normal.
        callback: called after every step; may raise.
        start: noise fraction that sampling starts from, in (0, 1]; below 1 it starts at the guess, noised.
    """
    known = torch.full((len(organ),), float(previous is not None), device=noise.device)
    before = torch.zeros_like(noise) if previous is None else prior.normalise(previous)
    readout = mine(context, organ)
    guess = guess_of(prior, sam2, features, readout)

    def velocity(x: Tensor, t: float) -> Tensor:
        level = torch.full((len(organ),), t, device=x.device)
        return (prior(x, level, context.image, readout, guess, before, known, organ) - x) / t

    # The guess is where the difference is 0, so only the noise is left of the interpolant.
    return prior.restore(euler(velocity, start * noise, times(start, 0.0, steps), callback), guess)


def mine(context: Context, organ: Tensor) -> Tensor:
    """Read-out (n, 1, 4h, 4w) of each pair's own organ, logits."""
    return context.readout[torch.arange(len(organ), device=organ.device), organ][:, None]


def guess_of(prior: MemoryPrior, sam2: Sam2, features: Features, logits: Tensor) -> Tensor:
    """What SAM 2 would remember of the read-out (n, 1, 4h, 4w), normalised: the prior starts from there (ours)."""
    return prior.normalise(sam2.remember(features, logits))


def disturb(logits: Tensor) -> Tensor:
    """Read-outs as they are on scans that were not learned from: wrong in places, and here and there lost."""
    count, edge = len(logits), logits.shape[-1]
    strength = 1.5 * torch.rand(count, 1, 1, 1, device=logits.device) ** 2
    field = F.interpolate(torch.randn(count, 1, 7, 7, device=logits.device), (edge, edge), mode="bicubic")
    lost = (torch.rand(count, 1, 1, 1, device=logits.device) < 0.05) * 6.0
    return logits + strength * field - lost


def mask_loss(logits: Tensor, truth: Tensor, weight: Tensor | None = None) -> Tensor:
    """Cross-entropy plus soft Dice of masks (B, 1, H, W), mean over the batch or weighted by ``weight`` (B,)."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean((1, 2, 3))
    probability = logits.sigmoid()
    overlap = (probability * truth).sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1)
    loss = 5 * entropy + dice
    return loss.mean() if weight is None else (loss * weight).sum() / weight.sum().clamp_min(1e-6)


def readout_loss(context: Context, truth: Tensor, weight: Tensor, trust: Tensor) -> Tensor:
    """Loss of the organs' read-out and presence.

    Args:
        context: of B slices.
        truth: (B, organs, 4h, 4w) area means of the organs' masks.
        weight: (B, organs): 0 where nothing is known of the organ in this slice.
        trust: (B, 1, 4h, 4w) in [0, 1]: how much each pixel counts.
    """
    logits = context.readout
    entropy = (trust * F.binary_cross_entropy_with_logits(logits, truth, reduction="none")).mean((2, 3))
    probability = logits.sigmoid() * trust
    truth = truth * trust
    # Over the batch, for most slices hold few of the organs.
    overlap = ((probability * truth).sum((2, 3)) * weight).sum(0)
    total = ((probability + truth).sum((2, 3)) * weight).sum(0)
    dice = 1 - (2 * overlap + 1) / (total + 1)
    seen = (weight.sum(0) > 0).float()
    present = (truth.sum((2, 3)) > 0.5).float()
    presence = F.binary_cross_entropy_with_logits(context.presence, present, reduction="none")
    known = weight.sum().clamp_min(1e-6)
    return (10 * (entropy * weight).sum() / known + (dice * seen).sum() / seen.sum().clamp_min(1)
            + 0.3 * (presence * weight).sum() / known)


def blur_masks(masks: Tensor) -> Tensor:
    """Masks (n, 1, S, S) as a propagation gets them: moved a little, bent, too large or too small."""
    count, size = len(masks), masks.shape[-1]
    shift = F.interpolate(torch.randn(count, 2, 5, 5, device=masks.device), (size, size), mode="bicubic",
                          align_corners=True)
    identity = torch.eye(2, 3, device=masks.device).expand(count, 2, 3)
    grid = F.affine_grid(identity, [count, 1, size, size], align_corners=False)
    strength = 0.02 * torch.rand(count, 1, 1, 1, device=masks.device)
    moved = F.grid_sample(masks, grid + strength * shift.permute(0, 2, 3, 1), align_corners=False)
    soft = F.avg_pool2d(moved, 5, 1, 2)
    return (soft > 0.25 + 0.5 * torch.rand(count, 1, 1, 1, device=masks.device)).float()


def memory_loss(
    prior: MemoryPrior,
    sam2: Sam2,
    features: Features,
    before: Features,
    context: Context,
    context_before: Context,
    masks: Tensor,
    masks_before: Tensor,
    rows: Tensor,
    organ: Tensor,
    decoded: int = 8,
) -> Tensor:
    """Loss on n pairs of a slice and an organ: ||P(x_t, t, c, p, organ) - M*||^2, and what we add.

    Ours: the cells of the organ count more, the estimate is decoded by the frozen SAM 2 and its mask compared, and most
    of the slices before are as the read-out has them instead of the truth, for a propagation meets its own errors.

    Args:
        prior, sam2: the networks; SAM 2 is frozen.
        features, before: of the B slices and of the slices before them.
        context, context_before: likewise.
        masks, masks_before: (n, 1, S, S) of the organ in the slice and in the one before.
        rows: (n,) slice of each pair.
        organ: (n,) index of each.
        decoded: how many of the n are decoded, the first ones.
    """
    own, other, count = features.select(rows), before.select(rows), len(rows)
    with torch.no_grad():
        readout = disturb(mine(context.select(rows), organ))
        guess = guess_of(prior, sam2, own, readout)
        clean = prior.difference(prior.normalise(sam2.remember_mask(own, masks)), guess)
        edge = masks.shape[-1]
        read = F.interpolate(disturb(mine(context_before.select(rows), organ)).sigmoid(), (edge, edge), mode="bilinear")
        from_truth = torch.rand(count, 1, 1, 1, device=masks.device) < TRUE_PREVIOUS
        previous = prior.normalise(sam2.remember_mask(other, torch.where(from_truth, blur_masks(masks_before), read)))
    known = (torch.rand(count, device=clean.device) >= DROP_PREVIOUS).float()
    # A third of the training at pure noise, where one evaluation gives the mean, a control of the benchmarks.
    t = torch.rand(count, device=clean.device) ** 0.5
    t = torch.where(torch.rand(count, device=clean.device) < 0.3, torch.ones_like(t), t.clamp_min(0.02))
    x = interpolant(clean, torch.randn_like(clean), t.view(-1, 1, 1, 1))
    estimate = prior(x, t, context.image[rows], readout, guess, previous, known, organ)
    cells = F.adaptive_max_pool2d(masks, clean.shape[-1])
    loss = ((estimate - clean).square().mean(1, keepdim=True) * (1 + 4 * cells)).mean()
    part = slice(0, decoded)
    result = sam2.decode(own.select(part), prior.restore(estimate[part], guess[part]))
    target = F.adaptive_avg_pool2d(masks[part], result.mask_logits.shape[-1])
    return loss + MASK_WEIGHT * mask_loss(result.mask_logits, target)


def new_prior(sam2: Sam2, organs: int) -> tuple[MemoryPrior, dict[str, int]]:
    """A fresh prior for ``sam2``, and the arguments that build it."""
    arguments = {"feature_channels": sam2.channels, "organs": organs}
    return MemoryPrior(**arguments), arguments


def select_organs(prior: MemoryPrior, indices: Sequence[int]) -> MemoryPrior:
    """The same prior for some of its organs, in the order given."""
    chosen = torch.tensor(indices)
    state = dict(prior.state_dict())
    # The read-out has 2 x 2 channels an organ, as the pixel shuffle wants them.
    blocks = (chosen[:, None] * 4 + torch.arange(4)).flatten()
    for name in ("organ.weight", "presence.2.weight", "presence.2.bias", "readout_high.weight", "readout_high.bias"):
        state[name] = state[name][chosen.to(state[name].device)]
    for name in ("readout.weight", "readout.bias"):
        state[name] = state[name][blocks.to(state[name].device)]
    width, denoiser_width = prior.from_low.out_channels, prior.entry.out_channels
    smaller = MemoryPrior(prior.from_low.in_channels, len(indices), width, denoiser_width)
    smaller.load_state_dict(state)
    return smaller.to(prior.mean.device).eval()
