"""Checking an NRRD's header: ITK gives an axis without a direction 1 mm of its own making."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import GenSegError
from .meta_image import unpacked_bytes


def read_nrrd_header(path: Path) -> dict[str, str]:
    """The header's fields, up to the empty line that ends it; key/value pairs (``key:=value``) are left out.

    Raises:
        GenSegError: if the header says that the voxels are in a file of their own, and that is not there.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        file.readline(1024)  # NRRD0005
        while line := file.readline(65536).decode("utf-8", "replace").strip():
            key, colon, value = line.partition(":")
            if colon and not value.startswith("="):
                fields[key.strip().lower()] = value.strip()
    data = fields.get("data file") or fields.get("datafile") or ""
    if data and data.split()[0] != "LIST" and "%" not in data and not (path.parent / data).is_file():
        raise GenSegError(f"{path} needs its voxel file {data}, which is not beside it; copy both into one folder.")
    return fields


def check_nrrd_axes(path: Path, fields: Mapping[str, str]) -> None:
    """Check that three axes have a direction in space.

    Args:
        path: the file, for the message.
        fields: what :func:`read_nrrd_header` returns, of a 3D volume.

    Raises:
        GenSegError: if one of them has none.
    """
    directions = fields.get("space directions")
    if directions is not None and sum(map(_is_direction, re.findall(r"none|\([^)]*\)", directions))) < 3:
        raise GenSegError(
            f"{path} does not say how large its voxels are along every axis (its space directions are {directions}); "
            "export it again."
        )


def check_nrrd_voxels(path: Path, count: int) -> None:
    """Check that the gzip stream behind an NRRD's header is whole and unpacks to ``count`` bytes.

    Raises:
        GenSegError: if it does not.
    """
    with path.open("rb") as file:
        while file.readline().strip():
            pass
        start = file.tell()
    if unpacked_bytes(path, start, path.stat().st_size - start) != count:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")


def _is_direction(text: str) -> bool:
    """Whether ``text`` is a vector of numbers such as ``(0.7,0,0)``; an axis that is none of space's has ``none``."""
    try:
        return all(math.isfinite(float(word)) for word in text.strip("()").split(","))
    except ValueError:
        return False
