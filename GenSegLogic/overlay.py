"""``overlay.png``: a picture of results on the scan, for a look before anything else is opened."""

from __future__ import annotations

import io
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
class Spot:
    """Where a segment lies: its centre in LPS mm, its largest extent along the patient's axes in mm, its voxels."""

    segment: Segment
    centre: np.ndarray
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
    found = spots(segmentation)
    window = display_window(image)
    low, high = _bounds(image)
    focus = found[0].centre if found else (low + high) / 2
    nearest = close_up(found[0]) if found else None

    tiles: list[tuple[Volume, Plane, str, str]] = []  # volume, plane, title, title colour
    for view in (AXIAL, CORONAL, SAGITTAL):
        tiles.append((image, _full_view(view, image, focus), view.name, "white"))
    for spot in found[:_MAXIMUM_ZOOMS]:
        tiles.append((image, close_up(spot), spot.segment.name, _hex(spot.segment.color)))
    for stem, volume in results.volumes.items():
        if volume is image:
            continue  # a phantom's scan is both
        plane = nearest or _full_view(AXIAL, volume, focus)
        tiles.append((volume, plane, f"{stem} (SYNTHETIC)" if stem in results.synthetic else stem, "white"))

    rows = -(-len(tiles) // _COLUMNS)
    figure = Figure(figsize=(4 * _COLUMNS, 4 * rows + 0.5), dpi=100, facecolor="black", layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes in all_axes:
        axes.set_axis_off()
    for axes, (volume, plane, title, color) in zip(all_axes, tiles, strict=False):
        is_map = volume is not image and title in results.volumes  # a residual, a confidence: not an image
        limits = map_limits(volume) if is_map else window
        axes.imshow(plane.sample(volume, order=1), cmap="inferno" if is_map else "gray", vmin=limits[0], vmax=limits[1],
                    interpolation="nearest")
        axes.set_title(title, color=color, fontsize=11)
        if segmentation is not None:
            _draw_outlines(axes, segmentation, plane)
        _draw_directions(axes, plane)
    caption = " ".join(part for part in (results.summary, f"GenSeg {__version__}.", NOTICE) if part)
    figure.supxlabel(caption, color="#bbbbbb", fontsize=10)
    figure.savefig(path, facecolor="black", metadata={"Software": None})


def draw_layer(
    plane: Plane,
    volume: Volume | None = None,
    limits: tuple[float, float] = (0.0, 1.0),
    outlines: Sequence[tuple[Segmentation, tuple[float, float, float] | None]] = (),
    is_map: bool = False,
) -> bytes:
    """One plane as a PNG without margins, for pages that lay pictures over each other.

    Args:
        volume: what is shown, from ``limits[0]`` to ``limits[1]``; None: nothing, the picture is transparent.
        outlines: segmentations to outline, each in one colour, or in those of its segments (None).
        is_map: show a quantity (inferno) and not an image (grey).
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4 * plane.height_mm / plane.width_mm), dpi=100, facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    picture = np.zeros((2, 2)) if volume is None else plane.sample(volume, order=1)
    columns, rows = round(plane.width_mm / plane.pixel_mm), round(plane.height_mm / plane.pixel_mm)
    axes.imshow(picture, cmap="inferno" if is_map else "gray", vmin=limits[0], vmax=limits[1],
                alpha=0.0 if volume is None else 1.0, extent=(-0.5, columns - 0.5, rows - 0.5, -0.5))
    for segmentation, color in outlines:
        _draw_outlines(axes, segmentation, plane, color)
    if volume is None:
        _draw_directions(axes, plane)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def display_window(image: Volume) -> tuple[float, float]:
    """Lowest and highest value shown: the bulk of the voxels, without padding such as -3024 and without metal."""
    values = image.voxels[:: max(1, image.shape[0] // 64), ::4, ::4].astype(np.float32).ravel()
    if image.metadata.get("modality") == "CT" or values.min() < -500:
        values = np.clip(values, -1000, 1500)
    low, high = np.percentile(values, (1, 99.5))
    return float(low), float(max(high, low + 1e-6))


def map_limits(volume: Volume) -> tuple[float, float]:
    """Lowest and highest value shown of a residual or a confidence; 0 is always among them."""
    low, high = float(min(0, volume.voxels.min())), float(volume.voxels.max())
    return low, max(high, low + 1e-6)


def spots(segmentation: Segmentation | None) -> list[Spot]:
    """Segments with voxels, largest first."""
    from scipy.ndimage import find_objects

    if segmentation is None:
        return []
    labelmap = segmentation.labelmap
    boxes = find_objects(labelmap.voxels)
    found = []
    for segment in segmentation.segments:
        box = boxes[segment.label - 1] if segment.label <= len(boxes) else None
        if box is None:
            continue
        indices = np.argwhere(labelmap.voxels[box] == segment.label) + [part.start for part in box]
        points = labelmap.to_lps(indices[:, ::-1])
        extent = float(np.ptp(points, axis=0).max() + labelmap.spacing.max())
        found.append(Spot(segment, points.mean(axis=0), extent, len(indices)))
    return sorted(found, key=lambda spot: -spot.voxels)


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


def close_up(spot: Spot) -> Plane:
    """The axial plane through a spot, with something of its surroundings."""
    size = max(_MINIMUM_ZOOM_MM, 1.5 * spot.extent_mm)
    return Plane(AXIAL, spot.centre, size, size, size / _ZOOM_PIXELS)


def _draw_outlines(
    axes: Axes, segmentation: Segmentation, plane: Plane, color: tuple[float, float, float] | None = None
) -> None:
    labels = plane.sample(segmentation.labelmap, order=0)
    for segment in segmentation.segments:
        mask = labels == segment.label
        if mask.any() and not mask.all():
            axes.contour(mask, levels=[0.5], colors=[color or segment.color], linewidths=1.2)


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
