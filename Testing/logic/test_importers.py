"""Importers: the full published architectures, with random weights, in the published files' form and key names."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets import resnet50

from GenSegLogic.bundles import load_bundle
from GenSegLogic.bundles.importers import IMPORTERS, import_checkpoint
from GenSegLogic.bundles.registry import read_registry
from GenSegLogic.errors import GenSegError
from GenSegLogic.networks.maisi import check_maisi_grid
from GenSegLogic.networks.tinyvit import LITEMEDSAM, TinyViT

SCALE_FACTOR = 1.0194

# config_network_rflow.json of NV-Generate-CTMR, with what a CPU asks for: no flash attention, no float16, no splits.
PUBLISHED_AUTOENCODER: dict[str, Any] = {
    "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "latent_channels": 4, "num_channels": [64, 128, 256],
    "num_res_blocks": [2, 2, 2], "norm_num_groups": 32, "norm_eps": 1e-06, "attention_levels": [False, False, False],
    "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False, "use_checkpointing": False,
    "use_convtranspose": False, "norm_float16": False, "num_splits": 1, "dim_split": 1,
}
PUBLISHED_VELOCITY: dict[str, Any] = {
    "spatial_dims": 3, "in_channels": 4, "out_channels": 4, "num_channels": [64, 128, 256, 512],
    "attention_levels": [False, False, True, True], "num_head_channels": [0, 0, 32, 32], "num_res_blocks": 2,
    "use_flash_attention": False, "include_top_region_index_input": False, "include_bottom_region_index_input": False,
    "include_spacing_input": True, "num_class_embeds": 128, "resblock_updown": True, "include_fc": True,
}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that goes when the module's tests are done: pytest's own would stay, with gigabytes in it."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def randomise(network: torch.nn.Module) -> None:
    """Fill in what starts at a constant: zeroed last convolutions, biases and running statistics."""
    generator = torch.Generator().manual_seed(0)
    for value in network.state_dict().values():
        if value.is_floating_point() and value.min() == value.max():
            value.add_(0.1 * torch.rand(value.shape, generator=generator))


@pytest.fixture(scope="module")
def maisi() -> tuple[AutoencoderKlMaisi, DiffusionModelUNetMaisi]:
    torch.manual_seed(0)
    networks = AutoencoderKlMaisi(**PUBLISHED_AUTOENCODER).eval(), DiffusionModelUNetMaisi(**PUBLISHED_VELOCITY).eval()
    for network in networks:
        randomise(network)
        network.requires_grad_(False)
    return networks


def maisi_files(folder: Path, autoencoder: Any, checkpoint: Any) -> dict[str, Path]:
    files = {"autoencoder": folder / "autoencoder.pt", "velocity": folder / "diff_unet_3d_rflow.pt"}
    torch.save(autoencoder, files["autoencoder"])
    torch.save(checkpoint, files["velocity"])
    return files


@pytest.mark.parametrize(("kind", "label", "window", "commercial"), [
    ("maisi-rflow-ct", 1, [-1000, 1000], True), ("maisi-rflow-mr", 8, None, False),
])
def test_maisi(
    folder: Path, maisi: tuple[AutoencoderKlMaisi, DiffusionModelUNetMaisi], kind: str, label: int,
    window: list[int] | None, commercial: bool,
) -> None:
    autoencoder, velocity = maisi
    assert sum(value.numel() for value in velocity.parameters()) == pytest.approx(180.5e6, rel=1e-3)
    assert sum(value.numel() for value in autoencoder.parameters()) == pytest.approx(20.9e6, rel=3e-3)
    checkpoint = {
        "epoch": 200, "loss": 0.25, "num_train_timesteps": 1000, "scale_factor": torch.tensor(SCALE_FACTOR),
        "unet_state_dict": velocity.state_dict(),
    }
    # The two publications differ: bare weights, and weights under the diffusion network's key.
    weights = autoencoder.state_dict()
    files = maisi_files(folder, weights if kind == "maisi-rflow-ct" else {"unet_state_dict": weights}, checkpoint)
    bundle = import_checkpoint(kind, files, folder / kind)
    for file in files.values():
        file.unlink()

    assert (bundle.name, bundle.kind) == (kind, "flow")
    assert bundle.metadata["latent"] == {
        "channels": 4, "downsampling": 4, "scale_factor": pytest.approx(SCALE_FACTOR, rel=1e-6),
    }
    assert bundle.metadata["image"]["window_hu"] == window
    assert bundle.metadata["image"]["orientation"] == "RAS"
    assert bundle.metadata["commercial_use"] is commercial

    networks = load_bundle(bundle).networks
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 1, 16, 16, 16, generator=generator)
    noisy = torch.randn(1, 4, 16, 16, 8, generator=generator)
    conditions = {"timesteps": torch.tensor([412.5]), "class_labels": torch.tensor([label]),
                  "spacing_tensor": torch.tensor([[80.0, 80.0, 250.0]])}
    with torch.no_grad():
        latent, deviation = autoencoder.encode(image)
        for ours, published in zip(networks["autoencoder"].encode(image), (latent, deviation), strict=True):
            torch.testing.assert_close(ours, published)
        torch.testing.assert_close(networks["autoencoder"].decode(latent), autoencoder.decode(latent))
        expected = velocity(noisy, **conditions)
        assert expected.std() > 0.01  # a network whose last layer is zero would agree with anything
        torch.testing.assert_close(networks["velocity"](noisy, **conditions), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("form", ["published", "training state", "encoder only"])
def test_litemedsam(folder: Path, form: str) -> None:
    torch.manual_seed(0)
    encoder = TinyViT(**LITEMEDSAM).eval()
    randomise(encoder)
    weights = encoder.state_dict()
    content: dict[str, Any] = {f"image_encoder.{name}": value for name, value in weights.items()}
    content["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 256)
    content["mask_decoder.iou_token.weight"] = torch.zeros(1, 256)
    if form == "training state":
        content = {"model": {f"module.{name}": value for name, value in content.items()}, "epoch": 3, "loss": 0.1}
    elif form == "encoder only":
        content = {**weights, "layers.1.blocks.0.attn.attention_bias_idxs": torch.zeros(49, 49, dtype=torch.long)}
    file = folder / "lite_medsam.pth"
    torch.save(content, file)
    bundle = import_checkpoint("litemedsam-tinyvit", {"encoder": file}, folder / "litemedsam")
    assert (bundle.kind, bundle.metadata["commercial_use"]) == ("encoder", False)
    x = torch.rand(1, 3, 40, 52)
    with torch.no_grad():
        torch.testing.assert_close(load_bundle(bundle).networks["encoder"](x), encoder(x))


def radimagenet_name(name: str, form: str) -> str:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7", "fc": "9"}
    child, rest = name.split(".", 1)
    numbered = f"{numbers[child]}.{rest}"
    return {"torchvision": name, "backbone": f"backbone.{name}", "numbered": f"backbone.{numbered}",
            "parallel": f"module.backbone.{numbered}", "sequential": numbered}[form]


@pytest.mark.parametrize("form", ["torchvision", "backbone", "numbered", "parallel", "sequential"])
def test_radimagenet(folder: Path, form: str) -> None:
    torch.manual_seed(0)
    published = resnet50(
        spatial_dims=2, n_input_channels=3, conv1_t_stride=2, num_classes=165, bias_downsample=False
    ).eval()
    randomise(published)
    weights = published.state_dict()
    if form == "sequential":  # weights converted from Keras count no batches
        weights = {name: value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    file = folder / "ResNet50.pt"
    torch.save({radimagenet_name(name, form): value for name, value in weights.items()}, file)
    bundle = import_checkpoint("radimagenet-resnet50", {"encoder": file}, folder / "radimagenet")
    encoder = load_bundle(bundle).networks["encoder"]
    x = torch.rand(1, 3, 70, 96) * 2 - 1
    features = []
    hook = published.layer4.register_forward_hook(lambda module, inputs, output: features.append(output))
    with torch.no_grad():
        published(x)
        torch.testing.assert_close(encoder(x), features[0])
    hook.remove()
    assert encoder.out_channels == 2048


class RunsCode:
    """A pickle of this creates the file when it is loaded carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.trace), "w")


