"""What ITK's NIfTI reader does not check or does not tell.

ITK reads a sheared NIfTI without a word and returns the nearest rotation; it fills what is missing at the end of a
truncated one with whatever the memory held, and makes 0 of a NaN, which in a CT is water. So the few header fields that
matter, and the voxels' presence, are read here, before ITK prints its own lines about them.
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

_DATATYPE_BYTES = {
    2: 1, 4: 2, 8: 4, 16: 4, 32: 8, 64: 8, 128: 3, 256: 1, 512: 2, 768: 4, 1024: 8, 1280: 8, 1536: 16, 1792: 16,
    2048: 32, 2304: 4,
}  # fmt: skip
"""Bytes per voxel of NIfTI-1's datatype codes."""


@dataclass(frozen=True)
class NiftiHeader:
    """The fields of a NIfTI-1 header that place and measure the voxels.

    Attributes:
        header_path, data_path: the same file, or the ``.hdr`` and ``.img`` of a pair.
        byte_order: ``"<"`` or ``">"``.
        size: voxel counts along all axes.
        datatype: NIfTI's code.
        pixdim: pixdim[0..7]; pixdim[0] is the sign of the qform's third axis.
        offset: byte at which the voxels begin in ``data_path``.
        qform, sform: 4x4, ijk -> RAS mm; None where the header's code says that there is none.
    """

    header_path: Path
    data_path: Path
    byte_order: str
    size: tuple[int, ...]
    datatype: int
    pixdim: np.ndarray
    offset: int
    qform: np.ndarray | None
    sform: np.ndarray | None


def read_nifti_header(path: Path) -> NiftiHeader:
    """Read a NIfTI-1 header of either byte order, plain or gzip, one file or a pair.

    Raises:
        GenSegError: if there is none, half of a pair is missing, or it makes no sense: no voxels, a voxel size of
            zero, a sheared sform.
    """
    other = {".hdr": ".img", ".img": ".hdr", ".HDR": ".IMG", ".IMG": ".HDR"}.get(path.suffix)
    beside = path.with_suffix(other) if other else path
    if not beside.is_file():
        raise GenSegError(f"{path} needs {beside.name}, which is not beside it; copy both into one folder.")
    header_path, data_path = (path, beside) if path.suffix.lower() == ".hdr" else (beside, path)
    header = _start(header_path, 348)
    order = next((sign for sign in "<>" if header[:4] == struct.pack(sign + "i", 348)), "")
    if not order or len(header) < 348:
        raise GenSegError(f"{path} has no NIfTI-1 header; convert it to NRRD or NIfTI.")
    dim = struct.unpack_from(order + "8h", header, 40)
    datatype = struct.unpack_from(order + "h", header, 70)[0]
    offset = struct.unpack_from(order + "f", header, 108)[0]
    size = dim[1 : 1 + dim[0]]
    if header[344:347] == b"n+1" and offset < 352:  # ITK would read the header's last bytes as voxels
        raise GenSegError(f"{path} says that its voxels begin inside its header (vox_offset {offset:g}); correct it.")
    if not 1 <= dim[0] <= 7 or min(size) < 1 or datatype not in _DATATYPE_BYTES or not 0 <= offset < 2**31:
        raise GenSegError(f"{path} has a damaged header (its size or data type makes no sense); copy it again.")
    pixdim = np.array(struct.unpack_from(order + "8f", header, 76))
    qform_code, sform_code = struct.unpack_from(order + "2h", header, 252)
    if header[344:347] not in (b"n+1", b"ni1"):  # Analyze, from before there was either
        qform_code = sform_code = 0
    sform = np.eye(4)
    sform[:3] = np.reshape(struct.unpack_from(order + "12f", header, 280), (3, 4))
    quaternion = struct.unpack_from(order + "6f", header, 256)
    if not np.isfinite(pixdim[:4]).all() or (pixdim[1 : min(3, len(size)) + 1] == 0).any():
        raise GenSegError(f"{path} gives a voxel size of zero; correct pixdim in its header.")
    if qform_code > 0 and not (np.isfinite(quaternion).all() and np.linalg.norm(quaternion[:3]) < 1.01):
        raise GenSegError(f"{path} has a qform that is not a rotation; correct its header.")
    if sform_code > 0 and (not np.isfinite(sform).all() or (np.linalg.norm(sform[:3, :3], axis=0) == 0).any()):
        raise GenSegError(f"{path} has an sform with an axis of no length; correct its header.")
    if sform_code > 0 and shear(sform) > SHEAR_LIMIT:
        raise GenSegError(
            f"{path} has a sheared grid (its sform's axes are not at right angles); resample it to a straight one."
        )
    return NiftiHeader(
        header_path=header_path,
        data_path=data_path,
        byte_order=order,
        size=size,
        datatype=datatype,
        pixdim=pixdim,
        offset=int(offset),
        qform=_qform(quaternion, pixdim) if qform_code > 0 else None,
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
        GenSegError: if ITK followed neither qform nor sform, since pixdim contradicts them.
    """
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
    limit = 0.25 * float(np.abs(header.pixdim[1:4]).min())
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
    needed = math.prod(header.size) * _DATATYPE_BYTES[header.datatype]
    size = header.data_path.stat().st_size
    packed = _is_gzip(header.data_path)
    complete = size >= header.offset + needed
    marks: dict[int, np.ndarray] = {}
    if packed or (complete and item):
        done = 0
        try:
            with gzip.open(header.data_path) if packed else header.data_path.open("rb") as file:
                file.read(header.offset)
                while block := file.read(min(2**20, needed - done)):
                    if item:
                        finite = np.isfinite(np.frombuffer(block, f"{header.byte_order}f{item}", len(block) // item))
                        if not finite.all():
                            marks[done // item] = ~finite
                    done += len(block)
                complete = done == needed
                while file.read(2**20):  # to the checksum
                    pass
        except (EOFError, zlib.error):
            complete = False
        except gzip.BadGzipFile as error:  # behind the stream there may be anything, as for ITK
            complete = complete and str(error).startswith("Not a gzipped file")
    if not complete:
        raise GenSegError(f"{path} is truncated or damaged: its voxels are not all there; copy it again.")
    if not marks:
        return None
    bad = np.zeros(math.prod(header.size), bool)
    for first, mark in marks.items():
        bad[first : first + len(mark)] = mark
    return bad


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
