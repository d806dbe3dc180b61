"""The volumes that clients have sent."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GenSegError
from ..volume import SHEAR_LIMIT, Volume, shear
from . import exchange

VOLUME_LIMIT_BYTES = 8 << 30
TOTAL_LIMIT_BYTES = 32 << 30
COUNT_LIMIT = 256


class TooLarge(GenSegError):
    """A volume beyond the limits."""


@dataclass(eq=False)  # each is itself; comparing their arrays has no truth value
class StoredVolume:
    """A volume that a client has announced; its voxels are in ``path`` once the client has written them."""

    shape: tuple[int, int, int]
    dtype: str
    affine: np.ndarray
    name: str
    metadata: Mapping[str, Any]
    path: Path
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    touched: float = field(default_factory=time.time)

    @property
    def bytes(self) -> int:
        """Size of the voxels."""
        return exchange.byte_count(self.shape, self.dtype)

    def check(self) -> None:
        """Raise GenSegError unless the client has written exactly what it announced."""
        exchange.check(self.path, self.shape, self.dtype, f"The volume {self.name}")

    def read(self) -> Volume:
        """The volume, read into memory.

        Raises:
            GenSegError: as :meth:`check`, or if a voxel is no finite number.
        """
        voxels = exchange.read(self.path, self.shape, self.dtype, f"The volume {self.name}")
        if voxels.dtype.kind == "f" and not np.isfinite(voxels).all():
            raise GenSegError(f"The volume {self.name} has voxels that are not finite (NaN or infinity); replace them.")
        return Volume(voxels, self.affine, self.name, dict(self.metadata))


class VolumeStore:
    """Announced volumes by id, within limits of size and number."""

    def __init__(self, folder: exchange.Exchange, limit_bytes: int = VOLUME_LIMIT_BYTES) -> None:
        self._exchange = folder
        self._limit_bytes = limit_bytes
        self._volumes: dict[str, StoredVolume] = {}
        self._lock = threading.Lock()

    def announce(
        self,
        shape: Sequence[int],
        dtype: str,
        affine: Sequence[Sequence[float]],
        name: str,
        metadata: Mapping[str, Any],
    ) -> StoredVolume:
        """Make room for a volume.

        Raises:
            TooLarge: if it is larger than allowed, or the disk is too full.
            GenSegError: if its description makes no volume.
        """
        name = "".join(letter if letter.isprintable() else " " for letter in name).strip()[:200] or "volume"
        if len(shape) != 3 or min(shape) < 1:
            raise GenSegError(f"The volume {name} must have three dimensions of at least 1 voxel.")
        if dtype not in exchange.DTYPES:
            raise GenSegError(f"The volume {name} has a voxel type that is none of {', '.join(exchange.DTYPES)}.")
        size = exchange.byte_count(shape, dtype)
        with self._lock:
            used = sum(volume.bytes for volume in self._volumes.values())
            if size > self._limit_bytes:
                raise TooLarge(f"The volume {name} has {size >> 20} MB, but at most {self._limit_bytes >> 20} MB are "
                               "accepted; crop it.")
            if used + size > TOTAL_LIMIT_BYTES or len(self._volumes) >= COUNT_LIMIT:
                raise TooLarge("The service holds too many volumes already; delete some of them.")
            if size > self._exchange.free_bytes():
                raise TooLarge(f"The volume {name} needs {size >> 20} MB, more than its disk has free; make room "
                               "there.")
            volume = StoredVolume((shape[0], shape[1], shape[2]), dtype, _checked_affine(affine, name), name, metadata,
                                  self._exchange.new_path())
            self._volumes[volume.id] = volume
        return volume

    def get(self, volume_id: str) -> StoredVolume | None:
        """The volume of that id."""
        volume = self._volumes.get(volume_id)
        if volume is not None:
            volume.touched = time.time()
        return volume

    def delete(self, volume: StoredVolume) -> None:
        """Forget a volume and delete its file."""
        with self._lock:
            self._volumes.pop(volume.id, None)
        exchange.remove(volume.path)

    def untouched_since(self, moment: float) -> list[StoredVolume]:
        """Volumes that nobody has asked for since ``moment`` (seconds since the epoch)."""
        with self._lock:
            return [volume for volume in self._volumes.values() if volume.touched < moment]


def _checked_affine(affine: Sequence[Sequence[float]], name: str) -> np.ndarray:
    if [len(row) for row in affine] != [4, 4, 4, 4]:
        raise GenSegError(f"The volume {name} must have an affine of 4 by 4 numbers.")
    matrix = np.asarray(affine, float)
    if not np.isfinite(matrix).all() or not np.array_equal(matrix[3], [0, 0, 0, 1]):
        raise GenSegError(f"The volume {name} has an affine that is not finite or does not end in 0, 0, 0, 1.")
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if not np.isfinite(lengths).all() or lengths.min() <= 0 or shear(matrix) > SHEAR_LIMIT:
        raise GenSegError(f"The volume {name} has an affine that is sheared or whose axes have no length; resample it.")
    return matrix
