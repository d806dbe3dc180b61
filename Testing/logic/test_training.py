"""Training: a loop that can be interrupted, tiles whose bits are true, predictors that see no voxel label, recipes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from GenSegLogic.bundles import load_bundle, read_bundle
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.networks.predictors import NodulePredictor
from GenSegLogic.phantoms.chest import ChestOptions, make_chest
from GenSegLogic.phantoms.splits import SPLITS, Split
from GenSegLogic.progress import silent
from GenSegLogic.tasks import load
from GenSegLogic.training import chest_flow, chest_tiles, nodule_predictor, nodule_unet
from GenSegLogic.training.data import FIELD_VOXELS, Crops, click_batches, image_batches, normalise
from GenSegLogic.training.loop import CHECKPOINT, CURVE, train
from GenSegLogic.training.recipes import RECIPES
from GenSegLogic.training.search_tiles import draw_search_tiles
from GenSegLogic.training.tiles import (
    CROP_VOXELS,
    TILE_VOXELS,
    TILES_PER_CHEST,
    TRACE_VOXELS,
    Tile,
    crop_bits,
    draw_nodule_tiles,
    draw_real_tiles,
    draw_tiles,
    tile_label,
    write_tiles,
)


class Clock:
    """A clock that moves on by a fixed time whenever it is read: training by time becomes training by steps."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        """Seconds."""
        self.now += self.seconds
        return self.now


@pytest.fixture
def every_step_takes_20_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("GenSegLogic.training.loop.time", Clock(20.0))


# The loop


def regression() -> tuple[nn.Module, Iterator[dict[str, Tensor]]]:
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    return network, repeat({"x": x, "y": x @ torch.tensor([[1.0], [-2.0], [0.5]])})


def squared_error(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return (network(batch["x"]) - batch["y"]).square().mean()


def run(folder: Path, progress=silent, validate=None) -> tuple[nn.Module, list[dict[str, float]]]:
    """30 steps."""
    network, batches = regression()
    return train(network, squared_error, batches, folder, 10.0, progress, 0.3, 0.9, validate, bfloat16=False)


def test_training_learns_and_writes_its_curve(tmp_path: Path, every_step_takes_20_seconds: None) -> None:
    told: list[float] = []
    network, curve = run(tmp_path, lambda fraction, message: told.append(fraction), validate=lambda n: {"figure": 0.25})
    assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
    torch.testing.assert_close(network.weight, torch.tensor([[1.0, -2.0, 0.5]]), atol=0.15, rtol=0)
    assert len(curve) == 10 and curve == json.loads((tmp_path / CURVE).read_text())
    steps = [row["step"] for row in curve]
    assert steps[-1] == 30 and set(np.diff([0, *steps])) <= {2, 3, 4}, "one row a tenth of the run"
    assert curve[-1]["minutes"] == 10.0 and {row["figure"] for row in curve} == {0.25}
    assert told == sorted(told) and told[-1] == 1.0
    assert not network.training


def test_a_full_disk_ends_the_training_in_one_sentence(tmp_path: Path, every_step_takes_20_seconds: None) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, hard))  # no file may grow beyond, as if the disk were full
    try:
        with pytest.raises(GenSegError, match=r"checkpoint\.pt cannot be written; make room"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == [CURVE]


def test_an_interrupted_run_ends_where_a_straight_one_does(tmp_path: Path, every_step_takes_20_seconds: None) -> None:
    straight, curve = run(tmp_path / "straight")
    steps: list[int] = []

    def stop(fraction: float, message: str) -> None:
        if message.startswith("step"):
            steps.append(int(message.split()[1].rstrip(",")))
            if len(steps) == 16:
                raise Cancelled

    with pytest.raises(Cancelled):
        run(tmp_path / "resumed", stop)
    assert steps[-1] == 16 and (tmp_path / "resumed" / CHECKPOINT).exists()

    def record(fraction: float, message: str) -> None:
        if message.startswith("step"):
            steps.append(int(message.split()[1].rstrip(",")))

    steps.clear()
    resumed, resumed_curve = run(tmp_path / "resumed", record)
    assert steps[0] > 1, "it started anew"
    assert steps[-1] == 30
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)
    assert [row["step"] for row in resumed_curve] == [row["step"] for row in curve]


def test_a_finished_run_is_not_trained_again(tmp_path: Path, every_step_takes_20_seconds: None) -> None:
    first, curve = run(tmp_path)
    told: list[str] = []
    again, same = run(tmp_path, lambda fraction, message: told.append(message))
    assert told == [] and same == curve and torch.equal(first.weight, again.weight)


@pytest.mark.parametrize("content", [b"", b"garbage" * 100, b"PK\x03\x04" + bytes(500), "cut", "list", "other"])
def test_a_checkpoint_that_cannot_be_taken_up_is_named(
    tmp_path: Path, every_step_takes_20_seconds: None, content: bytes | str
) -> None:
    run(tmp_path)
    checkpoint = tmp_path / CHECKPOINT
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
    elif content == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-200])
    else:
        torch.save([1, 2] if content == "list" else {"network": nn.Linear(2, 1).state_dict()}, checkpoint)
    with pytest.raises(GenSegError, match="delete it to begin anew") as caught:
        run(tmp_path)
    assert str(checkpoint) in str(caught.value) and "\n" not in str(caught.value)


# Tiles


def test_tiles_are_drawn_anew_for_another_seed_or_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[str, int, int]] = []

    def draw(folder: Path, split: str, chests: int, progress, first: int = 0, **more) -> None:
        drawn.append((split, chests, first))
        folder.mkdir(parents=True)
        (folder / "kinds.json").write_text("[]")

    monkeypatch.setattr(chest_tiles, "write_tiles", draw)
    monkeypatch.setattr(chest_tiles, "real_scan", lambda: None)
    for seed, chests in ((0, 5), (0, 5), (1, 5), (1, 6), (0, 5)):
        assert chest_tiles.training_tiles(tmp_path, seed, silent, 1.0, chests) == [tmp_path / "phantoms"]
    assert drawn == [("train", 5, 0), ("train", 5, 10_000), ("train", 6, 10_000), ("train", 5, 0)]
    drawn.clear()
    for seed in (0, 0, 2):
        chest_tiles.held_out_tiles(tmp_path, seed, silent)
    assert drawn == [("held-out", chest_tiles.HELD_OUT_CHESTS, first) for first in (0, 20_000)]
    (tmp_path / "held-out" / chest_tiles.DRAWN).write_text("{")
    chest_tiles.held_out_tiles(tmp_path, 2, silent)
    assert len(drawn) == 3, "drawing that was interrupted begins anew"
    drawn.clear()
    folders = [chest_tiles.nodule_tiles(tmp_path, split, 2, silent) for split in ("train", "held-out", "held-out")]
    assert drawn == [("train", chest_tiles.CHESTS, 20_000), ("held-out", chest_tiles.HELD_OUT_CHESTS, 20_000)]
    assert folders[0] != folders[1] == folders[2] != tmp_path / "held-out"


def test_bits_say_what_a_reader_could_see() -> None:
    mask = np.zeros((TILE_VOXELS,) * 3, np.uint8)
    half = CROP_VOXELS
    mask[:4, :5, :2] = 1  # exactly TRACE_VOXELS
    mask[half:, half:, half:][:3, :13, 0] = 1  # one fewer
    mask[0, 0, half:][:5] = 1
    assert TRACE_VOXELS == 40
    bits = crop_bits(mask)
    expected = np.zeros((2, 2, 2), np.int8)
    expected[0, 0, 0], expected[1, 1, 1], expected[0, 0, 1] = 1, -1, -1
    assert np.array_equal(bits, expected) and bits.dtype == np.int8


@pytest.fixture(scope="module")
def tiles() -> list:
    return list(draw_tiles(Split(3_400_000, ChestOptions(nodules=(14, 14))), 0, count=8))


def test_tiles_are_balanced_over_bits_and_spacings(tiles: list) -> None:
    assert len(tiles) == 8
    assert [tile.label for tile in tiles].count(True) == 4
    assert {(tile.spacing_mm, tile.label) for tile in tiles} == {(s, b) for s in (0.75, 1.5) for b in (True, False)}
    for tile in tiles:
        assert tile.image.shape == tile.mask.shape == (TILE_VOXELS,) * 3 and tile.image.dtype == np.int16
        assert bool(tile.mask.any()) is tile.label and bool(tile.kind) is tile.label
        assert (crop_bits(tile.mask) != 0).any() == tile.label
        assert tile.image.min() >= -1024 and tile.image.max() <= 3071
    solid = [tile for tile in tiles if tile.label and tile.kind not in ("ground-glass", "part-solid")]
    for tile in solid:
        lung = np.percentile(tile.image, 30)
        assert tile.image[tile.mask > 0].mean() > lung + 250, "the mask lies on the nodule"


def test_the_bit_of_a_cube_follows_the_nodules_in_it() -> None:
    chest = make_chest(3_400_001, ChestOptions(nodules=(1, 1), diameter_mm=(10.0, 10.1), kinds=("solid",)))
    [nodule] = chest.nodules
    offset = np.array([20.0, 0.0, 0.0])
    assert tile_label(chest, nodule.center, 18.0) == (True, "solid", nodule.diameter_mm)
    assert tile_label(chest, nodule.center + offset, 18.0)[0] is None, "it reaches in"
    assert tile_label(chest, nodule.center + 2 * offset, 18.0) == (False, "", 0.0)


def test_a_real_lung_gets_nodules_in_half_of_its_tiles() -> None:
    hu = np.random.default_rng(0).normal(-850, 20, (30, 70, 70)).astype(np.int16)
    lung = np.ones(hu.shape, bool)
    before = hu.copy()
    drawn = draw_real_tiles(hu, lung, np.array([1.2, 1.2, 2.5]), 8, seed=1)
    assert np.array_equal(hu, before), "the scan itself stays as it is"
    assert [tile.label for tile in drawn].count(True) == 4
    for tile in drawn:
        assert bool(tile.mask.any()) is tile.label
        if tile.label:
            inside = tile.image[tile.mask > 0].mean()
            assert inside > tile.image[tile.mask == 0].mean() + 100
        else:
            assert tile.image.max() < -700


def test_the_real_lung_of_training_is_the_left_one(realdata: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from GenSegLogic.volume import read_volume

    scan = chest_tiles.real_scan()
    assert scan is not None
    taken = []
    monkeypatch.setattr(chest_tiles, "draw_real_tiles", lambda *arguments: taken.append(arguments) or [])
    chest_tiles.left_lung_tiles(scan, 2, 0)
    image = read_volume(scan)
    voxels, lung = taken[0][:2]
    width = voxels.shape[2]
    firsts = [first for first in (0, image.shape[2] - width)
              if np.array_equal(image.voxels[:, :, first : first + width], voxels)]
    [first] = firsts
    columns = image.to_lps(np.stack([np.array([i, 0, 0]) for i in range(first, first + width)]))[:, 0]
    assert columns.min() > -83.6 + 60, "the nodule's centre lies at L = -83.6 mm, in the right lung"
    assert 200 < lung.sum() * np.prod(image.spacing) / 1000 < 4000


# What training reads


def write_folder(folder: Path, count: int, seed: int) -> Path:
    """Tiles of noise with a bright cube in some crops, in the files that ``write_tiles`` makes."""
    rng = np.random.default_rng(seed)
    tiles = []
    for number in range(count):
        image = rng.normal(-850, 30, (TILE_VOXELS,) * 3).astype(np.int16)
        mask = np.zeros(image.shape, np.uint8)
        if number % 2:
            k, j, i = rng.integers(2, TILE_VOXELS - 10, 3)
            mask[k : k + 8, j : j + 8, i : i + 8] = 1
            image[mask > 0] += 800
        tiles.append(SimpleNamespace(image=image, mask=mask, spacing_mm=(0.75, 1.5)[number % 2], label=bool(mask.any()),
                                     kind="solid" if mask.any() else "", diameter_mm=8.0))
    write_tiles(folder, "train", 0, silent, extra=tiles)
    return folder


def test_tiles_are_written_with_their_bits(tmp_path: Path, tiles: list) -> None:
    write_tiles(tmp_path / "tiles", "train", 0, silent, extra=tiles)
    assert {path.name for path in (tmp_path / "tiles").iterdir()} == {
        "images.npy", "masks.npy", "labels.npy", "spacings.npy", "kinds.json"}
    crops = Crops([tmp_path / "tiles"])
    assert len(crops) == 8
    for index, tile in enumerate(tiles):
        assert np.array_equal(crops.image(index), tile.image)
        assert np.array_equal(crops.bits[index], crop_bits(tile.mask))
        assert crops.spacings[index] == np.float32(tile.spacing_mm)
    assert [fact["kind"] for fact in json.loads((tmp_path / "tiles" / "kinds.json").read_text())] == [
        "real " + tile.kind for tile in tiles]


def flat_tile(network: nn.Linear, split: Split, number: int) -> list[Tile]:
    """A tile that tells which patient was asked for, of which split, by which network, and in which process."""
    value = number + int(network.bias) + split.first_seed
    return [Tile(np.full((48,) * 3, value % 10_000, np.int16), np.zeros((48,) * 3, np.uint8), 0.75, False,
                 str(os.getpid()), 0.0)]


def test_phantoms_are_drawn_in_other_processes_and_within_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Linear(1, 1).requires_grad_(False)
    network.bias.fill_(1000)
    monkeypatch.setattr("GenSegLogic.training.tiles.time", Clock(60.0))
    write_tiles(tmp_path / "tiles", "held-out", 10, silent, first=7, minutes=2.5, draw=partial(flat_tile, network))
    crops = Crops([tmp_path / "tiles"])
    assert SPLITS["held-out"].first_seed % 10_000 == 0
    assert [int(crops.image(number)[0, 0, 0]) for number in range(len(crops))] == [1007, 1008, 1009]
    assert os.getpid() not in {int(fact["kind"]) for fact in json.loads((tmp_path / "tiles/kinds.json").read_text())}


def two_steps(target: str, folder: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A predictor after two steps of its recipe."""
    monkeypatch.setattr("GenSegLogic.training.loop.time", Clock(30.0))
    network = nodule_predictor.untrained(target, 5)
    return nodule_predictor.fit(network, Crops([folder]), Crops([folder]), work, 1.0, 5, silent)[0]


