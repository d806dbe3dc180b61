"""The peer of DiffuSAM: a plain 2D U-Net, trained on the same slices with the same augmentation."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import ORGANS
from ..datasets.organ_cases import OrganCase
from ..organs.diffusam.canonical import CanonicalGrid
from ..organs.diffusam.learning import LabelledScan, batches
from ..organs.diffusam.task import Found
from ..organs.regions import label_scan, plausible
from ..progress import Progress
from ..training.loop import to_device
from ..volume import Volume, resample_like

FEATURES = (24, 24, 48, 96, 192, 24)
PAIRS = 4
"""Pairs of neighbouring slices in a batch."""
LEARNING_RATE, LOWEST_RATE = 1e-3, 5e-5
PATIENCE = 200
"""Batches without the loss falling by 2 %, after which the learning rate is cut to a third; training ends below the
lowest rate: the plateau."""


def labelled_scan(
    case: OrganCase, grid: CanonicalGrid, organs: Sequence[str], tissues: Volume | None = None
) -> LabelledScan:
    """A case on the canonical grid, as training takes it, its labels counting through ``organs`` from 1."""
    image = np.round(255 * grid.apply(case.image).voxels).astype(np.uint8)
    number_of = np.zeros(len(ORGANS) + 1, np.uint8)
    for number, name in enumerate(organs, start=1):
        number_of[ORGANS[name].label] = number
    labels = number_of[grid.apply_labels(case.labels, case.image)]
    known = np.ones((len(labels), len(organs)), np.uint8)
    return LabelledScan((image,), labels, known, None if tissues is None else grid.apply_labels(tissues, case.image))


def train_unet(
    scans: Sequence[LabelledScan],
    organs: Sequence[str],
    minutes: float,
    seed: int,
    progress: Progress,
    start: nn.Module | None = None,
    random_share: float = 0.0,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Train until the loss has reached its plateau, or ``minutes`` are over.

    Args:
        scans: from :func:`labelled_scan`, with these organs.
        organs: names; channel 0 of the output is none of them.
        start: a network to go on from; it stays as it is.
        random_share: part of the slices in random looks; needs scans with tissues.
        device: where to train.
    """
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    torch.manual_seed(seed)
    network: nn.Module = copy.deepcopy(start) if start is not None else BasicUNet(
        spatial_dims=2, in_channels=1, out_channels=len(organs) + 1, features=FEATURES)
    network.to(device).train().requires_grad_(True)
    loss_of = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    rate, running, best, since = LEARNING_RATE, 0.0, float("inf"), 0
    began = time.monotonic()
    for step, drawn in enumerate(batches(scans, PAIRS, seed, random_share)):
        batch = to_device(drawn, device)
        loss: Tensor = loss_of(network(batch["image"]), batch["labels"][:, None].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        since += 1
        if running < 0.98 * best:
            best, since = running, 0
        if since >= PATIENCE:
            rate, since = rate / 3, 0
            for group in optimizer.param_groups:
                group["lr"] = rate
        spent = (time.monotonic() - began) / 60
        progress(min(1.0, spent / minutes), f"U-Net: step {step + 1}, loss {running:.3f}")
        if spent >= minutes or rate < LOWEST_RATE:
            break
    return network.eval().requires_grad_(False)


@torch.no_grad()
def segment_with_unet(network: nn.Module, image: Volume, grid: CanonicalGrid, organs: Sequence[str]) -> Found:
    """Segment a scan of any grid, finished as DiffuSAM's masks are."""
    canonical = grid.apply(image)
    slices = torch.from_numpy(canonical.voxels)[:, None]
    device = next(network.parameters()).device
    output = torch.cat([network(part.to(device)).softmax(1).cpu() for part in slices.split(8)]).numpy()
    probabilities = {name: np.ascontiguousarray(output[:, channel]) for channel, name in enumerate(organs, start=1)}
    labels = label_scan(plausible(probabilities, canonical), canonical, image)
    certain = Volume(output.max(1), canonical.affine, image.name)
    return Found(labels, resample_like(certain, image, fill=0))
