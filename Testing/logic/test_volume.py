"""The grid of a volume: affines in every orientation, resampling, cropping, pasting."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

import GenSegLogic.volume.grid as grid_module
from GenSegLogic.volume import (
    Volume,
    canonical_grid,
    crop,
    geometry,
    paste,
    read_volume,
    resample,
    resample_like,
    shear,
)

AXIS_ORDERS = Path(__file__).parents[3] / "shared/realdata/niivue__niivue/packages/niivue/tests/images/nifti_space"
needs_real_scans = pytest.mark.skipif(not AXIS_ORDERS.is_dir(), reason="the real scans are not beside the repository")
quick = settings(max_examples=60, deadline=None)


@st.composite
def affines(draw: st.DrawFn) -> np.ndarray:
    """Oblique or axis-aligned, left- or right-handed, anisotropic."""
    quaternion = np.array(draw(st.tuples(*[st.floats(-1, 1)] * 4)))
    if draw(st.booleans()) or np.linalg.norm(quaternion) < 0.1:
        rotation = np.eye(3)[:, list(draw(st.permutations(range(3))))]
    else:
        rotation = Rotation.from_quat(quaternion).as_matrix()
    signs = draw(st.tuples(*[st.sampled_from((-1, 1))] * 3))
    spacing = draw(st.tuples(*[st.floats(0.3, 6)] * 3))
    affine = np.eye(4)
    affine[:3, :3] = rotation * signs * spacing
    affine[:3, 3] = draw(st.tuples(*[st.floats(-500, 500)] * 3))
    return affine


@st.composite
def volumes(draw: st.DrawFn) -> Volume:
    shape = draw(st.tuples(*[st.integers(2, 9)] * 3))
    seed = draw(st.integers(0, 2**16))
    voxels = np.random.default_rng(seed).integers(-1000, 3000, shape).astype(np.int16)
    return Volume(voxels, draw(affines()), "drawn", {"modality": "CT"})


boxes = st.tuples(st.tuples(*[st.integers(-6, 11)] * 3), st.tuples(*[st.integers(1, 12)] * 3))


@quick
@given(volumes(), boxes)
def test_crop_keeps_every_voxel_at_its_place_in_the_patient(volume: Volume, box: tuple) -> None:
    start, size = box
    part = crop(volume, start, size, fill=-2000)
    assert part.shape == size[::-1]
    for index in np.ndindex(*part.shape):
        place = np.rint(volume.to_indices(part.to_lps(np.array(index[::-1])))).astype(int)
        inside = (place >= 0).all() and (place < volume.shape[::-1]).all()
        assert part.voxels[index] == (volume.voxels[tuple(place[::-1])] if inside else -2000)


@quick
@given(volumes(), boxes)
def test_paste_undoes_crop_and_touches_nothing_else(volume: Volume, box: tuple) -> None:
    start, size = box
    part = crop(volume, start, size, fill=-2000)
    restored = volume.voxels.copy()
    paste(np.full(part.shape, 9999, np.int16), restored, start)
    touched = restored == 9999
    expected = np.zeros(volume.shape, bool)
    low, high = np.maximum(start, 0), np.maximum(np.add(start, size), 0)
    expected[low[2] : high[2], low[1] : high[1], low[0] : high[0]] = True
    assert np.array_equal(touched, expected)
    paste(part.voxels, restored, start)
    assert np.array_equal(restored, volume.voxels)


@quick
@given(volumes(), boxes, st.sampled_from(("linear", "nearest")))
def test_resampling_onto_a_shifted_grid_is_a_crop(volume: Volume, box: tuple, interpolation: str) -> None:
    part = crop(volume, *box, fill=-2000)
    assert np.array_equal(resample_like(volume, part, interpolation, fill=-2000).voxels, part.voxels)


@quick
@given(affines(), affines(), st.tuples(*[st.integers(4, 9)] * 3))
def test_linear_resampling_is_exact_on_a_linear_field(source: np.ndarray, target: np.ndarray, shape: tuple) -> None:
    """A field that is linear in LPS mm stays itself on any other grid, wherever that grid lies inside."""
    slope = np.array([0.3, -0.7, 1.1])
    target = target.copy()
    volume = Volume(np.zeros(shape), source)
    target[:3, :3] *= 0.3
    target[:3, 3] = volume.to_lps((np.array(shape[::-1]) - 1) / 2) - target[:3, :3] @ (2, 2, 2)
    grid = np.stack(np.meshgrid(*[np.arange(count) for count in shape], indexing="ij"), -1)[..., ::-1]
    volume = volume.with_voxels(volume.to_lps(grid) @ slope)

    result = resample(volume, (5, 5, 5), target, fill=1e6)
    grid = np.stack(np.meshgrid(*[np.arange(5)] * 3, indexing="ij"), -1)[..., ::-1]
    points = result.to_lps(grid)
    indices = volume.to_indices(points)
    inside = ((indices >= 0) & (indices <= np.array(shape[::-1]) - 1)).all(-1)
    outside = ((indices < -0.51) | (indices > np.array(shape[::-1]) - 0.49)).any(-1)
    assert inside.any()
    np.testing.assert_allclose(result.voxels[inside], (points @ slope)[inside], atol=1e-6)
    assert (result.voxels[outside] == 1e6).all()


@quick
@given(volumes(), st.sampled_from(("LPS", "RAS", "LAS", "SPL", "AIR")), st.floats(0.5, 4))
def test_canonical_grid_covers_the_volume_along_the_patients_axes(
    volume: Volume, orientation: str, spacing: float
) -> None:
    shape, affine = canonical_grid(volume, (spacing, spacing, 2 * spacing), orientation)
    grid = Volume(np.zeros((1, 1, 1)), affine)
    axes = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    np.testing.assert_allclose((affine[:3, :3] / grid.spacing).T, [axes[letter] for letter in orientation])
    np.testing.assert_allclose(grid.spacing, (spacing, spacing, 2 * spacing))

    faces = np.array(np.meshgrid(*[(-0.5, count - 0.5) for count in volume.shape[::-1]])).reshape(3, -1).T
    indices = grid.to_indices(volume.to_lps(faces))
    count = np.array(shape[::-1])
    # The grid may stop a ten-thousandth of a voxel short, lest rounding add a whole one.
    assert (indices >= -0.5 - 1e-3).all() and (indices <= count - 0.5 + 1e-3).all()
    extent = np.ptp(indices, axis=0)
    assert (count < extent + 1.001).all(), "the grid is no larger than it must be"


@quick
@given(volumes())
def test_canonical_grid_of_an_aligned_volume_keeps_its_voxels(volume: Volume) -> None:
    aligned = Volume(volume.voxels, np.diag([-1.5, 0.7, -2, 1]) @ np.eye(4)[[2, 0, 1, 3]])
    spacing = [aligned.spacing[np.abs(aligned.affine[row, :3]).argmax()] for row in range(3)]
    shape, affine = canonical_grid(aligned, spacing, "LPS")
    straight = resample(aligned, shape, affine)
    assert sorted(straight.voxels.ravel()) == sorted(aligned.voxels.ravel())
    assert np.array_equal(resample_like(straight, aligned).voxels, aligned.voxels)


@needs_real_scans
def test_the_fourteen_axis_orders_are_the_same_head() -> None:
    files = sorted(AXIS_ORDERS.glob("*.nii.gz"))
    assert len(files) == 14
    heads = [read_volume(file) for file in files]
    handedness = {bool(np.linalg.det(head.affine[:3, :3]) > 0) for head in heads}
    assert handedness == {True, False}
    reference = next(head for head in heads if head.name.startswith("LPS"))

    spacing = (3.0, 2.5, 2.0)
    straight = resample(reference, *canonical_grid(reference, spacing))
    eye = reference.to_lps(np.array([20, 30, 40]))
    for head in heads:
        assert np.array_equal(resample_like(head, reference, "nearest").voxels, reference.voxels), head.name
        shape, affine = canonical_grid(head, spacing)
        np.testing.assert_allclose(affine, canonical_grid(reference, spacing)[1], atol=1e-3)
        np.testing.assert_allclose(resample(head, shape, affine).voxels, straight.voxels, atol=0.05)

        # A box around the same point of the patient, changed there and pasted back, changes the same place.
        start = np.rint(head.to_indices(eye)).astype(int) - 2
        part = crop(head, start, (5, 5, 5))
        changed = head.voxels.copy()
        paste(part.voxels + 100, changed, start)
        moved = resample_like(head.with_voxels(changed), reference, "nearest").voxels - reference.voxels
        assert np.argwhere(moved > 50).min(axis=0).tolist() == [38, 28, 18], head.name
        assert np.argwhere(moved > 50).max(axis=0).tolist() == [42, 32, 22], head.name


def test_resampling_onto_the_same_grid_returns_the_same_voxels() -> None:
    volume = Volume(10 * np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1, -2, 3, 1.0]))
    assert resample(volume, volume.shape, volume.affine + 1e-12).voxels is volume.voxels
    moved = volume.affine.copy()
    moved[0, 3] += 0.25
    assert not np.array_equal(resample(volume, volume.shape, moved).voxels, volume.voxels)


def test_a_small_grid_takes_no_copy_of_the_whole_volume_and_nothing_else_changes(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    whole, copied = grid_module.to_image, []
    monkeypatch.setattr(grid_module, "to_image", lambda part: copied.append(part.voxels.size) or whole(part))
    for _ in range(60):
        source = Volume(rng.normal(size=(20, 30, 40)), np.eye(4), "noise")
        source.affine[:3, :3] = Rotation.random(random_state=rng).as_matrix() * rng.uniform(0.5, 3, 3)
        target = np.eye(4)
        target[:3, :3] = Rotation.random(random_state=rng).as_matrix() * [-1, 1, 1] * rng.uniform(0.3, 2, 3)
        target[:3, 3] = source.to_lps(rng.uniform(-10, 45, 3))  # within, across the border or outside
        for interpolation in ("linear", "nearest"):
            part = resample(source, (4, 5, 6), target, interpolation, -9)
            with monkeypatch.context() as patch:
                patch.setattr(grid_module, "_part_round", lambda volume, *grid: volume)
                np.testing.assert_allclose(part.voxels, resample(source, (4, 5, 6), target, interpolation, -9).voxels,
                                           atol=1e-9)
    assert max(copied[1::2]) == source.voxels.size and np.mean(copied[::2]) < source.voxels.size / 10


def test_resampled_integers_are_rounded_and_filled_with_the_minimum() -> None:
    volume = Volume(np.array([[[-1000, -999]]], np.int16).repeat(2, 0).repeat(2, 1), np.eye(4))
    affine = np.eye(4)
    affine[0, 3] = 0.6
    result = resample(volume, (2, 2, 3), affine)
    assert result.voxels.dtype == np.int16
    assert result.voxels[0, 0].tolist() == [-999, -1000, -1000]  # -999.4 is -999; beyond lies the minimum
    assert resample(volume, (1, 1, 1), np.diag([1, 1, 1, 1]) + np.eye(4, k=3) * 50, "nearest").voxels.item() == 0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.float16, np.float32, ">i2"])
def test_resampling_keeps_the_data_type(dtype: str | type) -> None:
    voxels = (np.arange(27).reshape(3, 3, 3) % 2).astype(dtype)
    volume = Volume(voxels, np.eye(4))
    flipped = np.diag([-1, 1, 1, 1.0])
    flipped[0, 3] = 2
    result = resample(volume, volume.shape, flipped, "nearest")
    assert result.voxels.dtype == voxels.dtype
    assert np.array_equal(result.voxels, voxels[:, :, ::-1])


def test_slabs_of_a_tall_volume_meet_without_a_seam() -> None:
    shape = (40, 600, 1000)  # more than one slab of 2**24 voxels
    volume = Volume(np.broadcast_to(np.arange(40, dtype=np.int16)[:, None, None] * 10, shape), np.eye(4))
    affine = np.eye(4)
    affine[2, 3] = 0.5
    result = resample(volume, (39, *shape[1:]), affine)
    assert np.array_equal(result.voxels[:, 300, 500], np.arange(39) * 10 + 5)


def test_axes_that_are_turned_by_next_to_nothing() -> None:
    affine = np.array([[1, 1e-308, -2e-308, 0], [-1e-308, 0, -2, 0], [1e-308, -1, 0, 0], [0, 0, 0, 1]])
    volume = Volume(np.arange(8, dtype=np.int16).reshape(2, 2, 2), affine)
    part = crop(volume, (0, 1, 0), (2, 1, 1))
    assert np.array_equal(resample_like(volume, part).voxels, part.voxels)


def test_misuse_of_the_grid_functions_is_refused() -> None:
    volume = Volume(np.zeros((2, 2, 2)), np.eye(4))
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    assert shear(sheared) > 0.2 and shear(np.diag([1, -2, 3, 1])) == 0
    with pytest.raises(ValueError, match="sheared"):
        resample(volume, (2, 2, 2), sheared)
    with pytest.raises(ValueError, match="no length"):
        geometry(np.diag([1, 0, 1, 1]))
    with pytest.raises(ValueError, match="cubic"):
        resample(volume, (2, 2, 2), np.eye(4), "cubic")
    with pytest.raises(ValueError, match="three axes"):
        canonical_grid(volume, (1, 1, 1), "LRS")
    with pytest.raises(ValueError, match="positive"):
        canonical_grid(volume, (1, 0, 1))
    with pytest.raises(TypeError):
        crop(volume, (0.5, 0, 0), (1, 1, 1))


def test_importing_volume_does_not_import_simpleitk() -> None:
    code = "import sys, GenSegLogic.volume; sys.exit('SimpleITK' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0
