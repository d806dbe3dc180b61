"""DiffuSAM, its controls and its peers, each as a function from a scan to labels on the scan's own grid."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..anatomy import ORGANS
from ..bundles import find_bundle
from ..datasets.organ_cases import OrganCase
from ..networks.sam2 import MEMORY_CHANNELS, Features
from ..organs.diffusam.canonical import CanonicalGrid
from ..organs.diffusam.models import OrganModels
from ..organs.diffusam.prior import sample
from ..organs.diffusam.propagate import look_at
from ..organs.diffusam.task import Found, OrgansTask, find_organs, load_models
from ..progress import Progress, part, silent
from ..volume import Volume
from .jobs import autocast
from .organs_unet import labelled_scan, segment_with_unet, train_unet

if TYPE_CHECKING:
    from ..engine import Engine

Segmenter = Callable[[OrganCase], Found]
"""From a case, of which only the control ``true-memory`` reads the labels."""

TASK = OrgansTask()
PRETRAINING_PHANTOMS = 24
REFERENCE_LEVELS = np.linspace(0.0, 1.0, 65)


@dataclass(frozen=True)
class Setting:
    """What every method of a benchmark shares.

    Attributes:
        engine: holds the networks.
        source: bundle of kind ``organs`` to start from.
        organs: to segment.
        minutes: budget of an adaptation.
        unet_minutes: budget of a U-Net, and of its pretraining.
        seed: of all random numbers.
    """

    engine: Engine
    source: str
    organs: tuple[str, ...]
    minutes: float
    unet_minutes: float
    seed: int


def by_models(models: OrganModels, organs: Sequence[str], seed: int = 0) -> Segmenter:
    """DiffuSAM with the settings of the task."""
    organs = _known(models, organs)
    return _as_shipped(models, lambda case: find_organs(case.image, models, organs, TASK.steps, TASK.samples, seed,
                                                        silent))


def _as_shipped(models: OrganModels, segment: Segmenter) -> Segmenter:
    """In the precision that the task computes in."""

    def run(case: OrganCase) -> Found:
        with autocast(next(models.prior.parameters()).device):
            return segment(case)

    return run


def _known(models: OrganModels, organs: Sequence[str]) -> list[str]:
    """Those that the models have learned; the others stay empty, as the task leaves them."""
    return [name for name in organs if name in models.organs]


def adapted(learn: Sequence[OrganCase], setting: Setting, progress: Progress, source_free: bool = False) -> OrganModels:
    """The models after :func:`~GenSegLogic.organs.diffusam.adapt.adapt`, by way of a bundle, as a user has them."""
    from ..organs.diffusam.adapt import adapt

    pairs = [(case.image, None if source_free else case.labels) for case in learn]
    result = adapt(pairs, find_bundle(setting.source), setting.minutes, setting.seed, progress,
                   source_free=source_free, device=str(setting.engine.device))
    with tempfile.TemporaryDirectory() as folder:
        result.write(Path(folder) / "adapted")
        return load_models(str(Path(folder) / "adapted"), setting.engine)


# Controls: something else in the place of the prior's memory


def regressor(models: OrganModels, organs: Sequence[str]) -> Segmenter:
    """The prior as a deterministic regressor: at t = 1 one evaluation is the mean given the slice; no noise."""
    organs = _known(models, organs)

    @torch.no_grad()
    def segment(case: OrganCase) -> Found:
        context = look_at(models.grid.apply(case.image), models).context

        def source(features: Features, slices: Sequence[int], organs: Tensor, previous: Tensor | None,
                   generator: torch.Generator) -> Tensor:
            rows = torch.as_tensor(slices, device=features.low.device)
            nothing = torch.zeros(len(rows), MEMORY_CHANNELS, *features.low.shape[-2:], device=rows.device)
            return sample(models.prior, models.sam2, features, context.select(rows).cut_alike(features),
                          organs.to(rows), previous, 1, nothing, start=1.0)

        return find_organs(case.image, models, organs, 1, 1, 0, silent, source)

    return _as_shipped(models, segment)


def mean_memory(models: OrganModels, organs: Sequence[str], learn: Sequence[OrganCase]) -> Segmenter:
    """Every slice gets its organ's mean memory over the cases learned from: a collapsed memory would do as well."""
    organs = _known(models, organs)
    edge = models.sam2.memory_size
    means = torch.zeros(len(models.organs), MEMORY_CHANNELS, edge, edge)
    for name in organs:
        index, total, count = models.organs.index(name), torch.zeros_like(means[0]), 0
        for case in learn:
            labels = models.grid.apply_labels(case.labels, case.image) == ORGANS[name].label
            slices = np.flatnonzero(labels.any((1, 2))).tolist()
            if slices:
                total += _memories(models, case, slices, [index] * len(slices)).sum(0)
                count += len(slices)
        means[index] = total / max(count, 1)

    def source(features: Features, slices: Sequence[int], organs: Tensor, previous: Tensor | None,
               generator: torch.Generator) -> Tensor:
        return features.cut_alike(means.to(features.low.device)[organs])

    return _as_shipped(models, lambda case: find_organs(case.image, models, organs, 1, 1, 0, silent, source))


