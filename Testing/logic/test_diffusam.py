"""DiffuSAM: the memory decides, SAM 2 stays frozen, and scans in any orientation give the same organs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import find_bundle, load_bundle
from GenSegLogic.errors import GenSegError
from GenSegLogic.networks.sam2 import MASK_SCALE, Features, Sam2, Windows
from GenSegLogic.organs.diffusam import adapt as adaptation
from GenSegLogic.organs.diffusam import learning, propagate
from GenSegLogic.organs.diffusam.adapt import adapt
from GenSegLogic.organs.diffusam.canonical import CanonicalGrid
from GenSegLogic.organs.diffusam.learning import LabelledScan, batches, drawing_loss, pick, reading_loss
from GenSegLogic.organs.diffusam.models import OrganModels, organ_models
from GenSegLogic.organs.diffusam.prior import new_prior, sample, select_organs
from GenSegLogic.organs.diffusam.propagate import look_at, segment, start_of
from GenSegLogic.organs.diffusam.self_training import agreed, by_certainty, equalised, pseudo_label, shown
from GenSegLogic.phantoms.abdomen import AbdomenPhantom, abdomen_phantom
from GenSegLogic.volume import Volume

LARGE = ("liver", "spleen", "right_kidney", "left_kidney")


@pytest.fixture(scope="module")
def models() -> OrganModels:
    return organ_models(load_bundle(find_bundle("abdomen-ct")), load_bundle(find_bundle("abdomen-sam2")))


@pytest.fixture(scope="module")
def phantom() -> AbdomenPhantom:
    return abdomen_phantom(3, "ct", "held-out", size=128, slices=16, thickness_mm=8.0)


@pytest.fixture(scope="module")
def scan(models: OrganModels, phantom: AbdomenPhantom) -> tuple[Volume, np.ndarray]:
    """The phantom and its labels on the canonical grid."""
    return models.grid.apply(phantom.image), models.grid.apply_labels(phantom.labels, phantom.image)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


# The memory


def test_two_memories_two_masks(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    """The trap of METHODS (b): a decoder that ignores its memory, and still looks plausible."""
    volume, labels = scan
    present = [[name for name in LARGE if (labels[k] == ORGANS[name].label).sum() > 60] for k in range(len(labels))]
    k = int(np.argmax([len(names) for names in present]))
    names = present[k]
    assert len(names) >= 2
    features = models.sam2.encode(torch.from_numpy(volume.voxels[k])[None, None])
    truth = torch.from_numpy(np.stack([labels[k] == ORGANS[name].label for name in names]))[:, None].float()
    logits = models.sam2.decode(features, models.sam2.remember_mask(features, truth)).mask_logits
    masks = (torch.nn.functional.interpolate(logits, volume.shape[1:], mode="bilinear") > 0).numpy()[:, 0]
    for one in range(len(names)):
        for other in range(len(names)):
            score = dice(masks[one], truth[other, 0].numpy() > 0)
            assert score > 0.85 if one == other else score < 0.1, (names[one], names[other], score)


def test_decoding_a_batch_is_decoding_each(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    features = models.sam2.encode(torch.from_numpy(scan[0].voxels[8:9])[None])
    memory = torch.randn(3, 64, 20, 20, generator=torch.Generator().manual_seed(0))
    together = models.sam2.decode(features, memory)
    for row in range(3):
        alone = models.sam2.decode(features, memory[row : row + 1])
        torch.testing.assert_close(alone.mask_logits, together.mask_logits[row : row + 1], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(alone.object_logits, together.object_logits[row : row + 1], rtol=1e-3, atol=1e-3)


# The prior


class Oracle(torch.nn.Module):
    """A prior that knows the answer."""

    def __init__(self, clean: torch.Tensor) -> None:
        super().__init__()
        self.clean = clean

    def forward(self, *_: object) -> torch.Tensor:
        return self.clean

    def normalise(self, memory: torch.Tensor) -> torch.Tensor:
        return (memory - 1) / 2

    def restore(self, difference: torch.Tensor, guess: torch.Tensor) -> torch.Tensor:
        return 2 * difference + 1


def test_a_window_of_the_whole_slice_changes_nothing(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    volume, labels = scan
    k = int((labels == ORGANS["liver"].label).sum((1, 2)).argmax())
    features = models.sam2.encode(torch.from_numpy(volume.voxels[k : k + 1])[:, None])
    liver = torch.from_numpy(labels[k] == ORGANS["liver"].label)[None, None].float()
    memory = models.sam2.remember_mask(features, liver)
    windowed = features.cut(Windows(((0, 0),), models.sam2.memory_size))
    torch.testing.assert_close(models.sam2.decode(windowed, memory).mask_logits,
                               models.sam2.decode(features, memory).mask_logits)


def test_windows_are_cut_where_they_say(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    features = models.sam2.encode(torch.from_numpy(scan[0].voxels[:2])[:, None])
    part = features.cut(Windows(((1, 4), (7, 2)), 6))
    assert torch.equal(part.low[1], features.low[1, :, 7:13, 2:8])
    assert torch.equal(part.middle[0], features.middle[0, :, 2:14, 8:20])
    assert torch.equal(part.high[1], features.high[1, :, 28:52, 8:32])
    assert torch.equal(part.cut_alike(features.low[:1])[1], features.low[0, :, 7:13, 2:8])


def test_windows_hold_their_organs_and_give_the_masks_of_whole_slices(
    models: OrganModels, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, _ = scan
    context = look_at(volume, models).context
    starts = {name: start_of(context, models.organs.index(name)) for name in LARGE}
    for name, start in starts.items():
        (y, x), size = (MASK_SCALE * first for first in start.corner), MASK_SCALE * start.edge
        shown = (context.readout[:, models.organs.index(name)] > 0).any(0)
        assert shown.any() and shown.sum() == shown[y : y + size, x : x + size].sum()
    assert starts["left_kidney"].edge < starts["liver"].edge <= models.sam2.memory_size
    windowed = segment(volume, models, LARGE).probabilities
    monkeypatch.setattr(propagate, "WINDOW_STEP", 1.0)
    whole = segment(volume, models, LARGE).probabilities
    for name in LARGE:
        assert dice(windowed[name] > 0.5, whole[name] > 0.5) > 0.95


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_an_exact_prior_is_sampled_exactly(models: OrganModels, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, noise = (torch.randn(2, 64, 20, 20, generator=generator) for _ in range(2))
    features = models.sam2.encode(torch.zeros(2, 1, 160, 160))
    context = models.prior.look(features)
    oracle = Oracle(clean)
    drawn = sample(oracle, models.sam2, features, context, torch.tensor([0, 1]), None, steps, noise)  # type: ignore[arg-type]
    torch.testing.assert_close(drawn, 2 * clean + 1, rtol=1e-4, atol=1e-4)


def test_some_organs_of_a_prior_answer_as_all_do(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    smaller = select_organs(models.prior, [5, 0])
    features = models.sam2.encode(torch.from_numpy(scan[0].voxels[6:8])[:, None])
    whole, some = models.prior.look(features), smaller.look(features)
    torch.testing.assert_close(some.readout, whole.readout[:, [5, 0]])
    torch.testing.assert_close(some.presence, whole.presence[:, [5, 0]])
    noise = torch.randn(2, 64, 20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sample(smaller, models.sam2, features, some, torch.tensor([0, 1]), None, 2, noise),
                               sample(models.prior, models.sam2, features, whole, torch.tensor([5, 0]), None, 2, noise))


# Propagation


def test_large_organs_of_a_new_phantom(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    volume, labels = scan
    found = segment(volume, models, LARGE)
    scores = [dice(found.probabilities[name] > 0.5, labels == ORGANS[name].label) for name in LARGE
              if (labels == ORGANS[name].label).sum() > 200]
    assert np.mean(scores) > 0.8
    assert found.confidence.min() >= 0 and found.confidence.max() <= 1


def test_equal_seeds_give_equal_bytes(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    one, other, third = (segment(scan[0], models, ("liver", "spleen"), 2, 1, torch.Generator().manual_seed(seed))
                         for seed in (5, 5, 6))
    assert one.confidence.tobytes() == other.confidence.tobytes()
    assert one.probabilities["liver"].tobytes() == other.probabilities["liver"].tobytes()
    assert one.probabilities["liver"].tobytes() != third.probabilities["liver"].tobytes()


def test_every_sampling_step_asks_whether_to_go_on(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    heard: list[list[float]] = []
    for steps in (1, 4):
        heard.append([])
        segment(scan[0], models, ("liver",), steps, 1, callback=heard[-1].append)
    assert len(heard[1]) >= 2 * len(heard[0])
    assert all(told == sorted(told) and told[-1] == 1 for told in heard)


def test_every_slice_is_encoded_once(
    models: OrganModels, scan: tuple[Volume, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    encode = Sam2.encode

    def counting(self: Sam2, images: torch.Tensor) -> Features:
        counts.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Sam2, "encode", counting)
    found = segment(scan[0], models, (), 1, 1)
    assert sum(counts) == len(scan[0].voxels) == found.encoded_slices
    assert set(found.probabilities) == set(ORGANS)


def test_an_empty_scan_has_no_organs(models: OrganModels) -> None:
    air = Volume(np.zeros((6, 160, 160), np.float32), np.diag([2.2, 2.2, 5.0, 1.0]))
    found = segment(air, models)
    assert all(not probability.any() for probability in found.probabilities.values())


def test_wrong_grid_and_unknown_organs_are_refused(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    with pytest.raises(GenSegError, match="canonical grid"):
        segment(Volume(np.zeros((4, 100, 100), np.float32), np.eye(4)), models)
    with pytest.raises(GenSegError, match="not learned"):
        segment(scan[0], models, ("heart",))


# The canonical grid


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)])
def test_orientation_does_not_matter(phantom: AbdomenPhantom, flips: tuple[int, int, int]) -> None:
    grid = CanonicalGrid(window_hu=(-160.0, 240.0))
    voxels = phantom.image.voxels[tuple(slice(None, None, flip) for flip in flips)]
    affine = phantom.image.affine.copy()
    for axis, flip in zip((2, 1, 0), flips, strict=True):
        if flip < 0:
            affine[:3, 3] += affine[:3, axis] * (phantom.image.voxels.shape[2 - axis] - 1)
            affine[:3, axis] *= -1
    turned = Volume(np.ascontiguousarray(np.transpose(voxels, (2, 0, 1))), affine[:, [1, 2, 0, 3]])
    straight, other = grid.apply(phantom.image), grid.apply(turned)
    assert straight.shape[1:] == other.shape[1:] == (160, 160)
    np.testing.assert_allclose(straight.affine[:3, :3], other.affine[:3, :3], atol=1e-6)
    shift = (other.affine[:3, 3] - straight.affine[:3, 3]) / np.diag(straight.affine)[:3]
    assert np.abs(shift).max() < 1.5
    assert np.abs(straight.voxels.mean((1, 2)) - other.voxels.mean((1, 2))).max() < 0.02
    assert straight.voxels.min() >= 0 and straight.voxels.max() <= 1


def test_the_left_kidney_is_at_larger_i(phantom: AbdomenPhantom) -> None:
    labels = CanonicalGrid(window_hu=(-160.0, 240.0)).apply_labels(phantom.labels, phantom.image)
    left, right = ((np.nonzero(labels == ORGANS[f"{side}_kidney"].label)[2]).mean() for side in ("left", "right"))
    assert left > 80 > right


def test_metadata_round_trip() -> None:
    for grid in (CanonicalGrid(), CanonicalGrid(window_hu=(-160.0, 240.0), spacing_mm=2.5)):
        assert CanonicalGrid.from_metadata(grid.to_metadata("CT")) == grid


# Learning


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_not_one_weight_of_sam2_moves(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    before, prior_before = state_of(models.sam2), state_of(models.prior)
    labelled = LabelledScan((scan[0].voxels,), scan[1], np.ones((len(scan[1]), len(ORGANS)), np.uint8))
    prior, _, _ = adaptation._train(models, [labelled], 0, 1.0, 0.05, lambda fraction, message: None, None)
    assert before.keys() == models.sam2.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in models.sam2.state_dict().items())
    assert all(value.grad is None for value in models.sam2.parameters())
    # Something was learned, in a copy.
    assert all(torch.equal(prior_before[name], value) for name, value in models.prior.state_dict().items())
    assert any(not torch.equal(prior_before[name], value) for name, value in prior.state_dict().items())


def test_the_loss_reaches_the_whole_prior(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    torch.manual_seed(0)
    prior, _ = new_prior(models.sam2, len(ORGANS))
    labelled = LabelledScan((scan[0].voxels,), scan[1], np.ones((len(scan[1]), len(ORGANS)), np.uint8))
    for parameter in prior.parameters():
        parameter.data.add_(0.01 * torch.randn_like(parameter))  # past the zeros of the residual blocks
    batch = next(batches([labelled], 3, 0))
    read = {id(parameter) for parameter in prior.reading()}
    for loss, reading in ((reading_loss, True), (drawing_loss, False)):
        prior.zero_grad(set_to_none=True)
        loss(prior, models.sam2, batch).backward()
        for name, value in prior.named_parameters():
            reached = value.grad is not None and bool(value.grad.any())
            assert reached is ((id(value) in read) is reading), name


def test_organs_that_are_not_known_are_not_learned() -> None:
    labels = torch.zeros(2, 8, 8, dtype=torch.uint8)
    labels[0, :4], labels[1, 4:] = 1, 2
    known = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    for _ in range(10):
        rows, organs = pick(labels, known)
        assert set(zip(rows.tolist(), organs.tolist(), strict=True)) == {(0, 0)}


def only(phantom: AbdomenPhantom, *names: str) -> tuple[Volume, Volume]:
    """A case that labels some organs alone."""
    kept = np.isin(phantom.labels.voxels, [ORGANS[name].label for name in names])
    return phantom.image, phantom.labels.with_voxels(np.where(kept, phantom.labels.voxels, 0))


def test_few_shot_makes_a_bundle_of_the_labelled_organs(phantom: AbdomenPhantom, tmp_path: Path) -> None:
    adapted = adapt([only(phantom, "liver", "left_kidney")], find_bundle("abdomen-ct"), minutes=0.05)
    bundle = adapted.write(tmp_path / "mine")
    assert (bundle.name, bundle.kind) == ("mine", "organs")
    assert bundle.metadata["organs"] == ["left_kidney", "liver"]
    own = organ_models(load_bundle(bundle), load_bundle(find_bundle("abdomen-sam2")))
    found = segment(own.grid.apply(phantom.image), own, (), 1, 1)
    assert set(found.probabilities) == {"left_kidney", "liver"}
    assert "mine" in (bundle.folder / "docs" / "README.md").read_text()


def test_three_cases_hold_one_out(phantom: AbdomenPhantom) -> None:
    adapted = adapt([only(phantom, "liver")] * 3, find_bundle("abdomen-ct"), minutes=0.1)
    assert adapted.curve and all("held_out_dice" in row for row in adapted.curve)
    assert 0 <= adapted.metadata["metrics"]["held_out_dice"] <= 1


def test_what_a_case_does_not_label_is_not_learned_as_absent(models: OrganModels, phantom: AbdomenPhantom) -> None:
    cases = [only(phantom, "liver"), only(phantom, "left_kidney", "liver")]
    scans, learned = adaptation._labelled(cases, models)
    assert learned == ("left_kidney", "liver")
    assert [scan.known[0].tolist() for scan in scans] == [[0, 1], [1, 1]]


def test_a_case_is_held_out_only_if_the_others_have_its_organs(models: OrganModels, phantom: AbdomenPhantom) -> None:
    def held_out(*cases: str) -> int | None:
        scans, learned = adaptation._labelled([only(phantom, name) for name in cases], models)
        assert set(learned) == set(cases)
        return adaptation._held_out(scans)

    assert held_out("liver", "liver", "liver") == 2
    assert held_out("liver", "liver", "left_kidney") == 1
    assert held_out("liver", "spleen", "left_kidney") is None
    assert held_out("liver", "liver") is None


def test_a_held_out_case_keeps_labelled_slices_however_few() -> None:
    labels = np.zeros((100, 8, 8), np.uint8)
    labels[49:51, 2:4] = 1
    thin = adaptation._thinned(LabelledScan((labels.astype(np.float32),), labels, np.ones((100, 1), np.uint8)))
    assert len(thin.images[0]) == len(thin.labels) == len(thin.known) <= adaptation.HELD_OUT_SLICES
    assert thin.labels.any() and (thin.images[0] == thin.labels).all()


def test_losses_are_computed_on_the_device_of_the_batch(models: OrganModels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU to try it on: on the device "meta" nothing is computed, but tensors of the CPU are refused."""
    chosen = pick(torch.randint(0, 14, (4, 160, 160), dtype=torch.uint8), torch.ones(4, len(models.organs)))
    monkeypatch.setattr(learning, "pick", lambda labels, known: tuple(part.to(labels.device) for part in chosen))
    prior = new_prior(models.sam2, len(models.organs))[0].to("meta")
    sam2 = copy.deepcopy(models.sam2).to("meta")
    batch = {"image": torch.zeros(8, 1, 160, 160), "labels": torch.zeros(8, 160, 160, dtype=torch.uint8),
             "known": torch.ones(8, len(models.organs)), "trust": torch.ones(8, 160, 160)}
    on_meta = {name: value.to("meta") for name, value in batch.items()}
    for loss_of in (reading_loss, drawing_loss):
        assert loss_of(prior, sam2, on_meta).device.type == "meta"


