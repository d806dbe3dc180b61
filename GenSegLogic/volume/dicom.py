"""Reading DICOM: one series out of a folder of slices, or one multi-frame file. Pixels are decoded by SimpleITK (GDCM).

The grid is made here from the position and orientation of every slice or frame, since ITK's series reader trusts the
first two, and its reader of multi-frame files the first.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GenSegError
from .dicom_elements import INTERCEPT, ORIENTATION, PIXEL_SPACING, POSITION, SLOPE, DicomElements, read_elements
from .grid import SHEAR_LIMIT, Volume, scale_problem, shear
from .names import check_name, printable

if TYPE_CHECKING:
    import SimpleITK

STEP_TOLERANCE = 0.05
"""How far, in slice steps, a slice may lie from its place in an even stack: rounding in the header, not a gap."""

AXES_TOLERANCE = 2e-3
"""How far the products of two unit vectors at right angles may be from 1 and 0: rounding in the header."""

_ANY_CLASS = re.compile(rb"\x02\x00\x02\x00UI..1\.2\.", re.DOTALL)
"""A file's SOP class (0002,0002), whichever."""

_IMAGE_CLASSES = re.compile(
    rb"\x02\x00\x02\x00UI..1\.2\.840\.10008\.5\.1\.4\.1\.1\.(2|4|128)(\.1|\.2)?\x00?\x02", re.DOTALL
)
"""A file's SOP class (0002,0002) where it is CT, MR or PET, classic or enhanced."""

_UNREADABLE = {
    "1.2.840.10008.1.2.4.10": "MPEG video",
    "1.2.840.10008.1.2.4.11": "JPEG XL",
    "1.2.840.10008.1.2.4.20": "High-Throughput JPEG 2000",
}
"""Compressions that GDCM does not know, by the beginning of their transfer syntaxes."""

_TRUNCATED = "is truncated or damaged; copy the series again"


@dataclass(frozen=True)
class _Slice:
    """The header of one file: a slice, or several frames.

    Attributes:
        places: affines (frames, 4, 4) of single slices: ijk -> LPS mm, of which k has no length of its own.
        rescaled: whether it says what its numbers mean, in HU if it is a CT.
        problem: why it cannot be a part of a volume, and what to do, for a message after its name; "" if it can.
    """

    path: Path
    series: str
    number: str
    description: str
    modality: str
    uid: str
    size: tuple[int, int, int]
    components: int
    pixel_type: int
    places: np.ndarray
    rescaled: bool
    problem: str


def read_dicom_folder(folder: Path, series: str | int | None = None) -> Volume:
    """Read one series from a folder and its sub-folders.

    Args:
        folder: where the slices lie; other files are passed over.
        series: UID or series number; None takes the CT, MR or PET series with the most voxels, or else the largest.

    Raises:
        GenSegError: if there is no such series, or it is not one straight, even stack of scalar slices.
    """
    groups: dict[str, list[_Slice]] = {}
    others: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            header = _read_header(path) if path.is_file() else None  # a named pipe would never end
            if header is None:
                others.append(path)
            elif header.modality != "SEG":
                groups.setdefault(header.series, []).append(header)
    if not groups:
        raise GenSegError(f"{folder} holds no DICOM images; give a folder of DICOM slices, or an image file.")

    repairs = []
    if series is not None:
        wanted = str(series).strip()
        chosen = [uid for uid, slices in groups.items() if wanted in (uid, slices[0].number)]
        if len(chosen) != 1:
            how_many = "several series" if chosen else "no series"
            raise GenSegError(f"{folder} holds {how_many} {wanted!r}; choose one of: {_list(groups)}.")
        uid = chosen[0]
    else:
        uid = max(sorted(groups), key=lambda uid: _rank(groups[uid]))
        if len(groups) > 1:
            repairs.append(
                f"{folder} holds {len(groups)} series; the largest scan was taken, {_label(groups[uid])}; "
                "choose another by its number or UID."
            )
    where = str(folder) if len(groups) == 1 else f"{folder}, series {uid or 'without UID'},"
    extensions = {header.path.suffix.lower() for header in groups[uid]} - {""}
    if damaged := [path for path in others if _may_be_a_slice(path, extensions)]:
        rest = f" and {len(damaged) - 1} more in {folder}" if len(damaged) > 1 else ""
        repairs.append(
            f"{printable(damaged[0])}{rest} cannot be read and may be damaged slices: what was read lacks them; "
            "copy the series again."
        )
    try:
        volume = _read_stack(where, groups[uid], repairs)
    except GenSegError as error:
        if len(groups) == 1:
            raise
        raise GenSegError(f"{str(error).removesuffix('.')} ({folder} holds {_list(groups)}).") from error
    return Volume(volume.voxels, volume.affine, folder.name or str(folder), volume.metadata)


