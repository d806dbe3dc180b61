"""``overlay.png``: a picture of results on the scan, for a look before anything else is opened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import __version__
from .provenance import NOTICE
from .results import Results, Segment, Segmentation
from .volume import Volume

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_MAXIMUM_ZOOMS = 9
_FULL_VIEW_PIXELS = 420
_ZOOM_PIXELS = 240
_MINIMUM_ZOOM_MM = 50.0


@dataclass(frozen=True)
class View:
    """An anatomical view as radiologists hang it: LPS directions to the right and down, letters at the four edges."""

    name: str
    right: tuple[float, float, float]
    down: tuple[float, float, float]
    letters: tuple[str, str, str, str]  # left, right, top, bottom edge


AXIAL = View("axial", (1, 0, 0), (0, 1, 0), ("R", "L", "A", "P"))
CORONAL = View("coronal", (1, 0, 0), (0, 0, -1), ("R", "L", "S", "I"))
SAGITTAL = View("sagittal", (0, 1, 0), (0, 0, -1), ("A", "P", "S", "I"))


@dataclass(frozen=True)
class Plane:
    """A rectangle in the patient: its centre in LPS mm, the view it is seen in, its size and pixel size in mm."""

    view: View
    centre: np.ndarray
    width_mm: float
    height_mm: float
    pixel_mm: float

    def sample(self, volume: Volume, order: int) -> np.ndarray:
        """Values of ``volume`` on the plane, rows x columns; outside: the volume's minimum, or 0 for ``order`` 0."""
        from scipy.ndimage import map_coordinates

        columns = max(2, round(self.width_mm / self.pixel_mm))
        rows = max(2, round(self.height_mm / self.pixel_mm))
        x = (np.arange(columns) - (columns - 1) / 2) * self.pixel_mm
        y = (np.arange(rows) - (rows - 1) / 2) * self.pixel_mm
        points = (self.centre + x[None, :, None] * np.array(self.view.right)
                  + y[:, None, None] * np.array(self.view.down))
        indices_kji = np.moveaxis(volume.to_indices(points)[..., ::-1], -1, 0)
        outside = 0.0 if order == 0 else float(volume.voxels.min())
        return map_coordinates(volume.voxels, indices_kji, np.float32, order, mode="constant", cval=outside,
                               prefilter=False)


@dataclass(frozen=True)
class _Finding:
    segment: Segment
    centre: np.ndarray  # LPS mm
    extent_mm: float
    voxels: int


def write_overlay(results: Results, image: Volume, path: Path) -> None:
    """Three views through the largest segment, a close-up of each, and what else came back, as one PNG.

    Every segment is outlined in its colour. Views lie along the patient's axes, whatever the scan's orientation, with
    letters for the directions and a bar for the scale.

    Args:
        image: the scan.
        path: the PNG file.
    """
    # Figure and canvas without pyplot: no global state, no window, and it works in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    segmentation = next(iter(results.segmentations.values()), None)
    findings = _findings(segmentation)
    window = display_window(image)
    low, high = _bounds(image)
    focus = findings[0].centre if findings else (low + high) / 2
    close_up = _close_up(findings[0], image) if findings else None

    tiles: list[tuple[Volume, Plane, str, str]] = []  # volume, plane, title, title colour
    for view in (AXIAL, CORONAL, SAGITTAL):
        tiles.append((image, _full_view(view, image, focus), view.name, "white"))
    for finding in findings[:_MAXIMUM_ZOOMS]:
        tiles.append((image, _close_up(finding, image), finding.segment.name, _hex(finding.segment.color)))
    for stem, volume in results.volumes.items():
        if volume is image:
            continue  # a phantom's scan is both
        plane = close_up or _full_view(AXIAL, volume, focus)
        tiles.append((volume, plane, f"{stem} (SYNTHETIC)" if stem in results.synthetic else stem, "white"))

    rows = -(-len(tiles) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 4 * rows + 0.5), dpi=100, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (volume, plane, title, color) in zip(all_axes, tiles, strict=False):
        is_map = volume is not image and title in results.volumes  # a residual, a confidence: not an image
        limits = _map_limits(volume) if is_map else window
        axes.imshow(plane.sample(volume, order=1), cmap="inferno" if is_map else "gray", vmin=limits[0], vmax=limits[1],
                    interpolation="nearest")
        axes.set_title(title, color=color, fontsize=11)
        if segmentation is not None:
            _draw_outlines(axes, segmentation, plane)
        _draw_directions(axes, plane)
    caption = " ".join(part for part in (results.summary, f"GenSeg {__version__}.", NOTICE) if part)
    figure.supxlabel(caption, color="#bbbbbb", fontsize=10)
    figure.savefig(path, facecolor="black", metadata={"Software": None})