def test_source_free_reads_no_labels(phantom: AbdomenPhantom, tmp_path: Path) -> None:
    class Unreadable:
        """Labels that may not be touched."""

        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"source-free adaptation read the labels' {name}")

    adapted = adapt([(phantom.image, Unreadable())], find_bundle("abdomen-ct"),  # type: ignore[list-item]
                    minutes=0.05, source_free=True)
    assert adapted.write(tmp_path / "alone").metadata["organs"] == list(ORGANS)


def test_cases_that_do_not_fit_are_refused(phantom: AbdomenPhantom) -> None:
    bundle = find_bundle("abdomen-ct")
    moved = dataclasses.replace(phantom.labels, affine=phantom.labels.affine + np.eye(4)[:, [3, 3, 3, 0]] * 9)
    nothing = phantom.labels.with_voxels(np.zeros_like(phantom.labels.voxels))
    for cases, sentence in (([], "no case"), ([(phantom.image, None)], "no labels"),
                            ([(phantom.image, moved)], "grid"), ([(phantom.image, nothing)], "none of the organs")):
        with pytest.raises(GenSegError, match=sentence):
            adapt(cases, bundle, minutes=0.01)
    other = dataclasses.replace(phantom.image, metadata={"modality": "MR"}, name="other.nrrd")
    with pytest.raises(GenSegError, match="is not CT as"):
        adapt([(phantom.image, phantom.labels), (other, phantom.labels)], bundle, minutes=0.01)
    with pytest.raises(GenSegError, match="kind organs"):
        adapt([(phantom.image, phantom.labels)], find_bundle("abdomen-sam2"), minutes=0.01)


