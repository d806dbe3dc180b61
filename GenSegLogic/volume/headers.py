"""What ITK's readers do not check or do not tell: NIfTI's two affines, and files that end too early.

ITK reads a sheared NIfTI without a word and returns the nearest rotation; it fills what is missing at the end of a
truncated one with whatever the memory held, and makes 0 of a NaN, which in a CT is water. So the few header fields that
matter, and the voxels' presence, are read here.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass
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


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a NIfTI-1 header that place and measure the voxels.

    Attributes:
        header_path, data_path: the same file, or the ``.hdr`` and ``.img`` of a pair.
        byte_order: ``"<"`` or ``">"``.
        size: voxel counts along all axes.
        datatype, bits: NIfTI's code, and bits per voxel.
        pixdim: pixdim[0..7]; pixdim[0] is the sign of the qform's third axis.
        offset: byte at which the voxels begin in ``data_path``.
        qform, sform: 4x4, ijk -> RAS mm; None where the header's code says that there is none.
    """

    header_path: Path
    data_path: Path
    byte_order: str
    size: tuple[int, ...]
    datatype: int
    bits: int
    pixdim: np.ndarray
    offset: int
    qform: np.ndarray | None
    sform: np.ndarray | None


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read a NIfTI-1 header of either byte order, plain or gzip, one file or a pair.

    Raises:
        GenSegError: if there is none.
    """
    data_path = path.with_suffix(".img") if path.suffix.lower() == ".hdr" else path
    header_path = path.with_suffix(".hdr") if path.suffix.lower() == ".img" else path
    header = _start(header_path, 348)
    order = next((sign for sign in "<>" if header[:4] == struct.pack(sign + "i", 348)), "")
    if not order or len(header) < 348:
        raise GenSegError(f"{path} has no NIfTI-1 header; convert it to NRRD or NIfTI.")
    dim = struct.unpack_from(order + "8h", header, 40)
    pixdim = np.array(struct.unpack_from(order + "8f", header, 76))
    qform_code, sform_code = struct.unpack_from(order + "2h", header, 252)
    if header[344:347] not in (b"n+1", b"ni1"):  # Analyze, from before there was either
        qform_code = sform_code = 0
    sform = np.eye(4)
    sform[:3] = np.reshape(struct.unpack_from(order + "12f", header, 280), (3, 4))
    return NiftiHeader(
        header_path=header_path,
        data_path=data_path,
        byte_order=order,
        size=dim[1 : 1 + dim[0]],
        datatype=struct.unpack_from(order + "h", header, 70)[0],
        bits=struct.unpack_from(order + "h", header, 72)[0],
        pixdim=pixdim,
        offset=int(struct.unpack_from(order + "f", header, 108)[0]),
        qform=_qform(struct.unpack_from(order + "6f", header, 256), pixdim) if qform_code > 0 else None,
        sform=sform if sform_code > 0 else None,
    )


def check_nifti_grid(path: Path, header: NiftiHeader, affine: np.ndarray, shape_kji: tuple[int, ...]) -> list[str]:
    """Compare a NIfTI-1 header with what ITK made of it.

    Args:
        path: for messages.
        header: of the file.
        affine: ijk -> LPS mm as ITK gives it.
        shape_kji: voxel counts, to measure how far two affines are apart.

    Returns:
        sentences for the user about what is doubtful.

    Raises:
        GenSegError: if the voxel size is zero, or the affine sheared or contradictory.
    """
    spacing = np.abs(header.pixdim[1:4])
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise GenSegError(f"{path} gives a voxel size of zero; correct pixdim in its header.")
    if header.sform is not None:
        if not np.isfinite(header.sform).all() or (np.linalg.norm(header.sform[:3, :3], axis=0) == 0).any():
            raise GenSegError(f"{path} has an sform with an axis of no length; correct its header.")
        if shear(header.sform) > SHEAR_LIMIT:
            raise GenSegError(
                f"{path} has a sheared grid (its sform's axes are not at right angles); resample it to a straight one."
            )
    candidates = {"sform": header.sform, "qform": header.qform}
    corners = _corners(shape_kji)
    distances = {
        name: _distance(to_ras @ corners, affine @ corners) for name, to_ras in candidates.items() if to_ras is not None
    }
    if not distances:
        return [
            f"{path} does not say how it lies in the patient (qform and sform are 0), "
            "so its position and its left and right are guesses."
        ]
    limit = 0.25 * float(spacing.min())
    followed = [name for name, distance in distances.items() if distance < limit]
    if not followed:
        raise GenSegError(
            f"{path} contradicts itself about its voxel size or its axes (pixdim, qform, sform); correct its header."
        )
    if len(followed) < len(distances):
        return [f"{path} gives two positions, qform and sform; its {followed[0]} was followed, as 3D Slicer does."]
    return []


def check_nifti_voxels(path: Path, header: NiftiHeader) -> np.ndarray | None:
    """Read through a NIfTI-1 file's voxels, which ITK takes as complete, and in which it makes 0 of every NaN.

    Returns:
        which voxels are NaN or infinite (flat, in the file's order, which is that of k, j, i); None if none is.

    Raises:
        GenSegError: if the file ends before its voxels do, or its gzip stream is damaged.
    """
    item = {16: 4, 64: 8}.get(header.datatype)  # float32, float64
    needed = math.prod(header.size) * header.bits // 8
    size = header.data_path.stat().st_size
    packed = _is_gzip(header.data_path)
    complete = size >= header.offset + needed
    marks: dict[int, np.ndarray] = {}
    if packed or (complete and item):
        done = 0
        try:
            with gzip.open(header.data_path) if packed else header.data_path.open("rb") as file:
                file.read(header.offset)
                while block := file.read(2**20):
                    if item:
                        count = max(0, min(len(block), needed - done)) // item
                        finite = np.isfinite(np.frombuffer(block, f"{header.byte_order}f{item}", count))
                        if not finite.all():
                            marks[done // item] = ~finite
                    done += len(block)
            complete = done >= needed
        except (EOFError, zlib.error, gzip.BadGzipFile):
            complete = False
    if not complete:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")
    if not marks:
        return None
    bad = np.zeros(math.prod(header.size), bool)
    for first, mark in marks.items():
        bad[first : first + len(mark)] = mark
    return bad


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


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _start(path: Path, count: int) -> bytes:
    """The first bytes of a file, unpacked if it is gzip; b"" if they cannot be."""
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            return file.read(count)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        return b""


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
