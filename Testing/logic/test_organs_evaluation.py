"""What the organ benchmarks measure, against references; whole benchmarks on networks of random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from GenSegLogic import Engine, GenSegError, Volume, write_volume
from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import cache_folder
from GenSegLogic.cli import main
from GenSegLogic.datasets.organ_cases import OrganCase
from GenSegLogic.evaluation import organs_phantom, organs_source_free
from GenSegLogic.evaluation.metrics import auroc
from GenSegLogic.evaluation.organs import FOUR, confidence_row, flicker, flicker_row, mean_rows, organ_rows
from GenSegLogic.evaluation.organs_few_shot import METHODS, splits
from GenSegLogic.evaluation.organs_methods import aligned, mean_memory, true_memory
from GenSegLogic.evaluation.organs_unet import labelled_scan, segment_with_unet, train_unet
from GenSegLogic.organs.diffusam.canonical import CanonicalGrid
from GenSegLogic.organs.diffusam.task import load_models
from GenSegLogic.phantoms.abdomen import abdomen_phantom
from Testing.logic.organ_bundles import write_organ_bundles

LIVER, SPLEEN = ORGANS["liver"].label, ORGANS["spleen"].label


def small_phantom(seed: int, look: str, split: str) -> OrganCase:
    made = abdomen_phantom(seed, look, split, size=40, slices=4, thickness_mm=8.0, field_mm=380.0)
    return OrganCase(made.image.name, made.image, made.labels, tuple(ORGANS))


@pytest.fixture(scope="module", autouse=True)
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The bundles that the benchmarks take by default, with random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSEG_HOME", str(tmp_path_factory.mktemp("home")))
        write_organ_bundles(cache_folder() / "bundles", FOUR, ("tiny-sam2", "tiny-ct", "tiny-mr"))
        yield


# Measures


def labels_of(*masks: tuple[int, np.ndarray]) -> Volume:
    voxels = np.zeros(masks[0][1].shape, np.uint8)
    for label, mask in masks:
        voxels[mask] = label
    return Volume(voxels, np.diag([2.0, 2.0, 5.0, 1.0]), "labels")


def ball(center: tuple[int, int, int], radius: float, shape: tuple[int, int, int] = (12, 30, 30)) -> np.ndarray:
    k, j, i = np.indices(shape)
    return (5 * (k - center[0])) ** 2 + (2 * (j - center[1])) ** 2 + (2 * (i - center[2])) ** 2 < radius**2


def test_auroc_agrees_with_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))
    assert auroc(scores, np.ones(80, bool)) is None


def test_organ_rows_and_their_means() -> None:
    truth = labels_of((LIVER, ball((5, 14, 14), 20)))
    half = labels_of((LIVER, ball((5, 14, 14), 20) & (np.arange(30) < 14)))
    rows = organ_rows(half, truth, ("liver", "spleen"), method="a", case="1")
    assert rows[0]["dice"] == pytest.approx(0.63, abs=0.05) and rows[0]["hausdorff95_mm"] > 10
    assert rows[1] == {"method": "a", "case": "1", "organ": "spleen", "dice": 1.0, "hausdorff95_mm": None}
    rows += organ_rows(truth, truth, ("liver",), method="b", case="1")
    means = {(row["method"], row["organ"]): row for row in mean_rows(rows)}
    assert means["b", "all"]["dice"] == 1.0 and means["b", "all"]["hausdorff95_mm"] == 0.0
    assert means["a", "all"]["dice"] == pytest.approx((rows[0]["dice"] + 1) / 2)
    assert (means["a", "all"]["not_measured"], means["a", "all"]["cases"]) == (1, 1)


def test_flicker_sees_a_mask_that_jumps_from_slice_to_slice() -> None:
    column = np.zeros((6, 20, 20), bool)
    column[:, 5:15, 5:15] = True
    jumping = column.copy()
    jumping[1::2] = np.roll(jumping[1::2], 5, axis=2)
    truth, found = labels_of((LIVER, column)), labels_of((LIVER, jumping))
    assert flicker(truth, "liver") == 1.0 and flicker(found, "liver") == pytest.approx(0.5)
    assert flicker(truth, "spleen") is None
    row = flicker_row(found, truth, ("liver", "spleen"), case="1")
    assert row["difference"] == pytest.approx(0.5) and row["case"] == "1"
    stored = Volume(truth.voxels.transpose(1, 2, 0), truth.affine[:, [2, 0, 1, 3]], "coronal")
    assert flicker(stored, "liver") == 1.0


def test_confidence_is_judged_near_the_predicted_borders() -> None:
    truth, found = (labels_of((LIVER, ball((5, 14, center), 18))) for center in (14, 16))
    wrong = truth.voxels != found.voxels
    knowing = found.with_voxels(np.where(wrong, 0.2, 0.9).astype(np.float32))
    row = confidence_row(found, truth, knowing, ("liver",))
    assert row["auroc_confidence"] == 1.0 and 0.5 < row["auroc_distance"] < 1.0
    assert row["difference"] == pytest.approx(1 - row["auroc_distance"])
    assert 0 < row["wrong_percent"] < 30 and row["voxels"] < wrong.size
    ignorant = found.with_voxels(np.full(found.shape, 0.5, np.float32))
    assert confidence_row(found, truth, ignorant, ("liver",))["auroc_confidence"] == 0.5
    assert confidence_row(found, found, knowing, ("liver",))["auroc_confidence"] is None


def test_cases_are_split_by_turns_or_by_name() -> None:
    image = Volume(np.zeros((2, 2, 2), np.int16), np.eye(4))
    cases = [OrganCase(name, image, image, ("liver",)) for name in ("1", "2", "22")]

    def names(learn: list[str] | None, test: list[str] | None) -> list[tuple[list[str], list[str]]]:
        return [([c.case_id for c in a], [c.case_id for c in b])
                for a, b in splits(cases, {"learn": learn, "test": test})]

    assert names(None, None) == [(["2", "22"], ["1"]), (["1", "22"], ["2"]), (["1", "2"], ["22"])]
    assert names(["1"], None) == [(["1"], ["2", "22"])] and names(None, ["22"]) == [(["1", "2"], ["22"])]
    for learn, test in ((["1"], ["1"]), (["3"], None), (["1", "2", "22"], None)):
        with pytest.raises(GenSegError, match=r"\.$"):
            names(learn, test)


# Methods


def test_a_unet_learns_an_organ_that_stands_out() -> None:
    grid = CanonicalGrid(size=32, spacing_mm=12.0, slice_mm=(3.0, 12.0))
    mask = ball((4, 14, 8), 22, (9, 30, 30))
    rng = np.random.default_rng(0)
    voxels = np.full(mask.shape, 100.0, np.float32) + 150 * mask + rng.normal(0, 5, mask.shape).astype(np.float32)
    image = Volume(voxels, np.diag([12.0, 12.0, 10.0, 1.0]), "scan")
    case = OrganCase("1", image, image.with_voxels((LIVER * mask).astype(np.uint8)), ("liver",))
    scan = labelled_scan(case, grid, ("spleen", "liver"))
    assert set(np.unique(scan.labels)) == {0, 2}
    told: list[str] = []
    network = train_unet([scan], ("spleen", "liver"), 0.25, 0, lambda fraction, message: told.append(message))
    found = segment_with_unet(network, image, grid, ("spleen", "liver"))
    (spleen, liver) = organ_rows(found.labels, case.labels, ("spleen", "liver"))
    assert liver["dice"] > 0.8 and spleen["dice"] == 1.0
    assert told and not any(parameter.requires_grad for parameter in network.parameters())


def test_controls_put_the_memories_they_say_in_the_priors_place() -> None:
    models = load_models("tiny-ct", Engine("cpu"))
    case = small_phantom(0, "ct", "train")
    empty = OrganCase("none", case.image, case.labels.with_voxels(np.zeros_like(case.labels.voxels)), case.organs)
    by_truth = [true_memory(models, ("liver",))(one).confidence.voxels for one in (case, empty)]
    assert not np.array_equal(*by_truth), "two truths, two memories, two results"
    segment = mean_memory(models, ("liver",), [case])
    assert np.array_equal(segment(case).labels.voxels, segment(empty).labels.voxels), "blind to the truth"


def test_alignment_gives_scans_the_grey_values_of_others() -> None:
    models = load_models("tiny-ct", Engine("cpu"))
    source, other = small_phantom(0, "ct", "train").image, small_phantom(1, "t2", "test").image
    target = CanonicalGrid()
    seen = aligned(models, [source], target).grid.apply(other).voxels
    wanted, unaligned = models.grid.apply(source).voxels, target.apply(other).voxels
    assert seen.shape == unaligned.shape and seen.dtype == np.float32

    def distance(voxels: np.ndarray) -> float:
        levels = np.linspace(0.05, 0.95, 19)
        return float(np.abs(np.quantile(voxels[voxels > 0], levels) - np.quantile(wanted[wanted > 0], levels)).max())

    assert distance(seen) < 0.05 < distance(unaligned)


# Benchmarks


def evaluate(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["evaluate", *map(str, words), "--device", "cpu", "--json"]) == 0, capsys.readouterr().err
    output = capsys.readouterr().out.splitlines()
    assert any("hausdorff95_mm" in line for line in output[:-1])
    return json.loads(output[-1])


def check_rows(rows: list[dict[str, Any]], methods: tuple[str, ...], cases: int, organs: tuple[str, ...]) -> None:
    assert {row["method"] for row in rows} == set(methods) and {row["organ"] for row in rows} == set(organs)
    assert len(rows) == len(methods) * cases * len(organs)
    assert all(0 <= row["dice"] <= 1 and row["case"] for row in rows)


def test_few_shot_compares_all_methods(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    from GenSegLogic.evaluation import organs_methods

    monkeypatch.setattr(organs_methods, "PRETRAINING_PHANTOMS", 1)
    old = {6: 1, 2: 2, 3: 3, 1: 4}  # our numbers -> those of the distributed CHAOS T2
    for number in (1, 5):
        case = small_phantom(number, "t2-spir", "train")
        labels = np.zeros(case.labels.shape, np.uint8)
        for ours, theirs in old.items():
            labels[case.labels.voxels == ours] = theirs
        write_volume(case.image, tmp_path / f"image_{number}.nii.gz")
        write_volume(case.labels.with_voxels(labels), tmp_path / f"label_{number}.nii.gz")
    words = ("organs-few-shot", "--data", tmp_path, "--bundle", "tiny-mr", "--minutes", 0.01, "--unet-minutes", 0.01,
             "--cache", tmp_path / "cache")
    result = evaluate(capsys, *words)
    check_rows(result["rows"], METHODS, 2, FOUR)
    assert {row["case"] for row in result["rows"]} == {"1", "5"}
    assert {row["organ"] for row in result["means"]} == {*FOUR, "all"}
    torch.manual_seed(1)
    assert evaluate(capsys, *words) == result, "a second run takes every case from the cache"


def test_phantoms_are_measured_with_flicker_and_confidence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(organs_phantom, "phantom", small_phantom)
    monkeypatch.setattr(organs_phantom, "LEARN", 1)
    result = evaluate(capsys, "organs-phantom", "--cases", 1, "--looks", "ct", "t1", "--ct-bundle", "tiny-ct",
                      "--mr-bundle", "tiny-mr")
    check_rows(result["rows"], organs_phantom.METHODS, 2, FOUR)
    assert {(row["method"], row["look"]) for row in result["flicker"]} == {
        (method, look) for method in organs_phantom.METHODS for look in ("ct", "t1")}
    assert [(row["method"], row["look"]) for row in result["confidence"]] == [("diffusam", "ct"), ("diffusam", "t1")]


def test_source_free_goes_both_ways(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(organs_source_free, "phantom", small_phantom)
    monkeypatch.setattr(organs_source_free, "LEARN", 1)
    words = ("organs-source-free", "--cases", 1, "--unlabelled", 1, "--minutes", 0.01, "--ct-bundle", "tiny-ct",
             "--mr-bundle", "tiny-mr")
    result = evaluate(capsys, *words, "--directions", "ct-to-mr")
    check_rows(result["rows"], organs_source_free.METHODS, 1, FOUR)
    assert {row["case"][:11] for row in result["rows"]} == {"abdomen-t2-"}
    result = evaluate(capsys, *words, "--methods", "no-adaptation", "intensity-alignment")
    check_rows(result["rows"], ("no-adaptation", "intensity-alignment"), 2, FOUR)
    assert {(row["direction"], row["case"][:11]) for row in result["rows"]} == {
        ("ct-to-mr", "abdomen-t2-"), ("mr-to-ct", "abdomen-ct-")}


def test_btcv_and_chaos_learn_from_the_first_cases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        case = small_phantom(number, "ct", "train")
        for folder, volume in (("img", case.image), ("label", case.labels)):
            (tmp_path / folder).mkdir(exist_ok=True)
            write_volume(volume, tmp_path / folder / f"{folder}{number:04d}.nii.gz")
    result = evaluate(capsys, "btcv", "--root", tmp_path, "--shots", 2, "--methods", "unet", "--unet-minutes", 0.01,
                      "--bundle", "tiny-ct")
    check_rows(result["rows"], ("unet",), 1, FOUR)
    assert result["rows"][0]["case"] == "btcv-0002"
    assert main(["evaluate", "btcv", "--root", str(tmp_path), "--shots", "3", "--device", "cpu"]) == 1
    assert "fewer --shots" in capsys.readouterr().err
    assert main(["evaluate", "chaos", "--root", str(tmp_path), "--device", "cpu"]) == 1
    assert "CHAOS was unpacked" in capsys.readouterr().err
