"""Writing networks into a bundle and loading them back. Imported only when networks are needed: it needs torch."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ..errors import GenSegError
from ..networks import build, dotted_target
from .bundle import INFERENCE_PATH, METADATA_PATH, Bundle, check_metadata, is_name, metadata_text, read_bundle, sha256
from .folders import replace_bundle


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle with its networks in memory: frozen, in evaluation mode, on one device.

    Attributes:
        bundle: what was loaded.
        networks: name -> network (``autoencoder``, ``velocity``, ``predictor``).
    """

    bundle: Bundle
    networks: dict[str, torch.nn.Module]


def load_bundle(
    bundle: Bundle, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> LoadedBundle:
    """Check every file's SHA-256, then build the networks and load their weights.

    The global random state is left as it was.

    Raises:
        GenSegError: naming the file that is damaged, or the network that does not fit its weights.
    """
    bundle.verify()
    networks, weights = _inference_parts(bundle)
    loaded = {}
    for name, config in networks.items():
        arguments = {key: value for key, value in config.items() if key != "_target_"}
        with torch.random.fork_rng(devices=[]):
            network = build(config["_target_"], arguments)
        _load_weights(network, bundle.folder / weights[name], bundle.name)
        loaded[name] = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    return LoadedBundle(bundle, loaded)


def _inference_parts(bundle: Bundle) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The networks' configs and weight files of ``inference.json``, checked.

    Raises:
        GenSegError: naming the file and what is wrong with it.
    """
    inference, where = bundle.inference, bundle.folder / INFERENCE_PATH
    networks, weights = inference.get("networks"), inference.get("weights")
    if not isinstance(networks, dict) or not isinstance(weights, dict) or set(networks) != set(weights):
        raise GenSegError(f"{where} must hold networks and weights with the same names.")
    for name, config in networks.items():
        if not isinstance(config, dict) or not isinstance(config.get("_target_"), str):
            raise GenSegError(f"{where}: the network {name} has no _target_.")
        file = weights[name]
        if not isinstance(file, str) or file not in bundle.metadata["files"] or not file.endswith(".safetensors"):
            raise GenSegError(f"{where}: the weights of {name} must be a listed .safetensors file, not {file!r}.")
    return networks, weights


def _load_weights(network: torch.nn.Module, file: Path, name: str) -> None:
    try:
        network.load_state_dict(safetensors.torch.load_file(file))
    except safetensors.SafetensorError as error:
        raise GenSegError(f"{file} is not a safetensors file: {error}.") from error
    except RuntimeError as error:  # torch lists every key that differs, a line each, under one heading
        reason = [*str(error).splitlines(), ""][1].strip() or str(error)
        raise GenSegError(f"{file} does not fit the network that the bundle {name} describes: {reason}") from error


def write_bundle(
    folder: Path,
    metadata: Mapping[str, Any],
    networks: Mapping[str, tuple[str, Mapping[str, Any], torch.nn.Module]],
    readme: str,
    licence: str,
) -> Bundle:
    """Write a bundle, whole or not at all; a bundle that lies in ``folder`` is replaced.

    Args:
        folder: the bundle's own folder; its last part should be the bundle's name.
        metadata: see :mod:`.bundle`; ``files``, ``digest``, the versions and ``network_data_format`` are filled in,
            ``version`` defaults to 1.0.0, ``training`` and ``metrics`` to empty, ``name`` to the folder's.
        networks: name -> (target of :data:`GenSegLogic.networks.TARGETS`, arguments as plain JSON, the network).
            Weights are stored in the precision that the network has.
        readme: the model card, Markdown.
        licence: the text of the licence file.

    Raises:
        GenSegError: if metadata is incomplete, a target is not on the allow-list, a network built from its arguments
            would not take the weights, or ``folder`` holds something other than a bundle.
    """
    folder = Path(folder).absolute()
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        _write_files(partial, networks, readme, licence)
        _write_metadata(partial, {"name": folder.name, **metadata})
        replace_bundle(partial, folder)
    except (OSError, safetensors.SafetensorError) as error:
        raise GenSegError(f"{folder} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_bundle(folder)


def _write_files(
    folder: Path,
    networks: Mapping[str, tuple[str, Mapping[str, Any], torch.nn.Module]],
    readme: str,
    licence: str,
) -> None:
    for part in ("configs", "models", "docs"):
        (folder / part).mkdir(parents=True)
    inference: dict[str, dict[str, Any]] = {"networks": {}, "weights": {}}
    for name, (target, arguments, network) in networks.items():
        if not is_name(name):
            raise GenSegError(f"{name!r} cannot name a network: use lower-case letters, digits and dashes.")
        # Through JSON and back, so that the check below sees what a reader will see (lists for tuples).
        config = json.loads(json.dumps({"_target_": dotted_target(target), **arguments}))
        state = {key: value.detach().cpu().contiguous().clone() for key, value in network.state_dict().items()}
        _check_rebuild(name, config, state)
        inference["networks"][name] = config
        inference["weights"][name] = f"models/{name}.safetensors"
        safetensors.torch.save_file(state, folder / "models" / f"{name}.safetensors", {"format": "pt"})
    (folder / INFERENCE_PATH).write_bytes((json.dumps(inference, indent=2) + "\n").encode())
    (folder / "docs" / "README.md").write_bytes(readme.encode())
    (folder / "LICENSE").write_bytes(licence.encode())


def _check_rebuild(name: str, config: dict[str, Any], state: Mapping[str, torch.Tensor]) -> None:
    arguments = {key: value for key, value in config.items() if key != "_target_"}
    with torch.random.fork_rng(devices=[]):
        expected = {key: value.shape for key, value in build(config["_target_"], arguments).state_dict().items()}
    if expected != {key: value.shape for key, value in state.items()}:
        raise GenSegError(f"The network {name} cannot be rebuilt from its target and arguments: the weights differ.")


def _write_metadata(folder: Path, metadata: Mapping[str, Any]) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    complete = {
        "version": "1.0.0",
        "network_data_format": _network_data_format(metadata.get("image", {})),
        "training": {},
        "metrics": {},
        **metadata,
        "monai_version": importlib.metadata.version("monai"),
        "pytorch_version": importlib.metadata.version("torch"),
        "numpy_version": importlib.metadata.version("numpy"),
        "files": {path: sha256(folder / path) for path in files if path != METADATA_PATH},
        "digest": "0" * 64,
    }
    check_metadata(complete, f"The metadata of {complete['name']}")
    (folder / METADATA_PATH).write_bytes(metadata_text(complete).encode())


def _network_data_format(image: Mapping[str, Any]) -> dict[str, Any]:
    """MONAI's description of the input: one channel, the window mapped to [0, 1]."""
    entry = {
        "type": "image",
        "format": "hounsfield" if image.get("window_hu") else "magnitude",
        "modality": image.get("modality"),
        "num_channels": 1,
        "spatial_shape": ["*", "*", "*"],
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {"0": "image"},
    }
    return {"inputs": {"image": entry}, "outputs": {}}
