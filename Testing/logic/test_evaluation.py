"""Metrics against references, the benchmark's cases, and whole benchmarks on networks with random weights."""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from GenSegLogic.cli import main
from GenSegLogic.errors import GenSegError
from GenSegLogic.evaluation import cases, jobs, luna16, nodules, table
from GenSegLogic.evaluation.methods import Choice, Method, Models, Situation, choose, largest, measure, methods
from GenSegLogic.evaluation.metrics import (
    Mark,
    bootstrap_interval,
    dice,
    froc,
    operating_point,
    surface_distances,
)
from GenSegLogic.nodules.models import LatentFlow
from GenSegLogic.phantoms.splits import SPLITS
from GenSegLogic.volume import Volume
from Testing.logic import test_luna16
from Testing.logic.nodule_bundles import random_network, write_random_bundles

HALF_MM = 1.5 * 24 / 2 + nodules.FIELD_MARGIN_MM


# Metrics


def blob(seed: int) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(np.random.default_rng(seed).standard_normal((14, 20, 18)), 2.5)
    return smooth > np.quantile(smooth, 0.8)


def test_dice() -> None:
    a, b = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    assert dice(a, b) == 1.0
    a[0], b[0, :2] = True, True
    assert dice(a, b) == pytest.approx(2 * 8 / 24)
    assert dice(a, np.zeros_like(a)) == 0.0


@pytest.mark.parametrize("seed", range(4))
def test_surface_distances_agree_with_monai(seed: int) -> None:
    from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance

    spacing_ijk = (0.6, 0.8, 2.5)
    prediction, truth = blob(seed), blob(seed + 50)
    found = surface_distances(prediction, truth, spacing_ijk)
    one_hot = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    spacing_kji = spacing_ijk[::-1]
    mean = compute_average_surface_distance(*one_hot, include_background=True, symmetric=True, spacing=spacing_kji)
    percentile = compute_hausdorff_distance(*one_hot, include_background=True, percentile=95, spacing=spacing_kji)
    assert found is not None
    assert found.mean == pytest.approx(float(mean), rel=1e-4)
    assert found.percentile95 == pytest.approx(float(percentile), rel=1e-4)


def test_surface_distance_of_a_shifted_plate_is_the_shift_in_mm() -> None:
    plate, shifted = np.zeros((12, 8, 8), bool), np.zeros((12, 8, 8), bool)
    plate[2], shifted[5] = True, True
    found = surface_distances(plate, shifted, (1.0, 1.0, 2.5))
    assert found is not None and (found.mean, found.percentile95) == (7.5, 7.5)
    assert surface_distances(plate, np.zeros_like(plate), (1, 1, 1)) is None


def test_bootstrap_intervals_cover_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for trial in range(100):
        low, high = bootstrap_interval(rng.normal(0.5, 0.2, 60), seed=trial)
        hits += low <= 0.5 <= high
    assert 86 <= hits <= 100
    values = rng.random(20)
    assert bootstrap_interval(values, 3) == bootstrap_interval(values, 3) != bootstrap_interval(values, 4)
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)


def test_free_response_curve_counts_a_nodule_once() -> None:
    scans = [
        [Mark(0.9, 1), Mark(0.8, 1), Mark(0.7, 0), Mark(0.2, 2)],  # the second hit on nodule 1 counts neither way
        [Mark(0.95, -1), Mark(0.6, 0), Mark(0.6, 1)],  # a finding that is not counted, then a tie
        [],
    ]
    assert froc(scans, 4) == [
        (0, 0, 0.95), (0, 0.25, 0.9), (0, 0.25, 0.8), (1 / 3, 0.25, 0.7), (2 / 3, 0.5, 0.6), (2 / 3, 0.75, 0.2),
    ]
    assert operating_point(froc(scans, 4), 0.5) == (0, 0.25, 0.9)
    assert operating_point(froc(scans, 4), 1.0) == (2 / 3, 0.75, 0.2)
    assert operating_point([(2.0, 1.0, 0.5)], 1.0) == (0.0, 0.0, 1.0)