def read_dicom_file(path: Path) -> Volume:
    """Read one multi-frame DICOM file.

    Raises:
        GenSegError: for a single slice, a DICOM segmentation, or frames that are not one straight, even stack.
    """
    header = _read_header(path)
    if header is None:
        raise GenSegError(f"{path} is a DICOM file without an image; give a folder of DICOM slices.")
    if header.modality == "SEG":
        raise GenSegError(f"{path} is a DICOM segmentation, not a scan; convert it to NRRD in 3D Slicer first.")
    if header.size[2] < 2:
        raise GenSegError(f"{path} is a single DICOM slice; give the folder that holds the whole series.")
    return _read_stack(str(path), [header], [])


def read_dicom_slices(paths: Sequence[Path], name: str) -> tuple[Volume, list[Path]]:
    """Read slices that are known to be one stack, whatever their series UIDs say.

    Args:
        paths: one file per slice, in any order.
        name: of the volume, for messages as well.

    Returns:
        the volume, and the files in the order of its slices.

    Raises:
        GenSegError: if a file is no DICOM image, or they are not one straight, even stack of scalar slices.
    """
    headers = [_read_header(path) for path in paths]
    slices = [header for header in headers if header is not None]
    if len(slices) < max(1, len(paths)):
        bad = next((path for path, header in zip(paths, headers, strict=True) if header is None), "no file")
        raise GenSegError(f"{name}: {bad} is not a DICOM image; copy the series again.")
    volume = _read_stack(name, slices, [])
    slices.sort(key=lambda header: volume.to_indices(header.places[0, :3, 3])[2])
    return volume, [header.path for header in slices]


def _read_stack(where: str, slices: list[_Slice], repairs: list[str]) -> Volume:
    """Check, sort and read the slices of one series."""
    import SimpleITK

    first = slices[0]
    if any(header.components != 1 for header in slices):
        raise GenSegError(f"{where} holds colour images, but must hold one number per voxel; choose another series.")
    unique = list({header.uid or str(header.path): header for header in slices}.values())
    if len(unique) < len(slices):
        repairs.append(f"{where} holds {len(slices) - len(unique)} copies of slices; they were left out.")
        slices = unique
    if problem := next((f"{header.path} {header.problem}" for header in slices if header.problem), ""):
        raise GenSegError(f"{problem}.")
    order, affine = _stack(where, slices)
    shape = (len(order), first.size[1], first.size[0])
    if min(shape) < 2:
        raise GenSegError(f"{where} holds a single slice, but must hold a volume; choose another series.")
    if problem := scale_problem(affine, shape):
        raise GenSegError(f"{where} {problem}; export it again.")
    if shear(affine) > SHEAR_LIMIT:
        raise GenSegError(f"{where} has image axes that are not at right angles; export the original series.")

    voxels = np.empty(shape, _common_type(slices))
    rank = np.argsort(order)  # of every frame, in the stack
    for header in slices:
        reader = _reader(header.path)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise GenSegError(f"{header.path} {_TRUNCATED}.") from error
        frames, rank = np.split(rank, [header.size[2]])
        voxels[frames] = SimpleITK.GetArrayViewFromImage(image)
    if first.modality == "CT" and not all(header.rescaled for header in slices) and voxels.min() >= 0:
        repairs.append(
            f"{where} is a CT that does not say how its numbers become HU (no RescaleSlope) and has none below 0, "
            "so they may not be HU; export the original series."
        )
    metadata: dict[str, Any] = {"repairs": repairs, "series": first.series}
    if first.modality:
        metadata["modality"] = first.modality
    return Volume(voxels, affine, Path(where).name, metadata)


