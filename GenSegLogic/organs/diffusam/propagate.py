"""From the best slice up and down: organs of a whole scan without a prompt (DiffuSAM, arXiv 2604.24719).

All organs, both directions and all members of the ensemble advance together, a slice at a time; each sees a window of
its slices, round its organ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from scipy import ndimage
from torch import Tensor

from ...errors import GenSegError
from ...networks.memory_prior import Context
from ...networks.sam2 import MASK_SCALE, MEMORY_CHANNELS, Features, Windows
from ...networks.sam2_sizes import ENCODER_BATCH
from ...volume import Volume
from .prior import sample

if TYPE_CHECKING:
    from .models import MemorySource, OrganModels

PRESENT = 0.5
"""Presence that some slice must reach, or the organ is not there."""
ABSENT = 0.15
"""Presence below which a propagation that has lost the organ ends."""
READOUT_SHARE = 0.9
"""Weight of the read-out beside the ensemble in the confidence. SAM 2's masks are sharp also where they are wrong; the
read-out is trained to be as sure as it is right. Chosen on 20 scans of the validation split, in all looks."""
NEIGHBOURS_MM = 4.0
"""Deviation of the Gaussian over which the confidence takes in the slices above and below. The read-out sees every
slice by itself, so its neighbours are opinions of their own. Chosen on 20 scans of the validation split, in all
looks."""
WINDOW_STEP = 0.1
"""Windows reach so much of a slice's edge beyond the read-out on every side, and their own edges are multiples of it.
Mean Dice of 13 organs on 12 scans of the validation split is 0.653 in windows and in whole slices."""
OUTSIDE = -20.0
"""Logit of the masks beyond their windows."""
BATCH = 16
"""Pairs of slice and organ that are decoded at once; more of them only leave the cache of a CPU."""


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
    high, middle, low = (torch.cat(level) for level in zip(*((f.high, f.middle, f.low) for f in features), strict=True))
    return Scan(
        Features(high, middle, low),
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
    starts = [start_of(scan.context, int(index[place])) for place in there]
    fronts = _Fronts(models, scan, source, generator)
    logits = fronts.run(starts, presence[:, there], samples, lambda fraction: told(0.3 + 0.65 * fraction))
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
        size = features.low.shape[-2:]
        noise = torch.randn(len(organs), MEMORY_CHANNELS, *size, generator=generator).to(features.low.device)
        rows = torch.as_tensor(slices, device=features.low.device)
        context = scan.context.select(rows).cut_alike(features)
        return sample(models.prior, models.sam2, features, context, organs.to(rows), previous, steps, noise, callback)

    return draw


@dataclass(frozen=True)
class Start:
    """Where the propagations of an organ begin, and the window of every slice that they see.

    Attributes:
        organ: index among the models' organs.
        k: the slice that shows most of it for certain.
        corner: (y, x) of the window's first cell on the memory's grid.
        edge: cells along the window's edge.
    """

    organ: int
    k: int
    corner: tuple[int, int]
    edge: int


def start_of(context: Context, organ: int) -> Start:
    """Where to begin with an organ that the read-out shows in some slice."""
    readout, presence = context.readout[:, organ], context.presence[:, organ].sigmoid()
    area = (readout > 0).float().mean((1, 2))
    shown = (readout > 0).any(0).cpu()
    whole = shown.shape[-1] // MASK_SCALE
    step = max(1, round(WINDOW_STEP * whole))
    cells = [shown.any(1).nonzero().flatten() // MASK_SCALE, shown.any(0).nonzero().flatten() // MASK_SCALE]
    bounds = [(max(0, int(cell[0]) - step), min(whole, int(cell[-1]) + 1 + step)) for cell in cells]
    edge = min(whole, step * max(-(-(high - low) // step) for low, high in bounds))
    y, x = (max(0, min((low + high - edge) // 2, whole - edge)) for low, high in bounds)
    return Start(organ, int((presence * (area + 1e-4).sqrt()).argmax()), (y, x), edge)


class _Fronts:
    """The propagations of all organs, directions and members of the ensemble, advanced together."""

    def __init__(self, models: OrganModels, scan: Scan, source: MemorySource, generator: torch.Generator) -> None:
        self.models, self.scan, self.source, self.generator = models, scan, source, generator
        self.count = len(scan.features)

    def run(self, starts: list[Start], presence: Tensor, samples: int,
            callback: Callable[[float], None]) -> list[Tensor]:
        """Mask logits (samples, K, 4h, 4w) of every organ.

        Args:
            starts: of the organs.
            presence: (K, organs).
            samples: members of the ensemble.
            callback: takes the fraction done.
        """
        edge = self.scan.features.high.shape[-1]
        logits = torch.full((len(starts), samples, self.count, edge, edge), OUTSIDE)
        # Windows of one size go through the networks together.
        places = sorted(range(len(starts)), key=lambda place: starts[place].edge)
        lanes = [(place, member) for place in places for member in range(samples)]
        first = self._step(lanes, [starts[place].k for place, _ in lanes], starts, None, logits)
        # Every lane goes on in both directions from what its best slice showed.
        active = [(lane, direction, memory) for lane, memory in zip(lanes, first, strict=True) for direction in (1, -1)]
        for distance in range(1, self.count):
            going = []
            for lane, direction, memory in active:
                k = starts[lane[0]].k + direction * distance
                if 0 <= k < self.count and presence[k, lane[0]] >= ABSENT:
                    going.append((lane, direction, memory, k))
            if not going:
                break
            memories = self._step([entry[0] for entry in going], [entry[3] for entry in going], starts,
                                  [entry[2] for entry in going], logits)
            active = [(lane, direction, memory) for (lane, direction, _, _), memory in
                      zip(going, memories, strict=True)]
            callback(distance / self.count)
        return list(logits)

    def _step(self, lanes: list[tuple[int, int]], slices: list[int], starts: list[Start],
              previous: list[Tensor] | None, logits: Tensor) -> list[Tensor]:
        """Segment one slice in every lane; returns the memories for the next."""
        memories: list[Tensor] = []
        sam2 = self.models.sam2
        for chosen in _batches([starts[place].edge for place, _ in lanes]):
            mine = [starts[place] for place, _ in lanes[chosen]]
            windows = Windows(tuple(start.corner for start in mine), mine[0].edge)
            rows = torch.tensor(slices[chosen], device=self.scan.features.low.device)
            features = self.scan.features.select(rows).cut(windows)
            index = torch.tensor([start.organ for start in mine])
            before = None if previous is None else torch.stack(previous[chosen])
            memory = self.source(features, slices[chosen], index, before, self.generator)
            decoded = sam2.decode(features, memory)
            memories.extend(sam2.remember(features, decoded.mask_logits))
            masks, size = decoded.mask_logits[:, 0].cpu(), MASK_SCALE * windows.edge
            for mask, (place, member), k, corner in zip(masks, lanes[chosen], slices[chosen], windows.corners,
                                                        strict=True):
                y, x = MASK_SCALE * corner[0], MASK_SCALE * corner[1]
                logits[place, member, k, y : y + size, x : x + size] = mask
        return memories


def _batches(edges: Sequence[int]) -> Iterator[slice]:
    """Runs of equal windows, ``BATCH`` of them at most."""
    begin = 0
    for _, run in groupby(edges):
        end = begin + len(list(run))
        for first in range(begin, end, BATCH):
            yield slice(first, min(first + BATCH, end))
        begin = end


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