def test_detection_leaves_small_nodules_out() -> None:
    records = [
        {"diameters_mm": [10.0, 5.0], "marks": {"p": [(0.9, 1), (0.8, 2), (0.7, 0)]}},
        {"diameters_mm": [6.0], "marks": {"p": [(0.08, 0), (0.06, 1)]}},
        {"diameters_mm": [], "marks": {"p": [(0.07, 0), (0.068, 0)]}},
    ]
    found = table.detection("p", records)
    assert (found["nodules"], found["nodules_of_all_sizes"], found["scans"], found["clean_scans"]) == (2, 3, 3, 1)
    assert (found["sensitivity"], found["false_positives_per_scan"]) == (0.5, 0.0)  # the second costs 4 of 3 scans
    assert dict(map(tuple, found["froc"]))[2.0] == 1.0
    assert (found["default_probability"], found["clean_scans_left_empty"]) == (0.1, 1)
    assert found["default_sensitivity"] == 0.5 and found["default_false_positives_per_scan"] == pytest.approx(1 / 3)
    records[2]["marks"]["p"].append((0.1, 0))
    assert table.detection("p", records)["clean_scans_left_empty"] == 0
    nothing = table.detection("p", [{"diameters_mm": [9.0], "marks": {"p": [(0.05, 1)]}}])
    assert nothing["sensitivity"] == 1.0 and nothing["default_sensitivity"] == 0.0


# Cases


def test_cases_are_what_their_number_says() -> None:
    first, again, other = (cases.nodule_case(split, 3, HALF_MM) for split in ("test", "test", "validation"))
    assert np.array_equal(first.image.voxels, again.image.voxels) and np.array_equal(first.seed_point, again.seed_point)
    assert first.seed != other.seed and first.kind == other.kind == "spiculated"
    truth = first.image.to_lps(np.argwhere(first.truth)[:, ::-1])
    assert np.linalg.norm(truth.mean(0) - first.seed_point) < cases.SEED_JITTER_MM + 1
    assert first.truth.sum() * np.prod(first.image.spacing) == pytest.approx(
        np.pi / 6 * first.diameter_mm**3, rel=0.6)
    assert first.image.spacing[2] <= first.diameter_mm / cases.SLICES_ACROSS
    inside = first.image.voxels[first.truth]
    assert np.median(inside) > -150 > np.median(first.image.voxels[(first.lungs.voxels > 0) & ~first.truth])
    # There is room for the field, whichever way the click went.
    corners = first.image.to_indices(first.seed_point + np.array([[-18.0] * 3, [18.0] * 3]))
    assert corners.min() >= 0 and (corners[1] <= np.array(first.image.shape[::-1]) - 1).all()


def test_sixty_nodules_cover_all_kinds_and_sizes() -> None:
    low, high = cases.DIAMETERS_MM
    diameters = [low * (high / low) ** ((0.5 + number * cases.GOLDEN_RATIO) % 1) for number in range(60)]
    for first in range(len(cases.KINDS)):
        own = diameters[first :: len(cases.KINDS)]
        assert min(own) < 8 < 14 < max(own)
    assert sum(diameter < 8 for diameter in diameters) >= 15


def test_no_patient_is_in_two_splits_or_parts() -> None:
    ranges = []
    for split in ("validation", "test"):
        for block in cases.BLOCKS.values():
            start = SPLITS[split].first_seed + block
            ranges.append((start, start + 1000 * cases.SEEDS_PER_CASE))
    ranges.append((SPLITS["train"].first_seed, SPLITS["train"].first_seed + 900_000))
    ranges.sort()
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(ranges))


def test_clean_cases_have_no_nodule_and_lie_in_the_lung_and_on_a_vessel() -> None:
    found = dict(cases.clean_cases("test", 1, HALF_MM))
    assert set(found) == {"lung", "vessel"}
    for case in found.values():
        assert not case.truth.any()
        k, j, i = np.round(case.image.to_indices(case.seed_point)[::-1]).astype(int)
        assert case.lungs.voxels[k, j, i] == 1
    case = found["vessel"]
    assert case.image.voxels[k - 1 : k + 2, j - 1 : j + 2, i - 1 : i + 2].max() > -300


