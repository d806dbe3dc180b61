"""The nodules task from scan to results, with small random networks in real bundles."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from GenSegLogic.bundles import cache_folder, find_bundle, write_bundle
from GenSegLogic.bundles.importers import import_checkpoint
from GenSegLogic.engine import Engine
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.networks import build
from GenSegLogic.networks.maisi import MAISI_AUTOENCODER, MAISI_VELOCITY
from GenSegLogic.nodules.measure import COLUMNS
from GenSegLogic.nodules.segments import Finding, nodules_from_residual
from GenSegLogic.nodules.task import NoduleTask, check_lungs
from GenSegLogic.phantoms.chest import ChestOptions, make_chest, make_scan
from GenSegLogic.phantoms.kinds import affine_of
from GenSegLogic.phantoms.primitives import Scanner
from GenSegLogic.volume import Volume, crop, resample, write_volume
from Testing.logic.grids import ORIENTATIONS, affine_in, draw, soft_ball

FIELD_VOXELS = 16
AUTOENCODER = {"latent_channels": 4, "channels": 8, "blocks": 1}
VELOCITY = {
    **MAISI_VELOCITY,
    "num_channels": [8, 16],
    "attention_levels": [False, False],
    "num_head_channels": [0, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 8,
}
PREDICTORS = {
    "tiny-cnn": ("predictor-cnn", {"channels": [8, 8, 8]}),
    "tiny-tinyvit": ("predictor-tinyvit", {"embed_dims": [8, 8, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 1]}),
}
CENTER = (10.0, -20.0, 30.0)
"""The middle of every scan."""


def metadata(kind: str) -> dict:
    """What a recipe would write."""
    image = {"modality": "CT", "window_hu": [-1000, 400], "spacing_mm": [1.5] * 3, "spacings_mm": [1.5, 3.0],
             "orientation": "LPS", "field_voxels": FIELD_VOXELS}
    return {"kind": kind, "task": "test", "description": "Random weights.", "image": image, "licence": "Apache-2.0",
            "commercial_use": True, "source": "made by a test"}


@pytest.fixture(scope="module", autouse=True)
def bundles() -> Iterator[Path]:
    """A flow and both families of predictors, where fetched bundles lie."""
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            patch.setenv("GENSEG_HOME", folder)
            torch.manual_seed(3)
            autoencoder = build("folding-autoencoder", AUTOENCODER)
            velocity = build("maisi-velocity", VELOCITY)
            for parameter in velocity.out.parameters():  # MONAI starts the last layer at zero
                torch.nn.init.normal_(parameter, std=0.1)
            write_bundle(
                cache_folder() / "bundles" / "tiny-flow",
                {**metadata("flow"), "latent": {"channels": 4, "downsampling": 2, "scale_factor": 1.1}},
                {"autoencoder": ("folding-autoencoder", AUTOENCODER, autoencoder),
                 "velocity": ("maisi-velocity", VELOCITY, velocity)},
                "# Tiny\n", "Apache-2.0\n",
            )
            for name, (target, arguments) in PREDICTORS.items():
                network = build(target, arguments)
                torch.nn.init.constant_(network.classifier.bias, -1.0)  # suspicious enough to be guided
                write_bundle(cache_folder() / "bundles" / name, metadata("predictor"),
                             {"predictor": (target, arguments, network)}, "# Tiny\n", "Apache-2.0\n")
            yield Path(folder)


@pytest.fixture(scope="module")
def engine(bundles: Path) -> Engine:
    return Engine("cpu")


def task(**parameters) -> NoduleTask:
    """Few steps, a low threshold, no evidence: random networks change little and see nothing."""
    settings = {"bundle": "tiny-flow", "predictor": "tiny-cnn", "steps": 2, "threshold": 10.0, "evidence": 0.0}
    return NoduleTask(**settings | parameters)


@pytest.fixture(scope="module")
def phantom() -> Volume:
    """A box of 90 mm round a phantom's nodule, which lies at CENTER."""
    chest = make_chest(3_300_000, ChestOptions(nodules=(1, 1), diameter_mm=(10.0, 12.0), kinds=("solid",)))
    middle = chest.nodules[0].center
    image, _, _, axes = make_scan(chest, 1, Scanner(1.2, 1.5), (middle - 45, middle + 45))
    affine = affine_of(axes)
    affine[:3, 3] += np.array(CENTER) - middle
    return Volume(np.round(image).astype(np.int16), affine, "phantom.nrrd", {"modality": "CT"})


