"""Bundles: written whole, checked to the byte, loaded frozen, found wherever GenSeg is installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from monai.bundle import ConfigParser

import GenSegLogic
from GenSegLogic.bundles import (
    Bundle,
    cache_folder,
    find_bundle,
    is_shipped,
    list_bundles,
    load_bundle,
    read_bundle,
    seal_bundle,
    shipped_folder,
    write_bundle,
)
from GenSegLogic.bundles.bundle import GENSEG_KEYS, IMAGE_KEYS, LATENT_KEYS, MONAI_KEYS, is_inside
from GenSegLogic.bundles.folders import scan_bundles
from GenSegLogic.errors import GenSegError
from Testing.logic.bundle_samples import ARGUMENTS, sample_metadata, sample_network, write_sample

FILES = ("LICENSE", "configs/inference.json", "configs/metadata.json", "docs/README.md", "models/predictor.safetensors")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GENSEG_HOME", str(folder))
    return folder


@pytest.fixture
def sample(tmp_path: Path) -> Bundle:
    return write_sample(tmp_path / "sample-net")


def change_json(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# Writing and loading


def test_networks_come_back_equal_frozen_and_in_evaluation_mode(sample: Bundle) -> None:
    image = torch.randn(1, 1, 32, 32)
    loaded = load_bundle(sample).networks["predictor"]
    assert torch.equal(loaded(image), sample_network().eval()(image))
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_load_in_half_precision_and_leave_the_random_state_alone(sample: Bundle) -> None:
    before = torch.get_rng_state()
    loaded = load_bundle(sample, "cpu", torch.float16)
    assert torch.equal(torch.get_rng_state(), before)
    assert {value.dtype for value in loaded.networks["predictor"].parameters()} == {torch.float16}
    assert loaded.bundle is sample


def test_layout_is_that_of_a_monai_bundle(sample: Bundle) -> None:
    present = sorted(path.relative_to(sample.folder).as_posix() for path in sample.folder.rglob("*") if path.is_file())
    assert present == sorted(FILES)
    metadata = json.loads((sample.folder / "configs/metadata.json").read_text())
    assert set(MONAI_KEYS) | set(GENSEG_KEYS) <= set(metadata)
    assert sorted(metadata["files"]) == sorted(set(FILES) - {"configs/metadata.json"})


def test_monai_builds_the_same_network_from_inference_json(sample: Bundle) -> None:
    parser = ConfigParser()
    parser.read_config(str(sample.folder / "configs/inference.json"))
    network = parser.get_parsed_content("networks#predictor").eval()
    weights = sample.folder / parser.get_parsed_content("weights#predictor")
    network.load_state_dict(safetensors.torch.load_file(weights))
    image = torch.randn(1, 1, 32, 32)
    assert torch.equal(network(image), load_bundle(sample).networks["predictor"](image))


def test_digest_names_exactly_one_model(sample: Bundle, tmp_path: Path) -> None:
    same = write_sample(tmp_path / "again" / "sample-net")
    other_weights = write_sample(tmp_path / "other" / "sample-net", seed=1)
    image = {**sample_metadata()["image"], "window_hu": (-1000, 401)}
    other_window = write_sample(tmp_path / "window" / "sample-net", image=image)
    assert same.digest == sample.digest
    assert len({sample.digest, other_weights.digest, other_window.digest}) == 3


def test_writing_replaces_a_bundle_and_leaves_nothing_else(sample: Bundle) -> None:
    after = write_sample(sample.folder, seed=1)
    assert after.digest != sample.digest
    assert [path.name for path in sample.folder.parent.iterdir()] == [sample.folder.name]


@pytest.mark.parametrize(
    ("changes", "arguments", "expected"),
    [
        ({"kind": ""}, ARGUMENTS, "kind"),
        ({"image": {"modality": "CT"}}, ARGUMENTS, "image.window_hu"),
        ({"name": "../up"}, ARGUMENTS, "name"),
        ({}, {**ARGUMENTS, "width": 8}, "cannot be rebuilt"),
        ({}, {**ARGUMENTS, "colour": "red"}, "colour"),
    ],
)
def test_failed_write_leaves_the_old_bundle_whole(
    sample: Bundle, changes: dict, arguments: dict, expected: str
) -> None:
    networks = {"predictor": ("resnet", arguments, sample_network(1))}
    with pytest.raises(GenSegError, match=expected):
        write_bundle(sample.folder, sample_metadata(**changes), networks, "# Card\n", "licence\n")
    assert [path.name for path in sample.folder.parent.iterdir()] == [sample.folder.name]
    find_bundle(sample.folder).verify()
    assert find_bundle(sample.folder).digest == sample.digest


def test_write_refuses_a_folder_with_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(GenSegError, match="something other than a bundle"):
        write_sample(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"


@pytest.mark.parametrize("other", ["notes.txt", "models/model.pt", "metadata of another program's"])
def test_write_refuses_a_bundle_that_is_not_ours_alone(sample: Bundle, other: str) -> None:
    if other in ("notes.txt", "models/model.pt"):
        (sample.folder / other).write_text("mine")
    else:
        (sample.folder / "configs/metadata.json").write_text('{"version": "0.1", "monai_version": "1.3"}')
    before = {path: path.read_bytes() for path in sample.folder.rglob("*") if path.is_file()}
    with pytest.raises(GenSegError, match="something other than a bundle"):
        write_sample(sample.folder)
    assert {path: path.read_bytes() for path in sample.folder.parent.rglob("*") if path.is_file()} == before


def test_a_damaged_bundle_in_the_cache_is_replaced(cache: Path) -> None:
    folder = write_sample(cache / "bundles" / "sample-net").folder
    (folder / "configs/metadata.json").write_text("{")
    write_sample(folder).verify()


def test_seal_after_a_deliberate_change(sample: Bundle) -> None:
    metadata = sample.folder / "configs/metadata.json"
    change_json(metadata, metrics={"auc": 0.97})
    with pytest.raises(GenSegError, match=r"metadata\.json has changed"):
        read_bundle(sample.folder).verify()
    sealed = seal_bundle(sample.folder)
    sealed.verify()
    assert sealed.metadata["metrics"] == {"auc": 0.97}
    assert sealed.digest != sample.digest


# Damage


@pytest.mark.parametrize("path", FILES)
def test_every_changed_byte_is_found_and_its_file_named(sample: Bundle, path: str) -> None:
    file = sample.folder / path
    content = file.read_bytes()
    step = max(1, len(content) // 40)
    for position in range(0, len(content), step):
        changed = bytearray(content)
        changed[position] ^= 1
        file.write_bytes(changed)
        with pytest.raises(GenSegError) as caught:
            load_bundle(read_bundle(sample.folder))
        assert file.name in str(caught.value)
    file.write_bytes(content)
    load_bundle(read_bundle(sample.folder))


@pytest.mark.parametrize("path", FILES)
def test_missing_file_is_named(sample: Bundle, path: str) -> None:
    (sample.folder / path).unlink()
    with pytest.raises(GenSegError, match=Path(path).name.replace(".", r"\.")):
        load_bundle(read_bundle(sample.folder))


@pytest.mark.parametrize("key", sorted(set(MONAI_KEYS) | set(GENSEG_KEYS)))
def test_missing_metadata_is_one_sentence_naming_the_key(sample: Bundle, key: str) -> None:
    file = sample.folder / "configs/metadata.json"
    metadata = json.loads(file.read_text())
    del metadata[key]
    file.write_text(json.dumps(metadata))
    with pytest.raises(GenSegError, match=rf"metadata\.json lacks {key}\.$"):
        read_bundle(sample.folder)


@pytest.mark.parametrize("key", IMAGE_KEYS)
def test_missing_image_metadata(sample: Bundle, key: str) -> None:
    image = dict(sample.metadata["image"])
    del image[key]
    change_json(sample.folder / "configs/metadata.json", image=image)
    with pytest.raises(GenSegError, match=rf"lacks image\.{key}\.$"):
        read_bundle(sample.folder)


@pytest.mark.parametrize("key", LATENT_KEYS)
def test_a_flow_needs_its_latent(sample: Bundle, key: str) -> None:
    latent = {"channels": 4, "downsampling": 2, "scale_factor": 1.0}
    del latent[key]
    change_json(sample.folder / "configs/metadata.json", kind="flow", latent=latent)
    with pytest.raises(GenSegError, match=rf"lacks latent\.{key}\.$"):
        read_bundle(sample.folder)


FLOW = {"latent": {"channels": 4, "downsampling": 2, "scale_factor": 1.0}}
ORGANS = {"organs": ["liver"], "sam2": {"name": "some-sam2", "digest": "0" * 64}}
ORGANS_IMAGE = {"size": 160, "slice_mm": [3.0, 8.0]}


@pytest.mark.parametrize(
    ("kind", "changes", "image", "sentence"),
    [
        ("flow", {"latent": {**FLOW["latent"], "channels": "x"}}, {}, "latent.channels must be"),
        ("flow", {"latent": {**FLOW["latent"], "downsampling": 0}}, {}, "latent.downsampling must be"),
        ("flow", {"latent": {**FLOW["latent"], "downsampling": [1]}}, {}, "latent.downsampling must be"),
        ("flow", {"latent": {**FLOW["latent"], "scale_factor": None}}, {}, "latent.scale_factor must be"),
        ("flow", {"latent": {**FLOW["latent"], "scale_factor": 0}}, {}, "latent.scale_factor must be"),
        ("flow", {"latent": {**FLOW["latent"], "scale_factor": float("nan")}}, {}, "latent.scale_factor must be"),
        ("flow", {"latent": None}, {}, "latent must be"),
        ("flow", {}, {"spacings_mm": [0.75, "x"]}, "image.spacings_mm must be"),
        ("flow", {}, {"field_voxels": 0}, "image.field_voxels must be"),
        ("organs", {"sam2": None}, {}, "sam2 must give"),
        ("organs", {"sam2": "abdomen-sam2"}, {}, "sam2 must give"),
        ("organs", {"sam2": {"name": "abdomen-sam2"}}, {}, "sam2 must give"),
        ("organs", {"organs": None}, {}, "organs must be"),
        ("organs", {"organs": 5}, {}, "organs must be"),
        ("organs", {"organs": []}, {}, "organs must be"),
        ("organs", {}, {"size": None}, "image.size must be"),
        ("organs", {}, {"slice_mm": [8.0, 3.0]}, "image.slice_mm must be"),
        ("organs", {}, {"spacing_mm": None}, "image.spacing_mm must be"),
    ],
)
def test_senseless_metadata_of_a_kind(sample: Bundle, kind: str, changes: dict, image: dict, sentence: str) -> None:
    file = sample.folder / "configs/metadata.json"
    whole = {"kind": kind, **FLOW, **ORGANS, "image": {**sample.metadata["image"], **ORGANS_IMAGE}}
    change_json(file, **whole)
    assert read_bundle(sample.folder).kind == kind
    change_json(file, **whole | changes | {"image": whole["image"] | image})
    with pytest.raises(GenSegError) as caught:
        read_bundle(sample.folder)
    assert str(caught.value).startswith(f"{file}: {sentence}") and str(caught.value).endswith(".")


@pytest.mark.parametrize("key", ["size", "slice_mm"])
def test_organs_need_their_grid(sample: Bundle, key: str) -> None:
    image = sample.metadata["image"] | ORGANS_IMAGE
    del image[key]
    change_json(sample.folder / "configs/metadata.json", kind="organs", **ORGANS, image=image)
    with pytest.raises(GenSegError, match=rf"lacks image\.{key}\.$"):
        read_bundle(sample.folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("window_hu", [400, -1000]),
        ("window_hu", "lung"),
        ("window_hu", [0, True]),
        ("window_hu", [0, 10**400]),
        ("spacing_mm", [1.0, 1.0]),
        ("spacing_mm", [1.0, 0.0, 1.0]),
        ("orientation", "LAS"),
    ],
)
def test_senseless_image_metadata(sample: Bundle, key: str, value: object) -> None:
    change_json(sample.folder / "configs/metadata.json", image={**sample.metadata["image"], key: value})
    with pytest.raises(GenSegError, match=rf"image\.{key} must be"):
        read_bundle(sample.folder)


@pytest.mark.parametrize(
    "path", ["../models/a", "/etc/passwd", "C:/a", "models\\..\\..\\a", "a/../../b", "", "a\x00b", "//host/a"]
)
def test_paths_that_leave_the_bundle_are_refused(sample: Bundle, path: str) -> None:
    files = {**sample.metadata["files"], path: "0" * 64}
    change_json(sample.folder / "configs/metadata.json", files=files)
    with pytest.raises(GenSegError, match="inside the bundle"):
        read_bundle(sample.folder)
    assert is_inside("models/predictor.safetensors")


@pytest.mark.parametrize("content", ["", "[]", "{", "\udcff", "[" * 100_000])
def test_metadata_that_is_no_json_object(sample: Bundle, content: str) -> None:
    (sample.folder / "configs/metadata.json").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(GenSegError, match=r"metadata\.json"):
        read_bundle(sample.folder)


# What a bundle may not ask for


@pytest.mark.parametrize("target", ["os.system", "monai.networks.nets.UNet", "GenSegLogic.bundles.find_bundle", ""])
def test_target_outside_the_allow_list_is_refused(sample: Bundle, target: str) -> None:
    config = {"_target_": target, "command": "echo harm"}
    change_json(sample.folder / "configs/inference.json", networks={"predictor": config})
    with pytest.raises(GenSegError, match="is not one that GenSeg builds"):
        load_bundle(seal_bundle(sample.folder))


def test_weights_in_a_pickle_are_refused(sample: Bundle) -> None:
    torch.save(sample_network().state_dict(), sample.folder / "models" / "predictor.pt")
    change_json(sample.folder / "configs/inference.json", weights={"predictor": "models/predictor.pt"})
    change_json(sample.folder / "configs/metadata.json",
                files={**sample.metadata["files"], "models/predictor.pt": "0" * 64})
    with pytest.raises(GenSegError, match=r"must be a listed \.safetensors file"):
        load_bundle(seal_bundle(sample.folder))


def test_weights_that_nothing_checks_are_refused(sample: Bundle) -> None:
    shutil.copy(sample.folder / FILES[-1], sample.folder / "models" / "other.safetensors")
    change_json(sample.folder / "configs/inference.json", weights={"predictor": "models/other.safetensors"})
    with pytest.raises(GenSegError, match="must be a listed"):
        load_bundle(seal_bundle(sample.folder))


def test_weights_of_another_network_are_refused(sample: Bundle) -> None:
    safetensors.torch.save_file({"weight": torch.zeros(3)}, sample.folder / FILES[-1])
    with pytest.raises(GenSegError, match=r"predictor\.safetensors does not fit the network"):
        load_bundle(seal_bundle(sample.folder))


def test_weights_that_are_no_safetensors_are_refused(sample: Bundle) -> None:
    (sample.folder / FILES[-1]).write_bytes(b"not weights")
    with pytest.raises(GenSegError, match=r"predictor\.safetensors is not a safetensors file"):
        load_bundle(seal_bundle(sample.folder))


@pytest.mark.parametrize("inference", [{"networks": {}, "weights": {"predictor": "x"}}, {"networks": []}])
def test_inference_that_does_not_add_up(sample: Bundle, inference: dict) -> None:
    (sample.folder / "configs/inference.json").write_text(json.dumps(inference))
    with pytest.raises(GenSegError, match=r"inference\.json must hold networks and weights"):
        load_bundle(seal_bundle(sample.folder))


# Looking up


def test_find_by_name_and_by_folder(cache: Path, tmp_path: Path) -> None:
    cached = write_sample(cache / "bundles" / "cached-net")
    apart = write_sample(tmp_path / "apart-net")
    assert find_bundle("cached-net").folder == cached.folder
    assert find_bundle(apart.folder).name == "apart-net"
    assert find_bundle(str(apart.folder)).digest == apart.digest
    assert "cached-net" in [bundle.name for bundle in list_bundles()]
    assert "apart-net" not in [bundle.name for bundle in list_bundles()]
    assert not is_shipped(cached)


def test_names_that_are_not_there(cache: Path) -> None:
    write_sample(cache / "bundles" / "cached-net")
    with pytest.raises(GenSegError, match="did you mean 'cached-net'"):
        find_bundle("cachednet")
    with pytest.raises(GenSegError, match="genseg bundles show maisi-rflow-ct"):
        find_bundle("maisi-rflow-ct")
    with pytest.raises(GenSegError, match="cached-net"):
        find_bundle("quite different")
    (cache / "empty").mkdir()
    with pytest.raises(GenSegError, match="is not a bundle"):
        find_bundle(cache / "empty")


def test_an_unreadable_bundle_hides_no_other(cache: Path) -> None:
    write_sample(cache / "bundles" / "good-net")
    broken = write_sample(cache / "bundles" / "bad-net").folder
    (broken / "configs/metadata.json").write_text("{")
    bundles, problems = scan_bundles()
    assert "good-net" in [bundle.name for bundle in bundles]
    assert list(problems) == [broken]
    with pytest.raises(GenSegError, match="is not JSON"):
        find_bundle("bad-net")


def test_the_cache_folder_can_be_chosen_and_has_a_place_on_every_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == Path(os.environ["GENSEG_HOME"])
    monkeypatch.delenv("GENSEG_HOME")
    monkeypatch.setenv("LOCALAPPDATA", "/users/me/local")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    monkeypatch.setenv("HOME", "/home/me")
    expected = {"win32": "/users/me/local/GenSeg", "darwin": str(Path.home() / "Library/Caches/GenSeg"),
                "linux": "/var/cache/me/genseg"}
    for platform, folder in expected.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == Path(folder)


LAYOUTS = {
    "source checkout": ("genseg/GenSegLogic", "genseg/Resources/Bundles"),
    "wheel": ("lib/site-packages/GenSegLogic", "lib/site-packages/GenSegLogic/_bundles"),
    "slicer": ("lib/Slicer-5.12/qt-scripted-modules/GenSegLogic",
               "lib/Slicer-5.12/qt-scripted-modules/Resources/Bundles"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bundles_that_ship_are_found_however_genseg_is_installed(tmp_path: Path, layout: str) -> None:
    package, bundles = (tmp_path / part for part in LAYOUTS[layout])
    source = Path(GenSegLogic.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("__pycache__", "_bundles"))
    sample = write_sample(bundles / "sample-net")
    code = (
        "import GenSegLogic, json\n"
        "from GenSegLogic.bundles import find_bundle, is_shipped, load_bundle\n"
        "bundle = find_bundle('sample-net')\n"
        "names = list(load_bundle(bundle).networks)\n"
        "print(json.dumps([GenSegLogic.__file__, str(bundle.folder), is_shipped(bundle), names]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                         check=True)
    module, folder, ships, networks = json.loads(run.stdout)
    assert Path(module).parent == package
    assert Path(folder) == sample.folder
    assert ships is True
    assert networks == ["predictor"]


def test_what_ships_here_is_intact() -> None:
    bundles, problems = scan_bundles()
    assert not [folder for folder in problems if folder.parent == shipped_folder()]
    for bundle in filter(is_shipped, bundles):
        bundle.verify()
        assert bundle.name == bundle.folder.name