# Methods


class Dense(torch.nn.Module):
    """A segmenter that calls a nodule what is denser than half of the window."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 40 * (x - 0.5)


@pytest.fixture(scope="module")
def models() -> Models:
    flow = LatentFlow(
        random_network("autoencoder"), random_network("velocity"), 1.0, 2, (-1000.0, 400.0), field_voxels=24
    )
    predictor = random_network("cnn")
    torch.nn.init.constant_(predictor.classifier.bias, 0.0)  # enough evidence to be painted
    return Models(flow, predictor, Dense())


def ball_case(diameter_mm: float = 10.0) -> cases.Case:
    """A dense ball in clean lung, on a grid of uneven spacing, with a denser plate far off but in reach of the ball."""
    affine = np.diag([0.7, 0.7, 1.25, 1.0])
    affine[:3, 3] = -28, -28, -30
    image = Volume(np.full((48, 80, 80), -850.0, np.float32), affine, "ball")
    points = image.to_lps(np.moveaxis(np.indices(image.shape), 0, -1)[..., ::-1])
    truth = np.linalg.norm(points, axis=-1) <= diameter_mm / 2
    image.voxels[truth] = 40
    lungs = image.with_voxels(np.ones(image.shape, np.uint8))
    return cases.Case(image, lungs, truth, np.array([1.0, -0.5, 0.5]), 7, "solid", diameter_mm)


def test_all_methods_run_and_those_with_known_answers_are_right(models: Models) -> None:
    rows = methods(with_segmenter=True)
    assert [row.name for row in rows] == ["guided", "unguided", "grad-cam", "score-cam", "integrated-gradients",
                                          "threshold", "supervised-unet"]
    assert [row.name for row in methods(with_segmenter=False)] == [row.name for row in rows[:-1]]
    situation = Situation(ball_case(), models)
    chosen = {row.name: Choice(row.settings[-1], row.thresholds[len(row.thresholds) // 2]) for row in rows}
    found = measure(situation, rows, chosen)
    assert found["threshold"]["dice"] == 1.0 and found["threshold"]["surface_distance_mm"] == 0.0
    assert found["supervised-unet"]["dice"] > 0.9 and found["supervised-unet"]["surface_distance_mm"] < 0.6
    assert all(0 <= figures["dice"] <= 1 for figures in found.values())


def test_the_threshold_method_takes_the_largest_component_of_the_region(models: Models) -> None:
    case = ball_case(4.0)
    situation = Situation(case, models)
    k, j, i = np.round(case.image.to_indices(case.seed_point)[::-1]).astype(int)
    plate = np.zeros(case.truth.shape, bool)
    plate[k - 1 : k + 2, j - 6 : j + 6, i + 7 : i + 9] = True
    case.image.voxels[plate] = 100
    reach = np.linalg.norm((np.argwhere(plate) - [k, j, i]) * case.image.spacing[::-1], axis=1)
    assert reach.max() < situation.region.radius_mm and plate.sum() > case.truth.sum()
    assert np.array_equal(largest(case.image, situation, -400.0), plate)
    case.image.voxels[...] = np.where(case.truth, 40, -850)
    case.image.voxels[:, :, -6:] = 100  # a wall beyond the region's ball
    assert np.array_equal(largest(case.image, situation, -400.0), case.truth)
    case.lungs.voxels[:, :, : i + 1] = 0  # which no method may know
    assert np.array_equal(largest(case.image, situation, -400.0), case.truth)
    assert not largest(case.image, situation, 2000.0).any()


def test_maps_reach_no_further_than_the_region(models: Models) -> None:
    situation = Situation(ball_case(), models)
    placed = situation.on_scan(torch.ones(situation.tensor.shape[2:]))
    points = placed.to_lps(np.argwhere(placed.voxels > 0.5)[:, ::-1])
    distance = np.linalg.norm(points - situation.region.center, axis=1)
    assert distance.max() == pytest.approx(situation.region.radius_mm, abs=1.0)
    volume = len(points) * np.prod(placed.spacing)
    assert volume == pytest.approx(4 / 3 * np.pi * situation.region.radius_mm**3, rel=0.12)


def test_guided_and_unguided_share_their_noise(models: Models) -> None:
    situation = Situation(ball_case(), models)
    again = Situation(ball_case(), models)
    assert np.array_equal(situation.paint(0.0).residual.voxels, again.paint(0.0).residual.voxels)
    assert not np.array_equal(situation.paint(0.0).residual.voxels, situation.region.residual.voxels)


def test_the_validation_split_chooses_the_highest_mean() -> None:
    def unused(*_: Any) -> Any:
        raise AssertionError("choosing runs no method")

    rows = (Method("a", unused, (1.0, 2.0), ({"layer": "x"}, {"layer": "y"})), Method("b", unused, (5.0, 6.0, 7.0)))
    tried = [
        {"a": [[0.9, 0.1], [0.5, 0.6]], "b": [[0.1, 0.2, 0.0]]},
        {"a": [[0.0, 0.3], [0.5, 0.5]], "b": [[0.1, 0.5, 0.4]]},
    ]
    assert choose(rows, tried) == {"a": Choice({"layer": "y"}, 2.0), "b": Choice({}, 6.0)}


# Tables


def test_rows_and_pairs() -> None:
    def record(diameter: float, kind: str, guided: float, cam: float) -> dict[str, Any]:
        figures = {"guided": guided, "unguided": guided / 2, "grad-cam": cam, "score-cam": 0.1,
                   "integrated-gradients": 0.0}
        measured = {
            name: {"dice": value, "surface_distance_mm": 2.0 if value else None, "hausdorff95_mm": 3.0}
            for name, value in figures.items()
        }
        return {"diameter_mm": diameter, "kind": kind, "methods": measured}

    records = [record(5, "solid", 0.6, 0.5), record(9, "solid", 0.8, 0.4), record(20, "pleural", 0.7, 0.6)]
    rows = {(row["subset"], row["method"]): row for row in table.segmentation_rows("p", records)}
    assert {subset for subset, _ in rows} == {"all", "4-8 mm", ">= 8 mm", "solid", "pleural"}
    guided = rows["all", "guided"]
    assert guided["dice"] == pytest.approx(0.7) and guided["n"] == 3
    assert guided["dice_ci"][0] <= 0.7 <= guided["dice_ci"][1]
    assert rows[">= 8 mm", "guided"]["dice"] == pytest.approx(0.75)
    empty = rows["all", "integrated-gradients"]
    assert (empty["surface_distance_mm"], empty["nothing_found"]) == (None, 3)
    pairs = {row["subset"]: row for row in table.paired_rows("p", records)}
    assert pairs["all"]["best_attribution"] == "grad-cam"
    assert pairs["all"]["guided_minus_best"] == pytest.approx(0.2)
    assert pairs["all"]["guided_to_unguided"] == pytest.approx(2.0)


# Jobs


def double(job: jobs.Job) -> jobs.Record:
    return {"twice": 2 * job["number"]}


def test_jobs_run_in_processes_and_keep_their_order(tmp_path: Path) -> None:
    told: list[float] = []
    wanted = [{"number": n, "models": "anywhere"} for n in range(4)]
    found = jobs.run_jobs(dict, wanted, jobs.Cache(tmp_path, "c"), 2, lambda f, m: told.append(f), "x")
    assert found == wanted
    assert told == [0, 0.25, 0.5, 0.75, 1]


def test_a_run_that_was_killed_goes_on(tmp_path: Path) -> None:
    done: list[int] = []

    def once(job: jobs.Job) -> jobs.Record:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(job["number"])
        return double(job)

    wanted = [{"number": n, "models": {"device": "cpu"}} for n in range(4)]
    with pytest.raises(KeyboardInterrupt):
        jobs.run_jobs(once, wanted, jobs.Cache(tmp_path / "deep", "c"), 1, lambda f, m: None, "x")
    file = tmp_path / "deep" / "c.jsonl"
    file.write_text(file.read_text()[:-7])  # it was killed while it wrote
    elsewhere = [{**job, "models": {"device": "cuda"}} for job in wanted]  # where it runs makes no difference
    for expected in ([1, 2, 3], []):
        done.clear()

        def counted(job: jobs.Job) -> jobs.Record:
            done.append(job["number"])
            return double(job)

        found = jobs.run_jobs(counted, elsewhere, jobs.Cache(tmp_path / "deep", "c"), 1, lambda f, m: None, "x")
        assert [record["twice"] for record in found] == [0, 2, 4, 6] and done == expected


def test_a_cache_that_cannot_be_made_is_said_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GenSegError, match="cannot be used as a cache"):
        jobs.Cache(tmp_path / "file", "c")


# Whole benchmarks


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_random_bundles(tmp_path_factory.mktemp("bundles"))


def model_words(bundles: dict[str, Path], *predictors: str) -> list[str]:
    names = [str(bundles[name]) for name in predictors]
    return ["--bundle", str(bundles["chest-flow"]), "--segmenter", str(bundles["nodule-unet"]), "--predictor", *names]


def arguments_of(module: Any, words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return vars(parser.parse_args(words))


def test_segmentation_and_clean_scans_of_the_phantom_benchmark(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--validation", "1", "--nodules", "2", "--clean", "1", "--cache", str(tmp_path), "--device", "cpu"]
    words += model_words(bundles, "nodule-cnn", "nodule-tinyvit")
    assert main(["evaluate", "nodules-phantom", "--part", "segmentation", *words, "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nodules-phantom" and lines[1].split()[:4] == ["method", "predictor", "subset", "dice"]
    result = json.loads(lines[-1])
    assert result["benchmark"] == "nodules-phantom"
    everything = [row for row in result["rows"] if row["subset"] == "all"]
    assert [(row["method"], row["predictor"]) for row in everything] == [
        (row.name, predictor) for predictor in ("nodule-cnn", "nodule-tinyvit") for row in methods(True)
    ]
    for row in everything:
        assert row["n"] == 2 and 0 <= row["dice_ci"][0] <= row["dice"] <= row["dice_ci"][1] <= 1
    assert {row["predictor"] for row in result["paired"]} == {"nodule-cnn", "nodule-tinyvit"}
    chosen = {(row["method"], row["predictor"]): row for row in result["chosen"]}
    assert chosen["grad-cam", "nodule-cnn"]["layer"] in ("features", "early")

    monkeypatch.setattr(nodules, "measure_case", None)  # all of it is in the cache
    again = nodules.nodules_phantom(arguments_of(nodules, ["--part", "segmentation", *words]), lambda f, m: None)
    assert json.loads(json.dumps(again)) == result

    clean = nodules.nodules_phantom(arguments_of(nodules, ["--part", "clean", *words]), lambda f, m: None)["clean"]
    assert [row["place"] for row in clean] == ["any", "lung", "vessel"] * 2
    for any_place, lung, vessel in zip(clean[::3], clean[1::3], clean[2::3], strict=True):
        assert any_place["false_voxels_per_scan"] == lung["false_voxels_per_scan"] + vessel["false_voxels_per_scan"]
        assert any_place["n"] == 1


def test_a_scan_is_searched_and_findings_are_matched_to_nodules(
    bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "SCAN_PIXEL_MM", 2.0)  # an eighth of the voxels, to be done in seconds
    monkeypatch.setattr(cases, "SCAN_SLICES_MM", (2.0, 2.5))
    predictor = jobs.ModelNames(str(bundles["chest-flow"]), str(bundles["nodule-cnn"]), None, "cpu")
    models = jobs.load_models(predictor)
    scan = cases.whole_scan("test", 0, (3, 3))
    assert len(scan.diameters_mm) == 3 and set(np.unique(scan.labels)) == {0, 1, 2, 3}
    assert scan.image.spacing[0] == pytest.approx(2.0) and 2.0 <= scan.image.spacing[2] <= 2.5
    record = nodules.search_scan(scan, {"nodule-cnn": models})
    found = record["marks"]["nodule-cnn"]
    assert found and record["diameters_mm"] == list(scan.diameters_mm)
    assert all(0 <= probability <= 1 and 0 <= nodule <= 3 for probability, nodule in found)

    class Found:
        probability = 0.7

        def __init__(self, center: np.ndarray) -> None:
            self.center = center

    middle = scan.image.to_lps(np.argwhere(scan.labels == 2).mean(0)[::-1])
    outside = scan.image.to_lps(np.array([-40.0, 3, 3]))
    monkeypatch.setattr(nodules, "find_candidates", lambda *_: [Found(middle), Found(outside)])
    assert nodules.marks(scan.image, scan.image, scan.labels, models) == [(0.7, 2), (0.7, 0)]


def test_a_bundle_of_another_kind_is_refused(bundles: dict[str, Path]) -> None:
    flow, cnn = str(bundles["chest-flow"]), str(bundles["nodule-cnn"])
    with pytest.raises(GenSegError, match="chest-flow is no predictor that can be evaluated"):
        jobs.load_models(jobs.ModelNames(flow, flow, None, "cpu"))
    with pytest.raises(GenSegError, match="nodule-cnn is a bundle of kind predictor, but the upper bound"):
        jobs.load_models(jobs.ModelNames(flow, cnn, cnn, "cpu"))


root = test_luna16.root
"""The miniature of LUNA16's folder layout."""


