"""Importers: published checkpoints become bundles.

A checkpoint is a pickle. It is read with torch's weights-only loader, which builds tensors, numbers and containers
but runs no code, and is written as safetensors. Names and shapes of all weights are checked before anything is
written. Nothing here imports torch before a checkpoint is read.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GenSegError
from .bundle import Bundle, sha256
from .registry import Published, read_registry

if TYPE_CHECKING:
    import torch

State = dict[str, "torch.Tensor"]
Networks = dict[str, tuple[str, Mapping[str, Any], "torch.nn.Module"]]


@dataclass(frozen=True)
class Importer:
    """How published files become a bundle; their names, source and licence stand in the registry.

    Attributes:
        bundle_kind: what the bundle is for: ``flow``, ``encoder`` or ``sam2``.
        description: what the networks are and take, one or two sentences.
        image: the bundle's ``image`` metadata: what the networks take.
        convert: reads the files, by role; returns the networks and further metadata.
    """

    bundle_kind: str
    description: str
    image: Mapping[str, Any]
    convert: Callable[[Mapping[str, Path]], tuple[Networks, dict[str, Any]]]


def import_checkpoint(kind: str, files: Mapping[str, Path], folder: Path) -> Bundle:
    """Convert published files into a bundle.

    Args:
        kind: one of :data:`IMPORTERS`.
        files: role -> file, for every needed role of the kind's entry in the registry; others are passed over.
        folder: the new bundle's own folder, which names it; a bundle that lies there is replaced, whole or not at all.

    Raises:
        GenSegError: if the kind is unknown, a file is missing, is no checkpoint, cannot be read without running code,
            or does not hold the weights of the published architecture.
    """
    if kind not in IMPORTERS:
        raise GenSegError(f"There is no importer for {kind!r}; choose one of {', '.join(IMPORTERS)}.")
    importer = IMPORTERS[kind]
    published = next(entry for entry in read_registry().values() if entry.importer == kind)
    paths = _check_files(published, files)
    networks, metadata = importer.convert(paths)

    from . import write_bundle

    source = published.licence_url if published.hub is None else f"https://huggingface.co/{published.hub}"
    origin = {role: {"file": path.name, "sha256": sha256(path)} for role, path in paths.items()}
    metadata = {
        "kind": importer.bundle_kind,
        "task": published.title,
        "description": importer.description,
        "image": dict(importer.image),
        "training": {"recipe": "imported", "data": f"see {source}", "files": origin},
        "licence": published.licence,
        "commercial_use": bool(published.commercial_use),  # where it is not stated, nobody has allowed it
        "source": source,
        **metadata,
    }
    licence = f"The weights are not GenSeg's. Their licence: {published.licence}.\n{published.licence_url}\n"
    return write_bundle(folder, metadata, networks, _model_card(published, importer, origin), licence)


def _check_files(published: Published, files: Mapping[str, Path]) -> dict[str, Path]:
    paths = {}
    for file in published.needed:
        if file.role not in files:
            raise GenSegError(f"{published.name} needs {file.name} as well: {published.by_hand}.")
        paths[file.role] = Path(files[file.role])
        if not paths[file.role].is_file():
            raise GenSegError(f"{paths[file.role]} is not a file; {published.name} needs {file.name}: "
                              f"{published.by_hand}.")
    return paths


def _model_card(published: Published, importer: Importer, origin: Mapping[str, Mapping[str, str]]) -> str:
    files = [f"- {role}: `{entry['file']}`, SHA-256 `{entry['sha256']}`" for role, entry in origin.items()]
    return "\n".join([
        f"# {published.title}",
        "",
        importer.description,
        "",
        published.licence_sentence,
        "",
        "GenSeg changed the files' form, not the weights. Converted from",
        "",
        *files,
        "",
        published.remarks,
        "",
        "Not a medical device. Not for diagnosis.",
        "",
    ])


# Reading checkpoints


def read_checkpoint(file: Path) -> Mapping[str, Any]:
    """Read a PyTorch checkpoint without running any code that it may hold.

    Raises:
        GenSegError: if the file is damaged, is no checkpoint, would need code, or holds something other than a dict.
    """
    # Importing MONAI puts its tensor class on torch's list of safe classes; a MAISI scale factor can be such a tensor.
    import monai.data  # noqa: F401
    import torch

    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise GenSegError(f"{file} cannot be read: {error.strerror or error}.") from error
    except MemoryError:
        raise
    except Exception as error:  # damage makes the reader fail in any way: index, key, unicode, zip, seek
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise GenSegError(
                f"{file} holds Python objects beside its weights, and reading them could run code; "
                "get the published file that holds weights only."
            ) from error
        raise GenSegError(f"{file} is not a PyTorch checkpoint or is damaged; get it again.") from error
    if not isinstance(content, Mapping):
        raise GenSegError(f"{file} does not hold named weights; get the published checkpoint.")
    return content


def _state(content: Mapping[str, Any], file: Path) -> State:
    """The weights of a checkpoint, whichever usual key they lie under, without the prefix of parallel training."""
    import torch

    for key in ("unet_state_dict", "state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    weights = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)}
    if not weights or len(weights) < len(content):
        raise GenSegError(f"{file} does not hold named weights; get the published checkpoint.")
    return {key.removeprefix("module."): value for key, value in weights.items()}


def _fill(
    target: str, arguments: Mapping[str, Any], state: State, file: Path, *, extra_allowed: bool
) -> torch.nn.Module:
    """The network that `target` builds, holding the weights of `state` in float32.

    Raises:
        GenSegError: naming the file and the first weight that is missing, has another shape or is too much.
    """
    import torch

    from ..networks import build

    with torch.device("meta"):  # shapes only: the weights come from the file
        network = build(target, arguments)
    expected = network.state_dict()
    for name, value in expected.items():
        # Counted in training and used by no network here; old checkpoints lack it.
        if name.endswith("num_batches_tracked"):
            state.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    missing = [name for name in expected if name not in state]
    if missing:
        raise GenSegError(
            f"{file} lacks {len(missing)} of the {len(expected)} weights of this model ({missing[0]} first); "
            "is it the right file?"
        )
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise GenSegError(
                f"{file} is another model's: its weight {name} has the shape {tuple(state[name].shape)}, "
                f"not {tuple(value.shape)}."
            )
    extra = [name for name in state if name not in expected]
    if extra and not extra_allowed:
        raise GenSegError(f"{file} is another model's: it holds the weight {extra[0]}, which this model does not have.")
    network.load_state_dict({name: state[name].to(value.dtype) for name, value in expected.items()}, assign=True)
    return network


# MAISI


def _scale_factor(content: Mapping[str, Any], file: Path) -> float:
    import torch

    value = content.get("scale_factor")
    if value is None:
        raise GenSegError(
            f"{file} has no scale_factor, without which its latents cannot be read; get the published checkpoint."
        )
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
    if not isinstance(number, (int, float)) or not math.isfinite(number) or number <= 0:
        raise GenSegError(f"{file} has a scale_factor that is not a positive number; get the published checkpoint.")
    return float(number)


def _convert_maisi(files: Mapping[str, Path]) -> tuple[Networks, dict[str, Any]]:
    from ..networks.maisi import MAISI_AUTOENCODER, MAISI_VELOCITY

    content = read_checkpoint(files["velocity"])
    if "unet_state_dict" not in content:
        raise GenSegError(
            f"{files['velocity']} has no unet_state_dict, so it is not a MAISI diffusion checkpoint; "
            "were the two files exchanged?"
        )
    scale_factor = _scale_factor(content, files["velocity"])
    # Names that the network lacks are passed over, as the publisher's own loader does.
    velocity = _fill("maisi-velocity", MAISI_VELOCITY, _state(content, files["velocity"]), files["velocity"],
                     extra_allowed=True)
    state = _state(read_checkpoint(files["autoencoder"]), files["autoencoder"])
    autoencoder = _fill("maisi-autoencoder", MAISI_AUTOENCODER, state, files["autoencoder"], extra_allowed=False)
    metadata = {
        "latent": {
            "channels": MAISI_AUTOENCODER["latent_channels"],
            "downsampling": 2 ** (len(MAISI_AUTOENCODER["num_channels"]) - 1),
            "scale_factor": scale_factor,
        },
    }
    networks: Networks = {
        "autoencoder": ("maisi-autoencoder", MAISI_AUTOENCODER, autoencoder),
        "velocity": ("maisi-velocity", MAISI_VELOCITY, velocity),
    }
    return networks, metadata


# Encoders


def _convert_litemedsam(files: Mapping[str, Path]) -> tuple[Networks, dict[str, Any]]:
    from ..networks.tinyvit import LITEMEDSAM

    file = files["encoder"]
    state = _state(read_checkpoint(file), file)
    prefix = "image_encoder."
    if any(name.startswith(prefix) for name in state):
        state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # The classifier of TinyViT's own training and caches of the attention bias; the encoder does not use them.
    state = {
        name: value
        for name, value in state.items()
        if not name.startswith(("head.", "norm_head.")) and not name.endswith((".attention_bias_idxs", ".ab"))
    }
    encoder = _fill("tinyvit", LITEMEDSAM, state, file, extra_allowed=False)
    return {"encoder": ("tinyvit", LITEMEDSAM, encoder)}, _encoder_format(256, 0, 64)


_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4", "9": "fc"}
"""Children of torchvision's ResNet by their place in a Sequential of all of them."""