def _stack(where: str, slices: Sequence[_Slice]) -> tuple[np.ndarray, np.ndarray]:
    """The order of all slices and frames along their normal, as indices, and the affine of the stack."""
    places = np.concatenate([header.places for header in slices])
    multi_frame = len(places) > len(slices)
    keep = "export its frames as single slices and keep" if multi_frame else "keep"
    in_plane = places[0, :3, :2]
    same_axes = np.allclose(places[:, :3, :2], in_plane, rtol=0, atol=1e-3)
    if not same_axes or any(header.size[:2] != slices[0].size[:2] for header in slices):
        raise GenSegError(
            f"{where} mixes images of different orientation or size in one series; "
            f"{keep} those of one stack in the folder."
        )
    normal = np.cross(in_plane[:, 0], in_plane[:, 1])
    normal /= np.linalg.norm(normal)
    origins = places[:, :3, 3]
    order = np.argsort(origins @ normal, kind="stable")
    origins = origins[order]
    if len(places) < 2:
        raise GenSegError(f"{where} holds a single slice, but must hold a volume; choose another series.")

    heights = origins @ normal
    levels, repeats = np.unique(np.round(heights, 3), return_counts=True)
    if len(levels) < len(heights):
        detail = (
            f"4D, {repeats[0]} images at every position"
            if len(levels) > 1 and (repeats == repeats[0]).all()
            else "several images at one position"
        )
        raise GenSegError(f"{where} is not one volume ({detail}); {keep} one image for each position in the folder.")
    step = (heights[-1] - heights[0]) / (len(heights) - 1)
    even = heights[0] + step * np.arange(len(heights))
    gaps = np.diff(heights)
    if np.abs(heights - even).max() > STEP_TOLERANCE * step or np.ptp(gaps) > 2 * STEP_TOLERANCE * step:
        raise GenSegError(
            f"{where} has unevenly spaced slices (steps from {gaps.min():.3g} to {gaps.max():.3g} mm), "
            "perhaps because some are missing; export the whole series."
        )
    drift = origins - origins[0] - np.outer(heights - heights[0], normal)
    if np.linalg.norm(drift, axis=1).max() > 0.5 * np.linalg.norm(in_plane, axis=0).min():
        tilt = np.degrees(np.arctan2(np.linalg.norm(drift[-1]), heights[-1] - heights[0]))
        raise GenSegError(
            f"{where} was scanned with a tilted gantry ({tilt:.1f} degrees), so its grid is sheared; "
            "resample it to a straight one in 3D Slicer."
        )
    affine = np.eye(4)
    affine[:3, :2] = in_plane
    affine[:3, 2] = normal * step
    affine[:3, 3] = origins[0]
    return order, affine


def _reader(path: Path) -> SimpleITK.ImageFileReader:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    return reader


def _read_header(path: Path) -> _Slice | None:
    """The header of a DICOM image, or None if the file is none.

    Raises:
        GenSegError: if the file is a CT, MR or PET image that cannot be read; a stack without it would be too short.
    """
    with path.open("rb") as file:
        start = file.read(1024)
    is_scan = start[128:132] == b"DICM" and _IMAGE_CLASSES.search(start)
    if printable(path) != str(path):
        if is_scan:
            check_name(path)
        return None
    elements = read_elements(path)
    for syntax, compression in _UNREADABLE.items():  # GDCM would try, and print its own lines
        if elements.syntax.startswith(syntax):
            if is_scan:
                raise GenSegError(f"{path} is compressed as {compression}; export it uncompressed or as JPEG 2000.")
            return None
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        if is_scan:
            raise GenSegError(f"{path} is a truncated or damaged DICOM image; copy the series again.") from error
        return None

    def field(tag: str) -> str:
        value = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
        return value.strip(" \0").encode("utf-8", "replace").decode()

    size = (*reader.GetSize(), 1, 1)[:3]
    places, problem = np.empty((0, 4, 4)), ""
    try:
        if size[2] > 1 or elements.of_frames[POSITION]:  # an enhanced file may hold one frame
            places = _frame_places(elements, size[2])
        else:
            places = _slice_place(field("0020|0032"), field("0020|0037"), field("0028|0030"))[None]
    except ValueError as error:
        problem = str(error)
    bits = field("0028|0100")
    if bits.isdecimal() and elements.voxel_bytes is not None and 8 * elements.voxel_bytes < math.prod(size) * int(bits):
        problem = _TRUNCATED  # where the voxels end, GDCM goes on with what the memory held
    elif field("0028|0004") == "MONOCHROME1":  # GDCM turns the numbers round, before it rescales them
        problem = "shows low values bright (MONOCHROME1), which GenSeg does not read; export it as MONOCHROME2"
    return _Slice(
        path=path,
        series=field("0020|000e"),
        number=field("0020|0011"),
        description=field("0008|103e"),
        modality=field("0008|0060"),
        uid=field("0008|0018"),
        size=size,
        components=reader.GetNumberOfComponents(),
        pixel_type=reader.GetPixelID(),
        places=places,
        rescaled=bool(field("0028|1053") or elements.of_frames[SLOPE]),
        problem=problem,
    )


