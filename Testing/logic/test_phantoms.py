"""Chest phantoms: the truth against analytic values, and scans against what a scanner would give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from GenSegLogic.commands.phantom import make_phantom
from GenSegLogic.errors import GenSegError
from GenSegLogic.phantoms.chest import Chest, ChestOptions, make_chest, make_scan
from GenSegLogic.phantoms.kinds import FIRST_SEED, chest
from GenSegLogic.phantoms.nodules import NODULE_KINDS, PhantomNodule, random_nodule
from GenSegLogic.phantoms.primitives import Axes, Capsules, Scanner
from GenSegLogic.phantoms.splits import SPLITS, first_phantom
from GenSegLogic.training.chest_tiles import CHESTS
from GenSegLogic.volume import Volume

COARSE = Scanner(spacing_mm=2.0, thickness_mm=3.0, noise_hu=15.0)


@pytest.fixture(scope="module")
def patient() -> Chest:
    """Many nodules of all kinds, so that each test finds its own."""
    return make_chest(3_100_000, ChestOptions(nodules=(24, 24), diameter_mm=(5.0, 18.0)))


@pytest.fixture(scope="module")
def scan(patient: Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray, Axes]:
    return make_scan(patient, 5, COARSE)


def grid(half_mm: float, step_mm: float) -> Axes:
    axis = np.arange(-half_mm, half_mm + step_mm / 2, step_mm)
    return (axis, axis, axis)


def sphere(radius: float, hu: float = 40.0, core: float = 0.0, kind: str = "solid") -> PhantomNodule:
    """A nodule without lobes, spicules or flattening."""
    return PhantomNodule(kind, np.zeros(3), radius, np.full(3, radius), np.eye(3), np.zeros((0, 5)), Capsules.empty(),
                         hu, core, 0.8)


# Reproducibility


def test_the_same_seed_is_the_same_patient_and_scan() -> None:
    first, again, other = make_chest(7), make_chest(7), make_chest(8)
    assert np.array_equal(first.fields, again.fields) and not np.array_equal(first.fields, other.fields)
    assert [nodule.kind for nodule in first.nodules] == [nodule.kind for nodule in again.nodules]
    assert all(np.array_equal(a.center, b.center) for a, b in zip(first.nodules, again.nodules, strict=True))
    box = (first.nodules[0].center - 15, first.nodules[0].center + 15)
    scans = [make_scan(patient, seed, COARSE, box) for patient, seed in ((first, 1), (again, 1), (again, 2))]
    assert all(np.array_equal(a, b) for a, b in zip(scans[0][:3], scans[1][:3], strict=True))
    assert not np.array_equal(scans[0][0], scans[2][0])


def test_a_box_shows_what_the_whole_scan_shows(patient: Chest, scan: tuple) -> None:
    image, lung, labels, axes = scan
    size = [len(axis) for axis in axes]
    window = tuple(slice(n // 4, 3 * n // 4) for n in size)
    low = np.array([axes[2 - c][window[2 - c]][0] for c in range(3)])
    high = np.array([axes[2 - c][window[2 - c]][-1] for c in range(3)]) - 1e-6
    part = make_scan(patient, 6, COARSE, (low, high))
    assert part[0].shape == image[window].shape
    assert np.array_equal(part[1], lung[window]) and np.array_equal(part[2], labels[window])
    inside = lung[window] > 0
    # Texture and noise are other draws: statistics and large structures agree, not voxels.
    assert abs(part[0][inside].mean() - image[window][inside].mean()) < 5
    assert part[0][inside].std() == pytest.approx(image[window][inside].std(), rel=0.05)
    smooth = [ndimage.gaussian_filter(hu, 2).ravel() for hu in (part[0], image[window])]
    assert np.corrcoef(*smooth)[0, 1] > 0.99


# Exact truth


@pytest.mark.parametrize("radius", [2.0, 4.0, 7.5, 15.0])
def test_a_smooth_solid_nodule_has_the_volume_of_a_ball(radius: float) -> None:
    axes = grid(radius + 4, radius / 20)
    window, distance = sphere(radius).signed_distance(axes)
    inside = np.zeros([len(axis) for axis in axes], bool)
    inside[window] = distance < 0
    volume = inside.sum() * float(np.prod([axis[1] - axis[0] for axis in axes]))
    assert volume == pytest.approx(4 / 3 * np.pi * radius**3, rel=0.02)


@pytest.mark.parametrize("kind", list(NODULE_KINDS))
def test_the_mean_diameter_is_the_one_asked_for(kind: str) -> None:
    ratios = []
    for seed in range(12):
        nodule = random_nodule(kind, np.zeros(3), 6.0, np.random.default_rng(seed))
        axes = grid(nodule.reach_mm, 0.6)
        window, distance = nodule.signed_distance(axes)
        inside = np.zeros([len(axis) for axis in axes], bool)
        inside[window] = distance < 0
        assert not (inside[0].any() or inside[-1].any() or inside[:, 0].any() or inside[:, :, -1].any()), "cut off"
        ratios.append((6 / np.pi * inside.sum() * 0.6**3) ** (1 / 3) / 12.0)
        assert 0.7 < ratios[-1] < 1.35
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


def test_the_truth_is_where_the_density_rises(patient: Chest) -> None:
    nodule = max((n for n in patient.nodules if n.kind == "solid"), key=lambda n: n.radius)
    box = (nodule.center - nodule.radius - 8, nodule.center + nodule.radius + 8)
    scanner = Scanner(spacing_mm=0.7, thickness_mm=0.7, noise_hu=1.0)
    image, lung, labels, _ = make_scan(patient, 1, scanner, box)
    number = [other is nodule for other in patient.nodules].index(True) + 1
    truth = labels == number
    halfway = (image[truth].mean() + np.median(image[(lung > 0) & (labels == 0)])) / 2
    components, _ = ndimage.label((image > halfway) & (lung > 0))
    dense = components == np.bincount(components[truth])[1:].argmax() + 1
    near = ndimage.binary_dilation(truth, iterations=3)  # vessels that touch it go on
    overlap = dense & near
    assert 2 * (overlap & truth).sum() / (overlap.sum() + truth.sum()) > 0.85


@pytest.mark.parametrize(("kind", "low", "high"), [("solid", -60, 500), ("ground-glass", -700, -430)])
def test_the_inside_of_a_nodule_has_its_density(kind: str, low: float, high: float) -> None:
    for seed in range(8):
        nodule = random_nodule(kind, np.zeros(3), 8.0, np.random.default_rng(seed))
        axes = grid(16, 1.0)
        image = np.full((33, 33, 33), -850.0)
        nodule.paint(image, axes, np.ones_like(image), 0.9)
        window, distance = nodule.signed_distance(axes)
        assert low <= image[window][distance < -2].mean() <= high
        assert image[0, 0, 0] == -850


def test_a_part_solid_nodule_has_a_dense_core_in_ground_glass() -> None:
    radius, core = 8.0, 0.5
    nodule = sphere(radius, hu=-550.0, core=core, kind="part-solid")
    axes = grid(12, 0.5)
    image = np.full([len(axis) for axis in axes], -850.0)
    nodule.paint(image, axes, np.ones_like(image), 0.8)
    z, y, x = np.meshgrid(*axes, indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    assert np.allclose(image[r < core * radius - 1], 30)
    assert np.allclose(image[(r > core * radius + 1) & (r < radius - 1)], -550)
    assert np.allclose(image[r > radius + 1], -850)
    solid_mm3 = (image > -260).sum() * 0.5**3
    assert solid_mm3 == pytest.approx(4 / 3 * np.pi * (core * radius) ** 3, rel=0.05)


def test_a_nodule_makes_nothing_lighter_and_stays_in_the_lung() -> None:
    image = np.full((25, 25, 25), -850.0)
    image[:, :, 12] = 40.0  # a vessel's wall through ground glass
    lung = np.ones_like(image)
    lung[:, :8] = 0
    before = image.copy()
    sphere(8.0, hu=-550.0).paint(image, grid(12, 1.0), lung, 0.9)
    assert (image >= before).all() and (image[:, :, 12] == 40).all()
    assert np.array_equal(image[:, :8], before[:, :8]) and (image[:, 8:] > before[:, 8:]).any()


# Placement


def test_every_kind_is_placed_where_its_surroundings_say() -> None:
    for kind, spec in NODULE_KINDS.items():
        chest = make_chest(11, ChestOptions(nodules=(6, 6), diameter_mm=(5.0, 12.0), kinds=(kind,)))
        assert len(chest.nodules) >= 4
        for nodule in chest.nodules:
            assert nodule.kind == kind and 5.0 <= nodule.diameter_mm <= 12.0
            depth = -float(chest.lung_distance(nodule.center[None])[0])
            nearest = np.linalg.norm(chest.tree_points[:, :3] - nodule.center, axis=1).min()
            if spec.surroundings == "pleura":
                assert 0 < depth < nodule.radius, "a pleural nodule reaches the lung's surface"
            else:
                assert depth > nodule.radius, "the others lie in the lung"
            if spec.surroundings == "vessel":
                assert nearest < nodule.radius, "a vascular nodule touches a vessel"


def test_nodules_keep_apart_and_their_labels_count(patient: Chest, scan: tuple) -> None:
    labels = scan[2]
    numbers = np.unique(labels[labels > 0])
    assert set(numbers) == set(range(1, len(patient.nodules) + 1))
    for first, one in enumerate(patient.nodules):
        for other in patient.nodules[first + 1 :]:
            assert np.linalg.norm(one.center - other.center) > one.radius + other.radius
    centers = ndimage.center_of_mass(labels > 0, labels, numbers)
    for nodule, index in zip(patient.nodules, centers, strict=True):
        place = [scan[3][axis][0] + index[axis] * (scan[3][axis][1] - scan[3][axis][0]) for axis in (2, 1, 0)]
        # A pleural nodule is cut by the chest wall.
        tolerance = 0.7 * nodule.radius if nodule.kind == "pleural" else 3.0
        assert np.linalg.norm(np.array(place) - nodule.center) < tolerance


def test_clean_patients_have_no_nodule() -> None:
    chest = make_chest(12, ChestOptions(nodules=(0, 0)))
    assert chest.nodules == [] and not chest.truth((np.arange(-60.0, 60, 4),) * 3)[1].any()


# Anatomy and scanner


def test_the_image_has_the_densities_of_a_chest(patient: Chest, scan: tuple) -> None:
    image, lung, labels, _ = scan
    deep = ndimage.binary_erosion(lung, iterations=3) & (labels == 0)
    assert -910 < np.median(image[deep]) < -740
    assert 2_000 < lung.sum() * 2 * 2 * 3 / 1000 < 7_000, "both lungs in ml"
    body = np.stack([ndimage.binary_fill_holes(ndimage.binary_opening(slice_ > -300)) for slice_ in image])
    outside = ~ndimage.binary_dilation(body | (lung > 0), iterations=2)
    assert outside.mean() > 0.02 and (image[outside] < -900).mean() > 0.95, "air outside"
    soft = body & ~ndimage.binary_dilation(lung, iterations=3)
    assert np.percentile(image[soft], 10) > -140 and np.percentile(image[soft], 99.5) > 180, "fat to bone"
    assert image.min() >= -1024 and image.max() <= 3071


@pytest.mark.parametrize("thickness", [0.7, 1.25, 2.5, 5.0])
def test_slices_of_every_thickness_average_over_what_they_hold(patient: Chest, thickness: float) -> None:
    nodule = max((n for n in patient.nodules if n.kind == "solid"), key=lambda n: n.radius)
    scanner = Scanner(spacing_mm=1.0, thickness_mm=thickness, noise_hu=1.0)
    image, _, labels, axes = make_scan(patient, 1, scanner, (nodule.center - 15, nodule.center + 15))
    assert np.diff(axes[0]) == pytest.approx(thickness) and np.diff(axes[1]) == pytest.approx(1.0)
    assert image.shape == labels.shape == tuple(len(axis) for axis in axes)
    excess = (image[labels > 0] + 850).sum() * thickness  # mass does not depend on the thickness
    reference = make_scan(patient, 1, Scanner(1.0, 0.7, noise_hu=1.0), (nodule.center - 15, nodule.center + 15))
    assert excess == pytest.approx((reference[0][reference[2] > 0] + 850).sum() * 0.7, rel=0.25)


@pytest.mark.parametrize("sharpness", [0.0, 0.5, 1.0])
def test_noise_has_its_deviation(sharpness: float) -> None:
    noise = Scanner(noise_hu=30.0, sharpness=sharpness).noise((12, 64, 64), np.random.default_rng(0))
    assert noise.std() == pytest.approx(30.0, rel=1e-3) and abs(noise.mean()) < 2


def test_kernels_correlate_noise_as_soft_and_sharp_ones_do() -> None:
    def neighbours(sharpness: float) -> float:
        noise = Scanner(noise_hu=30.0, sharpness=sharpness).noise((12, 64, 64), np.random.default_rng(0))
        return float(np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1])

    soft, middle, sharp = neighbours(0.0), neighbours(0.5), neighbours(1.0)
    assert soft > 0.7 and soft > middle > sharp and sharp < 0.35


def test_protocols_cover_their_ranges() -> None:
    rng = np.random.default_rng(1)
    scanners = [Scanner.random(rng) for _ in range(300)]
    thickness = np.array([scanner.thickness_mm for scanner in scanners])
    assert thickness.min() >= 0.7 and thickness.max() <= 5.0
    assert (thickness < 1.0).any() and (thickness > 4.0).any() and np.median(thickness) < 2.5
    assert all(scanner.blur_mm > 0.4 and 4 < scanner.noise_hu < 80 for scanner in scanners)


def test_splits_share_no_seed() -> None:
    starts = [*sorted(split.first_seed for split in SPLITS.values()), FIRST_SEED]
    assert set(SPLITS) >= {"train", "held-out", "validation", "test"}
    most = max(first_phantom(seed) for seed in (0, 3, 39, 100, 999_999))
    assert most >= 390_000 and min(np.diff(starts)) > most + CHESTS


# genseg phantom chest


@pytest.fixture(scope="module")
def phantom() -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("GenSegLogic.phantoms.kinds.PIXEL_MM", 2.0)  # the same code in a tenth of the time
        return chest(4, nodules=2, thickness=6.0, oblique=20.0)


def test_the_phantom_comes_with_its_truth_on_one_oblique_grid(phantom: dict) -> None:
    scan: Volume = phantom["chest"]
    assert next(iter(phantom)) == "chest" and scan.voxels.dtype == np.int16
    assert scan.spacing == pytest.approx([2.0, 2.0, 6.0])
    assert np.abs(scan.affine[:3, :3] / scan.spacing - np.eye(3)).max() > 0.2
    assert phantom["lungs"].voxels.dtype == np.uint8
    truth = phantom["nodules"]
    for part in (phantom["lungs"], truth.labelmap):
        assert np.array_equal(part.affine, scan.affine) and part.shape == scan.shape
    assert [segment.label for segment in truth.segments] == [row["nodule"] for row in phantom["truth"]] == [1, 2]
    for row in phantom["truth"]:
        voxels = np.argwhere(truth.labelmap.voxels == row["nodule"])
        center = scan.to_lps(voxels[:, ::-1]).mean(0)
        written = [row[f"center_{axis}_mm"] for axis in "lps"]
        assert np.linalg.norm(center - written) < 0.5 * row["diameter_mm"]
    assert truth.labelmap.voxels[phantom["lungs"].voxels == 0].max() == 0


def test_the_truth_is_saved_as_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phantom: dict) -> None:
    monkeypatch.setattr("GenSegLogic.phantoms.kinds.chest", lambda seed, **options: phantom)
    results = make_phantom("chest", 4)
    files = results.save(tmp_path, phantom["chest"])
    assert {"chest.nrrd", "lungs.nrrd", "nodules.seg.nrrd", "truth.csv"} <= set(files)
    lines = (tmp_path / "truth.csv").read_text().splitlines()
    assert lines[0] == "nodule,kind,center_l_mm,center_p_mm,center_s_mm,diameter_mm" and len(lines) == 3
    assert "chest.nrrd" in json.loads((tmp_path / "provenance.json").read_text())["synthetic"]


@pytest.mark.parametrize("wrong", [{"nodules": -1}, {"nodules": 31}, {"thickness": 0.1}, {"thickness": float("nan")},
                                   {"oblique": 120.0}])
def test_impossible_phantoms_are_refused(wrong: dict) -> None:
    with pytest.raises(GenSegError, match=r"^[A-Z].*\.$"):
        chest(0, **wrong)
