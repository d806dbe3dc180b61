"""Volume, and what changes its grid: resample, crop, paste."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import SimpleITK

SHEAR_LIMIT = 1e-3
"""Largest cosine between two axes that still counts as rounding of the header (0.06 degrees)."""

VOXEL_MM = (0.01, 100.0)
"""Voxel sizes that a medical scan may have; others are metres or micrometres that were written as mm."""
LARGEST_MM = 3000.0
"""No scan is longer; resampling one that says so, to voxels of a usual size, would not end."""
FARTHEST_MM = 1e6
"""How far from the patient's origin a scan may lie."""


@dataclass(frozen=True)
class Volume:
    """A scalar volume.

    Attributes:
        voxels: array in k, j, i order (slice, row, column).
        affine: 4x4 float64, maps (i, j, k, 1) to patient LPS millimetres. Never sheared; may be oblique or left-handed.
        name: what messages call it, usually the file name.
        metadata: what the file said besides (``modality`` where known), plain JSON values.
    """

    voxels: np.ndarray
    affine: np.ndarray
    name: str = "volume"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxel counts in k, j, i order."""
        return self.voxels.shape

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size in mm along i, j, k."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def with_voxels(self, voxels: np.ndarray, name: str | None = None) -> Volume:
        """The same grid with other voxels.

        Raises:
            ValueError: if the shape differs.
        """
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels of shape {voxels.shape} do not fit a grid of shape {self.voxels.shape}")
        return Volume(voxels, self.affine, name or self.name, self.metadata)

    def to_lps(self, indices_ijk: np.ndarray) -> np.ndarray:
        """Continuous voxel indices (..., 3) in i, j, k order -> LPS mm (..., 3)."""
        return np.asarray(indices_ijk, float) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_indices(self, points_lps: np.ndarray) -> np.ndarray:
        """LPS mm (..., 3) -> continuous voxel indices (..., 3) in i, j, k order."""
        return (np.asarray(points_lps, float) - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


def resample(
    volume: Volume,
    shape_kji: Sequence[int],
    affine: np.ndarray,
    interpolation: str = "linear",
    fill: float | None = None,
) -> Volume:
    """Sample ``volume`` on another grid, through SimpleITK.

    When the grids are equal, the voxels come back as they are (shared, not copied).

    Args:
        volume: the source; its data type is kept (integers are rounded, not truncated).
        shape_kji: voxel counts of the new grid in k, j, i order.
        affine: 4x4, ijk -> LPS mm of the new grid; may be oblique or left-handed.
        interpolation: ``"linear"`` or ``"nearest"``.
        fill: value outside of the source; None takes the source's minimum (0 for ``"nearest"``).

    Raises:
        ValueError: for an unknown interpolation, or an affine that is sheared or singular.
    """
    import SimpleITK

    if interpolation not in ("linear", "nearest"):
        raise ValueError(f"interpolation is {interpolation!r}, but must be 'linear' or 'nearest'")
    nearest = interpolation == "nearest"
    affine = np.asarray(affine, np.float64)
    shape = tuple(int(count) for count in shape_kji)
    if shape == volume.shape and _same_affine(affine, volume.affine, volume.shape):
        return Volume(volume.voxels, affine, volume.name, volume.metadata)
    if fill is None:
        fill = 0 if nearest else float(volume.voxels.min())

    source = to_image(_part_round(volume, shape, affine))
    filter_ = SimpleITK.ResampleImageFilter()
    filter_.SetInterpolator(SimpleITK.sitkNearestNeighbor if nearest else SimpleITK.sitkLinear)
    filter_.SetDefaultPixelValue(float(fill))
    _, spacing, direction = geometry(affine)
    filter_.SetOutputSpacing(spacing)
    filter_.SetOutputDirection(direction)
    rounded = not nearest and volume.voxels.dtype.kind in "iub"
    if rounded:  # ITK truncates towards zero when it interpolates integers
        filter_.SetOutputPixelType(SimpleITK.sitkFloat32)

    # In slabs, so that the float copy stays small beside the volume.
    voxels = np.empty(shape, volume.voxels.dtype)
    slab = max(1, 2**24 // max(1, shape[1] * shape[2]))
    for first in range(0, shape[0], slab):
        last = min(first + slab, shape[0])
        filter_.SetSize((shape[2], shape[1], last - first))
        filter_.SetOutputOrigin((affine @ (0, 0, first, 1))[:3].tolist())
        image = filter_.Execute(source)  # keep it: the view does not
        values = SimpleITK.GetArrayViewFromImage(image)
        voxels[first:last] = np.rint(values) if rounded else values
    return Volume(voxels, affine, volume.name, volume.metadata)


def _part_round(volume: Volume, shape: tuple[int, ...], affine: np.ndarray) -> Volume:
    """The part of a volume that a grid's voxels are interpolated from, at least one voxel: ITK gets a copy of it."""
    last = np.array(shape[::-1]) - 1
    corners = np.array(list(itertools.product(*((0, n) for n in last)))) @ affine[:3, :3].T + affine[:3, 3]
    indices, size = volume.to_indices(corners), np.array(volume.shape[::-1])
    first = np.clip(np.floor(indices.min(0)).astype(int) - 1, 0, size - 1)
    end = np.clip(np.ceil(indices.max(0)).astype(int) + 2, first + 1, size)
    k, j, i = (slice(*ends) for ends in zip(first[::-1], end[::-1], strict=True))
    part = volume.affine.copy()
    part[:3, 3] = volume.to_lps(first)
    return Volume(volume.voxels[k, j, i], part, volume.name)