@pytest.mark.parametrize("target", list(nodule_predictor.PREDICTORS))
def test_no_voxel_label_reaches_the_predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    weights = []
    for case in ("true", "deleted", "garbage"):
        folder = write_folder(tmp_path / case, 6, seed=1)
        if case == "deleted":
            (folder / "masks.npy").unlink()
        elif case == "garbage":
            (folder / "masks.npy").write_bytes(np.random.default_rng(9).bytes(5000))
        network = two_steps(target, folder, tmp_path / f"work-{case}", monkeypatch)
        weights.append(network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]) and torch.equal(value, weights[2][name]), name
    assert sorted(path.name for path in (tmp_path / "deleted").iterdir()) == [
        "images.npy", "kinds.json", "labels.npy", "spacings.npy"]
    # And the bits do reach them: with others, the weights are others.
    labels = np.load(tmp_path / "deleted" / "labels.npy")
    np.save(tmp_path / "deleted" / "labels.npy", 1 - np.abs(labels))
    other = two_steps(target, tmp_path / "deleted", tmp_path / "work-other", monkeypatch)
    assert any(not torch.equal(value, weights[0][name]) for name, value in other.state_dict().items())


def test_tiles_that_a_predictor_errs_on_are_drawn_more_often(tmp_path: Path) -> None:
    crops = Crops([write_folder(tmp_path / "tiles", 12, seed=1)])
    network = SimpleNamespace(logit_map=lambda x: torch.full((len(x), 12, 12, 12), -9.0))  # sees no nodule anywhere
    even, mass = nodule_predictor.EVEN_CHANCES / 12, 1 - nodule_predictor.EVEN_CHANCES
    drawn = nodule_predictor.chances_by_loss(network, crops)
    positive = (crops.bits > 0).sum((1, 2, 3))
    expected = even + mass * positive / positive.sum()  # every nodule that it misses costs the same
    assert drawn.sum() == pytest.approx(1) and np.abs(drawn - expected).max() < 0.01
    # And batches keep to them.
    missed = np.flatnonzero(positive)
    chances = np.zeros(12)
    chances[missed[0]] = 1
    batch = next(image_batches(crops, 8, seed=0, jitter=False, chances=chances))
    assert set(batch["bits"].flatten(1).clamp_min(0).sum(1).tolist()) == {float(positive[missed[0]])}


