"""Reading DICOM: one series out of a folder of slices, or one multi-frame file. Pixels are decoded by SimpleITK (GDCM).

The grid is made here from the position and orientation of every slice, since ITK's series reader trusts the first two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GenSegError
from .grid import SHEAR_LIMIT, Volume, scale_problem, shear

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


@dataclass(frozen=True)
class _Slice:
    """The header of one file: a slice, or several frames."""

    path: Path
    series: str
    number: str
    description: str
    modality: str
    uid: str
    size: tuple[int, int, int]
    components: int
    pixel_type: int
    affine: np.ndarray
    placed: bool

    @property
    def grid(self) -> tuple:
        """What all slices of a stack share: in-plane size and axes."""
        return self.size[:2], self.affine[:3, :2]


def read_dicom_folder(folder: Path, series: str | int | None = None) -> Volume:
    """Read one series from a folder and its sub-folders.

    Args:
        folder: where the slices lie; other files are passed over.
        series: UID or series number; None takes the series with the most voxels.

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
        uid = max(sorted(groups), key=lambda uid: sum(int(np.prod(header.size)) for header in groups[uid]))
        if len(groups) > 1:
            repairs.append(
                f"{folder} holds {len(groups)} series; the largest was taken, {_label(groups[uid])}; "
                "choose another by its number or UID."
            )
    where = str(folder) if len(groups) == 1 else f"{folder}, series {uid or 'without UID'},"
    extensions = {header.path.suffix.lower() for header in groups[uid]} - {""}
    if damaged := [path for path in others if _may_be_a_slice(path, extensions)]:
        rest = f" and {len(damaged) - 1} more in {folder}" if len(damaged) > 1 else ""
        repairs.append(
            f"{damaged[0]}{rest} cannot be read and may be damaged slices: what was read lacks them; copy the series "
            "again."
        )
    volume = _read_stack(where, groups[uid], repairs)
    return Volume(volume.voxels, volume.affine, folder.name or str(folder), volume.metadata)


