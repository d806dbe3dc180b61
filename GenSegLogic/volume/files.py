"""Reading and writing volumes, through SimpleITK: NRRD, NIfTI, MetaImage, DICOM.

Reading repairs only what cannot change a result's place or size, and says so; everything else is refused.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import GenSegError
from .dicom import read_dicom_file, read_dicom_folder
from .grid import SHEAR_LIMIT, Volume, scale_problem, shear, to_image
from .meta_image import check_meta_image
from .names import check_name
from .nifti import check_nifti_grid, check_nifti_voxels, read_nifti_header
from .nrrd import check_nrrd_axes, check_nrrd_size, check_nrrd_voxels, read_nrrd_header

if TYPE_CHECKING:
    import SimpleITK

EXTENSIONS = (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd")
"""What :func:`write_volume` writes."""

CT_PADDING_BELOW_HU = -1500
"""No tissue and no noise of a CT lies here; scanners mark with such values what lies outside their field of view."""

CT_AIR_HU = -1024
"""What padding is set to: the lowest value of the 12-bit CT scale, air."""


def read_volume(
    path: str | os.PathLike[str], series: str | int | None = None, layer: int | None = None
) -> Volume:
    """Read a file (NRRD, NIfTI, MetaImage, multi-frame DICOM) or a folder of DICOM slices.

    The data type of the file is kept as long as it is small: 32- and 64-bit integers become int16 or int32 where their
    values fit, float64 becomes float32.

    Args:
        path: file or folder; folders are searched with their sub-folders.
        series: which DICOM series to take from a folder: its UID, or its series number; None takes the largest scan.
        layer: which number to take of a file that has several per voxel, as segmentations do whose segments overlap;
            None refuses such a file.

    Returns:
        the volume; ``metadata["repairs"]`` lists, one sentence each, what was repaired or is doubtful;
        ``metadata["modality"]`` is there where the file knows it (``"CT"``, ``"MR"``, ...).

    Raises:
        GenSegError: naming the file, if it is missing, unreadable, truncated, or not one straight grid of scalars:
            sheared, 2D, 4D, RGB, complex, all NaN, an uneven, tilted or mixed DICOM series; or its name is not UTF-8.
    """
    import SimpleITK

    path = Path(path)
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # what matters of ITK's warnings is checked here
    try:
        check_name(path)
        if path.is_dir():
            volume = read_dicom_folder(path, series)
        elif path.is_file():
            with path.open("rb") as file:
                if not file.read(1):
                    raise GenSegError(f"{path} is an empty file; copy it again.")
            volume = _read_file(path, layer)
        else:
            raise GenSegError(f"{path} does not exist; check the path.")
    except OSError as error:
        where = error.filename or path  # inside a folder, the file
        raise GenSegError(f"{where} cannot be opened: {error.strerror or error}; check the rights to it.") from error
    except MemoryError as error:
        raise GenSegError(f"{path} does not fit into this computer's memory; crop or resample it.") from error
    except RuntimeError as error:
        raise GenSegError(_explain(path, error)) from error
    return _repair_voxels(volume, path)


def write_volume(volume: Volume, path: str | os.PathLike[str], header: Mapping[str, str] | None = None) -> None:
    """Write a volume whole or not at all, compressed where the format can.

    Args:
        volume: what to write; boolean voxels become uint8, float16 becomes float32.
        path: the extension chooses the format, one of :data:`EXTENSIONS`. ``.mhd`` writes a ``.zraw`` beside it.
        header: further text fields; NRRD and MetaImage keep them by name, NIfTI the values alone, in ``descrip``, cut
            to 79 bytes.

    Raises:
        GenSegError: naming the file, if the extension is unknown, the name not UTF-8, or it cannot be written.
    """
    import SimpleITK

    path = Path(path)
    check_name(path)
    if not path.name.lower().endswith(EXTENSIONS):
        raise GenSegError(f"{path} has an extension that cannot be written; use one of {', '.join(EXTENSIONS)}.")
    image = to_image(volume)
    fields = {key: " ".join(str(value).split()) for key, value in (header or {}).items()}
    if path.name.lower().endswith((".nii", ".nii.gz")):
        note = "; ".join(fields.values()).encode("utf-8")[:79].decode("utf-8", "ignore")
        image.SetMetaData("ITK_FileNotes", note)
    else:
        for key, value in fields.items():
            image.SetMetaData(key, value)

    try:
        # A folder of its own keeps the final names, which .mhd writes into the header, and the same file system.
        folder = Path(tempfile.mkdtemp(prefix=".genseg-", dir=path.parent))
    except OSError as error:
        raise GenSegError(f"{path} cannot be written: {error.strerror or error}; choose another folder.") from error
    try:
        SimpleITK.WriteImage(image, str(folder / path.name), useCompression=True, compressionLevel=1)
        _check_written(folder / path.name, image)
        # The voxels first: a header is only ever seen with its voxels beside it.
        for written in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
            os.replace(written, path.parent / written.name)
    except (OSError, RuntimeError, GenSegError) as error:
        raise GenSegError(f"{path} cannot be written; check the free space and the rights to its folder.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_written(path: Path, image: SimpleITK.Image) -> None:
    """Look for the voxels in the file: ITK's NRRD and NIfTI writers lose them on a full disk without a word.

    Raises:
        GenSegError: if they are not all there.
    """
    if path.name.lower().endswith(".nrrd"):
        check_nrrd_voxels(path, image.GetNumberOfPixels() * image.GetSizeOfPixelComponent())
    elif path.name.lower().endswith((".nii", ".nii.gz")):
        check_nifti_voxels(path, read_nifti_header(path))


def _read_file(path: Path, layer: int | None) -> Volume:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    kind = reader.GetImageIOFromFileName(str(path))
    if kind == "GDCMImageIO":
        return read_dicom_file(path)
    if kind not in ("NrrdImageIO", "NiftiImageIO", "MetaImageIO"):
        raise GenSegError(f"{path} is not a format that GenSeg reads; convert it to NRRD, NIfTI or MetaImage.")
    reader.SetImageIO(kind)
    repairs = check_meta_image(path) if kind == "MetaImageIO" else []
    nifti = read_nifti_header(path) if kind == "NiftiImageIO" else None
    nrrd = read_nrrd_header(path) if kind == "NrrdImageIO" else None
    reader.ReadImageInformation()
    size = list(reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size.pop()
    if len(size) > 3:
        raise GenSegError(
            f"{path} is {len(size)}D ({' x '.join(map(str, size))} voxels), but must be one 3D volume; "
            "extract one of them."
        )
    if len(size) < 3 or min(size) < 2:
        raise GenSegError(
            f"{path} is a single slice ({' x '.join(map(str, size))} voxels), but must be a volume; "
            "give a scan with at least 2 voxels along each axis."
        )
    pixel_type = reader.GetPixelID()
    if pixel_type in (SimpleITK.sitkComplexFloat32, SimpleITK.sitkComplexFloat64):
        raise GenSegError(f"{path} holds complex numbers, but must hold one real number per voxel; give its magnitude.")
    if layer is not None and layer >= reader.GetNumberOfComponents():
        raise GenSegError(f"{path} has no layer {layer}, though its header names one; save it again.")
    if layer is None and reader.GetNumberOfComponents() != 1:
        raise GenSegError(
            f"{path} holds {reader.GetNumberOfComponents()} numbers per voxel (colour or vectors), but must hold one; "
            "convert it to a scalar volume."
        )
    if nrrd is not None:
        repairs += check_nrrd_axes(path, nrrd)
        voxel_bytes = SimpleITK.Image(1, 1, pixel_type).GetSizeOfPixelComponent() * reader.GetNumberOfComponents()
        check_nrrd_size(path, nrrd, math.prod(size) * voxel_bytes)
    # From the header, since ITK would straighten or refuse in its own words when it reads the voxels.
    affine = _affine(reader, len(reader.GetSize()))
    if problem := scale_problem(affine, size[::-1]):
        raise GenSegError(f"{path} {problem}; correct its header.")
    if shear(affine) > SHEAR_LIMIT:
        raise GenSegError(
            f"{path} has a sheared grid (its axes are not at right angles); resample it to a straight one."
        )
    bad = None
    if nifti is not None:
        repairs += check_nifti_grid(path, nifti, affine, tuple(size[::-1]))
        bad = check_nifti_voxels(path, nifti)
    elif kind == "NrrdImageIO" and "superior" not in _field(reader, "NRRD_space").lower():
        repairs.append(
            f"{path} does not say how it lies in the patient (no anatomical NRRD space), "
            "so its position and its left and right are guesses."
        )
    metadata: dict[str, Any] = {"repairs": repairs}
    if kind != "NiftiImageIO":
        own = re.compile(r"NRRD_|ITK_|Modality$|modality$")
        keys = [key for key in reader.GetMetaDataKeys() if key.isascii() and not own.match(key)]
        metadata |= {key: _field(reader, key) for key in keys}
        modality = (_field(reader, "modality") or _field(reader, "Modality")).strip().removeprefix("MET_MOD_")
        if modality and modality != "UNKNOWN":
            metadata["modality"] = modality
    reader.SetExtractSize(size + [0] * (len(reader.GetSize()) - 3))
    voxels = SimpleITK.GetArrayFromImage(reader.Execute())
    if voxels.ndim == 4:
        voxels = np.ascontiguousarray(voxels[..., layer])
    if bad is not None:
        voxels[bad.reshape(voxels.shape)] = np.nan  # back to what the file says
    return Volume(voxels, affine, path.name, metadata)


def _affine(reader: SimpleITK.ImageFileReader, dimension: int) -> np.ndarray:
    """The affine (ijk -> LPS mm) of the first three axes."""
    affine = np.eye(4)
    direction = np.reshape(reader.GetDirection(), (dimension, dimension))[:3, :3]
    affine[:3, :3] = direction * np.array(reader.GetSpacing()[:3])
    affine[:3, 3] = reader.GetOrigin()[:3]
    return affine


def _field(reader: SimpleITK.ImageFileReader, key: str) -> str:
    """A text field of the header, "" if it is not there; bytes that are not UTF-8 become question marks."""
    value = reader.GetMetaData(key) if reader.HasMetaDataKey(key) else ""
    return value.encode("utf-8", "replace").decode()


def _explain(path: Path, error: RuntimeError) -> str:
    """One sentence for what SimpleITK says in many lines."""
    text = str(error)
    if "allocate memory" in text:
        return f"{path} does not fit into this computer's memory; crop or resample it."
    if "spacing" in text.lower() and ("zero" in text.lower() or "(0)" in text):
        return f"{path} gives a voxel size of zero; correct its header."
    if "orthonormal" in text:
        return f"{path} has a sheared grid (its axes are not at right angles); resample it to a straight one."
    if "fread" in text or "expected" in text or "received" in text:
        return f"{path} is truncated: its voxels end before the size in its header; copy it again."
    return (
        f"{path} is damaged or not a format that GenSeg reads; "
        "give NRRD, NIfTI or MetaImage, or a folder of DICOM slices."
    )


def _repair_voxels(volume: Volume, path: Path) -> Volume:
    """Narrow the data type, replace NaN and CT padding. The voxels are this reader's own and are changed in place."""
    repairs = list(volume.metadata.get("repairs", ()))
    voxels = _narrow(volume.voxels)
    if voxels.dtype.kind == "f":
        bad = ~np.isfinite(voxels)
        count = int(np.count_nonzero(bad))
        if 2 * count > voxels.size:
            raise GenSegError(
                f"{path} is mostly NaN ({count} of {voxels.size} voxels are not a number); export it again."
            )
        if count:
            lowest = voxels[~bad].min()
            voxels[bad] = lowest
            repairs.append(
                f"{path} has {count} voxels that are NaN or infinite; they were set to its minimum, {lowest:g}."
            )
        del bad
    padding = _ct_padding(voxels, volume.metadata.get("modality"))
    if padding is not None:
        if voxels.max() <= CT_AIR_HU:
            raise GenSegError(f"{path} holds nothing but padding, at most {voxels.max():g} HU; export it again.")
        np.maximum(voxels, CT_AIR_HU, out=voxels)
        repairs.append(f"{path} is padded with {padding:g} outside of the scan; this was read as air, {CT_AIR_HU} HU.")
    return Volume(voxels, volume.affine, volume.name, {**volume.metadata, "repairs": repairs})


