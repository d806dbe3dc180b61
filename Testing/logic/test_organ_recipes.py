"""The organ recipes, from drawing phantoms to bundles that load; seconds instead of minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import find_bundle, load_bundle
from GenSegLogic.cli import main
from GenSegLogic.engine import Engine
from GenSegLogic.organs.diffusam.learning import LabelledScan, batches
from GenSegLogic.organs.diffusam.task import load_models, sam2_bundle
from GenSegLogic.phantoms.abdomen_looks import LOOKS
from GenSegLogic.training import organs, organs_data, organs_sam2
from GenSegLogic.training.loop import CHECKPOINT
from GenSegLogic.training.recipes import RECIPES


def test_sam2_then_priors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {"organs-sam2", "organs-ct", "organs-mr"} <= set(RECIPES)
    monkeypatch.setattr(organs, "PHANTOMS", 1)
    monkeypatch.setattr(organs, "WITHOUT", 1)
    monkeypatch.setattr(organs, "HELD_OUT", 1)
    messages: list[str] = []
    organs.sam2(tmp_path / "abdomen-sam2", 0.1, 0, lambda fraction, message: messages.append(message))
    sam2 = find_bundle(tmp_path / "abdomen-sam2")
    organs.prior_ct(tmp_path / "abdomen-ct", 0.1, 0, lambda fraction, message: messages.append(message),
                    sam2=str(sam2.folder))
    assert any("step 1" in message for message in messages)
    drawn = sorted((tmp_path / "abdomen-phantoms" / "train").iterdir())
    assert [file.name for file in drawn] == ["case_0.npz", "case_5000.npz"]  # drawn once for all recipes

    # A prior for another SAM 2 takes up nothing that was learned for the first.
    network = load_bundle(sam2).networks["sam2"]
    next(network.parameters()).add_(0.01)
    other = organs.write_sam2(tmp_path / "other-sam2", network, [], 0, 0.0, 0)
    unfinished = tmp_path / "abdomen-mr.work" / "seed-0" / sam2.digest[:12] / "reading" / CHECKPOINT
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"no checkpoint of the other")
    words = ["--minutes", "0.1", "--device", "cpu", "--sam2", str(other.folder)]
    assert main(["train", "organs-mr", "-o", str(tmp_path / "abdomen-mr"), *words]) == 0

    for modality, window, its_sam2, recipe in (("CT", [-160.0, 240.0], sam2, "genseg train organs-ct"),
                                               ("MR", None, other, "genseg train organs-mr --sam2 other-sam2")):
        bundle = find_bundle(tmp_path / f"abdomen-{modality.lower()}")
        assert (bundle.kind, bundle.metadata["image"]["modality"]) == ("organs", modality)
        assert bundle.metadata["image"]["window_hu"] == window
        assert bundle.metadata["sam2"] == {"name": its_sam2.name, "digest": its_sam2.digest}
        assert bundle.metadata["training"]["curve"] and bundle.metadata["training"]["recipe"] == recipe
        models = load_models(str(bundle.folder), Engine("cpu"))  # finds the SAM 2 beside it, which no bundle here names
        assert sam2_bundle(bundle).folder == its_sam2.folder
        assert models.organs == tuple(ORGANS)
        assert models.prior.std.min() > 0 and not torch.equal(models.prior.std, torch.ones_like(models.prior.std))


def test_one_anatomy_in_all_looks(tmp_path: Path) -> None:
    file = organs_data.draw_cases(tmp_path, 1, 7, "held-out", 1.0, lambda fraction, message: None)[0]
    scan = organs_data.load_scans([file], LOOKS)[0]
    assert len(scan.images) == len(LOOKS)
    assert scan.tissues is not None
    assert {image.shape for image in scan.images} == {scan.labels.shape} == {scan.tissues.shape}
    body = scan.tissues > 0
    for image in scan.images:  # the grid is one for all looks: bodies lie upon each other
        assert image[body].mean() > 3 * image[~body].mean()
    liver = scan.labels == ORGANS["liver"].label
    assert len(np.unique(scan.tissues[liver])) <= 6


def test_pairs_are_neighbours_in_one_contrast() -> None:
    rng = np.random.default_rng(0)
    blob = np.zeros((6, 160, 160), np.uint8)
    blob[:, 60:100, 60:100] = 5
    image = np.where(blob > 0, 200, 20).astype(np.uint8) + rng.integers(0, 5, blob.shape).astype(np.uint8)
    scan = LabelledScan((image,), blob, np.ones((6, 13), np.uint8), tissues=blob)
    batch = next(batches([scan], 3, 0, random_share=1.0))
    assert batch["image"].shape == (6, 1, 160, 160) and batch["image"].min() >= 0 and batch["image"].max() <= 1
    for pair in range(3):
        one, other = (batch["image"][2 * pair + place, 0][batch["labels"][2 * pair + place] == 5].mean()
                      for place in range(2))
        assert abs(float(one - other)) < 0.1
    plain = next(batches([scan], 3, 0, strength=0.0))
    assert torch.equal(plain["labels"][0], torch.from_numpy(blob[0]))
    single = next(batches([scan], 3, 0, paired=False))
    assert all(len(single[name]) == 3 for name in ("image", "labels", "trust", "known"))


def test_prompts_mark_the_mask() -> None:
    torch.manual_seed(0)
    masks = torch.zeros(20, 1, 40, 40)
    masks[:10, 0, 10:20, 25:35] = 1
    points, kinds, known = organs_sam2.prompts(masks)
    assert known.tolist() == [1.0] * 10 + [0.0] * 10
    assert set(map(tuple, kinds[:10].tolist())) == {(2, 3), (1, -1)}
    clicks = points[:10, 0][kinds[:10, 0] == 1]
    assert ((clicks[:, 0] >= 25) & (clicks[:, 0] < 35) & (clicks[:, 1] >= 10) & (clicks[:, 1] < 20)).all()
