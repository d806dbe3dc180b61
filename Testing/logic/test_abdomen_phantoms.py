"""Abdomen phantoms: reproducible, the same truth in every look, organs where and as large as people have them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.cli import main
from GenSegLogic.errors import GenSegError
from GenSegLogic.phantoms.abdomen import ABDOMEN_SPLITS, AbdomenPhantom, abdomen_phantom
from GenSegLogic.phantoms.abdomen_canvas import Canvas, bspline_field, expand
from GenSegLogic.phantoms.abdomen_kinds import POPULATION
from GenSegLogic.phantoms.abdomen_looks import LOOKS
from GenSegLogic.phantoms.abdomen_organs import Variation
from GenSegLogic.volume import Volume, read_volume

LABEL = {name: organ.label for name, organ in ORGANS.items()}
SEEDS = range(6)
WHOLE = Variation(no_gallbladder=0, no_kidney=0, no_spleen=0)
FULL = replace(ABDOMEN_SPLITS["train"], variation=WHOLE)


@pytest.fixture(scope="module")
def patients() -> list[AbdomenPhantom]:
    """Patients with all their organs, on scans that hold the whole abdomen."""
    return [abdomen_phantom(seed, "ct", FULL, size=96, slices=64, field_mm=420, thickness_mm=5) for seed in SEEDS]


def volume_ml(labels: Volume, organ: str) -> float:
    voxel_ml = abs(np.linalg.det(labels.affine[:3, :3])) / 1000
    return float((labels.voxels == LABEL[organ]).sum() * voxel_ml)


def center(labels: Volume, organ: str) -> np.ndarray:
    """Centre of an organ in LPS mm."""
    return labels.to_lps(np.argwhere(labels.voxels == LABEL[organ])[:, ::-1]).mean(axis=0)


def small(seed: int, look: str = "ct", **options: object) -> AbdomenPhantom:
    return abdomen_phantom(seed, look, **{"size": 64, "slices": 12, **options})  # type: ignore[arg-type]


# Reproducibility


def test_the_same_seed_is_the_same_scan_and_another_seed_another_patient() -> None:
    first, again, other = small(3), small(3), small(4)
    assert np.array_equal(first.image.voxels, again.image.voxels)
    assert np.array_equal(first.labels.voxels, again.labels.voxels)
    assert np.array_equal(first.image.affine, again.image.affine)
    assert not np.array_equal(first.labels.voxels, other.labels.voxels)


def test_every_look_shows_the_same_patient() -> None:
    scans = [small(5, look) for look in LOOKS]
    for scan in scans[1:]:
        assert np.array_equal(scan.labels.voxels, scans[0].labels.voxels)
        assert np.array_equal(scan.labels.affine, scan.image.affine)
        assert not np.allclose(scan.image.voxels, scans[0].image.voxels)


def test_splits_are_different_patients_with_seeds_far_apart() -> None:
    seeds = sorted([split.first_seed for split in ABDOMEN_SPLITS.values()] + [POPULATION.first_seed])
    assert all(b - a >= 400_000 for a, b in itertools.pairwise(seeds))
    labels = [small(0, split=name).labels.voxels for name in ABDOMEN_SPLITS]
    assert not any(np.array_equal(labels[0], other) for other in labels[1:])


def test_a_finer_grid_shows_the_same_patient() -> None:
    coarse, fine = (small(2, size=size, field_mm=400, thickness_mm=6) for size in (64, 128))
    for organ in ("liver", "spleen"):
        ratio = volume_ml(fine.labels, organ) / volume_ml(coarse.labels, organ)
        assert ratio == pytest.approx(1, abs=0.08)
        assert np.linalg.norm(center(fine.labels, organ) - center(coarse.labels, organ)) < 3


# Anatomy


def test_all_organs_are_there(patients: list[AbdomenPhantom]) -> None:
    for patient in patients:
        assert set(np.unique(patient.labels.voxels)) == {0, *LABEL.values()}, patient.parameters


def test_volumes_are_those_of_people(patients: list[AbdomenPhantom]) -> None:
    ranges = {"liver": (700, 3000), "spleen": (50, 500), "right_kidney": (70, 330), "left_kidney": (70, 330),
              "stomach": (60, 900), "pancreas": (8, 130), "aorta": (20, 250), "right_adrenal": (0.5, 12)}
    for organ, (low, high) in ranges.items():
        volumes = [volume_ml(patient.labels, organ) for patient in patients]
        assert all(low <= volume <= high for volume in volumes), (organ, volumes)
        assert max(volumes) > 1.1 * min(volumes), organ


def test_organs_lie_where_they_belong(patients: list[AbdomenPhantom]) -> None:
    for patient in patients:
        place = {organ: center(patient.labels, organ) for organ in ORGANS}
        middle = 0.5 * (place["right_kidney"][0] + place["left_kidney"][0])
        # L is positive: liver, right kidney, gallbladder and vena cava on the right; spleen and stomach on the left.
        for right in ("liver", "right_kidney", "gallbladder", "inferior_vena_cava"):
            assert place[right][0] < middle, right
        for left in ("spleen", "left_kidney", "stomach"):
            assert place[left][0] > middle + 10, left
        assert place["inferior_vena_cava"][0] < place["aorta"][0]
        assert place["stomach"][1] < place["left_kidney"][1], "the stomach lies in front of the kidney"
        assert place["liver"][2] > place["right_kidney"][2] and place["spleen"][2] > place["left_kidney"][2]


def test_large_organs_are_in_one_piece(patients: list[AbdomenPhantom]) -> None:
    for patient in patients:
        for organ in ("liver", "spleen", "right_kidney", "left_kidney"):
            pieces, _ = ndimage.label(patient.labels.voxels == LABEL[organ])
            sizes = np.bincount(pieces.ravel())[1:]
            assert sizes.max() > 0.93 * sizes.sum(), (organ, sizes)


def test_organs_that_have_been_removed_are_missing_and_the_others_stay() -> None:
    none = replace(FULL, variation=Variation(no_gallbladder=1, no_kidney=1, no_spleen=1))
    options = {"slices": 40, "thickness_mm": 7, "field_mm": 420}
    with_all, without = small(1, split=FULL, **options), small(1, split=none, **options)
    gone = {LABEL[name] for name in ("gallbladder", "right_kidney", "left_kidney", "spleen")}
    assert not gone & set(np.unique(without.labels.voxels))
    assert gone < set(np.unique(with_all.labels.voxels))
    assert volume_ml(without.labels, "liver") == pytest.approx(volume_ml(with_all.labels, "liver"), rel=0.15)


# Grey values


def test_ct_is_in_hounsfield_units(patients: list[AbdomenPhantom]) -> None:
    for patient in patients:
        image, labels = patient.image.voxels, patient.labels.voxels
        assert image.dtype == np.float32 and labels.dtype == np.uint8
        assert image[:, 0, 0].mean() == pytest.approx(-1000, abs=40), "air around the patient"
        assert -20 < np.median(image[labels == LABEL["liver"]]) < 160
        assert image.max() > 250, "bone"


def test_grey_values_alone_do_not_tell_organs_apart(patients: list[AbdomenPhantom]) -> None:
    """Far more voxels than the liver's own share its grey values: muscle, bowel, spleen and others."""
    for patient in patients:
        image, liver = patient.image.voxels, patient.labels.voxels == LABEL["liver"]
        low, high = np.percentile(image[liver], [10, 90])
        alike = (image >= low) & (image <= high)
        dice = 2 * (alike & liver).sum() / (alike.sum() + liver.sum())
        assert dice < 0.85
        assert (alike & ~liver).sum() > 0.25 * liver.sum()


