"""A bundle: one model in one folder, laid out as a MONAI bundle.

::

    <name>/configs/metadata.json    MONAI's keys, and ours: kind, image, files with their SHA-256, licence, training
    <name>/configs/inference.json   how to build every network: an allow-listed ``_target_`` and its arguments
    <name>/models/*.safetensors     the weights; no other form is ever read
    <name>/docs/README.md           the model card
    <name>/LICENSE

This module reads and checks bundles without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import GenSegError

METADATA_PATH = "configs/metadata.json"
INFERENCE_PATH = "configs/inference.json"

MONAI_KEYS = ("version", "monai_version", "pytorch_version", "numpy_version", "task", "description",
              "network_data_format")
GENSEG_KEYS = ("name", "kind", "image", "files", "training", "metrics", "licence", "commercial_use", "source", "digest")
IMAGE_KEYS = ("modality", "window_hu", "spacing_mm", "orientation")
LATENT_KEYS = ("channels", "downsampling", "scale_factor")

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Bundle:
    """A bundle whose metadata has been read and found complete; its files are not checked before :meth:`verify`.

    Attributes:
        name: the word that finds it (``chest-flow``).
        folder: where it lies.
        metadata: ``configs/metadata.json``.
    """

    name: str
    folder: Path
    metadata: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """What it is for: ``flow``, ``predictor`` and so on."""
        return self.metadata["kind"]

    @property
    def digest(self) -> str:
        """SHA-256 that names exactly this model: over its metadata, which holds the SHA-256 of every other file."""
        return self.metadata["digest"]

    @property
    def inference(self) -> dict[str, Any]:
        """``configs/inference.json``.

        Raises:
            GenSegError: if the file is missing or no JSON.
        """
        return read_json(self.folder / INFERENCE_PATH)

    @property
    def size_bytes(self) -> int:
        """Size of all its files that are present."""
        paths = [self.folder / path for path in (METADATA_PATH, *self.metadata["files"])]
        return sum(path.stat().st_size for path in paths if path.is_file())

    def verify(self, remedy: str = "") -> None:
        """Compare every file with its SHA-256, the metadata with the digest.

        Args:
            remedy: what the message says to do; "": fetch or import the bundle again.

        Raises:
            GenSegError: naming the first file that is missing or has changed.
        """
        again = remedy or f"fetch or import the bundle {self.name} again"
        if _metadata_digest(self.folder / METADATA_PATH, self.digest) != self.digest:
            raise GenSegError(f"{self.folder / METADATA_PATH} has changed since the bundle was written; {again}.")
        for path, expected in self.metadata["files"].items():
            file = self.folder / path
            if not file.is_file():
                raise GenSegError(f"{file} is missing; {again}.")
            if sha256(file) != expected:
                raise GenSegError(f"{file} is damaged or has been changed (its SHA-256 differs); {again}.")


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's metadata.

    Raises:
        GenSegError: if ``folder`` is no bundle or its metadata is incomplete, in one sentence.
    """
    folder = Path(folder).absolute()
    path = folder / METADATA_PATH
    if not path.is_file():
        raise GenSegError(f"{folder} is not a bundle: it has no {METADATA_PATH}.")
    metadata = read_json(path)
    check_metadata(metadata, str(path))
    return Bundle(metadata["name"], folder, metadata)


def check_metadata(metadata: Mapping[str, Any], where: str) -> None:
    """Raise GenSegError, naming ``where``, unless all keys are there and those that decide how a scan is read fit."""
    _require(metadata, (*MONAI_KEYS, *GENSEG_KEYS), where, "")
    for key in ("image", "files", "training", "metrics", "network_data_format"):
        _check(isinstance(metadata[key], dict), where, key, "must be an object")
    for key in ("kind", "task", "description", "licence", "source"):
        _check(isinstance(metadata[key], str) and bool(metadata[key]), where, key, "must be a text")
    _check(is_name(metadata["name"]), where, "name", "must be lower-case letters, digits and dashes")
    _check(isinstance(metadata["commercial_use"], bool), where, "commercial_use", "must be true or false")
    _check(bool(_SHA256.fullmatch(str(metadata["digest"]))), where, "digest", "must be a SHA-256")
    _check_image(metadata["image"], where)
    if metadata["kind"] == "flow":
        _check_flow(metadata, where)
    if metadata["kind"] == "organs":
        _check_organs(metadata, where)
    for file, digest in metadata["files"].items():
        _check(is_inside(file), where, f"files: {file}", "must be a path inside the bundle")
        _check(bool(_SHA256.fullmatch(str(digest))), where, f"files: {file}", "must have a SHA-256")
    _check(INFERENCE_PATH in metadata["files"], where, "files", f"must list {INFERENCE_PATH}")


