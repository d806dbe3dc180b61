"""Recipe of the bundle ``abdomen-sam2``: a small SAM 2 from phantoms of every contrast.

Three tasks train it: a memory of the same slice, a memory of the slice before, a box or click, each to be decoded into
the mask. Two heads, dropped afterwards, keep it from a collapse in which the memory is ignored: one reads the mask off
the memory, one the organs off the image features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..networks import build
from ..networks.sam2 import MEMORY_CHANNELS, Sam2
from ..organs.diffusam.learning import LabelledScan, batches
from ..organs.diffusam.prior import mask_loss
from ..progress import Progress
from .loop import train

SIZE = "abdomen"
CLASSES = 14
PAIRS = 6
PICKS = 2
"""Organs a slice in every batch."""
RANDOM_SHARE = 0.6
"""Slices in a random contrast: these carry to real scans better than fixed looks do."""


class Pretraining(nn.Module):
    """SAM 2 with the two heads that are dropped after training."""

    def __init__(self, sam2: Sam2) -> None:
        super().__init__()
        self.sam2 = sam2
        channels = sam2.channels
        self.organs = nn.ModuleList(nn.Conv2d(width, CLASSES, 1) for width in (channels // 8, channels // 4, channels))
        self.mask = nn.Conv2d(MEMORY_CHANNELS, 16, 1)

    def organ_logits(self, high: Tensor, middle: Tensor, low: Tensor) -> Tensor:
        """Linear read-out of the organs from the features: (B, 14, 4h, 4w)."""
        logits = self.organs[0](high)
        for head, level in ((self.organs[1], middle), (self.organs[2], low)):
            logits = logits + F.interpolate(head(level), high.shape[-2:], mode="bilinear")
        return logits.float()

    def mask_logits(self, memory: Tensor) -> Tensor:
        """Linear read-out of the mask from the memory: (B, 1, 4h, 4w)."""
        return F.pixel_shuffle(self.mask(memory), 4).float()


def initialise(sam2: Sam2) -> None:
    """Start values under which the memory path learns; transformers' own are for published weights to replace."""
    for module in sam2.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    model = sam2.model
    for layer in model.memory_encoder.memory_fuser.layers:
        nn.init.constant_(cast(Tensor, layer.scale), 0.1)
    for embedding in (model.vision_encoder.backbone.pos_embed, model.vision_encoder.backbone.pos_embed_window,
                      model.memory_temporal_positional_encoding):
        nn.init.normal_(embedding, std=0.02)


def coarse(masks: Tensor, edge: int) -> Tensor:
    """(B, 1, S, S) -> (B, 1, edge, edge), area means."""
    return F.adaptive_avg_pool2d(masks.float(), edge)


def pick(labels: Tensor, before: Tensor) -> Tensor:
    """Organs (P, PICKS) to segment: the first is in the slice where any is, the second anything or one before it."""
    chosen = torch.randint(1, CLASSES, (len(labels), PICKS))
    for row in range(len(labels)):
        for column, source in ((0, labels), (1, before)):
            present = source[row].unique()
            present = present[present > 0]
            if len(present) and (column == 0 or torch.rand(()) < 0.7):
                chosen[row, column] = present[torch.randint(len(present), ())]
    return chosen


def random_ellipses(count: int, size: int) -> Tensor:
    """Masks (B, 1, S, S) that have nothing to do with the image, so that the decoder learns to trust the memory."""
    axis = torch.linspace(-1, 1, size)
    center, radius = 0.5 * torch.randn(count, 2, 1, 1).clamp(-1.5, 1.5), 0.05 + 0.4 * torch.rand(count, 2, 1, 1)
    y, x = axis.view(1, -1, 1) - center[:, 0], axis.view(1, 1, -1) - center[:, 1]
    return ((y / radius[:, 0]) ** 2 + (x / radius[:, 1]) ** 2 < 1).float()[:, None]


