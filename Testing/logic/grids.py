"""Grids in every orientation, and what is drawn on them from a function of patient space."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from GenSegLogic.volume import Volume

ORIENTATIONS = ("LPS", "RAS", "oblique", "left-handed")


def affine_in(orientation: str, spacing_mm: tuple[float, float, float], shape_kji: tuple[int, int, int]) -> np.ndarray:
    """Affine of a grid whose middle lies at (10, -20, 30) LPS mm."""
    direction = {
        "LPS": np.eye(3),
        "RAS": np.diag([-1.0, -1.0, 1.0]),
        "left-handed": np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]),
        "oblique": _rotation(0.4, 0.25),
    }[orientation]
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing_mm
    affine[:3, 3] = np.array([10.0, -20.0, 30.0]) - affine[:3, :3] @ ((np.array(shape_kji[::-1]) - 1) / 2)
    return affine


def draw(function: Callable[[np.ndarray], np.ndarray], orientation: str, spacing_mm: tuple[float, float, float],
         shape_kji: tuple[int, int, int], dtype: type = np.float32) -> Volume:
    """A volume with the values of ``function`` at its voxels' centres, given as points (..., 3) in LPS mm."""
    empty = Volume(np.zeros(shape_kji, dtype), affine_in(orientation, spacing_mm, shape_kji), f"{orientation}.nrrd")
    indices = np.moveaxis(np.indices(shape_kji), 0, -1)[..., ::-1]
    return empty.with_voxels(function(empty.to_lps(indices)).astype(dtype))


def soft_ball(
    center: tuple[float, float, float], radius_mm: float, inside: float, outside: float, soft_mm: float = 1.0
) -> Callable[[np.ndarray], np.ndarray]:
    """A function of points: ``inside`` within the ball, ``outside`` beyond, an edge of width ``soft_mm``."""

    def value(points: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(points - np.array(center), axis=-1) - radius_mm
        return outside + (inside - outside) * np.clip(0.5 - distance / soft_mm, 0, 1)

    return value


def _rotation(about_s: float, about_l: float) -> np.ndarray:
    c, s = np.cos(about_s), np.sin(about_s)
    first = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(about_l), np.sin(about_l)
    return first @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