def _check_image(image: Mapping[str, Any], where: str) -> None:
    _require(image, IMAGE_KEYS, where, "image.")
    window, spacing = image["window_hu"], image["spacing_mm"]
    _check(window is None or (_is_numbers(window, 2) and window[0] < window[1]), where, "image.window_hu",
           "must be two rising numbers, or null where intensities have no unit")
    _check(spacing is None or (_is_numbers(spacing, 3) and min(spacing) > 0), where, "image.spacing_mm",
           "must be three positive numbers, or null where the model takes any spacing")
    _check(image["orientation"] in ("LPS", "RAS"), where, "image.orientation", "must be LPS or RAS")


def _check_flow(metadata: Mapping[str, Any], where: str) -> None:
    latent, image = metadata.get("latent", {}), metadata["image"]
    _check(isinstance(latent, dict), where, "latent", "must be an object, for this is a flow")
    _require(latent, LATENT_KEYS, where, "latent.")
    for key in ("channels", "downsampling"):
        _check(_is_count(latent[key]), where, f"latent.{key}", "must be a whole number above 0")
    _check(_is_numbers([latent["scale_factor"]]) and latent["scale_factor"] > 0, where, "latent.scale_factor",
           "must be a number above 0")
    _check(_is_count(image.get("field_voxels", 1)), where, "image.field_voxels", "must be a whole number above 0")
    spacings = image.get("spacings_mm") or [1]
    _check(_is_numbers(spacings) and min(spacings) > 0, where, "image.spacings_mm", "must be positive numbers")


def _check_organs(metadata: Mapping[str, Any], where: str) -> None:
    sam2, organs, image = metadata.get("sam2"), metadata.get("organs"), metadata["image"]
    _check(isinstance(sam2, dict) and is_name(sam2.get("name")) and bool(_SHA256.fullmatch(str(sam2.get("digest")))),
           where, "sam2", "must give the name and the digest of the bundle of SAM 2 that the organs were learned with")
    _check(isinstance(organs, (list, tuple)) and bool(organs) and all(isinstance(organ, str) for organ in organs),
           where, "organs", "must be the names of one organ or more")
    _require(image, ("size", "slice_mm"), where, "image.")
    _check(_is_count(image["size"]), where, "image.size", "must be a whole number above 0")
    slices = image["slice_mm"]
    _check(_is_numbers(slices, 2) and 0 < slices[0] <= slices[1], where, "image.slice_mm",
           "must be two positive numbers, the smaller one first")
    _check(image["spacing_mm"] is not None, where, "image.spacing_mm", "must be three positive numbers, for organs")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_numbers(value: Any, count: int | None = None) -> bool:
    """Whether ``value`` is a list of finite numbers: ``count`` of them, else one or more."""
    if not isinstance(value, (list, tuple)) or not (len(value) == count if count else value):
        return False
    # Compared, for a whole number that no float can hold makes math.isfinite fail.
    return all(isinstance(number, (int, float)) and not isinstance(number, bool) and abs(number) <= sys.float_info.max
               for number in value)


def _require(mapping: Mapping[str, Any], keys: tuple[str, ...], where: str, prefix: str) -> None:
    missing = [prefix + key for key in keys if key not in mapping]
    if missing:
        raise GenSegError(f"{where} lacks {', '.join(missing)}.")


def _check(condition: bool, where: str, key: str, rule: str) -> None:
    if not condition:
        raise GenSegError(f"{where}: {key} {rule}.")


def is_name(name: Any) -> bool:
    """Whether ``name`` may name a bundle; such a name is also a safe folder name on every system."""
    return isinstance(name, str) and bool(_NAME.fullmatch(name)) and not name.endswith(".")


def is_inside(path: str) -> bool:
    """Whether a relative path with forward slashes stays inside its folder, on Windows too."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not re.search(r"[\\:\x00-\x1f]", path)


def sha256(file: Path) -> str:
    """SHA-256 of a file as 64 hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _metadata_digest(file: Path, digest: str) -> str:
    """SHA-256 of a metadata file in which its own digest is replaced by zeros."""
    return hashlib.sha256(file.read_bytes().replace(digest.encode(), _NO_DIGEST.encode())).hexdigest()


def metadata_text(metadata: Mapping[str, Any]) -> str:
    """The text of ``configs/metadata.json``, with its digest filled in."""
    text = json.dumps({**metadata, "digest": _NO_DIGEST}, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return text.replace(_NO_DIGEST, hashlib.sha256(text.encode()).hexdigest())


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        GenSegError: naming the file, if it cannot be read or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise GenSegError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise GenSegError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise GenSegError(f"{file} does not hold a JSON object.")
    return content


def seal_bundle(folder: Path) -> Bundle:
    """Write all hashes anew after a deliberate change, such as metrics added to the metadata or a better model card.

    Raises:
        GenSegError: if ``folder`` is no bundle or its metadata is incomplete.
    """
    bundle = read_bundle(folder)
    files = {path: sha256(bundle.folder / path) for path in bundle.metadata["files"]}
    partial = bundle.folder / "configs" / f".metadata.{uuid.uuid4().hex[:8]}"
    partial.write_bytes(metadata_text({**bundle.metadata, "files": files}).encode())
    os.replace(partial, bundle.folder / METADATA_PATH)
    return read_bundle(folder)
