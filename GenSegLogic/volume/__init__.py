"""Volumes: voxels with the affine that places them in the patient; reading, writing, resampling, cropping, pasting."""

from .files import read_volume, write_volume
from .grid import (
    SHEAR_LIMIT,
    Volume,
    canonical_grid,
    crop,
    geometry,
    paste,
    resample,
    resample_like,
    shear,
    to_image,
)

__all__ = [
    "SHEAR_LIMIT",
    "Volume",
    "canonical_grid",
    "crop",
    "geometry",
    "paste",
    "read_volume",
    "resample",
    "resample_like",
    "shear",
    "to_image",
    "write_volume",
]