def in_orientation(image: Volume, orientation: str) -> Volume:
    """The same patient on a grid of 40 x 44 x 48 voxels in another orientation."""
    shape, spacing = (40, 44, 48), (1.2, 1.3, 1.5)
    return resample(image, shape, affine_in(orientation, spacing, shape), "linear", -1024)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_results_come_back_on_the_inputs_grid(
    engine: Engine, phantom: Volume, orientation: str, tmp_path: Path
) -> None:
    image = in_orientation(phantom, orientation)
    results = engine.run(task(seed_points=(CENTER,)), image)
    parts = [*results.volumes.values(), results.segmentations["nodules"].labelmap]
    assert set(results.volumes) == {"counterfactual", "residual"}
    for part in parts:
        assert part.shape == image.shape and np.array_equal(part.affine, image.affine)
    residual, painted = results.volumes["residual"], results.volumes["counterfactual"]
    assert painted.voxels.dtype == image.voxels.dtype
    changed = residual.to_lps(np.argwhere(residual.voxels != 0)[:, ::-1])
    assert len(changed) > 200, "the random network changed nothing"
    # At 3 mm the region reaches (0.34 * 8 + 1) * 2 * 3 mm, and interpolation a voxel's diagonal more.
    assert np.linalg.norm(changed - CENTER, axis=1).max() < (0.34 * 8 + 1) * 2 * 3.0 + 3.0 * 3**0.5
    assert np.linalg.norm(changed.mean(0) - CENTER) < 3
    assert np.array_equal(painted.voxels[residual.voxels == 0], image.voxels[residual.voxels == 0])
    assert results.columns["nodules"] == COLUMNS
    assert len(results.tables["nodules"]) == len(results.segmentations["nodules"].segments)
    files = results.save(tmp_path, image)
    assert {"nodules.seg.nrrd", "counterfactual.nrrd", "residual.nrrd", "nodules.csv", "overlay.png"} <= set(files)


def test_the_patient_decides_and_not_the_orientation(engine: Engine) -> None:
    function = soft_ball(CENTER, 6.0, 50, -850, 6.0)
    shape, spacing = (40, 44, 48), (1.2, 1.3, 1.5)
    found = []
    for orientation in ("LPS", "RAS"):
        image = draw(function, orientation, spacing, shape, np.float32)
        residual = engine.run(task(seed_points=(CENTER,)), image).volumes["residual"]
        found.append(resample(residual, shape, affine_in("LPS", spacing, shape)).voxels)
    assert found[0].any()
    assert np.corrcoef(found[0].ravel(), found[1].ravel())[0, 1] > 0.99


def test_the_same_seed_gives_the_same_bytes(engine: Engine, phantom: Volume) -> None:
    runs = [engine.run(task(seed_points=(CENTER,), seed=seed), phantom) for seed in (1, 1, 2)]
    voxels = [run.volumes["residual"].voxels.tobytes() for run in runs]
    assert voxels[0] == voxels[1] and voxels[0] != voxels[2]
    assert runs[0].tables == runs[1].tables
    fresh = Engine("cpu").run(task(seed_points=(CENTER,), seed=1), phantom)
    assert fresh.volumes["residual"].voxels.tobytes() == voxels[0]


def test_a_finding_does_not_depend_on_those_after_it(engine: Engine, phantom: Volume) -> None:
    far = (CENTER[0] - 30, CENTER[1] - 30, CENTER[2] + 30)
    alone = engine.run(task(seed_points=(CENTER,)), phantom).volumes["residual"].voxels
    both = engine.run(task(seed_points=(CENTER, far)), phantom).volumes["residual"].voxels
    indices = np.moveaxis(np.indices(phantom.shape), 0, -1)[..., ::-1]
    near = np.linalg.norm(phantom.to_lps(indices) - CENTER, axis=-1) < 10
    assert np.array_equal(alone[near], both[near]) and not np.array_equal(alone, both)


@pytest.mark.parametrize("predictor", list(PREDICTORS))
def test_the_lungs_are_searched_without_a_seed_point(engine: Engine, phantom: Volume, predictor: str) -> None:
    lungs = draw(lambda p: np.abs(p - np.array(CENTER)).max(-1) < 24, "oblique", (3.0, 3, 3), (30, 30, 30), np.uint8)
    searched = task(predictor=predictor, probability=0.0, most=2)
    results = engine.run(searched, {"image": phantom, "lungs": lungs})
    findings = results.provenance["findings"]
    assert len(findings) == 2
    assert all(np.abs(np.array(f["center"]) - CENTER).max() < 24 + 8 for f in findings)
    assert any("most probable" in message for message in results.messages)
    inside = results.volumes["residual"].voxels != 0
    points = phantom.to_lps(np.argwhere(inside)[:, ::-1])
    assert np.abs(points - CENTER).max() < 24 + 3.0, "the residual stays in the lungs that were given"


