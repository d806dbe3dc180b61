"""What ITK's readers do not check or do not tell: NIfTI's two affines, and files that end too early.

ITK reads a sheared NIfTI without a word and returns the nearest rotation; it fills what is missing at the end of a
truncated one with whatever the memory held. So the few header fields that matter are read here.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import GenSegError
from .grid import SHEAR_LIMIT, shear

_ELEMENT_BYTES = {
    "CHAR": 1,
    "UCHAR": 1,
    "SHORT": 2,
    "USHORT": 2,
    "INT": 4,
    "UINT": 4,
    "FLOAT": 4,
    "DOUBLE": 8,
    "LONG_LONG": 8,
    "ULONG_LONG": 8,
}
"""Bytes of MetaImage's element types; ``LONG`` is left out, since its size depends on the machine that wrote it."""


def check_nifti(path: Path, affine: np.ndarray, shape_kji: tuple[int, ...]) -> list[str]:
    """Compare a NIfTI-1 file's own header with what ITK made of it.

    Args:
        path: ``.nii``, ``.nii.gz`` or the ``.hdr`` or ``.img`` of a pair.
        affine: ijk -> LPS mm as ITK gives it.
        shape_kji: voxel counts, to measure how far two affines are apart.

    Returns:
        sentences for the user about what is doubtful.

    Raises:
        GenSegError: if the file is truncated, the voxel size zero, or the affine sheared or contradictory.
    """
    data_path = path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path
    header_path = path.with_suffix(".hdr") if path.suffix.lower() == ".img" else path
    header = _start(header_path, 348)
    order = "<" if len(header) == 348 and struct.unpack("<i", header[:4])[0] == 348 else ">"
    if len(header) < 348 or struct.unpack(order + "i", header[:4])[0] != 348:
        raise GenSegError(f"{path} has no NIfTI-1 header; convert it to NRRD or NIfTI.")
    dim = struct.unpack(order + "8h", header[40:56])
    bits = struct.unpack(order + "h", header[72:74])[0]
    pixdim = np.array(struct.unpack(order + "8f", header[76:108]))
    offset = struct.unpack(order + "f", header[108:112])[0]
    is_nifti = header[344:347] in (b"n+1", b"ni1")

    needed = math.prod(dim[1 : 1 + dim[0]]) * bits // 8 + (int(offset) if data_path == header_path else 0)
    if _length(data_path) < needed:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")
    if not np.isfinite(pixdim[1:4]).all() or (pixdim[1:4] == 0).any():
        raise GenSegError(f"{path} gives a voxel size of zero; correct pixdim in its header.")

    qform_code, sform_code = struct.unpack(order + "2h", header[252:256]) if is_nifti else (0, 0)
    if qform_code <= 0 and sform_code <= 0:
        return [
            f"{path} does not say how it lies in the patient (qform and sform are 0), "
            "so its position and its left and right are guesses."
        ]
    candidates = {}
    if sform_code > 0:
        sform = np.eye(4)
        sform[:3] = np.reshape(struct.unpack(order + "12f", header[280:328]), (3, 4))
        if not np.isfinite(sform).all() or (np.linalg.norm(sform[:3, :3], axis=0) == 0).any():
            raise GenSegError(f"{path} has an sform with an axis of no length; correct its header.")
        if shear(sform) > SHEAR_LIMIT:
            raise GenSegError(
                f"{path} has a sheared grid (its sform's axes are not at right angles); resample it to a straight one."
            )
        candidates["sform"] = sform
    if qform_code > 0:
        quaternion = struct.unpack(order + "6f", header[256:280])
        candidates["qform"] = _qform(quaternion, pixdim)
    corners = _corners(shape_kji)
    distances = {name: _distance(to_ras @ corners, affine @ corners) for name, to_ras in candidates.items()}
    limit = 0.25 * float(np.abs(pixdim[1:4]).min())
    used = next((name for name, distance in distances.items() if distance < limit), None)
    if used is None:
        raise GenSegError(
            f"{path} contradicts itself about its voxel size or its axes (pixdim, qform, sform); correct its header."
        )
    if max(distances.values()) >= limit:
        other = "sform" if used == "qform" else "qform"
        return [f"{path} gives two positions; its {used} was followed, as 3D Slicer does, and not its {other}."]
    return []


def check_meta_image(path: Path) -> None:
    """Check that a MetaImage's voxels are all there, since MetaIO prints its own lines when they are not.

    Raises:
        GenSegError: if header lines or voxels are missing.
    """
    with path.open("rb") as file:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = file.readline(65536)
            key, equals, value = line.decode("utf-8", "replace").partition("=")
            if not equals:
                break
            fields[key.strip()] = value.strip()
        header_bytes = file.tell()
    missing = [key for key in ("NDims", "DimSize", "ElementType", "ElementDataFile") if not fields.get(key)]
    if missing:
        raise GenSegError(f"{path} is not a whole MetaImage: its header lacks {missing[0]}; copy it again.")
    data = fields["ElementDataFile"]
    if data.split()[0] == "LIST" or "%" in data:
        return
    local = data.upper() == "LOCAL"
    data_path = path if local else path.parent / data
    if not data_path.is_file():
        raise GenSegError(f"{path} needs its voxel file {data}, which is not beside it; copy both into one folder.")
    element = _ELEMENT_BYTES.get(fields["ElementType"].upper().removeprefix("MET_"))
    try:
        if fields.get("CompressedData", "").lower() == "true":
            needed = int(fields.get("CompressedDataSize", 0))
        elif element:
            channels = int(fields.get("ElementNumberOfChannels", 1))
            needed = math.prod(int(count) for count in fields["DimSize"].split()) * channels * element
        else:
            return
    except ValueError as error:
        raise GenSegError(f"{path} has a MetaImage header with a size that is not a number; correct it.") from error
    if data_path.stat().st_size - (header_bytes if local else 0) < needed:
        raise GenSegError(f"{path} is truncated: its voxels end before the size in its header; copy it again.")


def _start(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked if it is gzip."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            return file.read(count)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""


def _length(path: Path) -> int:
    """Bytes in a file, unpacked if it is gzip; 0 if the gzip stream is cut short or its checksum is wrong."""
    with path.open("rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path.stat().st_size
    total, buffer = 0, bytearray(2**20)
    try:
        with gzip.open(path) as packed:
            while count := packed.readinto(buffer):
                total += count
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return 0
    return total


def _qform(quaternion: tuple[float, ...], pixdim: np.ndarray) -> np.ndarray:
    """NIfTI-1 method 2: quaternion b, c, d, offset x, y, z and pixdim -> 4x4, ijk -> RAS mm."""
    b, c, d = quaternion[:3]
    a = math.sqrt(max(0.0, 1 - b * b - c * c - d * d))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    handedness = -1 if pixdim[0] < 0 else 1
    affine[:3, :3] = rotation * np.abs(pixdim[1:4]) * (1, 1, handedness)
    affine[:3, 3] = quaternion[3:]
    return affine


def _corners(shape_kji: tuple[int, ...]) -> np.ndarray:
    """The grid's eight corners as homogeneous columns (4, 8)."""
    corners = np.meshgrid(*[(0, count - 1) for count in shape_kji[::-1]], [1])
    return np.array(corners, float).reshape(4, -1)


def _distance(ras: np.ndarray, lps: np.ndarray) -> float:
    """Largest distance in mm between points (4, n) in RAS and the same points in LPS."""
    return float(np.linalg.norm((ras * [[-1], [-1], [1], [1]] - lps)[:3], axis=0).max())