def refusal(kind: str, files: dict[str, Path], folder: Path) -> str:
    """The sentence in which an import is refused; nothing may be left behind."""
    before = sorted(folder.iterdir())
    with pytest.raises(GenSegError) as raised:
        import_checkpoint(kind, files, folder / "bundle")
    assert sorted(folder.iterdir()) == before
    sentence = str(raised.value)
    assert "\n" not in sentence and sentence.endswith((".", "?"))
    return sentence


@pytest.mark.parametrize("wrapped", ["torch", "pickle"])
def test_a_checkpoint_that_needs_code_is_refused_and_the_code_is_not_run(tmp_path: Path, wrapped: str) -> None:
    file, trace = tmp_path / "lite_medsam.pth", tmp_path / "trace"
    content = {"image_encoder.neck.0.weight": torch.zeros(1), "extra": RunsCode(trace)}
    if wrapped == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(RunsCode(trace), protocol=2))
    sentence = refusal("litemedsam-tinyvit", {"encoder": file}, tmp_path)
    assert str(file) in sentence and "code" in sentence
    assert not trace.exists()


def damaged(file: Path, damage: str) -> None:
    torch.save({"weight": torch.arange(1000.0)}, file)
    whole = file.read_bytes()
    page = b"<!DOCTYPE html><html>Quota exceeded</html>"  # what a browser may save in place of the file
    contents = {"empty": b"", "noise": bytes(range(256)) * 8, "page": page, "truncated": whole[: len(whole) // 2],
                "cut": whole[:-200]}
    file.write_bytes(contents[damage])


@pytest.mark.parametrize("damage", ["empty", "noise", "page", "truncated", "cut"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "ResNet50.pt"
    damaged(file, damage)
    sentence = refusal("radimagenet-resnet50", {"encoder": file}, tmp_path)
    assert str(file) in sentence and "damaged" in sentence


@pytest.mark.parametrize(("content", "reason"), [
    ([torch.zeros(3)], "does not hold named weights"),
    ({}, "does not hold named weights"),
    ({"conv1.weight": 3}, "does not hold named weights"),
    ({"conv1.weight": torch.zeros(64, 3, 7, 7)}, "lacks .* of the .* weights of this model"),
    ({"features.0.weight": torch.zeros(3)}, "lacks .* of the .* weights of this model"),
])
def test_other_content_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    file = tmp_path / "ResNet50.pt"
    torch.save(content, file)
    with pytest.raises(GenSegError, match=reason):
        import_checkpoint("radimagenet-resnet50", {"encoder": file}, tmp_path / "bundle")
    assert str(file) in refusal("radimagenet-resnet50", {"encoder": file}, tmp_path)


def test_another_models_shapes_and_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "lite_medsam.pth"
    mobilesam = TinyViT(**(LITEMEDSAM | {"patch_strides": [2, 2], "patch_kernel": 3})).state_dict()
    torch.save(mobilesam, file)
    sentence = refusal("litemedsam-tinyvit", {"encoder": file}, tmp_path)
    assert "patch_embed.seq.0.c.weight has the shape (32, 3, 3, 3), not (32, 3, 1, 1)" in sentence
    torch.save(TinyViT(**LITEMEDSAM).state_dict() | {"layers.4.weight": torch.zeros(1)}, file)
    assert "layers.4.weight" in refusal("litemedsam-tinyvit", {"encoder": file}, tmp_path)


@pytest.mark.parametrize(("scale", "reason"), [
    ({}, "no scale_factor"),
    ({"scale_factor": torch.tensor(float("nan"))}, "not a positive number"),
    ({"scale_factor": torch.tensor([1.0, 2.0])}, "not a positive number"),
    ({"scale_factor": 0}, "not a positive number"),
])
def test_maisi_without_a_usable_scale_factor_is_refused(tmp_path: Path, scale: dict[str, Any], reason: str) -> None:
    files = maisi_files(tmp_path, {}, {"unet_state_dict": {"conv_in.conv.weight": torch.zeros(1)}, **scale})
    sentence = refusal("maisi-rflow-ct", files, tmp_path)
    assert reason in sentence and str(files["velocity"]) in sentence


def test_exchanged_maisi_files_are_refused(tmp_path: Path) -> None:
    files = maisi_files(tmp_path, {"scale_factor": 1.0, "unet_state_dict": {}}, {"encoder.weight": torch.zeros(1)})
    assert "exchanged" in refusal("maisi-rflow-mr", files, tmp_path)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    sentence = refusal("maisi-rflow-ct", {"velocity": tmp_path / "diff_unet_3d_rflow-ct.pt"}, tmp_path)
    assert "autoencoder_v1.pt" in sentence and "https://" in sentence
    missing = tmp_path / "ResNet50.pt"
    assert str(missing) in refusal("radimagenet-resnet50", {"encoder": missing}, tmp_path)
    assert "maisi-rflow-ct" in refusal("maisi", {}, tmp_path)


def test_the_registry_names_every_importer() -> None:
    assert {entry.importer for entry in read_registry().values() if entry.importer} == set(IMPORTERS)


def test_a_scale_factor_with_monai_metadata_is_read_by_a_fresh_process(tmp_path: Path) -> None:
    # The publisher computes the factor from MONAI's tensor class, which torch reads only once MONAI has vouched for it.
    from monai.data import MetaTensor

    file = tmp_path / "diff_unet_3d_rflow-ct.pt"
    torch.save({"scale_factor": MetaTensor(torch.tensor(0.96)), "unet_state_dict": {}}, file)
    code = ("import sys; from pathlib import Path; import GenSegLogic.bundles.importers as importers; "
            "assert 'torch' not in sys.modules, 'torch must be lazy'; path = Path(sys.argv[1]); "
            "print(importers._scale_factor(importers.read_checkpoint(path), path))")
    answer = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parents[2])
    assert answer.returncode == 0, answer.stderr
    assert float(answer.stdout) == pytest.approx(0.96)


@pytest.mark.parametrize(("shape", "spacing", "modality"), [
    ((512, 512, 128), (0.8, 0.8, 2.5), "ct"), ((256, 256, 256), (1.5, 1.5, 1.5), "ct"),
    ((384, 384, 640), (1.0, 1.0, 0.5), "ct"), ((128, 256, 256), (1.25, 1.0, 1.0), "mr"),
    ((512, 512, 128), (0.4, 0.4, 5.0), "mr"),
])
def test_maisi_grids_that_the_publisher_recommends_pass(shape: Any, spacing: Any, modality: Any) -> None:
    check_maisi_grid(shape, spacing, modality)


@pytest.mark.parametrize(("shape", "spacing", "modality", "reason"), [
    ((512, 256, 128), (1.0, 1.0, 1.0), "ct", "first two sizes"),
    ((320, 320, 128), (1.0, 1.0, 1.0), "ct", "first two sizes"),
    ((256, 256, 100), (1.0, 1.0, 1.0), "ct", "third size"),
    ((256, 256, 128), (1.0, 1.5, 1.0), "ct", "first two spacings"),
    ((512, 512, 128), (0.4, 0.4, 1.0), "ct", "first two spacings"),
    ((512, 512, 128), (0.8, 0.8, 6.0), "ct", "third spacing"),
    ((256, 256, 128), (0.75, 0.75, 1.0), "ct", "field of view"),
    ((256, 256), (1.0, 1.0), "ct", "three axes"),
    ((384, 384, 256), (1.0, 1.0, 1.0), "mr", "size must be"),
    ((256, 256, 128), (0.3, 1.0, 1.0), "mr", "each spacing"),
])
def test_maisi_grids_outside_the_training_data_are_refused(
    shape: Any, spacing: Any, modality: Any, reason: str
) -> None:
    with pytest.raises(GenSegError, match=reason):
        check_maisi_grid(shape, spacing, modality)