def read_dicom_file(path: Path) -> Volume:
    """Read one multi-frame DICOM file.

    Raises:
        GenSegError: for a single slice, a DICOM segmentation, or frames without a position.
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
    slices.sort(key=lambda header: volume.to_indices(header.affine[:3, 3])[2])
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
    if not all(header.placed for header in slices):
        raise GenSegError(f"{where} does not say where its slices lie in the patient; export the original series.")
    if any(header.size[2] > 1 for header in slices):
        if len(slices) > 1:
            raise GenSegError(f"{where} holds {len(slices)} multi-frame files in one series; give one of the files.")
        affine = first.affine
    else:
        slices, affine = _stack(where, slices)
    if min(*first.size[:2], sum(header.size[2] for header in slices)) < 2:
        raise GenSegError(f"{where} holds a single slice, but must hold a volume; choose another series.")
    if problem := scale_problem(affine):
        raise GenSegError(f"{where} {problem}; export it again.")
    if shear(affine) > SHEAR_LIMIT:
        raise GenSegError(f"{where} has image axes that are not at right angles; export the original series.")

    voxels: np.ndarray | None = None
    k = 0
    for header in slices:
        reader = _reader(header.path)
        try:
            image = reader.Execute()
        except RuntimeError as error:
            raise GenSegError(f"{header.path} is truncated or damaged; copy the series again.") from error
        pixels = SimpleITK.GetArrayViewFromImage(image)
        if voxels is None:
            voxels = np.empty((sum(header.size[2] for header in slices), *pixels.shape[1:]), _common_type(slices))
        voxels[k : k + len(pixels)] = pixels
        k += len(pixels)
    assert voxels is not None  # there is at least one slice
    metadata: dict[str, Any] = {"repairs": repairs, "series": first.series}
    if first.modality:
        metadata["modality"] = first.modality
    return Volume(voxels, affine, Path(where).name, metadata)


def _stack(where: str, slices: Sequence[_Slice]) -> tuple[list[_Slice], np.ndarray]:
    """Single slices sorted along their normal, and the affine of the stack."""
    first = slices[0]
    in_plane = first.affine[:3, :2]
    for header in slices:
        if header.size != first.size or not np.allclose(header.affine[:3, :2], in_plane, rtol=0, atol=1e-3):
            raise GenSegError(
                f"{where} mixes images of different orientation or size in one series; "
                "keep the slices of one stack in the folder."
            )
    normal = np.cross(in_plane[:, 0], in_plane[:, 1])
    normal /= np.linalg.norm(normal)
    origins = np.array([header.affine[:3, 3] for header in slices])
    order = np.argsort(origins @ normal, kind="stable")
    slices, origins = [slices[index] for index in order], origins[order]
    if len(slices) < 2:
        raise GenSegError(f"{where} holds a single slice, but must hold a volume; choose another series.")

    heights = origins @ normal
    places, repeats = np.unique(np.round(heights, 3), return_counts=True)
    if len(places) < len(heights):
        detail = (
            f"4D, {repeats[0]} images at every position"
            if len(places) > 1 and (repeats == repeats[0]).all()
            else "several images at one position"
        )
        raise GenSegError(f"{where} is not one volume ({detail}); keep one image for each position in the folder.")
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
    return slices, affine


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
    reader = _reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        with path.open("rb") as file:
            start = file.read(1024)
        if start[128:132] == b"DICM" and _IMAGE_CLASSES.search(start):
            raise GenSegError(f"{path} is a truncated or damaged DICOM image; copy the series again.") from error
        return None

    def field(tag: str) -> str:
        value = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
        return value.strip(" \0").encode("utf-8", "replace").decode()

    size = (*reader.GetSize(), 1, 1)[:3]
    affine = np.eye(4)
    if len(reader.GetSize()) == 3:
        direction = np.reshape(reader.GetDirection(), (3, 3))
        affine[:3, :3] = direction * reader.GetSpacing()
        affine[:3, 3] = reader.GetOrigin()
    # Frames carry their positions in sequences that SimpleITK does not show: GDCM's defaults mean that it found none.
    placed = _is_placed(field("0020|0032"), field("0020|0037"))
    if size[2] > 1 and not placed:
        placed = not np.array_equal(affine, np.diag(np.diag(affine)))
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
        affine=affine,
        placed=placed,
    )


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


def _is_placed(position: str, orientation: str) -> bool:
    """Whether the texts of ImagePositionPatient and ImageOrientationPatient are three numbers and two unit vectors at
    right angles: GDCM reads anything else as an axial slice at the origin."""
    try:
        place = np.array([float(word) for word in position.split("\\")])
        axes = np.array([float(word) for word in orientation.split("\\")])
    except ValueError:
        return False
    if place.shape != (3,) or axes.shape != (6,) or not np.isfinite([*place, *axes]).all():
        return False
    products = axes.reshape(2, 3) @ axes.reshape(2, 3).T
    return bool(np.abs(products - np.eye(2)).max() < AXES_TOLERANCE)


def _common_type(slices: Sequence[_Slice]) -> np.dtype:
    """The smallest data type that holds the pixels of all slices (their rescale slopes may differ)."""
    import SimpleITK

    types = {header.pixel_type for header in slices}
    samples = (SimpleITK.GetArrayFromImage(SimpleITK.Image(1, 1, pixel_type)) for pixel_type in types)
    return np.result_type(*samples)


def _label(slices: Sequence[_Slice]) -> str:
    """A series for a message: number, what it is, how many images, UID."""
    first = slices[0]
    about = [first.modality, first.description, f"{sum(header.size[2] for header in slices)} images", first.series]
    return f"number {first.number or '?'} ({', '.join(text for text in about if text)})"


def _list(groups: dict[str, list[_Slice]]) -> str:
    """The series for a message, the eight with most images."""
    largest = sorted(groups.values(), key=lambda slices: -sum(header.size[2] for header in slices))
    return ", ".join(_label(slices) for slices in largest[:8]) + (", ..." if len(groups) > 8 else "")