def test_nothing_is_found_where_no_place_is_probable(engine: Engine, phantom: Volume, tmp_path: Path) -> None:
    lungs = draw(lambda p: np.abs(p - np.array(CENTER)).max(-1) < 20, "LPS", (3.0, 3, 3), (30, 30, 30), np.uint8)
    results = engine.run(task(probability=1.0), {"image": phantom, "lungs": lungs})
    assert results.tables["nodules"] == [] and results.segmentations["nodules"].segments == ()
    assert not results.volumes["residual"].voxels.any()
    assert np.array_equal(results.volumes["counterfactual"].voxels, phantom.voxels)
    assert results.summary == "No nodule was found."
    results.save(tmp_path, phantom)
    assert (tmp_path / "nodules.csv").read_text().strip() == ",".join(COLUMNS)


def test_a_seed_point_without_evidence_finds_nothing_and_says_so(engine: Engine, phantom: Volume) -> None:
    seen = engine.run(task(seed_points=(CENTER,)), phantom)
    assert seen.volumes["residual"].voxels.any() and not seen.messages
    results = engine.run(task(seed_points=(CENTER,), evidence=1.0), phantom)
    assert not results.volumes["residual"].voxels.any() and results.tables["nodules"] == []
    [message] = results.messages
    assert message.startswith("tiny-cnn sees no nodule at 10, -20, 30 (LPS mm)") and message.endswith("all the same.")
    assert "(evidence)" in message and results.summary == "No nodule was found."
    [finding] = results.provenance["findings"]
    assert f"is {finding['probability']:.2f}, and 1 is asked for" in message and finding["radius_mm"] > 0
    # Above what is asked for, the evidence decides nothing but the finding's probability.
    asked = engine.run(task(seed_points=(CENTER,), evidence=finding["probability"] / 2), phantom)
    assert np.array_equal(asked.volumes["residual"].voxels, seen.volumes["residual"].voxels)
    assert asked.provenance["findings"][0]["probability"] == finding["probability"] and not asked.messages


def test_a_seed_point_on_what_another_has_outlined_says_so(engine: Engine, phantom: Volume) -> None:
    results = engine.run(task(seed_points=(CENTER, CENTER)), phantom)
    assert len(results.tables["nodules"]) == 1
    (message,) = results.messages
    assert message.startswith("Nothing is outlined at the seed point") and "another seed point" in message


def test_the_threshold_can_be_moved_on_the_result_alone(engine: Engine, phantom: Volume) -> None:
    results = engine.run(task(seed_points=(CENTER,)), phantom)
    findings = [Finding(tuple(f["center"]), f["radius_mm"], f["probability"]) for f in results.provenance["findings"]]
    again = nodules_from_residual(results.volumes["residual"], None, findings, results.provenance["threshold_hu"])
    assert np.array_equal(again.labelmap.voxels, results.segmentations["nodules"].labelmap.voxels)
    json.dumps(results.provenance)


def test_cancelling_stops_within_a_step(engine: Engine, phantom: Volume) -> None:
    painted: list[float] = []

    def cancel(fraction: float, message: str) -> None:
        if message.startswith("Painting"):
            painted.append(fraction)
            if len(painted) == 3:
                raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(task(seed_points=(CENTER,), steps=10), phantom, cancel)
    assert len(painted) == 3 and painted == sorted(painted)
    told: list[float] = []
    engine.run(task(seed_points=(CENTER,), steps=4), phantom, lambda fraction, message: told.append(fraction))
    assert len(told) >= 2 * 4 and told == sorted(told) and told[0] == 0 and told[-1] <= 1


# Imported weights