def true_memory(models: OrganModels, organs: Sequence[str]) -> Segmenter:
    """The memory of the truth itself: what a perfect prior would reach."""
    organs = _known(models, organs)

    def segment(case: OrganCase) -> Found:
        truth = _masks(models, case)

        def source(features: Features, slices: Sequence[int], organs: Tensor, previous: Tensor | None,
                   generator: torch.Generator) -> Tensor:
            masks = torch.stack([truth(k, int(organ)) for k, organ in zip(slices, organs, strict=True)])[:, None]
            seen = features.cut_alike(masks, masks.shape[-1] // models.sam2.memory_size)
            return models.sam2.remember_mask(features, seen.to(features.low.device))

        return find_organs(case.image, models, organs, 1, 1, 0, silent, source)

    return _as_shipped(models, segment)


def _masks(models: OrganModels, case: OrganCase) -> Callable[[int, int], Tensor]:
    """(slice, organ's index) -> truth (S, S) as 0 and 1."""
    labels = torch.from_numpy(models.grid.apply_labels(case.labels, case.image))
    numbers = [ORGANS[name].label for name in models.organs]
    return lambda k, organ: (labels[k] == numbers[organ]).float()


@torch.no_grad()
def _memories(models: OrganModels, case: OrganCase, slices: Sequence[int], organs: Sequence[int]) -> Tensor:
    """Memories (n, 64, h, w), on the CPU, of the truth in slices of a case."""
    canonical, truth = models.grid.apply(case.image), _masks(models, case)
    device = next(models.sam2.parameters()).device
    found = []
    for start in range(0, len(slices), 16):
        rows = list(slices[start : start + 16])
        images = torch.from_numpy(canonical.voxels[rows])[:, None].to(device)
        masks = torch.stack([truth(k, o) for k, o in zip(rows, organs[start : start + 16], strict=True)])[:, None]
        found.append(models.sam2.remember_mask(models.sam2.encode(images), masks.to(device)).cpu())
    return torch.cat(found)


# Grey values aligned, networks untouched


@dataclass(frozen=True)
class AlignedGrid(CanonicalGrid):
    """A canonical grid whose grey values are mapped so that their quantiles are those of a reference.

    Attributes:
        reference: grey values in [0, 1] at REFERENCE_LEVELS.
    """

    reference: tuple[float, ...] = ()

    def apply(self, image: Volume, reference: Volume | None = None) -> Volume:
        """As :meth:`CanonicalGrid.apply`, then aligned inside of the body."""
        canonical = super().apply(image, reference)
        body = canonical.voxels > 0
        own = np.quantile(canonical.voxels[body], REFERENCE_LEVELS)
        aligned = np.interp(canonical.voxels, own, self.reference).astype(np.float32)
        return canonical.with_voxels(np.where(body, aligned, 0).astype(np.float32))


def aligned(models: OrganModels, like: Sequence[Volume], target: CanonicalGrid) -> OrganModels:
    """Models that see scans with the grey values of others.

    Args:
        like: scans as the models have learned from.
        target: the canonical grid for scans of the new kind.
    """
    quantiles = []
    for image in like:
        voxels = models.grid.apply(image).voxels
        quantiles.append(np.quantile(voxels[voxels > 0], REFERENCE_LEVELS))
    reference = tuple(float(value) for value in np.mean(quantiles, axis=0))
    grid = AlignedGrid(target.size, target.spacing_mm, target.slice_mm, target.window_hu, reference)
    return replace(models, grid=grid)


# The peer


def pretrained_unet(look: str, grid: CanonicalGrid, setting: Setting, progress: Progress) -> torch.nn.Module:
    """A U-Net trained on phantoms, half of them in random looks (as SynthSeg does), before it sees a real scan."""
    from ..phantoms.abdomen import abdomen_phantom

    scans = []
    for number in range(PRETRAINING_PHANTOMS):
        progress(0.3 * number / PRETRAINING_PHANTOMS, f"Phantom {number + 1} of {PRETRAINING_PHANTOMS}")
        phantom = abdomen_phantom(number, look, "train")
        case = OrganCase(phantom.image.name, phantom.image, phantom.labels, tuple(ORGANS))
        scans.append(labelled_scan(case, grid, setting.organs, phantom.tissues))
    return train_unet(scans, setting.organs, setting.unet_minutes, setting.seed, part(progress, 0.3, 1), None,
                      0.5, setting.engine.device)


def few_shot_segmenters(
    learn: Sequence[OrganCase],
    methods: Sequence[str],
    setting: Setting,
    progress: Progress,
    pretrained: Callable[[], torch.nn.Module],
) -> Mapping[str, Callable[[], Segmenter]]:
    """Method -> function that learns from ``learn`` and gives the segmenter; what they share is learned once."""
    known: dict[str, OrganModels] = {}

    def models() -> OrganModels:
        if "adapted" not in known:
            known["adapted"] = adapted(learn, setting, progress)
        return known["adapted"]

    def unet(start: Callable[[], torch.nn.Module] | None) -> Segmenter:
        grid = load_models(setting.source, setting.engine).grid
        scans = [labelled_scan(case, grid, setting.organs) for case in learn]
        network = train_unet(scans, setting.organs, setting.unet_minutes, setting.seed, progress,
                             start() if start is not None else None, device=setting.engine.device)
        return lambda case: segment_with_unet(network, case.image, grid, setting.organs)

    every: dict[str, Callable[[], Segmenter]] = {
        "diffusam": lambda: by_models(models(), setting.organs, setting.seed),
        "unet": lambda: unet(None),
        "unet-phantom-pretrained": lambda: unet(pretrained),
        "mean-memory": lambda: mean_memory(models(), setting.organs, learn),
        "regressor": lambda: regressor(models(), setting.organs),
        "true-memory": lambda: true_memory(models(), setting.organs),
    }
    return {name: every[name] for name in methods}
