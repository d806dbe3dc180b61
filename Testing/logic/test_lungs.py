"""The lung mask on phantoms, whose lungs are known, and on real scans where they are at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from GenSegLogic.errors import GenSegError
from GenSegLogic.nodules.lungs import lung_mask
from GenSegLogic.phantoms.chest import Chest, ChestOptions, make_chest, make_scan
from GenSegLogic.phantoms.kinds import affine_of
from GenSegLogic.phantoms.primitives import Scanner
from GenSegLogic.volume import Volume, read_volume, resample_like

CIP = "acil-bwh__ChestImagingPlatform/Testing/Data/Input"
C3N = "deep-learning-with-pytorch__dlwpt-code/derived/C3N-00247"
IBSI = "theibsi__data_sets/ibsi_1_ct_radiomics_phantom/nifti/image/phantom.nii.gz"


@pytest.fixture(scope="module")
def patient() -> Chest:
    """A patient with nodules against the pleura."""
    return make_chest(3_200_001, ChestOptions(nodules=(8, 8), diameter_mm=(8.0, 20.0), kinds=("pleural",)))


@pytest.fixture(scope="module")
def scan(patient: Chest) -> tuple[Volume, Volume, Volume]:
    """Image, lungs and nodules."""
    image, lungs, labels, axes = make_scan(patient, 1, Scanner(spacing_mm=2.0, thickness_mm=3.0))
    volume = Volume(np.round(image).astype(np.int16), affine_of(axes), "phantom.nrrd")
    return volume, volume.with_voxels(lungs), volume.with_voxels(labels)


def dice(first: np.ndarray, second: np.ndarray) -> float:
    return 2 * float((first & second).sum()) / float(first.sum() + second.sum())


def on_grid(mask: Volume, grid: Volume) -> np.ndarray:
    return resample_like(mask, grid, "nearest", 0).voxels > 0


def test_the_lungs_of_a_phantom_are_found(scan: tuple[Volume, Volume, Volume]) -> None:
    image, lungs, _ = scan
    mask = lung_mask(image)
    assert mask.voxels.dtype == np.uint8 and mask.spacing == pytest.approx(2.5)
    found, truth = on_grid(mask, image), lungs.voxels > 0
    assert dice(found, truth) > 0.9
    middle = float(np.median(np.argwhere(truth)[:, 2]))
    for side in (slice(None, int(middle)), slice(int(middle), None)):
        assert dice(found[:, :, side], truth[:, :, side]) > 0.88, "both lungs"


def test_nodules_against_the_pleura_count_as_lung(scan: tuple[Volume, Volume, Volume]) -> None:
    image, _, labels = scan
    found = on_grid(lung_mask(image), image)
    inside = [found[labels.voxels == number].mean() for number in np.unique(labels.voxels)[1:]]
    assert len(inside) >= 6
    assert np.mean(inside) > 0.65
    naive = image.voxels < -420
    assert np.mean([naive[labels.voxels == number].mean() for number in np.unique(labels.voxels)[1:]]) < 0.4


@pytest.mark.parametrize("case", ["RAS", "left-handed", "oblique", "permuted"])
def test_orientation_does_not_change_the_lungs(scan: tuple[Volume, Volume, Volume], case: str) -> None:
    image, lungs, _ = scan
    voxels, affine = image.voxels, image.affine.copy()
    turn = np.eye(4)
    if case == "RAS":
        voxels = voxels[:, ::-1, ::-1]
        affine = affine @ np.array([[-1, 0, 0, image.shape[2] - 1], [0, -1, 0, image.shape[1] - 1], [0, 0, 1, 0],
                                    [0, 0, 0, 1]])
    elif case == "left-handed":
        voxels = voxels[::-1]
        affine = affine @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, image.shape[0] - 1], [0, 0, 0, 1]])
        assert np.linalg.det(affine[:3, :3]) < 0
    elif case == "permuted":
        voxels = voxels.transpose(2, 0, 1)  # k runs along x, j along z, i along y
        affine = affine[:, [1, 2, 0, 3]]
    else:
        c, s = np.cos(np.deg2rad(15)), np.sin(np.deg2rad(15))
        turn[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
        affine = turn @ affine
    turned = Volume(np.ascontiguousarray(voxels), affine, case)
    found = lung_mask(turned)
    back = Volume(found.voxels, np.linalg.inv(turn) @ found.affine, case)
    reference = on_grid(lung_mask(image), image)
    assert dice(on_grid(back, image), reference) > (0.95 if case == "oblique" else 0.985)
    assert dice(on_grid(back, image), lungs.voxels > 0) > 0.9


def test_padding_round_the_field_of_view_does_no_harm(scan: tuple[Volume, Volume, Volume]) -> None:
    image = scan[0]
    _, rows, columns = image.shape
    j, i = np.mgrid[:rows, :columns]
    round_field = ((j - rows / 2) / (rows / 2)) ** 2 + ((i - columns / 2) / (columns / 2)) ** 2 < 1
    padded = image.with_voxels(np.where(round_field, image.voxels, -3024).astype(np.int16))
    found, reference = on_grid(lung_mask(padded), image), on_grid(lung_mask(image), image)
    seen = np.broadcast_to(round_field, image.shape)
    assert dice(found & seen, reference & seen) > 0.97
    assert not found[padded.voxels == -3024].any()


def test_a_scan_that_cuts_the_lungs_off_still_shows_them(scan: tuple[Volume, Volume, Volume]) -> None:
    image, lungs, _ = scan
    part = slice(image.shape[0] // 3, 2 * image.shape[0] // 3)
    affine = image.affine.copy()
    affine[:3, 3] = image.to_lps(np.array([0, 0, part.start]))
    cut = Volume(image.voxels[part], affine, "cut.nrrd")
    assert dice(on_grid(lung_mask(cut), cut), lungs.voxels[part] > 0) > 0.9


@pytest.mark.parametrize("share", [0.0, 0.25, 0.4])
def test_a_scan_cut_off_at_the_lungs_still_shows_them(scan: tuple[Volume, Volume, Volume], share: float) -> None:
    """Along the sides of its box, or along a plane through the right lung: lung is no outside where it is cut."""
    image, lungs, _ = scan
    inside = np.argwhere(lungs.voxels > 0)
    low, high = inside.min(0), inside.max(0) + 1
    low[2] += round(share * (high[2] - low[2]))
    part = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    affine = image.affine.copy()
    affine[:3, 3] = image.to_lps(low[::-1])
    cut = Volume(image.voxels[part], affine, "cut.nrrd")
    found, truth = on_grid(lung_mask(cut), cut), lungs.voxels[part] > 0
    assert dice(found, truth) > 0.9
    assert min(found[k][truth[k]].mean() for k in range(len(truth)) if truth[k].mean() > 0.1) > 0.75


@pytest.mark.parametrize("fill", [-1000, 40, 0])
def test_a_scan_without_lungs_is_refused_in_one_sentence(fill: int) -> None:
    volume = Volume(np.full((20, 40, 40), fill, np.int16), np.diag([3.0, 3, 3, 1]), "leg.nrrd")
    with pytest.raises(GenSegError, match=r"^leg\.nrrd: no lung was found.*\.$") as caught:
        lung_mask(volume)
    assert "\n" not in str(caught.value)


def test_a_body_without_lungs_is_refused() -> None:
    k, j, i = np.indices((30, 60, 60)) - np.array([15, 30, 30])[:, None, None, None]
    body = np.where((j / 20) ** 2 + (i / 25) ** 2 < 1, 40, -1000)
    body[(k**2 + j**2 + i**2) < 16] = -900  # a bubble of gas
    with pytest.raises(GenSegError, match="no lung was found"):
        lung_mask(Volume(body.astype(np.int16), np.diag([4.0, 4, 4, 1]), "abdomen.nrrd"))


def test_the_lungs_of_a_real_scan_agree_with_its_label_map(realdata: Path) -> None:
    image, truth = read_volume(realdata / CIP / "ct-64.nrrd"), read_volume(realdata / CIP / "wholeLung-64.nrrd")
    assert dice(on_grid(lung_mask(image), truth), truth.voxels > 0) > 0.85


def test_the_lungs_of_a_real_scan_hold_its_nodule(realdata: Path) -> None:
    image = read_volume(realdata / C3N / "ct_lungcrop_half.nii.gz")
    nodule = read_volume(realdata / C3N / "nodule_engineer_threshold_half.nii.gz").voxels > 0
    found = on_grid(lung_mask(image), image)
    volume_ml = found.sum() * float(np.prod(image.spacing)) / 1000
    assert 2_000 < volume_ml < 8_000
    assert found[nodule].mean() > 0.9


def test_the_lung_of_a_real_scan_of_one_half_is_found(realdata: Path) -> None:
    image = read_volume(realdata / IBSI)
    found = on_grid(lung_mask(image), image)
    air = (image.voxels > -950) & (image.voxels < -700)
    assert 0.5 < found.sum() * float(np.prod(image.spacing)) / 1e6 < 1.5 and found[air].mean() > 0.6
    assert -950 < np.median(image.voxels[found]) < -700