def import_narrow_maisi(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle by GenSeg's own importer from files in the published form, of the published networks but narrow."""
    autoencoder = {**MAISI_AUTOENCODER, "num_channels": [4, 4, 4], "num_res_blocks": [1, 1, 1], "norm_num_groups": 4}
    monkeypatch.setattr("GenSegLogic.networks.maisi.MAISI_AUTOENCODER", autoencoder)
    monkeypatch.setattr("GenSegLogic.networks.maisi.MAISI_VELOCITY", VELOCITY)
    files = {"autoencoder": folder / "autoencoder.pt", "velocity": folder / "unet.pt"}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        torch.save(build("maisi-autoencoder", autoencoder).state_dict(), files["autoencoder"])
        weights = build("maisi-velocity", VELOCITY).state_dict()
    torch.save({"unet_state_dict": weights, "scale_factor": torch.tensor(0.9)}, files["velocity"])
    return import_checkpoint(kind, files, folder / kind).folder


def test_an_imported_maisi_paints_and_says_that_its_weights_do_not_know_the_grid(
    engine: Engine, phantom: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = import_narrow_maisi("maisi-rflow-ct", tmp_path, monkeypatch)
    results = engine.run(task(bundle=str(folder), seed_points=(CENTER,), steps=1), phantom)
    assert results.volumes["residual"].voxels.any()
    [message] = results.messages
    assert message.startswith("MAISI's CT weights do not know the grid 64 x 64 x 64 voxels of 0.75 x 0.75 x 0.75 mm")
    assert message.endswith("what maisi-rflow-ct paints there may be of no use.")


def test_an_imported_maisi_for_mr_is_refused(
    engine: Engine, phantom: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = import_narrow_maisi("maisi-rflow-mr", tmp_path, monkeypatch)
    sentence = refusal(engine, phantom, bundle=str(folder), seed_points=(CENTER,))
    assert sentence.startswith("maisi-rflow-mr is a flow of MR")


# Refusals


def refusal(engine: Engine, volumes, **parameters) -> str:
    with pytest.raises(GenSegError, match=r"\.$") as caught:
        engine.run(task(**parameters), volumes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("point", [(500.0, 0.0, 0.0), (float("nan"), 0.0, 0.0)])
def test_a_seed_point_outside_of_the_scan_is_refused(engine: Engine, phantom: Volume, point: tuple) -> None:
    sentence = refusal(engine, phantom, seed_points=(CENTER, point))
    assert "outside phantom.nrrd" in sentence and "LPS" in sentence


def test_an_empty_lung_mask_is_refused(engine: Engine, phantom: Volume) -> None:
    empty = phantom.with_voxels(np.zeros(phantom.shape, np.uint8), "lungs.nrrd")
    assert refusal(engine, {"image": phantom, "lungs": empty}).startswith("lungs.nrrd: the lung mask is empty")


def test_a_lung_mask_beside_the_scan_is_refused(engine: Engine, phantom: Volume) -> None:
    affine = phantom.affine.copy()
    affine[2, 3] += 500
    beside = Volume(np.ones(phantom.shape, np.uint8), affine, "lungs.nrrd")
    sentence = refusal(engine, {"image": phantom, "lungs": beside})
    assert sentence.startswith("lungs.nrrd: no voxel of the lung mask lies inside phantom.nrrd")
    assert refusal(engine, {"image": phantom, "lungs": beside}, seed_points=(CENTER,)) == sentence


def test_what_is_no_lung_mask_is_refused(engine: Engine, phantom: Volume) -> None:
    assert "phantom.nrrd is no lung mask, since it holds more than 10 values" in refusal(
        engine, {"image": phantom, "lungs": phantom})
    soft = phantom.with_voxels(np.full(phantom.shape, 0.5, np.float32), "soft.nrrd")
    assert "soft.nrrd is no lung mask, since it holds fractions" in refusal(engine, {"image": phantom, "lungs": soft})
    lobes = np.ones(phantom.shape, np.float32) * (np.arange(phantom.shape[2]) % 6)
    check_lungs(phantom.with_voxels(lobes, "lobes.nrrd"), phantom)  # whole numbers, if few, are lobes


def test_a_lung_mask_that_is_too_small_to_search_is_refused(engine: Engine, phantom: Volume) -> None:
    shape = (31, 31, 31)
    fine = draw(lambda p: np.abs(p - np.array(CENTER)).max(-1) < 0.9 * 0.2, "LPS", (0.2,) * 3, shape, np.uint8)
    box = crop(fine, (10, 10, 10), (11, 11, 11), 0)
    scan = resample(phantom, shape, fine.affine, "linear", -1024)
    assert "mask is too small to search" in refusal(engine, {"image": scan, "lungs": box})


def test_a_seed_point_outside_the_lungs_says_so(engine: Engine, phantom: Volume) -> None:
    lungs = draw(lambda p: np.abs(p - np.array(CENTER)).max(-1) < 12, "oblique", (3.0, 3, 3), (30, 30, 30), np.uint8)
    outside = (CENTER[0] + 36, CENTER[1], CENTER[2])
    for evidence in (0.0, 1.0):
        results = engine.run(task(seed_points=(outside,), evidence=evidence), {"image": phantom, "lungs": lungs})
        [message] = results.messages
        assert message.startswith("The seed point 46, -20, 30 (LPS mm) lies outside the lungs") and "--lungs" in message
        assert results.tables["nodules"] == []
    assert engine.run(task(seed_points=(CENTER,)), {"image": phantom, "lungs": lungs}).messages == []


def test_a_scan_without_lungs_is_refused(engine: Engine) -> None:
    soft = Volume(np.full((20, 20, 20), 40, np.int16), np.diag([2.0, 2, 2, 1]), "brain.nrrd")
    assert refusal(engine, soft).startswith("brain.nrrd: no lung was found")


def test_bundles_of_the_wrong_kind_are_refused(engine: Engine, phantom: Volume) -> None:
    assert "tiny-cnn is a bundle of kind pred" in refusal(engine, phantom, bundle="tiny-cnn", seed_points=(CENTER,))
    assert "tiny-flow is a bundle of kind" in refusal(engine, phantom, predictor="tiny-flow", seed_points=(CENTER,))


def test_the_memory_need_grows_with_the_scan_and_the_networks(engine: Engine, phantom: Volume) -> None:
    twice = Volume(np.concatenate([phantom.voxels] * 2), phantom.affine)
    small, large = (task().memory_bytes({"image": image}, engine) for image in (phantom, twice))
    assert 0 < small < large
    more = find_bundle("chest-flow").size_bytes - find_bundle("tiny-flow").size_bytes
    assert task(bundle="chest-flow").memory_bytes({"image": phantom}, engine) - small == 4 * more > 0
    huge = Volume(np.broadcast_to(np.int16(0), (400, 512, 512)), np.eye(4))
    assert task().memory_bytes({"image": huge}, engine) < 4 * 2**30  # the limit for a scan of this size
    on_gpu = cast(Engine, SimpleNamespace(computes_on_host=False))  # where no copy of the scan goes
    assert task().memory_bytes({"image": huge}, on_gpu) == task().memory_bytes({"image": phantom}, on_gpu)


@pytest.mark.parametrize(("name", "value", "wanted"), [
    ("steps", 4.5, "a whole number"), ("steps", "4", "a whole number"), ("steps", True, "a whole number"),
    ("guidance", "hard", "a number"), ("bundle", 3, "a text"), ("seed_points", CENTER, "a list, each of it 3 numbers"),
    ("seed_points", ((1.0, 2.0),), "a list, each of it 3 numbers"), ("seed_points", None, "a list")])
def test_a_value_of_the_wrong_type_is_refused(name: str, value: Any, wanted: str) -> None:
    with pytest.raises(GenSegError, match=f"nodules: {name} is .*, but must be {wanted}"):
        NoduleTask(**{name: value})


def test_lists_and_arrays_become_tuples() -> None:
    points = np.array([[84.0, -193.0, -195.0]])
    assert NoduleTask(seed_points=points) == NoduleTask(seed_points=[[84, -193, -195]]) == NoduleTask(
        seed_points=((84.0, -193.0, -195.0),), steps=np.int64(4), guidance=np.float64(0.6))


def test_doubts_are_told_before_the_work(phantom: Volume) -> None:
    assert task().preflight({"image": phantom}) == []
    mr = Volume(np.full((8, 8, 8), 300, np.int16), np.diag([1, 1, 5, 1.0]), "mr.nrrd", {"modality": "MR"})
    doubts = " ".join(task().preflight({"image": mr}))
    assert "is MR" in doubts and "hardly any voxel" in doubts and "5.0 mm" in doubts


def test_the_command_line_writes_the_contracts_files(
    phantom: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from GenSegLogic.cli import main

    write_volume(phantom, tmp_path / "scan.nrrd")
    point = ",".join(f"{c:g}" for c in CENTER)
    code = main(["nodules", str(tmp_path / "scan.nrrd"), "-o", str(tmp_path / "out"), "--bundle", "tiny-flow",
                 "--predictor", "tiny-cnn", "--steps", "1", "--threshold", "10", "--seed-point", point, "--json",
                 "--device", "cpu"])
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    expected = {"nodules.seg.nrrd", "counterfactual.nrrd", "residual.nrrd", "nodules.csv", "overlay.png",
                "provenance.json"}
    assert expected == {path.name for path in (tmp_path / "out").iterdir()}
    assert set(json.loads(output.out.splitlines()[-1])["files"]) == expected
