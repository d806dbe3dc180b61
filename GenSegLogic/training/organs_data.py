"""Slices of abdomen phantoms for the organ recipes: drawn once, then deformed and recoloured afresh for every batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from ..organs.diffusam.canonical import CanonicalGrid
from ..progress import Progress

LOOKS = ("ct", "t1", "t2", "t2-spir")
CT_WINDOW = (-160.0, 240.0)
GRIDS = {look: CanonicalGrid(window_hu=CT_WINDOW if look == "ct" else None) for look in LOOKS}


def draw_cases(folder: Path, count: int, first_seed: int, split: str, minutes: float, progress: Progress) -> list[Path]:
    """Draw phantoms in every look onto the canonical grid, a file each; those that are there already stay.

    Stops when ``minutes`` are over, but not before 8 cases are there.
    """
    from ..phantoms.abdomen import abdomen_phantom

    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    files = []
    for number in range(count):
        if number >= 8 and (time.monotonic() - began) / 60 > minutes:
            break
        file = folder / f"case_{first_seed + number}.npz"
        files.append(file)
        progress(number / count, f"phantom {number + 1} of {count}")
        if file.exists():
            continue
        first = abdomen_phantom(first_seed + number, LOOKS[0], split)
        grid = GRIDS[LOOKS[0]]
        arrays = {"labels": grid.apply_labels(first.labels, first.image),
                  "tissues": grid.apply_labels(first.tissues, first.image)}
        for look in LOOKS:
            image = abdomen_phantom(first_seed + number, look, split).image
            arrays[look] = np.round(255 * GRIDS[look].apply(image, first.image).voxels).astype(np.uint8)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, **arrays)
        partial.replace(file)
    return files


@dataclass(frozen=True)
class Case:
    """One phantom on the canonical grid: uint8 arrays (K, S, S).

    Attributes:
        images: look -> grey values, 255 stands for 1.
        labels: organs' labels, 0 elsewhere.
        tissues: what every voxel is made of, for random looks; None where it is not known.
    """

    images: dict[str, np.ndarray]
    labels: np.ndarray
    tissues: np.ndarray | None


def load_cases(files: Sequence[Path]) -> list[Case]:
    """Read what :func:`draw_cases` wrote."""
    cases = []
    for file in files:
        with np.load(file) as arrays:
            cases.append(Case({look: arrays[look] for look in LOOKS}, arrays["labels"], arrays["tissues"]))
    return cases


def smooth_field(shape: Sequence[int], cells: int, generator: torch.Generator) -> Tensor:
    """Smooth random fields (B, C, S, S), about standard normal, with ``cells`` bumps along an edge."""
    batch, channels, size = shape[0], shape[1], shape[-1]
    coarse = torch.randn(batch, channels, cells, cells, generator=generator)
    return F.interpolate(coarse, (size, size), mode="bicubic", align_corners=True)


def deformation(count: int, size: int, generator: torch.Generator, strength: float = 1.0) -> Tensor:
    """Sampling grids (B, S, S, 2) for ``grid_sample``: turned, scaled, moved and bent; never mirrored.

    Args:
        count, size: B and S.
        generator: of random numbers.
        strength: 1 turns by 10 degrees, scales by 12 %, moves by 5 % of the slice (standard deviations).
    """
    def normal(deviation: float) -> Tensor:
        return torch.randn(count, generator=generator).clamp(-2, 2) * deviation * strength

    angle, scale_x, scale_y = normal(0.17), normal(0.12).exp(), normal(0.12).exp()
    cosine, sine = angle.cos(), angle.sin()
    matrix = torch.stack([
        torch.stack([cosine * scale_x, -sine * scale_y, normal(0.1)], 1),
        torch.stack([sine * scale_x, cosine * scale_y, normal(0.1)], 1),
    ], 1)
    grid = F.affine_grid(matrix, [count, 1, size, size], align_corners=False)
    bend = smooth_field((count, 2, size), 6, generator) * 0.025 * strength
    return grid + bend.permute(0, 2, 3, 1)


def warp(images: Tensor, grid: Tensor, nearest: bool = False) -> Tensor:
    """(B, C, S, S) sampled at ``grid``; outside is 0."""
    return F.grid_sample(images, grid, mode="nearest" if nearest else "bilinear", align_corners=False)


def random_looks(tissues: Tensor, generator: torch.Generator, group: int = 1) -> Tensor:
    """Images (B, 1, S, S) in [0, 1] from maps of tissues (B, 1, S, S): a random grey value and texture for each tissue.

    After SynthSeg (Billot et al. 2023). Tissue 0 is air and stays dark. ``group`` neighbours share their grey values.
    """
    count, size = tissues.shape[0], tissues.shape[-1]
    means = torch.rand(count // group, 64, generator=generator).repeat_interleave(group, 0)
    deviations = (0.06 * torch.rand(count // group, 64, generator=generator)).repeat_interleave(group, 0)
    means[:, 0], deviations[:, 0] = 0.02 * means[:, 0], 0.2 * deviations[:, 0]
    index = tissues.flatten(1).long()
    texture = torch.randn(count, 1, size, size, generator=generator) + smooth_field((count, 1, size), 40, generator)
    image = means.gather(1, index).view_as(texture) + deviations.gather(1, index).view_as(texture) * texture
    return image.clamp(0, 1)


def recolour(images: Tensor, generator: torch.Generator, group: int = 1, strength: float = 1.0) -> Tensor:
    """Images (B, 1, S, S) in [0, 1] as another scanner would show them: gamma, gain, bias field, blur, noise.

    ``group`` neighbours share all but the noise.
    """
    count, size = images.shape[0], images.shape[-1]
    groups = count // group

    def shared(values: Tensor) -> Tensor:
        return values.repeat_interleave(group, 0).view(count, 1, 1, 1)

    def normal(deviation: float) -> Tensor:
        return torch.randn(groups, generator=generator).clamp(-2.5, 2.5) * deviation * strength

    bias = smooth_field((groups, 1, size), 4, generator) * shared(0.15 * strength * torch.rand(
        groups, generator=generator))[::group]
    images = images.clamp_min(1e-4) ** shared(normal(0.25).exp())
    images = images * shared(normal(0.12).exp()) * bias.exp().repeat_interleave(group, 0)
    blur = shared((torch.rand(groups, generator=generator) < 0.4).float() * torch.rand(groups, generator=generator))
    images = images + blur * (F.avg_pool2d(images, 3, 1, 1, count_include_pad=False) - images)
    noise = shared(0.05 * strength * torch.rand(groups, generator=generator))
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def slice_pairs(
    cases: Sequence[Case], pairs: int, seed: int, looks: Sequence[str], random_share: float, strength: float = 1.0
) -> Iterator[dict[str, Tensor]]:
    """Endless batches of pairs of neighbouring slices, deformed and recoloured.

    Args:
        cases: to draw from.
        pairs: P, pairs a batch.
        seed: of all random numbers.
        looks: drawn from evenly.
        random_share: part of the pairs that are shown in a random look instead.
        strength: of the augmentation.

    Yields:
        image (2 P, 1, S, S) in [0, 1] and labels (2 P, S, S) uint8; rows 2 p (the slice before, in the direction of
        propagation) and 2 p + 1 (the slice itself) are a pair.
    """
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    while True:
        fixed, tissues, labels, is_random = [], [], [], []
        for _ in range(pairs):
            case = cases[rng.integers(len(cases))]
            count = len(case.labels)
            k = int(rng.integers(count))
            before = k + int(rng.choice((-1, 1)))
            before = before if 0 <= before < count else 2 * k - before
            random = case.tissues is not None and rng.random() < random_share
            look = looks[rng.integers(len(looks))]
            for index in (min(max(before, 0), count - 1), k):
                fixed.append(case.images[look][index])
                tissues.append(case.tissues[index] if case.tissues is not None else case.labels[index])
                labels.append(case.labels[index])
                is_random.append(random)
        grid = deformation(pairs, labels[0].shape[-1], generator, strength).repeat_interleave(2, 0)
        stacked = [torch.from_numpy(np.stack(arrays)).float()[:, None] for arrays in (fixed, tissues, labels)]
        image = warp(stacked[0] / 255, grid)
        maps = warp(torch.cat(stacked[1:], 1), grid, nearest=True)
        chosen = torch.tensor(is_random).view(-1, 1, 1, 1)
        image = torch.where(chosen, random_looks(maps[:, :1], generator, group=2), image)
        yield {"image": recolour(image, generator, 2, strength), "labels": maps[:, 1].to(torch.uint8)}
