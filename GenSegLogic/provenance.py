"""The record of how a result was made: enough to make it again, and to know whether it has been made already."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .task import Task
from .volume import Volume

FILE_NAME = "provenance.json"
BEFORE = "before"
"""Key of a record that holds those of other tasks whose results are in the same folder."""
NOTICE = "Research software; not for clinical use."
_DIGEST = "digest"
_NO_DIGEST = "0" * 64


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Name, grid and the SHA-256 of the voxels: what identifies an input."""
    voxels = np.ascontiguousarray(volume.voxels)
    return {
        "name": volume.name,
        "shape_kji": list(voxels.shape),
        "affine_ijk_to_lps_mm": np.asarray(volume.affine, float).tolist(),
        "voxel_type": str(voxels.dtype),
        "sha256": hashlib.sha256(voxels.data.cast("B")).hexdigest(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that shape the numbers; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in ("torch", "monai", "transformers", "numpy", "scipy", "SimpleITK"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def record(task: Task, volumes: Mapping[str, Volume]) -> dict[str, Any]:
    """What is known before a task runs; the engine adds bundles, device, precision, times and messages."""
    return {
        "genseg": __version__,
        "notice": NOTICE,
        "task": task.name,
        "parameters": plain(task.describe()),
        "seed": task.seed,
        "inputs": {role: describe_volume(volume) for role, volume in volumes.items()},
        "versions": versions(),
    }


def to_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file, with a SHA-256 over the rest of them, by which :func:`read` sees an edit."""
    text = json.dumps(plain({**record, _DIGEST: _NO_DIGEST}), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A file name that is no Unicode reads back as it was: JSON knows a backslash and four digits for such a letter.
    blank = text.encode("utf-8", "backslashreplace")
    before, after = blank.rsplit(_NO_DIGEST.encode(), 1)  # it comes last, and elsewhere zeros are meant
    return before + hashlib.sha256(blank).hexdigest().encode() + after


def read(directory: Path) -> dict[str, Any] | None:
    """The record in ``directory``; None when there is none that is as GenSeg has written it."""
    try:
        content = (Path(directory) / FILE_NAME).read_bytes()
        found = json.loads(content)
        return found if isinstance(found, dict) and to_bytes(found) == content else None
    except (OSError, ValueError, RecursionError):
        return None


def made_by(record: Mapping[str, Any]) -> str:
    """What made the files of a record: the name of a task, the kind of a phantom, or a command (``batch nodules``)."""
    return str(record.get("task") or record.get("phantom") or record.get("command") or "")


def records(directory: Path) -> dict[str, dict[str, Any]]:
    """What made the files in ``directory`` (see :func:`made_by`) -> its latest record."""
    last = read(directory)
    if last is None:
        return {}
    del last[_DIGEST]  # which is that of the file
    return {**last.pop(BEFORE, {}), made_by(last): last}


def same_request(found: Mapping[str, Any] | None, task: Task) -> bool:
    """Whether ``found`` records this task with these parameters, made by this version of GenSeg."""
    if found is None or found.get("genseg") != __version__ or found.get("task") != task.name:
        return False
    return found.get("parameters") == plain(task.describe())


def plain(value: Any) -> Any:
    """``value`` as JSON can hold it: arrays and tuples as lists, numpy scalars as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    return str(value)