def test_other_grey_values_keep_the_air_dark(scan: tuple[Volume, np.ndarray]) -> None:
    voxels = scan[0].voxels
    versions = shown(voxels, np.random.default_rng(0), 3)
    for version in versions:
        assert version.shape == voxels.shape and version.dtype == np.float32
        assert version.min() >= 0 and version.max() <= 1 and version[voxels == 0].max() < 0.05
    body = voxels > 0.03
    ranks = np.corrcoef(equalised(voxels)[body], versions[4][body])[0, 1]
    assert ranks < -0.9
    assert len({version.tobytes() for version in versions}) == len(versions) == 8


def test_members_count_by_how_certain_they_are() -> None:
    lost, sure, unsure = np.full((3, 2, 10, 10), 0.1, np.float32)
    sure[:, 2:8, 2:8], unsure[:, 2:8, 2:8] = 0.95, 0.6
    weights = by_certainty(np.stack([lost, unsure, sure]))
    assert weights.sum() == pytest.approx(1) and weights[2] > 0.99
    assert by_certainty(np.stack([lost, lost])).tolist() == [0.5, 0.5]


def test_only_what_the_ensemble_agrees_on_is_learned() -> None:
    mask = np.zeros((3, 8, 8), bool)
    mask[0, 2:6, 2:6] = mask[1, 2:6, 2:6] = True
    members = np.stack([mask, mask, mask])
    members[1:, 1] = np.roll(mask[1], 4, axis=0)
    members[0, 1] = False
    mean = members.mean(0).astype(np.float32)
    assert agreed(members, np.full(3, 1 / 3), mask, mean).tolist() == [1, 0, 1]
    assert agreed(members, np.array([0.0, 0.5, 0.5]), mask, mean).tolist() == [1, 0, 1]


def test_pseudo_labels_of_a_known_look_are_right(models: OrganModels, scan: tuple[Volume, np.ndarray]) -> None:
    volume, labels = scan
    found = pseudo_label(volume, models, np.random.default_rng(0))
    liver = ORGANS["liver"].label
    sure = found.known[:, models.organs.index("liver")] > 0
    assert sure.mean() > 0.3
    assert dice(found.labels[sure] == liver, labels[sure] == liver) > 0.75