def test_luna16_runs_the_same_table(
    bundles: dict[str, Path], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lungs = np.full(test_luna16.SHAPE, 3, np.uint8)
    for uid, affine in ((test_luna16.CLEAN, test_luna16.STRAIGHT), (test_luna16.TURNED, test_luna16.FLIPPED)):
        test_luna16.write_scan(root / "seg-lungs-LUNA16" / f"{uid}.mhd", affine, lungs)
    words = ["--root", str(root), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    words += model_words(bundles, "nodule-cnn")
    result = luna16.luna16(arguments_of(luna16, words), lambda f, m: None)
    assert "MAISI" in result["note"] and "LIDC" in result["note"]
    everything = {row["method"]: row for row in result["rows"] if row["subset"] == "all"}
    assert list(everything) == [row.name for row in methods(True)]
    assert everything["guided"]["n"] == 1  # subset 7 has one nodule; those of subset 0 chose the thresholds
    detection = result["detection"]
    assert (detection["nodules"], detection["scans"]) == (1, 1)
    capsys.readouterr()
    assert main(["evaluate", "luna16", *words, "--json"]) == 0  # all from the cache
    lines = capsys.readouterr().out.splitlines()
    assert luna16.NOTE in lines
    assert json.loads(lines[-1]) == json.loads(json.dumps(result))


def test_luna16_boxes_hold_the_nodule_at_its_place(root: Path) -> None:
    from GenSegLogic.datasets.luna16 import read_luna16

    for scan in read_luna16(root):
        whole = scan.image.with_voxels(np.ones(scan.image.shape, np.uint8))
        for index, case in luna16._nodule_cases(scan, whole, 20.0):
            expected = scan.image.to_lps(np.argwhere(scan.nodules[index].mask_like(scan.image))[:, ::-1])
            found = case.image.to_lps(np.argwhere(case.truth)[:, ::-1])
            assert np.allclose(np.sort(found, axis=0), np.sort(expected, axis=0))
            assert np.linalg.norm(case.seed_point - scan.nodules[index].centre_lps) <= cases.SEED_JITTER_MM


def test_luna16_needs_subsets_to_choose_on_and_to_report(bundles: dict[str, Path], root: Path) -> None:
    words = ["--root", str(root), "--device", "cpu", *model_words(bundles, "nodule-cnn")]
    with pytest.raises(GenSegError, match="subset3 is missing"):
        luna16.luna16(arguments_of(luna16, [*words, "--validation-subset", "3"]), lambda f, m: None)
    for path in (root / "subset7").iterdir():
        path.unlink()
    (root / "subset7").rmdir()
    with pytest.raises(GenSegError, match="no subset besides subset0"):
        luna16.luna16(arguments_of(luna16, words), lambda f, m: None)
