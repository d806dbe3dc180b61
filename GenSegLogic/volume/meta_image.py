"""Checking a MetaImage before ITK reads it: MetaIO prints its own lines about a damaged one, or overruns its memory."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np

from ..errors import GenSegError

_ELEMENT_BYTES = {
    "CHAR": 1, "UCHAR": 1, "ASCII_CHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4, "DOUBLE": 8,
    "LONG_LONG": 8, "ULONG_LONG": 8, "LONG": 4, "ULONG": 4,
}  # fmt: skip
"""Bytes of MetaImage's element types; MetaIO keeps 4 bytes for a long on every machine."""


def check_meta_image(path: Path) -> list[str]:
    """Check that a MetaImage's header makes sense and its voxels are all there.

    Returns:
        sentences for the user about what is doubtful.

    Raises:
        GenSegError: naming what is missing or wrong.
    """
    fields, header_bytes = _read_header(path)
    missing = [key for key in ("NDims", "DimSize", "ElementType", "ElementDataFile") if not fields.get(key)]
    if missing:
        raise GenSegError(f"{path} is not a whole MetaImage: its header lacks {missing[0]}; copy it again.")
    dimension = int(_numbers(path, fields, "NDims", 1)[0])
    if not 1 <= dimension <= 5:
        raise GenSegError(f"{path} has a damaged MetaImage header (NDims is {fields['NDims']}); copy it again.")
    for key in ("Offset", "Position", "Origin", "CenterOfRotation", "ElementSize", "ElementSpacing"):
        _numbers(path, fields, key, dimension)
    for key in ("TransformMatrix", "Rotation", "Orientation"):
        _numbers(path, fields, key, dimension**2)
    sizes = _numbers(path, fields, "DimSize", dimension)
    channels = _numbers(path, fields, "ElementNumberOfChannels", 1) if "ElementNumberOfChannels" in fields else [1]
    element = _ELEMENT_BYTES.get(fields["ElementType"].upper().removeprefix("MET_").removesuffix("_ARRAY"))
    if element is None or min(*sizes, *channels) < 1:
        raise GenSegError(f"{path} has a damaged MetaImage header (its size or type makes no sense); copy it again.")
    if "BinaryData" in fields and not _is_true(fields["BinaryData"]):
        raise GenSegError(f"{path} keeps its voxels as text; convert it to one NRRD or MetaImage file of numbers.")
    unit = fields.get("DistanceUnits", "?").lower()
    if unit not in ("?", "mm"):
        raise GenSegError(f"{path} gives its voxel size in {unit}, but must give it in mm; convert its header.")
    needed = math.prod(int(count) for count in [*sizes, *channels]) * element

    data = fields["ElementDataFile"]
    if data.split()[0] == "LIST" or "%" in data:
        raise GenSegError(f"{path} keeps its voxels in one file per slice; convert it to one NRRD or MetaImage file.")
    local = data.upper() == "LOCAL"
    data_path = path if local else path.parent / data
    if not data_path.is_file():
        raise GenSegError(f"{path} needs its voxel file {data}, which is not beside it; copy both into one folder.")
    skipped = (_numbers(path, fields, "HeaderSize", 1) or [0])[0]  # -1: the voxels end with the file
    start = int(skipped) if skipped > 0 else header_bytes if local else 0
    available = data_path.stat().st_size - start
    if _is_true(fields.get("CompressedData", "")):
        packed = _numbers(path, fields, "CompressedDataSize", 1) or [available]
        complete = 0 < packed[0] <= available and unpacked_bytes(data_path, start, int(packed[0])) == needed
    else:
        complete = available >= needed
    if not complete:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")
    if "ElementSpacing" not in fields and "ElementSize" not in fields:
        return [f"{path} does not say how large its voxels are; 1 mm was taken, a guess."]
    return []


def _read_header(path: Path) -> tuple[dict[str, str], int]:
    """The header's fields, and its length in bytes."""
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in fields:
            line = file.readline(65536).decode("utf-8", "replace")
            key, equals, value = line.partition("=")
            if not equals:
                break
            if not (key.isascii() and key.strip().isprintable()):
                raise GenSegError(f"{path} has a damaged MetaImage header (a field without a name); copy it again.")
            fields[key.strip()] = value.strip()
        return fields, file.tell()


def _is_true(text: str) -> bool:
    """Whether MetaIO takes it for true: by the first letter."""
    return text[:1] in ("T", "t", "1")


def _numbers(path: Path, fields: dict[str, str], key: str, count: int) -> list[float]:
    """The numbers in a field; none if there is no such field."""
    try:
        numbers = [float(word) for word in fields[key].split()] if key in fields else []
    except ValueError:
        numbers = [math.nan]
    if key in fields and (len(numbers) != count or not np.isfinite(numbers).all()):
        raise GenSegError(f"{path} has a damaged MetaImage header ({key} is not {count} numbers); copy it again.")
    return numbers


def unpacked_bytes(path: Path, start: int, length: int) -> int:
    """Bytes in the zlib or gzip stream of ``length`` bytes at byte ``start`` of a file; -1 if it is damaged or cut."""
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    total = 0
    try:
        with path.open("rb") as file:
            file.seek(start)
            while not unpacker.eof and (block := file.read(min(length, 2**18))):
                total += len(unpacker.decompress(block))
                length -= len(block)
    except zlib.error:
        return -1
    return total if unpacker.eof else -1
