"""LIDC-IDRI's reader contours: XML -> one voxel mask per nodule, by consensus of the readers.

Armato et al., "The Lung Image Database Consortium and Image Database Resource Initiative: a completed reference
database of lung nodules on CT scans", Medical Physics 38, 2011. A contour runs through the first pixels **outside** of
the nodule; pixels are counted from 0 at the upper left, x along the row.
"""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import GenSegError
from ..volume import Volume

_SERIES = re.compile(rb"<(?:\w+:)?SeriesInstanceU[iI][dD]>\s*([\d.]+)\s*<")


@dataclass(frozen=True)
class Consensus:
    """What the readers of one scan make of one nodule.

    Attributes:
        mask: boolean, in k, j, i order; the box around all readers' contours. Empty where too few readers agree.
        start_ijk: index of the box's first voxel in the scan.
        readers: how many of them outlined it.
    """

    mask: np.ndarray
    start_ijk: tuple[int, int, int]
    readers: int


@dataclass(frozen=True)
class _Outline:
    """One reader's nodule: voxels inside of the contours, as indices (n, 3) in k, j, i order."""

    reader: int
    voxels: np.ndarray


def index_contours(root: Path) -> dict[str, Path]:
    """Series UID -> LIDC XML file, for all below ``root``; the first by name where a series has two."""
    found: dict[str, Path] = {}
    for path in sorted(root.rglob("*.xml")):
        with path.open("rb") as file:
            match = _SERIES.search(file.read(8192))  # the header comes first; whole files have megabytes
        if match:
            found.setdefault(match.group(1).decode(), path)
    return found


def read_consensus(path: Path, scan: Volume, fraction: float = 0.5) -> list[Consensus]:
    """Read an XML file's nodules of 3 mm and more; outlines that share a voxel are one nodule.

    Args:
        path: the XML file.
        scan: its scan, in LIDC's own voxel order and axial.
        fraction: which part of all readers must have a voxel inside for it to count; in (0, 1].

    Returns:
        one mask per nodule, in order of the slices.

    Raises:
        GenSegError: if the file is damaged or does not fit the scan.
    """
    outlines, readers = _read_outlines(path, scan)
    return [_vote(group, math.ceil(fraction * readers - 1e-9)) for group in _group(outlines)]


def _read_outlines(path: Path, scan: Volume) -> tuple[list[_Outline], int]:
    """All readers' outlines with at least one voxel inside, and how many readers there are."""
    try:
        sessions = [element for element in ElementTree.parse(path).getroot() if _tag(element) == "readingSession"]
        outlines = []
        for reader, session in enumerate(sessions):
            for nodule in _children(session, "unblindedReadNodule"):
                voxels = _nodule_voxels(path, nodule, scan)
                if len(voxels):
                    outlines.append(_Outline(reader, voxels))
    except (ElementTree.ParseError, ValueError, StopIteration) as error:
        raise GenSegError(f"{path} is not a whole LIDC annotation; unpack LIDC-XML-only.zip again.") from error
    return outlines, len(sessions)


def _nodule_voxels(path: Path, nodule: ElementTree.Element, scan: Volume) -> np.ndarray:
    """The voxels (n, 3), k, j, i, inside of one reader's contours; none for a nodule under 3 mm, marked by a point."""
    included: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    excluded: defaultdict[int, set[tuple[int, int]]] = defaultdict(set)
    for roi in _children(nodule, "roi"):
        k = _slice_index(path, float(_text(roi, "imageZposition")), scan)
        edge = [(int(_text(point, "xCoord")), int(_text(point, "yCoord"))) for point in _children(roi, "edgeMap")]
        if not edge or (np.max(edge, axis=0) >= scan.shape[:0:-1]).any() or np.min(edge) < 0:
            raise GenSegError(f"{path} has a contour outside of {scan.name}; the two are not of the same scan.")
        inside, border = _fill(edge)
        if _text(roi, "inclusion").strip().upper() == "TRUE":
            included[k] |= inside
        else:  # a hole in the nodule; its edge is not nodule either
            excluded[k] |= inside | border
    return np.array(
        [(k, y, x) for k, pixels in sorted(included.items()) for x, y in sorted(pixels - excluded[k])], int
    ).reshape(-1, 3)


def _fill(edge: list[tuple[int, int]]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """The pixels (x, y) strictly inside of a closed contour, and those on it."""
    from scipy.ndimage import binary_fill_holes

    points = np.array(edge)
    low = points.min(axis=0)
    border = np.zeros(np.ptp(points, axis=0) + 1, bool)
    for start, end in zip(points, np.roll(points, -1, axis=0), strict=True):
        steps = max(1, int(np.abs(end - start).max()))
        line = np.rint(np.linspace(start, end, steps + 1)).astype(int) - low
        border[line[:, 0], line[:, 1]] = True
    # A chain of pixels that touch only at corners is closed for steps along the axes, so nothing leaks in.
    inside = binary_fill_holes(border) & ~border
    return _pixels(inside, low), _pixels(border, low)


def _pixels(marked: np.ndarray, low: np.ndarray) -> set[tuple[int, int]]:
    return {(int(x), int(y)) for x, y in np.argwhere(marked) + low}


def _slice_index(path: Path, position_mm: float, scan: Volume) -> int:
    """The slice whose centre lies at ``position_mm`` along the patient's S axis."""
    if abs(scan.affine[2, 2]) < 0.999 * scan.spacing[2]:
        raise GenSegError(f"{scan.name} is not axial, but LIDC's contours are; give the scan as LUNA16 ships it.")
    k = (position_mm - scan.affine[2, 3]) / scan.affine[2, 2]
    if not -0.5 <= k <= scan.shape[0] - 0.5 or abs(k - round(k)) > 0.25:
        raise GenSegError(f"{path} has a contour at {position_mm} mm, where {scan.name} has no slice.")
    return round(k)


def _group(outlines: list[_Outline]) -> Iterator[list[_Outline]]:
    """Outlines that share a voxel, directly or through others, in order of their first slice."""
    voxel_sets = [set(map(tuple, outline.voxels.tolist())) for outline in outlines]
    left = sorted(range(len(outlines)), key=lambda index: tuple(outlines[index].voxels.min(axis=0)))
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while it is walked
            touching = [index for index in left if voxel_sets[member] & voxel_sets[index]]
            group += touching
            left = [index for index in left if index not in touching]
        yield [outlines[index] for index in group]


def _vote(group: list[_Outline], needed: int) -> Consensus:
    """The voxels that at least ``needed`` readers have inside; a reader's split outlines count once."""
    everything = np.concatenate([outline.voxels for outline in group])
    low = everything.min(axis=0)
    shape = tuple(np.ptp(everything, axis=0) + 1)
    readers = {outline.reader for outline in group}
    votes = np.zeros(shape, int)
    for reader in readers:
        own = np.zeros(shape, bool)
        for outline in group:
            if outline.reader == reader:
                own[tuple((outline.voxels - low).T)] = True
        votes += own
    k, j, i = (int(index) for index in low)
    return Consensus(votes >= needed, (i, j, k), len(readers))


def _tag(element: ElementTree.Element) -> str:
    """An element's name without its namespace."""
    return element.tag.rpartition("}")[2]


def _children(element: ElementTree.Element, tag: str) -> Iterator[ElementTree.Element]:
    return (child for child in element if _tag(child) == tag)


def _text(element: ElementTree.Element, tag: str) -> str:
    return next(_children(element, tag)).text or ""