class Brightness(NodulePredictor):
    """Sees a nodule where cells are about as bright as soft tissue on the average."""

    def logit_map(self, x: Tensor) -> Tensor:
        """Mean over cells, against a third of full brightness."""
        return 30 * (torch.nn.functional.avg_pool3d(x, 4)[:, 0] - 0.33)


def test_search_tiles_lie_at_what_the_predictor_sees() -> None:
    network = Brightness()
    network.register_parameter("one", nn.Parameter(torch.zeros(1)))
    split = Split(3_500_000, ChestOptions(), (4.0, 5.0))
    tiles = list(draw_search_tiles(network, split, 0))
    assert 20 < len(tiles) <= TILES_PER_CHEST and {tile.spacing_mm for tile in tiles} == {0.75, 1.5}
    assert all(tile.image.shape == tile.mask.shape == (TILE_VOXELS,) * 3 for tile in tiles)
    # Near the middle of every tile is something bright, whatever it is; on the average of the lung there is not.
    near = [tile.image[10:-10, 10:-10, 10:-10] for tile in tiles]
    assert all(ndimage.uniform_filter(part.astype(float), 4).max() > -560 for part in near)
    assert any(tile.label for tile in tiles) and not all(tile.label for tile in tiles)
    assert all(tile.label == bool(tile.mask.any()) for tile in tiles)


