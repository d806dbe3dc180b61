"""From the best slice up and down: organs of a whole scan without a prompt (DiffuSAM, arXiv 2604.24719).

All organs, both directions and all members of the ensemble go through the networks as one batch, a slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from torch import Tensor

from ...errors import GenSegError
from ...networks.memory_prior import Context
from ...networks.sam2 import MEMORY_CHANNELS, Features
from ...volume import Volume
from .prior import sample

if TYPE_CHECKING:
    from .models import MemorySource, OrganModels

PRESENT = 0.5
"""Presence that some slice must reach, or the organ is not there."""
ABSENT = 0.15
"""Presence below which a propagation that has lost the organ ends."""
READOUT_SHARE = 0.75
"""Weight of the read-out beside the ensemble in the confidence. SAM 2's masks are sharp also where they are wrong; the
read-out is trained to be as sure as it is right. Chosen on three T2-SPIR patients of the validation split."""
NEIGHBOURS_MM = 4.0
"""Deviation of the Gaussian over which the confidence takes in the slices above and below. The read-out sees every
slice by itself, so its neighbours are opinions of their own. Chosen on 20 scans of the validation split, in all
looks."""
BATCH = 64
"""Pairs of slice and organ that are decoded at once."""
ENCODER_BATCH = 8


@dataclass(frozen=True)
class Segmentation:
    """What :func:`segment` found, on the grid of the volume that it was given.

    Attributes:
        probabilities: organ -> (k, j, i) float32 in [0, 1]; an organ that is not there is 0 everywhere.
        confidence: (k, j, i) float32 in [0, 1]: how far ensemble, read-out and the slices above and below agree on the
            answer at this voxel.
        presence: organ -> highest probability over the slices that the organ is there, in [0, 1].
        encoded_slices: how often the image encoder ran: once per slice, whatever the number of organs.
    """

    probabilities: dict[str, np.ndarray]
    confidence: np.ndarray
    presence: dict[str, float]
    encoded_slices: int


@dataclass(frozen=True)
class Scan:
    """A scan as the networks see it: features and context of its K slices."""

    features: Features
    context: Context


def look_at(volume: Volume, models: OrganModels, callback: Callable[[float], None] = lambda fraction: None) -> Scan:
    """Encode every slice once, and read the context off it.

    Raises:
        GenSegError: if the volume is not on the canonical grid.
    """
    size = models.grid.size
    if volume.shape[1:] != (size, size):
        raise GenSegError(f"{volume.name} has slices of {volume.shape[2]} x {volume.shape[1]} pixels, but the networks "
                          f"take {size} x {size}; put it on the bundle's canonical grid first.")
    device = next(models.sam2.parameters()).device
    slices = torch.from_numpy(np.ascontiguousarray(volume.voxels, np.float32))[:, None]
    features, contexts = [], []
    for start in range(0, len(slices), ENCODER_BATCH):
        features.append(models.sam2.encode(slices[start : start + ENCODER_BATCH].to(device)))
        contexts.append(models.prior.look(features[-1]))
        callback(min(start + ENCODER_BATCH, len(slices)) / len(slices))
    return Scan(
        Features(*(torch.cat(level) for level in zip(*((f.high, f.middle, f.low) for f in features), strict=True))),
        Context(*(torch.cat(part) for part in zip(*((c.image, c.readout, c.presence) for c in contexts),
                                                  strict=True))),
    )


@torch.no_grad()
def segment(
    volume: Volume,
    models: OrganModels,
    organs: Sequence[str] = (),
    steps: int = 2,
    samples: int = 2,
    generator: torch.Generator | None = None,
    callback: Callable[[float], None] = lambda fraction: None,
    memory_source: MemorySource | None = None,
) -> Segmentation:
    """Segment organs in a scan on the canonical grid.

    Args:
        volume: from :meth:`.canonical.CanonicalGrid.apply`: float32 in [0, 1], axial slices from feet to head.
        models: from :func:`.models.organ_models`; its device and autocast state decide where and how precisely.
        organs: names among ``models.organs``; empty: all of them.
        steps: sampling steps of the prior, >= 1.
        samples: members of the ensemble, >= 1.
        generator: of the noise, on the CPU; None: seed 0. Equal seeds give equal bytes on the CPU.
        callback: called with the fraction done; may raise.
        memory_source: what stands in for the prior (controls of the evaluation); None: the prior.

    Raises:
        GenSegError: if the volume is not on the canonical grid, or an organ is not among the models'.
    """
    organs = tuple(organs) or models.organs
    if unknown := [name for name in organs if name not in models.organs]:
        raise GenSegError(f"The model has not learned {', '.join(unknown)}; it knows {', '.join(models.organs)}.")
    generator = generator or torch.Generator().manual_seed(0)
    done = 0.0

    def told(fraction: float) -> None:
        nonlocal done
        done = fraction
        callback(done)

    scan = look_at(volume, models, lambda fraction: told(0.3 * fraction))
    # A slice of many samples takes long: every sampling step asks whether to go on.
    source = memory_source or prior_source(models, scan, steps, lambda step, steps: callback(done))
    index = torch.tensor([models.organs.index(name) for name in organs])
    presence = scan.context.presence.sigmoid().cpu()[:, index]
    highest = presence.max(0).values
    seen = (scan.context.readout > 0).flatten(2).any(2).any(0).cpu()[index]
    there = [place for place in range(len(organs)) if highest[place] >= PRESENT and seen[place]]
    starts = best_slices(scan.context, index)
    fronts = _Fronts(models, scan, source, generator)
    logits = fronts.run([(int(index[place]), int(starts[place])) for place in there], presence[:, there], samples,
                        lambda fraction: told(0.3 + 0.65 * fraction))
    probabilities = {name: np.zeros(volume.shape, np.float32) for name in organs}
    confidence = Confidence(volume)
    for place, members in zip(there, logits, strict=True):
        mean = _enlarge(members.sigmoid().mean(0), volume.shape[1])
        probabilities[organs[place]] = mean
        readout = scan.context.readout[:, int(index[place])].sigmoid().cpu()
        confidence.add(mean, _enlarge(readout, volume.shape[1]))
    callback(1.0)
    return Segmentation(probabilities, confidence.result(), {name: float(highest[place]) for place, name in
                                                             enumerate(organs)}, len(volume.voxels))


def prior_source(models: OrganModels, scan: Scan, steps: int, callback: Callable[[int, int], None]) -> MemorySource:
    """Memories from the prior; ``callback`` is called after every sampling step and may raise."""

    def draw(features: Features, slices: Sequence[int], organs: Tensor, previous: Tensor | None,
             generator: torch.Generator) -> Tensor:
        size = models.sam2.memory_size
        noise = torch.randn(len(organs), MEMORY_CHANNELS, size, size, generator=generator).to(features.low.device)
        rows = torch.as_tensor(slices, device=features.low.device)
        return sample(models.prior, models.sam2, features, scan.context.select(rows), organs.to(rows), previous, steps,
                      noise, callback)

    return draw


def best_slices(context: Context, organs: Tensor) -> Tensor:
    """Where to begin with each organ: the slice that shows most of it for certain."""
    area = (context.readout.sigmoid() > 0.5).float().mean((2, 3))
    certain = context.presence.sigmoid()
    score = certain * (area + 1e-4).sqrt()
    return score[:, organs.to(score.device)].argmax(0).cpu()


class _Fronts:
    """The propagations of all organs, directions and members of the ensemble, advanced together."""

    def __init__(self, models: OrganModels, scan: Scan, source: MemorySource, generator: torch.Generator) -> None:
        self.models, self.scan, self.source, self.generator = models, scan, source, generator
        self.count = len(scan.features)

    def run(self, organs: list[tuple[int, int]], presence: Tensor, samples: int,
            callback: Callable[[float], None]) -> list[Tensor]:
        """Mask logits (samples, K, 4h, 4w) of every organ.

        Args:
            organs: index and best slice of each.
            presence: (K, organs).
            samples: members of the ensemble.
            callback: takes the fraction done.
        """
        edge = self.scan.features.high.shape[-1]
        logits = torch.full((len(organs), samples, self.count, edge, edge), -20.0)
        lanes = [(place, member) for place in range(len(organs)) for member in range(samples)]
        starts = [organs[place][1] for place, _ in lanes]
        first = self._step(lanes, starts, organs, None, logits)
        # Every lane goes on in both directions from what its best slice showed.
        active = [(lane, starts[number], direction, first[number])
                  for number, lane in enumerate(lanes) for direction in (1, -1)]
        for distance in range(1, self.count):
            going = []
            for lane, start, direction, memory in active:
                k = start + direction * distance
                if 0 <= k < self.count and presence[k, lane[0]] >= ABSENT:
                    going.append((lane, start, direction, memory, k))
            if not going:
                break
            memories = self._step([entry[0] for entry in going], [entry[4] for entry in going], organs,
                                  torch.stack([entry[3] for entry in going]), logits)
            active = [(lane, start, direction, memory) for (lane, start, direction, _, _), memory in
                      zip(going, memories, strict=True)]
            callback(distance / self.count)
        return list(logits)

    def _step(self, lanes: list[tuple[int, int]], slices: list[int], organs: list[tuple[int, int]],
              previous: Tensor | None, logits: Tensor) -> list[Tensor]:
        """Segment one slice in every lane; returns the memories for the next."""
        memories: list[Tensor] = []
        sam2 = self.models.sam2
        for begin in range(0, len(lanes), BATCH):
            chosen = slice(begin, begin + BATCH)
            rows = torch.tensor(slices[chosen], device=self.scan.features.low.device)
            features = self.scan.features.select(rows)
            index = torch.tensor([organs[place][0] for place, _ in lanes[chosen]])
            before = None if previous is None else previous[chosen]
            memory = self.source(features, slices[chosen], index, before, self.generator)
            decoded = sam2.decode(features, memory)
            remembered = sam2.remember(features, decoded.mask_logits)
            for number, (place, member) in enumerate(lanes[chosen]):
                logits[place, member, slices[begin + number]] = decoded.mask_logits[number, 0].cpu()
            memories.extend(remembered)
        return memories


def _enlarge(probability: Tensor, size: int) -> np.ndarray:
    """(K, 4h, 4w) -> (K, size, size) float32."""
    enlarged = F.interpolate(probability[:, None], (size, size), mode="bilinear", align_corners=False)
    return enlarged[:, 0].clamp(0, 1).numpy()


class Confidence:
    """Probability that the voxel's label is right, as far as the ensemble and the read-out can tell."""

    def __init__(self, volume: Volume) -> None:
        self.reach = NEIGHBOURS_MM / volume.spacing[2]
        self.highest = np.full(volume.shape, 0.5, np.float32)
        self.winner = np.zeros(volume.shape, np.float32)
        self.most = np.zeros(volume.shape, np.float32)

    def add(self, probability: np.ndarray, readout: np.ndarray) -> None:
        """Take in one organ's mean probability over the ensemble, which decides the label, and its read-out."""
        own = READOUT_SHARE * readout + (1 - READOUT_SHARE) * probability
        certain = ndimage.gaussian_filter1d(own, self.reach, axis=0)
        wins = probability > self.highest
        self.highest[wins], self.winner[wins] = probability[wins], certain[wins]
        np.maximum(self.most, certain, out=self.most)

    def result(self) -> np.ndarray:
        """(k, j, i) float32 in [0, 1]: of the winning organ where one wins, of none where none does."""
        return np.where(self.highest > 0.5, self.winner, 1 - self.most)