def _torchvision_name(name: str) -> str:
    """A ResNet weight's name in torchvision, from any of the forms in which RadImageNet's weights go round."""
    for prefix in ("model.", "encoder.", "backbone."):
        name = name.removeprefix(prefix)
    child, _, rest = name.partition(".")
    return f"{_NUMBERED.get(child, child)}.{rest}"


def _convert_radimagenet(files: Mapping[str, Path]) -> tuple[Networks, dict[str, Any]]:
    file = files["encoder"]
    state = {_torchvision_name(name): value for name, value in _state(read_checkpoint(file), file).items()}
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    encoder = _fill("resnet", {}, state, file, extra_allowed=False)
    return {"encoder": ("resnet", {}, encoder)}, _encoder_format(224, -1, 7)


# SAM 2.1


def _convert_sam2(files: Mapping[str, Path], size: str) -> tuple[Networks, dict[str, Any]]:
    from .sam2_names import to_transformers

    file = files["weights"]
    state = {f"model.{name}": value for name, value in to_transformers(_read_weights(file)).items()}
    arguments = {"size": size}
    network = _fill("sam2", arguments, state, file, extra_allowed=False)
    return {"sam2": ("sam2", arguments, network)}, _encoder_format(1024, 0, 64)


def _read_weights(file: Path) -> State:
    """The weights of a safetensors file or a checkpoint, whatever its name ends in.

    Raises:
        GenSegError: if it is neither.
    """
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(file)
    except safetensors.SafetensorError:
        return _state(read_checkpoint(file), file)