def _narrow(voxels: np.ndarray) -> np.ndarray:
    """Wide integers as int16 or int32 where they fit, float64 as float32."""
    if voxels.dtype == np.float64:
        with np.errstate(over="ignore"):
            return voxels.astype(np.float32)
    if voxels.dtype.kind in "iu" and voxels.dtype.itemsize > 2:
        low, high = int(voxels.min()), int(voxels.max())
        for narrow in (np.int16, np.int32):
            if np.iinfo(narrow).min <= low and high <= np.iinfo(narrow).max:
                return voxels.astype(narrow, copy=False)
    return voxels


def _ct_padding(voxels: np.ndarray, modality: str | None) -> float | None:
    """The value with which a CT is padded, or None.

    Where the modality is not known, a padded CT shows itself by a pile of equal voxels far below air and almost nothing
    between the two; the phase image of an MR, which has such values as well, has no such gap.
    """
    if voxels.dtype.kind not in "if" or voxels.dtype == np.int8 or modality not in (None, "CT"):
        return None
    lowest = float(voxels.min())
    if lowest > CT_PADDING_BELOW_HU:
        return None
    if modality is None:
        pile = np.count_nonzero(voxels == lowest)
        between = np.count_nonzero(voxels < CT_PADDING_BELOW_HU / 2 + CT_AIR_HU / 2) - pile
        if pile < 0.001 * voxels.size or between > 0.1 * pile or float(voxels.max()) < 0:
            return None
    return lowest