def display_window(image: Volume) -> tuple[float, float]:
    """Lowest and highest value shown: the bulk of the voxels, without padding such as -3024 and without metal."""
    values = image.voxels[:: max(1, image.shape[0] // 64), ::4, ::4].astype(np.float32).ravel()
    if image.metadata.get("modality") == "CT" or values.min() < -500:
        values = np.clip(values, -1000, 1500)
    low, high = np.percentile(values, (1, 99.5))
    return float(low), float(max(high, low + 1e-6))


def _map_limits(volume: Volume) -> tuple[float, float]:
    low, high = float(min(0, volume.voxels.min())), float(volume.voxels.max())
    return low, max(high, low + 1e-6)


def _findings(segmentation: Segmentation | None) -> list[_Finding]:
    """Segments with voxels, largest first."""
    from scipy.ndimage import find_objects

    if segmentation is None:
        return []
    labelmap = segmentation.labelmap
    boxes = find_objects(labelmap.voxels.astype(np.int32, copy=False))
    found = []
    for segment in segmentation.segments:
        box = boxes[segment.label - 1] if segment.label <= len(boxes) else None
        if box is None:
            continue
        indices = np.argwhere(labelmap.voxels[box] == segment.label) + [part.start for part in box]
        points = labelmap.to_lps(indices[:, ::-1])
        extent = float(np.ptp(points, axis=0).max() + labelmap.spacing.max())
        found.append(_Finding(segment, points.mean(axis=0), extent, len(indices)))
    return sorted(found, key=lambda finding: -finding.voxels)


def _bounds(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest LPS coordinates of the volume's eight corners."""
    k, j, i = volume.shape
    corners = volume.to_lps(np.stack(np.meshgrid([0, i - 1], [0, j - 1], [0, k - 1]), -1).reshape(-1, 3))
    return corners.min(axis=0) - volume.spacing.max() / 2, corners.max(axis=0) + volume.spacing.max() / 2


def _full_view(view: View, volume: Volume, focus: np.ndarray) -> Plane:
    low, high = _bounds(volume)
    right, down = np.abs(view.right), np.abs(view.down)
    in_plane = (right + down).astype(bool)
    centre = np.where(in_plane, (low + high) / 2, focus)
    width, height = float((high - low) @ right), float((high - low) @ down)
    return Plane(view, centre, width, height, max(width, height) / _FULL_VIEW_PIXELS)


def _close_up(finding: _Finding, image: Volume) -> Plane:
    size = max(_MINIMUM_ZOOM_MM, 1.5 * finding.extent_mm)
    return Plane(AXIAL, finding.centre, size, size, size / _ZOOM_PIXELS)


def _draw_outlines(axes: Axes, segmentation: Segmentation, plane: Plane) -> None:
    labels = plane.sample(segmentation.labelmap, order=0)
    for segment in segmentation.segments:
        mask = labels == segment.label
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[segment.color], linewidths=1.2)


def _draw_directions(axes: Axes, plane: Plane) -> None:
    places: Sequence[tuple[float, float, str, str]] = (
        (0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center"), (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"))
    for letter, (x, y, horizontal, vertical) in zip(plane.view.letters, places, strict=True):
        axes.text(x, y, letter, color="#ffd75f", fontsize=10, ha=horizontal, va=vertical, transform=axes.transAxes)
    length = max(step for step in (1, 2, 5, 10, 20, 50, 100) if step <= max(1, plane.width_mm / 4))
    fraction = length / plane.width_mm
    axes.plot([0.04, 0.04 + fraction], [0.04, 0.04], color="white", linewidth=2, transform=axes.transAxes)
    axes.text(0.04, 0.055, f"{length} mm", color="white", fontsize=8, ha="left", va="bottom", transform=axes.transAxes)


def _hex(color: tuple[float, float, float]) -> str:
    return "#" + "".join(f"{round(255 * min(1, max(0, component))):02x}" for component in color)
