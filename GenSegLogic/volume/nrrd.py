"""Checking an NRRD's header: ITK gives an axis without a direction 1 mm of its own making and takes any unit as mm."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import GenSegError
from .meta_image import unpacked_bytes

_MILLIMETRES = {"", "mm", "millimeter", "millimeters", "millimetre", "millimetres"}

_MOST_UNPACKED = {"raw": 1, "hex": 1, "gzip": 1032, "gz": 1032}
"""Bytes of voxels that one byte of a file can hold at most, where NRRD's encoding tells."""


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
    data = _data_file(fields)
    if data and data.split()[0] != "LIST" and "%" not in data and not (path.parent / data).is_file():
        raise GenSegError(f"{path} needs its voxel file {data}, which is not beside it; copy both into one folder.")
    return fields


def check_nrrd_axes(path: Path, fields: Mapping[str, str]) -> list[str]:
    """Check that three axes have a direction in space, in mm.

    Args:
        path: the file, for the message.
        fields: what :func:`read_nrrd_header` returns, of a 3D volume.

    Returns:
        sentences for the user about what is doubtful.

    Raises:
        GenSegError: if one of them has none, or it is not in mm.
    """
    units = fields.get("space units") or fields.get("units") or ""
    other = [unit for unit in re.findall(r'"([^"]*)"', units) if unit.strip().lower() not in _MILLIMETRES]
    if other:
        raise GenSegError(f"{path} gives its voxel size in {other[0]}, but must give it in mm; convert its header.")
    directions = fields.get("space directions")
    if directions is not None and sum(map(_is_direction, re.findall(r"none|\([^)]*\)", directions))) < 3:
        raise GenSegError(
            f"{path} does not say how large its voxels are along every axis (its space directions are {directions}); "
            "export it again."
        )
    if directions is None and sum(map(_is_direction, fields.get("spacings", "").split())) < 3:
        return [f"{path} does not say how large its voxels are along every axis; 1 mm was taken, a guess."]
    return []


def check_nrrd_size(path: Path, fields: Mapping[str, str], count: int) -> None:
    """Check that ``count`` bytes of voxels may be in the file: ITK makes room for all of them before it looks.

    Raises:
        GenSegError: if it is too short.
    """
    voxels = path.parent / _data_file(fields) if _data_file(fields) else path
    most = _MOST_UNPACKED.get(fields.get("encoding", "").lower(), math.inf)
    if voxels.is_file() and voxels.stat().st_size * most < count:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")


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


def _data_file(fields: Mapping[str, str]) -> str:
    """Where a header says that the voxels are; "" if they are behind it."""
    return fields.get("data file") or fields.get("datafile") or ""


def _is_direction(text: str) -> bool:
    """Whether ``text`` is a number or a vector such as ``(0.7,0,0)``; an axis that is none of space's has ``none``."""
    try:
        return all(math.isfinite(float(word)) for word in text.strip("()").split(","))
    except ValueError:
        return False