def _slice_place(position: str, orientation: str, pixel_spacing: str) -> np.ndarray:
    """The affine (4, 4) of a slice from ImagePositionPatient, ImageOrientationPatient and PixelSpacing.

    GDCM reads what is missing or no number as an axial slice at the origin with pixels of 1 mm.

    Raises:
        ValueError: if they are not three numbers, two unit vectors at right angles and two lengths.
    """
    place, axes, spacing = _numbers(position, 3), _numbers(orientation, 6).reshape(2, 3), _numbers(pixel_spacing, 2)
    if not (np.isfinite(place).all() and np.abs(axes @ axes.T - np.eye(2)).max() < AXES_TOLERANCE):
        raise ValueError("does not say where its slices lie in the patient; export the original series")
    if not (spacing > 0).all():
        raise ValueError("does not say how large its pixels are (PixelSpacing); export the original series")
    affine = np.eye(4)
    affine[:3, :2] = axes.T * spacing[::-1]  # the distance of rows comes first, which is along j
    affine[:3, 3] = place
    return affine


def _frame_places(elements: DicomElements, count: int) -> np.ndarray:
    """The affines (count, 4, 4) of the frames of one file.

    Raises:
        ValueError: if one of them has none, or the frames are rescaled differently, of which GDCM takes the first.
    """
    of_frames = elements.of_frames
    positions, orientations, spacings = of_frames[POSITION], of_frames[ORIENTATION], of_frames[PIXEL_SPACING]
    if len(positions) != count or not {len(orientations), len(spacings)} <= {1, count}:
        raise ValueError("does not say where its slices lie in the patient, frame by frame; export it as single slices")
    for texts in (of_frames[SLOPE], of_frames[INTERCEPT]):
        if len(texts) not in (0, 1, count) or len(np.unique(_numbers("\\".join(texts), len(texts)))) > 1:
            raise ValueError("rescales its frames differently; export it as single slices")
    places = zip(positions, cycle(orientations), cycle(spacings), strict=False)  # cycle: one may be for all
    return np.array([_slice_place(*place) for place in places])


def _numbers(text: str, count: int) -> np.ndarray:
    """The finite numbers in a text of DICOM; all NaN if they are not so many."""
    try:
        numbers = np.array([float(word) for word in text.split("\\")])
    except ValueError:
        numbers = np.empty(0)
    return numbers if numbers.shape == (count,) and np.isfinite(numbers).all() else np.full(count, np.nan)


def _may_be_a_slice(path: Path, extensions: set[str]) -> bool:
    """Whether a file that is no DICOM image may be what is left of one.

    It is where it is empty or all zeros, is DICOM but ends before it says of what, or has the name of a slice.
    """
    if path.name.startswith(".") or not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(1024)
    if start[128:132] == b"DICM":
        return not _ANY_CLASS.search(start)  # reports, plans and directories are DICOM, too, and say so
    return not start.strip(b"\0") or path.suffix.lower() in extensions


def _common_type(slices: Sequence[_Slice]) -> np.dtype:
    """The smallest data type that holds the pixels of all slices (their rescale slopes may differ)."""
    import SimpleITK

    types = {header.pixel_type for header in slices}
    samples = (SimpleITK.GetArrayFromImage(SimpleITK.Image(1, 1, pixel_type)) for pixel_type in types)
    return np.result_type(*samples)


def _rank(slices: Sequence[_Slice]) -> tuple[bool, int]:
    """By which the series to read is chosen: a scan before pictures and doses, then the number of voxels."""
    scan = all(header.modality in ("CT", "MR", "PT") and header.components == 1 for header in slices)
    return scan, sum(math.prod(header.size) for header in slices)


def _label(slices: Sequence[_Slice]) -> str:
    """A series for a message: number, what it is, how many images, UID."""
    first = slices[0]
    about = [first.modality, first.description, f"{sum(header.size[2] for header in slices)} images", first.series]
    return f"number {first.number or '?'} ({', '.join(text for text in about if text)})"


def _list(groups: dict[str, list[_Slice]]) -> str:
    """The series for a message, the eight with most images."""
    largest = sorted(groups.values(), key=lambda slices: -sum(header.size[2] for header in slices))
    return ", ".join(_label(slices) for slices in largest[:8]) + (", ..." if len(groups) > 8 else "")