def test_the_flow_sees_no_label_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("GenSegLogic.training.loop.time", Clock(60.0))
    folder = write_folder(tmp_path / "tiles", 12, seed=1)
    for name in ("masks.npy", "kinds.json"):
        (folder / name).unlink()
    labels = folder / "labels.npy"
    np.save(labels, np.full_like(np.load(labels), -1))
    autoencoder, scale, velocity, curve = chest_flow.fit(Crops([folder]), tmp_path / "work", 2.0, 0, silent)
    assert scale > 0 and len(curve) >= 2 and all(np.isfinite(row["validation_loss"]) for row in curve)
    assert not autoencoder.training and not velocity.training


def test_the_upper_bound_alone_needs_masks(tmp_path: Path, every_step_takes_20_seconds: None) -> None:
    folder = write_folder(tmp_path / "tiles", 6, seed=1)
    (folder / "masks.npy").unlink()
    with pytest.raises(FileNotFoundError):
        nodule_unet.fit(Crops([folder]), Crops([folder]), tmp_path / "work", 1.0, 0, silent)


def test_the_upper_bound_is_clicked_near_the_nodules_middle(tmp_path: Path) -> None:
    mask = np.zeros((TILE_VOXELS,) * 3, np.uint8)
    mask[22:26, 22:26, 22:26] = 1
    image = np.where(mask, 100, -850).astype(np.int16)
    tiles = [SimpleNamespace(image=image, mask=mask, spacing_mm=spacing, label=True, kind="solid", diameter_mm=4.0)
             for spacing in (0.75, 1.5)]
    write_tiles(tmp_path / "tiles", "train", 0, silent, extra=tiles)
    batch = next(click_batches(Crops([tmp_path / "tiles"]), 64, 0))
    assert batch["mask"].shape == batch["image"].shape == (64, 1, *[FIELD_VOXELS] * 3)
    assert batch["mask"].flatten(1).sum(1).eq(64).all()
    inside = batch["image"][batch["mask"] > 0]
    assert float(inside.mean()) > float(batch["image"][batch["mask"] == 0].mean()) + 0.3, "cut and turned together"
    offsets = torch.stack([mask.nonzero().float().mean(0) for mask in batch["mask"][:, 0]]) - (FIELD_VOXELS - 1) / 2
    assert float(offsets.abs().max()) == 4, "3 mm at the finer spacing"