def _encoder_format(size: int, minimum: int, features: int) -> dict[str, Any]:
    """MONAI's description of a 2D encoder that was trained on images of size x size pixels in [minimum, 1]."""
    image = {"type": "image", "format": "magnitude", "num_channels": 3, "spatial_shape": [size, size],
             "dtype": "float32", "value_range": [minimum, 1], "is_patch_data": False,
             "channel_def": {"0": "slice", "1": "slice", "2": "slice"}}
    output = {"type": "feature", "format": "features", "spatial_shape": [features, features], "dtype": "float32"}
    return {"network_data_format": {"inputs": {"image": image}, "outputs": {"features": output}}}


_ENCODER_IMAGE = {"modality": "any", "window_hu": None, "spacing_mm": None, "orientation": "LPS"}

IMPORTERS: dict[str, Importer] = {
    "maisi-rflow-ct": Importer(
        bundle_kind="flow",
        description="MAISI's autoencoder and velocity network for CT. They know whole scans on a grid that "
                    "check_maisi_grid accepts, along R, A, S.",
        # Spacings and field are GenSeg's choice for nodules; the weights themselves take any spacing.
        image={"modality": "CT", "window_hu": [-1000, 1000], "spacing_mm": None, "spacings_mm": [0.75, 1.5],
               "field_voxels": 64, "orientation": "RAS", "grid": "maisi-ct"},
        convert=_convert_maisi,
    ),
    "maisi-rflow-mr": Importer(
        bundle_kind="flow",
        description="MAISI's autoencoder and velocity network for MR. They know whole scans on a grid that "
                    "check_maisi_grid accepts, along R, A, S, with the range from the minimum to the 99.5th percentile "
                    "mapped to [0, 1] and not clipped.",
        image={"modality": "MR", "window_hu": None, "window_percentiles": [0, 99.5], "spacing_mm": None,
               "orientation": "RAS", "grid": "maisi-mr"},
        convert=_convert_maisi,
    ),
    "litemedsam-tinyvit": Importer(
        bundle_kind="encoder",
        description="LiteMedSAM's image encoder, a TinyViT: a slice whose longer side is 256 pixels, its intensities "
                    "scaled to [0, 1], as three equal channels, gives 256 features at stride 4.",
        image=_ENCODER_IMAGE,
        convert=_convert_litemedsam,
    ),
    "radimagenet-resnet50": Importer(
        bundle_kind="encoder",
        description="RadImageNet's ResNet-50 without its classifier: a slice of 224 x 224 pixels, its intensities "
                    "scaled to [-1, 1], as three equal channels, gives 2048 features at stride 32.",
        image=_ENCODER_IMAGE,
        convert=_convert_radimagenet,
    ),
    **{
        f"sam2.1-{size}": Importer(
            bundle_kind="sam2",
            description="SAM 2.1 of Meta: slices of 1024 x 1024 pixels, intensities scaled to [0, 1] and three equal "
                        "channels, with a memory of 64 channels at stride 16. A prior has to be trained for it.",
            image=_ENCODER_IMAGE,
            convert=functools.partial(_convert_sam2, size=size),
        )
        for size in ("hiera-tiny", "hiera-small", "hiera-base-plus", "hiera-large")
    },
}
"""What can be imported: kind -> how. The registry names the same kinds."""