def test_fat_is_dark_only_where_it_is_suppressed() -> None:
    """The rim of subcutaneous fat against the liver, in the three MR looks of one patient."""
    ratios: dict[str, list[float]] = {"t1": [], "t2": [], "t2-spir": []}
    fat_patients = replace(FULL, fatness=(0.8, 0.9))
    for seed in (0, 1):
        ct = small(seed, split=fat_patients, size=96)
        fat = (ct.image.voxels > -130) & (ct.image.voxels < -70)
        fat = ndimage.binary_erosion(fat, np.ones((1, 3, 3)))
        for look in ratios:
            scan = small(seed, look, split=fat_patients, size=96)
            liver = np.median(scan.image.voxels[scan.labels.voxels == LABEL["liver"]])
            ratios[look].append(float(np.median(scan.image.voxels[fat]) / liver))
            assert scan.image.voxels.min() >= 0
    assert max(ratios["t2-spir"]) < 0.8 and min(ratios["t2"]) > 1.1


# Grid


def test_oblique_planes_turn_the_grid_and_not_the_patient() -> None:
    options = {"split": FULL, "field_mm": 420, "thickness_mm": 6, "slices": 40}
    straight, oblique = small(1, **options), small(1, oblique=15.0, **options)
    direction = oblique.image.affine[:3, :3] / np.linalg.norm(oblique.image.affine[:3, :3], axis=0)
    assert np.allclose(direction.T @ direction, np.eye(3)) and np.linalg.det(direction) == pytest.approx(1)
    assert np.rad2deg(np.arccos(direction[2, 2])) == pytest.approx(15, abs=1)
    for organ in ("liver", "left_kidney", "right_kidney", "spleen"):
        # The random displacement is tied to the grid, so shapes differ a little.
        assert np.linalg.norm(center(straight.labels, organ) - center(oblique.labels, organ)) < 25