def test_a_small_nodule_counts_as_much_as_a_large_one() -> None:
    mask = torch.zeros(2, 1, 8, 8, 8)
    mask[0, ..., :4], mask[1, 0, 0, 0, :2] = 1, 1
    for found in ([1, 1], [1, 0], [0, 1]):
        kept = torch.tensor(found).reshape(2, 1, 1, 1, 1)
        dice = nodule_unet.soft_dice(mask * kept, mask)
        assert torch.allclose(dice, torch.where(kept.flatten() > 0, 1.0, 1 / (mask.sum((1, 2, 3, 4)) + 1)))


def test_tiles_for_the_upper_bound_have_their_nodule_in_the_middle() -> None:
    drawn = list(draw_nodule_tiles(Split(3_400_000, ChestOptions(nodules=(2, 2))), 0))
    assert [tile.spacing_mm for tile in drawn] == [0.75, 1.5] * 2
    for tile in drawn:
        middle = ndimage.center_of_mass(tile.mask)
        assert np.abs(np.array(middle) - (TILE_VOXELS - 1) / 2).max() * tile.spacing_mm < 0.35 * tile.diameter_mm
        assert tile.label and tile.kind and 4 <= tile.diameter_mm <= 30


def test_bits_turn_with_their_images(tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    rng = np.random.default_rng(0)
    tiles = []
    for _ in range(6):
        mask = np.zeros((TILE_VOXELS,) * 3, np.uint8)
        for corner in np.argwhere(rng.random((2, 2, 2)) < 0.4) * CROP_VOXELS:
            mask[tuple(slice(c + 6, c + 18) for c in corner)] = 1
        tiles.append(SimpleNamespace(image=np.where(mask, 100, -850).astype(np.int16), mask=mask, spacing_mm=0.75,
                                     label=bool(mask.any()), kind="", diameter_mm=0.0))
    write_tiles(folder, "train", 0, silent, extra=tiles)
    batches = image_batches(Crops([folder]), 6, seed=0, jitter=False)
    seen = set()
    for _ in range(4):
        batch = next(batches)
        crops = batch["image"][:, 0].reshape(6, 2, CROP_VOXELS, 2, CROP_VOXELS, 2, CROP_VOXELS)
        bright = (crops.amax((2, 4, 6)) > 0.5).float()
        assert torch.equal(bright, batch["bits"])
        seen |= {tuple(row) for row in batch["bits"].flatten(1).int().tolist()}
    assert len(seen) > 6, "tiles come in several orientations"


def test_batches_repeat_with_their_seed_and_jitter_stays_in_range(tmp_path: Path) -> None:
    crops = Crops([write_folder(tmp_path / "tiles", 4, seed=2)])
    first, again, other = (next(image_batches(crops, 4, seed, jitter=True)) for seed in (1, 1, 2))
    assert torch.equal(first["image"], again["image"]) and not torch.equal(first["image"], other["image"])
    assert float(first["image"].min()) >= 0 and float(first["image"].max()) <= 1
    assert set(first["spacing"].tolist()) <= {0.75, 1.5}
    assert normalise(np.array([-3024.0, -1000, -300, 400, 3000])).tolist() == [0, 0, 0.5, 1, 1]


# Recipes


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_recipe_makes_a_bundle_that_loads(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if recipe not in ("chest-flow", "nodule-cnn", "nodule-tinyvit", "nodule-unet"):
        pytest.skip("not a recipe of the nodule method")
    counts = {"phantoms": chest_tiles.CHESTS, "real": chest_tiles.REAL_TILES, "train-nodules": chest_tiles.CHESTS}
    names = ["train-nodules", "held-out-nodules"] if recipe == "nodule-unet" else ["phantoms", "real", "held-out"]
    for number, name in enumerate(names):  # as an earlier recipe left them
        folder = write_folder(tmp_path / "chest-tiles" / name, 12, seed=number)
        count = counts.get(name, chest_tiles.HELD_OUT_CHESTS)
        (folder / chest_tiles.DRAWN).write_text(json.dumps({"seed": 3, "count": count}))
    output = tmp_path / "of-my-own"
    if recipe in ("nodule-cnn", "nodule-tinyvit"):
        folder = write_folder(tmp_path / "of-my-own.work" / "seed-3" / "searched", 12, seed=9)
        (folder / chest_tiles.DRAWN).write_text(json.dumps({"seed": 3, "count": chest_tiles.SEARCHED_SCANS}))
    monkeypatch.setattr(chest_tiles, "real_scan", lambda: None)
    monkeypatch.setattr("GenSegLogic.training.loop.time", Clock(60.0))
    monkeypatch.setattr("GenSegLogic.training.nodule_calibration.NODULES", 1)
    monkeypatch.setattr("GenSegLogic.training.nodule_calibration.CLEAN_PATIENTS", 1)
    told: list[float] = []
    load(RECIPES[recipe])(output, 2.0, 3, lambda fraction, message: told.append(fraction))
    bundle = read_bundle(output)
    bundle.verify()
    kinds = {"chest-flow": "flow", "nodule-unet": "segmenter"}
    assert (bundle.name, bundle.kind) == ("of-my-own", kinds.get(recipe, "predictor"))
    training = bundle.metadata["training"]
    assert training["seed"] == 3 and training["recipe"] == f"genseg train {recipe}" and training["curve"]
    trained_on = names[:-1] + (["searched"] if bundle.kind == "predictor" else [])
    assert training["data"]["tiles"] == dict.fromkeys(trained_on, 12)
    steps = [row["step"] for row in training["curve"]]
    assert steps == sorted(steps) and len(set(steps)) == len(steps), "the curve of the second part follows the first's"
    assert recipe == "nodule-unet" or "C3N-00247" in training["data"]["real"]
    assert bundle.metadata["metrics"] and bundle.metadata["commercial_use"] is True
    assert "Not for clinical use." in (bundle.folder / "docs" / "README.md").read_text()
    card = (bundle.folder / "docs" / "README.md").read_text()
    calibration = training["data"].get("calibration", {})
    assert ("Calibrated (logits shifted by" in card) == bool(calibration) == (bundle.kind == "predictor")
    assert not calibration or (calibration["nodules"], calibration["clean_places"]) == (1, 2)
    networks = load_bundle(bundle, "cpu").networks
    x = torch.zeros(1, 1, 24, 24, 24)
    if recipe == "chest-flow":
        assert networks["autoencoder"].encode(x)[0].shape == (1, 4, 12, 12, 12)
    else:
        output = networks["segmenter" if recipe == "nodule-unet" else "predictor"](x)
        assert output.isfinite().all()
    assert told == sorted(told) and told[-1] <= 1
    assert not (tmp_path / "of-my-own.work").exists()
    shutil.rmtree(bundle.folder)
