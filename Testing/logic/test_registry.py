"""The registry of published weights: complete, honest, readable without torch, in step with the importers."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
import torch

from GenSegLogic.bundles import importers
from GenSegLogic.bundles.bundle import is_inside, is_name
from GenSegLogic.bundles.registry import Published, find_published, read_registry
from GenSegLogic.errors import GenSegError
from GenSegLogic.networks import build
from GenSegLogic.networks.maisi import MAISI_AUTOENCODER, MAISI_VELOCITY

EXPECTED = {
    "maisi-rflow-ct": ("nvidia/NV-Generate-CT", {"models/autoencoder_v1.pt", "models/diff_unet_3d_rflow-ct.pt",
                                                 "models/controlnet_3d_rflow-ct.pt"}, True),
    "maisi-rflow-mr": ("nvidia/NV-Generate-MR", {"models/autoencoder_v2.pt", "models/diff_unet_3d_rflow-mr.pt"}, False),
    "sam2.1-hiera-tiny": ("facebook/sam2.1-hiera-tiny", {"config.json", "model.safetensors"}, True),
    "sam2.1-hiera-small": ("facebook/sam2.1-hiera-small", {"config.json", "model.safetensors"}, True),
    "sam2.1-hiera-base-plus": ("facebook/sam2.1-hiera-base-plus", {"config.json", "model.safetensors"}, True),
    "sam2.1-hiera-large": ("facebook/sam2.1-hiera-large", {"config.json", "model.safetensors"}, True),
    "litemedsam-tinyvit": (None, {"lite_medsam.pth"}, None),
    "radimagenet-resnet50": ("Lab-Rasool/RadImageNet", {"ResNet50.pt"}, None),
}


def test_every_published_weight_of_the_methods_is_listed() -> None:
    registry = read_registry()
    listed = {name: (entry.hub, {file.path for file in entry.files}, entry.commercial_use)
              for name, entry in registry.items()}
    assert listed == EXPECTED


@pytest.mark.parametrize("entry", read_registry().values(), ids=lambda entry: entry.name)
def test_entries_are_complete(entry: Published) -> None:
    assert is_name(entry.name)
    assert entry.needed
    assert entry.licence
    assert entry.licence_url.startswith("https://")
    assert "https://" in entry.by_hand
    assert (entry.hub is None) == (entry.revision is None)
    assert len({file.role for file in entry.files}) == len(entry.files)
    assert len({file.name for file in entry.files}) == len(entry.files)
    for file in entry.files:
        assert is_inside(file.path)
        assert file.size_bytes is None or file.size_bytes > 0
        assert file.optional or file.size_bytes or file.about_megabytes
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)


@pytest.mark.parametrize("name, role, target, arguments", [
    ("maisi-rflow-ct", "autoencoder", "maisi-autoencoder", MAISI_AUTOENCODER),
    ("maisi-rflow-mr", "velocity", "maisi-velocity", MAISI_VELOCITY),
    ("sam2.1-hiera-tiny", "weights", "sam2", {"size": "hiera-tiny"}),
    ("sam2.1-hiera-small", "weights", "sam2", {"size": "hiera-small"}),
    ("sam2.1-hiera-base-plus", "weights", "sam2", {"size": "hiera-base-plus"}),
    ("sam2.1-hiera-large", "weights", "sam2", {"size": "hiera-large"}),
    ("radimagenet-resnet50", "encoder", "resnet", {}),
])
def test_about_how_large_a_file_is_follows_from_its_architecture(name, role, target, arguments) -> None:
    with torch.device("meta"):
        parameters = sum(value.numel() for value in build(target, arguments).parameters())
    file = next(file for file in find_published(name).files if file.role == role)
    assert file.about_megabytes == pytest.approx(4e-6 * parameters, abs=1)


def test_every_importer_has_its_entry() -> None:
    importable = [entry for entry in read_registry().values() if entry.importer]
    assert sorted(entry.importer for entry in importable) == sorted(importers.IMPORTERS)
    assert all(entry.importer == entry.name for entry in importable)


def test_reading_the_registry_imports_no_torch() -> None:
    code = (
        "import json, sys\n"
        "from GenSegLogic.bundles import list_bundles\n"
        "from GenSegLogic.bundles.registry import read_registry\n"
        "from GenSegLogic.commands import bundles\n"
        "list_bundles()\n"
        "heavy = [name for name in ('torch', 'monai', 'SimpleITK', 'scipy') if name in sys.modules]\n"
        "print(json.dumps([list(read_registry()), heavy]))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names, heavy = json.loads(run.stdout)
    assert names == list(EXPECTED)
    assert heavy == []


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(GenSegError, match="maisi-rflow-ct"):
        find_published("maisi")


def test_licence_is_said_in_one_sentence() -> None:
    assert "no commercial use" in find_published("maisi-rflow-mr").licence_sentence
    assert "commercial use not stated" in find_published("litemedsam-tinyvit").licence_sentence