def resample_like(
    volume: Volume, reference: Volume, interpolation: str = "linear", fill: float | None = None
) -> Volume:
    """:func:`resample` onto the grid of ``reference``."""
    return resample(volume, reference.shape, reference.affine, interpolation, fill)


def canonical_grid(
    volume: Volume, spacing_mm: Sequence[float], orientation: str = "LPS"
) -> tuple[tuple[int, int, int], np.ndarray]:
    """The grid along the patient's axes that covers ``volume`` to the outer faces of its voxels.

    The two share their centre, so an axis-aligned volume that already has the spacing keeps its voxel centres.

    Args:
        volume: what to cover.
        spacing_mm: voxel size along the new i, j, k.
        orientation: the patient direction that i, j, k grow towards, one letter each (``"LPS"``, ``"RAS"``, ``"SAL"``).

    Returns:
        shape in k, j, i order and the 4x4 affine, ijk -> LPS mm.

    Raises:
        ValueError: if the letters name an axis twice or the spacing is not positive.
    """
    axes = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}
    spacing = np.asarray(spacing_mm, float)
    if sorted(axes.get(letter, (-1, 0))[0] for letter in orientation) != [0, 1, 2]:
        raise ValueError(f"orientation is {orientation!r}, but must name three axes, as LPS or RAS do")
    if spacing.shape != (3,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(f"spacing is {spacing_mm}, but must be three positive numbers of mm")
    direction = np.zeros((3, 3))
    for column, letter in enumerate(orientation):
        row, sign = axes[letter]
        direction[row, column] = sign

    size = np.array(volume.shape[::-1])
    corners = np.array(np.meshgrid(*[(-0.5, count - 0.5) for count in size])).reshape(3, -1).T
    along_axes = volume.to_lps(corners) @ direction  # signed, so that each new axis grows
    low, high = along_axes.min(axis=0), along_axes.max(axis=0)
    counts = np.maximum(1, np.ceil((high - low) / spacing - 1e-4).astype(int))
    first = (low + high) / 2 - (counts - 1) / 2 * spacing
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = direction @ first
    return (int(counts[2]), int(counts[1]), int(counts[0])), affine


def crop(volume: Volume, start_ijk: Sequence[int], size_ijk: Sequence[int], fill: float | None = None) -> Volume:
    """Cut out a box, which may reach outside of the volume.

    Args:
        volume: the source; not changed, not shared.
        start_ijk: index of the box's first voxel, negative where it begins before the volume.
        size_ijk: voxel counts of the box.
        fill: value of voxels outside of the source; None takes the source's minimum.

    Returns:
        a volume of shape ``size_ijk[::-1]``, at the same place in the patient.
    """
    start, size = _integers(start_ijk), _integers(size_ijk)
    inside, outside = _overlap(start, size[::-1], volume.shape)
    if fill is None:
        covered = all(part.stop - part.start == count for part, count in zip(inside, size[::-1], strict=True))
        fill = 0 if covered else volume.voxels.min()
    voxels = np.full(size[::-1], fill, volume.voxels.dtype)
    voxels[inside] = volume.voxels[outside]
    affine = volume.affine.copy()
    affine[:3, 3] = volume.to_lps(np.array(start))
    return Volume(voxels, affine, volume.name, volume.metadata)


def paste(patch_voxels: np.ndarray, onto_voxels: np.ndarray, start_ijk: Sequence[int]) -> None:
    """Write a patch (k, j, i) into ``onto_voxels`` (k, j, i) in place, its first voxel at index ``start_ijk``.

    What reaches outside is left out. The inverse of :func:`crop`.
    """
    inside, outside = _overlap(_integers(start_ijk), patch_voxels.shape, onto_voxels.shape)
    onto_voxels[outside] = patch_voxels[inside]


def geometry(affine: np.ndarray) -> tuple[list[float], list[float], list[float]]:
    """ITK's origin (LPS mm), spacing (mm) and direction (nine numbers, row by row) of a 4x4 affine.

    Raises:
        ValueError: if the affine is singular or sheared, which ITK cannot express.
    """
    columns = np.asarray(affine, float)[:3, :3]
    spacing = np.linalg.norm(columns, axis=0)
    if not np.isfinite(affine).all() or (spacing <= 0).any():
        raise ValueError("the affine has an axis of no length")
    direction = columns / spacing
    # ITK inverts with a singular value decomposition that fails where entries are as small as 1e-200.
    direction[np.abs(direction) < 1e-15] = 0
    if shear(affine) > SHEAR_LIMIT:
        raise ValueError("the affine is sheared")
    return np.asarray(affine, float)[:3, 3].tolist(), spacing.tolist(), direction.ravel().tolist()


def scale_problem(affine: np.ndarray, shape_kji: Sequence[int]) -> str:
    """What is wrong with the size and place of a grid (affine 4x4, ijk -> LPS mm) that a file gives; "" if nothing."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (spacing == 0).any():
        return "gives a voxel size of zero or a position that is no number"
    if spacing.min() < VOXEL_MM[0] or spacing.max() > VOXEL_MM[1]:
        size = " x ".join(f"{mm:.4g}" for mm in spacing)
        return f"gives voxels of {size} mm, but they must measure from {VOXEL_MM[0]:g} to {VOXEL_MM[1]:g} mm"
    extent = spacing * shape_kji[::-1]
    if extent.max() > LARGEST_MM:
        size = " x ".join(f"{mm:.4g}" for mm in extent)
        return f"gives an extent of {size} mm, but no scan is longer than {LARGEST_MM:g} mm, so its voxel size is wrong"
    if np.abs(affine[:3, 3]).max() > FARTHEST_MM:
        return "gives a position of more than a kilometre from the patient"
    return ""


def shear(affine: np.ndarray) -> float:
    """How far the axes of a 4x4 affine are from right angles: the largest cosine between two of them, in [0, 1]."""
    columns = np.asarray(affine, float)[:3, :3]
    direction = columns / np.linalg.norm(columns, axis=0)
    return float(np.abs(direction.T @ direction - np.eye(3)).max())


def to_image(volume: Volume) -> SimpleITK.Image:
    """The volume as a SimpleITK image (a copy). Boolean voxels become uint8, float16 float32."""
    import SimpleITK

    voxels = volume.voxels
    if voxels.dtype == bool:
        voxels = voxels.view(np.uint8)
    elif voxels.dtype == np.float16:
        voxels = voxels.astype(np.float32)
    elif not voxels.dtype.isnative:
        voxels = voxels.astype(voxels.dtype.newbyteorder("="))
    image = SimpleITK.GetImageFromArray(voxels)
    origin, spacing, direction = geometry(volume.affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    return image


def _same_affine(first: np.ndarray, second: np.ndarray, shape_kji: Sequence[int]) -> bool:
    """Whether two affines put every voxel of the grid within a millionth of a voxel of the same place."""
    size = np.array([*shape_kji[::-1], 1])
    tolerance = 1e-6 * np.linalg.norm(second[:3, :3], axis=0).min()
    return bool((np.abs(first - second)[:3] @ size <= tolerance).all())


def _integers(numbers: Sequence[int]) -> tuple[int, ...]:
    return tuple(operator.index(number) for number in np.asarray(numbers).tolist())


def _overlap(
    start_ijk: Sequence[int], box_kji: Sequence[int], whole_kji: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of a box that lies in the whole: its slices in the box and in the whole, k, j, i; empty if none does."""
    inside, outside = [], []
    for start, count, limit in zip(reversed(start_ijk), box_kji, whole_kji, strict=True):
        first, last = min(max(start, 0), limit), max(min(start + count, limit), 0)
        last = max(first, last)
        outside.append(slice(first, last))
        # An empty overlap must be empty in the box as well, wherever the box lies.
        inside.append(slice(first - start, last - start) if last > first else slice(0, 0))
    return tuple(inside), tuple(outside)