@pytest.mark.parametrize(
    ("options", "words"),
    [({"look": "pet"}, "look"), ({"split": "best"}, "split"), ({"size": 4}, "pixels"), ({"slices": 1}, "slices"),
     ({"field_mm": 50.0}, "width"), ({"thickness_mm": 40.0}, "distance"), ({"oblique": 80.0}, "angle")],
)
def test_options_out_of_range_are_refused_in_words(options: dict, words: str) -> None:
    with pytest.raises(GenSegError, match=words):
        abdomen_phantom(0, **options)


# Building blocks


def test_random_fields_are_smooth_and_of_unit_spread() -> None:
    axes = [np.linspace(-150, 150, 40), np.linspace(-200, 200, 64), np.linspace(-200, 200, 64)]
    spreads, kinks = [], []
    for seed in range(4):
        field = bspline_field(axes, 40.0, np.random.default_rng(seed), 220)
        spreads.append(float(field.std()))
        second = np.diff(field, 2, axis=2) / (axes[2][1] - axes[2][0]) ** 2
        kinks.append(float(np.abs(np.diff(second, axis=2)).max() / np.abs(second).max()))
    assert np.mean(spreads) == pytest.approx(1, abs=0.2)
    assert max(kinks) < 0.5, "the second derivative is continuous"


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 7, 9), (1, 6, 5)])
def test_expand_is_exact_on_linear_fields(shape: tuple[int, int, int]) -> None:
    k, j, i = np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij")
    field = 2 * k + 3 * j - 5 * i
    full = expand(field[:, ::2, ::2], shape)
    inner = (slice(None), slice(0, shape[1] - 1 + shape[1] % 2), slice(0, shape[2] - 1 + shape[2] % 2))
    assert full.shape == shape and np.allclose(full[inner], field[inner])


def test_ellipsoids_and_tubes_have_their_volumes() -> None:
    step = 1.0
    axis = np.arange(-40, 40.5, step, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    to_index = np.array([[0, 0, 1, 40], [0, 1, 0, 40], [1, 0, 0, 40.0]])
    canvas = Canvas(x, y, z, to_index, np.zeros(3), [])
    _, distance, _ = canvas.ellipsoid((3, -2, 5), (10, 15, 20), (20, 30, 40))
    assert (distance < 0).sum() == pytest.approx(4 / 3 * np.pi * 10 * 15 * 20, rel=0.02)
    _, distance = canvas.tube(np.array([[-20, 0.3, -0.2], [20, 0.3, -0.2]]), np.array([8.0, 8.0]))
    assert (distance < 0).sum() == pytest.approx(np.pi * 64 * 40 + 4 / 3 * np.pi * 512, rel=0.02)


# Command


@pytest.mark.parametrize("kind", ["abdomen-ct", "abdomen-mr"])
def test_the_command_writes_scan_truth_and_table(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["phantom", kind, "-o", str(tmp_path), "--seed", "2", "--slices", "6", "--thickness", "8", "--json"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    files = {Path(path).name for path in report["files"].values()}
    assert {"organs.seg.nrrd", "truth.csv"} <= files
    image = next(path for path in report["files"].values() if Path(path).name.startswith("abdomen."))
    scan = read_volume(image)
    assert scan.voxels.shape == (6, 256, 256)
    assert (scan.voxels.min() < -900) == (kind == "abdomen-ct")
    rows = (tmp_path / "truth.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == list(ORGANS)
