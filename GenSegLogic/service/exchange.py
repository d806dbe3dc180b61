"""Volumes travel between client and service as .npy files, memory-mapped, in one private folder.

Only the service names files, at random; a client is told a path and never proposes one. Every file is looked at before
it is used: a plain file of exactly the promised size, header and type. No map stays open, so that a file can be deleted
at any time on Windows too.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
import tokenize
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import GenSegError

PREFIX = "genseg-exchange-"
OWNER_FILE = "owner.json"
CHUNK_BYTES = 8 << 20  # some 10 ms of copying, so that a window that writes chunk by chunk stays alive

# What numpy lets through when it parses a header that is not one.
_HEADER_ERRORS = (ValueError, KeyError, SyntaxError, TypeError, EOFError, RecursionError, MemoryError,
                  tokenize.TokenError)

DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32",
          "float64")


def byte_count(shape: Sequence[int], dtype: str) -> int:
    """Bytes of the voxels of an array, as an exact integer however large."""
    count = np.dtype(dtype).itemsize
    for length in shape:
        count *= int(length)
    return count


def writing(path: Path, array: np.ndarray) -> Iterator[float]:
    """Write ``array`` to ``path`` as .npy through a memory map, chunk by chunk; yields the fraction done.

    Raises:
        GenSegError: if the disk is full or the folder is gone.
    """
    try:
        _reserve(path, array)
        target = np.lib.format.open_memmap(path, mode="r+")
        try:
            slices = max(1, CHUNK_BYTES * len(array) // max(1, array.nbytes))
            for start in range(0, len(array), slices):
                target[start:start + slices] = array[start:start + slices]
                yield min(1.0, (start + slices) / len(array))
        finally:
            del target  # closes the map, so that the file can be deleted at once on Windows too
    except (OSError, ValueError) as error:  # mmap says ValueError where a file cannot grow
        raise GenSegError(f"The volume cannot be written to {path.parent}: {error}; make room there.") from error


def _reserve(path: Path, array: np.ndarray) -> None:
    """Create the file with its header and full size; a map written past the end of a full disk kills the process."""
    header = {"descr": np.lib.format.dtype_to_descr(array.dtype.newbyteorder("=")), "fortran_order": False,
              "shape": array.shape}
    if shutil.disk_usage(path.parent).free < array.nbytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(path, "xb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        size = stream.tell() + array.nbytes
        if hasattr(os, "posix_fallocate"):  # macOS and Windows have none; there the free space was at least looked at
            stream.flush()
            os.posix_fallocate(stream.fileno(), 0, size)
        else:
            stream.truncate(size)


def read(path: Path, shape: Sequence[int], dtype: str, what: str) -> np.ndarray:
    """Read an array into memory, after checking that the file is what was promised.

    It is read once, not mapped: what is checked is what is used, even if the other side changes the file afterwards.

    Raises:
        GenSegError: naming ``what``, if the file is missing or anything else than promised.
    """
    with _open_checked(path, shape, dtype, what) as stream:
        voxels = np.empty(tuple(shape), np.dtype(dtype))
        if stream.readinto(voxels.data.cast("B")) != voxels.nbytes:  # type: ignore[attr-defined]
            raise GenSegError(f"{what} was cut short while it was read; send it again.")
    return voxels


def check(path: Path, shape: Sequence[int], dtype: str, what: str) -> None:
    """Raise GenSegError unless the file is a plain one with exactly this header and size."""
    _open_checked(path, shape, dtype, what).close()


def _open_checked(path: Path, shape: Sequence[int], dtype: str, what: str) -> BinaryIO:
    """Open without following a link and leave the stream at the first voxel."""
    # O_NONBLOCK so that a named pipe put in the file's place cannot hold the service up.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if path.is_symlink():  # where there is no O_NOFOLLOW
            raise GenSegError(f"{what} is a link, which is not accepted; write the file itself.")
        stream = open(path, "rb", opener=lambda name, _flags: os.open(name, flags))  # noqa: SIM115 - the caller closes
    except FileNotFoundError as error:
        raise GenSegError(f"{what} is missing in the exchange folder; write its .npy file first.") from error
    except OSError as error:
        raise GenSegError(f"{what} cannot be opened: {error.strerror}.") from error
    try:
        _check_open(stream, tuple(shape), np.dtype(dtype), what)
    except BaseException:
        stream.close()
        raise
    return stream


def _check_open(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype, what: str) -> None:
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        raise GenSegError(f"{what} is not a plain file of its own; write the file itself.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy warns about headers of old versions before it refuses them
            version = np.lib.format.read_magic(stream)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            found_shape, fortran_order, found_dtype = readers[version](stream)
    except _HEADER_ERRORS as error:
        raise GenSegError(f"{what} is not a .npy file that can be read.") from error
    if (found_shape, found_dtype) != (shape, dtype) or (fortran_order and len(shape) > 1):
        order = " in Fortran order" if fortran_order else ""
        raise GenSegError(f"{what} holds {found_dtype} of shape {_brief(found_shape)}{order}, "
                          f"but {dtype} of shape {_brief(shape)} was announced.")
    expected = stream.tell() + byte_count(shape, dtype.name)
    if status.st_size != expected:
        raise GenSegError(f"{what} has {status.st_size} bytes, but its header promises {expected}; send it again.")


def _brief(shape: Sequence[int]) -> str:
    return "×".join(str(length) for length in shape[:6]) + ("…" if len(shape) > 6 else "")


class Exchange:
    """The service's private folder, one a process. Removed with everything in it when the service ends.

    A service that was killed cannot tidy up: the next one removes folders whose owner is gone.
    """

    def __init__(self) -> None:
        _sweep(Path(tempfile.gettempdir()))
        self.folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()  # readable by this user only
        (self.folder / OWNER_FILE).write_text(json.dumps({"pid": os.getpid(), "command": _command(os.getpid())}))

    def new_path(self) -> Path:
        """A path inside the folder that nobody can guess; the file does not exist yet."""
        return self.folder / f"{secrets.token_hex(16)}.npy"

    def free_bytes(self) -> int:
        """Free space on the folder's disk."""
        return shutil.disk_usage(self.folder).free

    def write(self, array: np.ndarray) -> Path:
        """Write an output; whole or not at all.

        Raises:
            GenSegError: if the disk is full.
        """
        path = self.new_path()
        try:
            for _fraction in writing(path, array):
                pass
        except BaseException:
            remove(path)
            raise
        return path

    def remove(self) -> None:
        """Delete the folder and everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete one file; on Windows one that is still open elsewhere is left to the folder's removal."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _command(pid: int) -> list[str] | None:
    """A process's command line, to tell it from a later one of the same number; None if it is gone or another user's.

    Not when it was started: that time moves when the clock is set.
    """
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return None


def _sweep(folder: Path) -> None:
    """Remove this user's exchange folders whose service was killed, for they hold patients' voxels."""
    for path in folder.glob(PREFIX + "*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # another user's, or already being removed
            if path.is_symlink() or (hasattr(os, "getuid") and path.stat().st_uid != os.getuid()):
                continue
            owner = json.loads((path / OWNER_FILE).read_text())
            pid = int(owner["pid"])
            # Our own number is a killed service's in a container that was started again, with the same command line.
            if pid == os.getpid() or _command(pid) != list(owner["command"]):
                shutil.rmtree(path, ignore_errors=True)