def pretraining_loss(network: Pretraining, batch: dict[str, Tensor]) -> Tensor:
    """Sum of the three decoding tasks and the two read-outs."""
    sam2 = network.sam2
    features = sam2.encode(batch["image"])
    labels = batch["labels"].long()
    edge = features.high.shape[-1]
    soft = coarse(F.one_hot(labels, CLASSES).permute(0, 3, 1, 2), edge)
    logits = network.organ_logits(features.high, features.middle, features.low)
    entropy = -(soft * logits.log_softmax(1)).sum(1).mean()
    probability = logits.softmax(1)
    overlap = 2 * (probability * soft).sum((0, 2, 3))[1:] / (probability + soft).sum((0, 2, 3))[1:].clamp_min(1)
    # What the organs are is harder to learn than how a memory is decoded, so it counts most.
    loss = 3 * (2 * entropy + (1 - overlap).mean())

    pairs = len(labels) // 2
    organs = pick(labels[1::2], labels[0::2])
    rows = torch.arange(pairs).repeat_interleave(PICKS)
    flat = organs.flatten()
    now = (labels[1::2][rows] == flat.view(-1, 1, 1))[:, None].float()
    then = (labels[0::2][rows] == flat.view(-1, 1, 1))[:, None].float()
    free = torch.rand(len(rows)) < 0.1
    now = torch.where(free.view(-1, 1, 1, 1), random_ellipses(len(rows), now.shape[-1]), now)
    # Of the slice before, the memory can only tell about what was there.
    from_before = (torch.rand(len(rows)) < 0.5) & then.flatten(1).any(1) & ~free
    source = torch.where(from_before.view(-1, 1, 1, 1), then, now)
    seen = features.select(2 * rows + (~from_before).long())
    memory = sam2.remember_mask(seen, source)
    loss = loss + 0.5 * mask_loss(network.mask_logits(memory), coarse(source, edge)) + 0.01 * memory.square().mean()

    # A prior's memories are never exact: half of them are blurred by noise.
    spread = memory.detach().std((0, 2, 3), keepdim=True)
    level = 0.6 * torch.rand(len(rows), 1, 1, 1) * (torch.rand(len(rows), 1, 1, 1) < 0.5)
    decoded = sam2.decode(features.select(2 * rows + 1), memory + level * spread * torch.randn_like(memory))
    truth = coarse(now, edge)
    present = (truth.flatten(1).sum(1) > 0.5).float()
    loss = loss + mask_loss(decoded.mask_logits, truth)
    loss = loss + 0.2 * F.binary_cross_entropy_with_logits(decoded.object_logits, present)

    points, kinds, known = prompts(now[::PICKS])
    prompted = sam2.decode_prompt(features.select(slice(1, None, 2)), points, kinds)
    return loss + 0.5 * mask_loss(prompted.mask_logits, truth[::PICKS], known)


def prompts(masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (points of kinds 2 and 3) of masks (B, 1, S, S), or a click inside (kinds 1 and -1), evenly.

    Returns:
        points (B, 2, 2) as x, y in pixels, kinds (B, 2), and 1 where the mask is not empty (B,).
    """
    points, kinds = torch.zeros(len(masks), 2, 2), torch.full((len(masks), 2), -1)
    known = masks.flatten(1).any(1).float()
    for row in range(len(masks)):
        if known[row]:
            inside = masks[row, 0].nonzero().flip(1).float()
            if torch.rand(()) < 0.5:
                points[row] = torch.stack([inside.amin(0), inside.amax(0)]) + 2 * torch.randn(2, 2)
                kinds[row] = torch.tensor([2, 3])
            else:
                points[row, 0], kinds[row, 0] = inside[torch.randint(len(inside), ())], 1
    return points, kinds, known


@torch.no_grad()
def validate(network: Pretraining, checks: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Dice of decoding the same slice's memory, the slice before's, and of the linear read-out; memory's influence."""
    sums: dict[str, list[float]] = {"same": [], "before": [], "readout": [], "swapped": []}
    sam2 = network.sam2
    for batch in checks:
        features, labels = sam2.encode(batch["image"]), batch["labels"].long()
        edge = features.high.shape[-1]
        readout = network.organ_logits(features.high, features.middle, features.low).argmax(1)
        for row in range(1, len(labels), 2):
            small = coarse(F.one_hot(labels[row], CLASSES).permute(2, 0, 1)[:, None], edge) > 0.5
            old = F.one_hot(labels[row - 1], CLASSES).permute(2, 0, 1)[:, None].float()
            new = F.one_hot(labels[row], CLASSES).permute(2, 0, 1)[:, None].float()
            organs = [o for o in range(1, CLASSES) if small[o].sum() > 8 and old[o].sum() > 32]
            if len(organs) < 2:
                continue
            one, other = features.select(slice(row, row + 1)), features.select(slice(row - 1, row))
            same = sam2.decode(one, sam2.remember_mask(one, new[organs])).mask_logits > 0
            before = sam2.decode(one, sam2.remember_mask(other, old[organs])).mask_logits > 0
            for place, organ in enumerate(organs):
                sums["same"].append(_dice(same[place], small[organ]))
                sums["before"].append(_dice(before[place], small[organ]))
                sums["readout"].append(_dice(readout[row][None] == organ, small[organ]))
                sums["swapped"].append(_dice(same[place], small[organs[place - 1]]))
    return {f"validation_dice_{name}": sum(values) / max(len(values), 1) for name, values in sums.items()}


def _dice(a: Tensor, b: Tensor) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()).clamp_min(1))


def fit(scans: Sequence[LabelledScan], held_out: Sequence[LabelledScan], work: Path, minutes: float, seed: int,
        progress: Progress):
    """Train on phantoms in all looks; returns SAM 2 and the curve."""
    torch.manual_seed(seed)
    sam2 = build("sam2", {"size": SIZE})
    assert isinstance(sam2, Sam2)
    initialise(sam2)
    fixed = batches(held_out, PAIRS, seed + 9, 0.3)
    checks = [next(fixed) for _ in range(4)]
    network, curve = train(
        Pretraining(sam2), pretraining_loss, batches(scans, PAIRS, seed, RANDOM_SHARE), work, minutes, progress,
        1e-3, 0.99, lambda network: validate(network, checks),
    )
    return network.sam2, curve
