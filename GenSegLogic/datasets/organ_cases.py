"""What all abdominal data sets come down to: a scan, and labels with the numbers of ORGANS."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..anatomy import check_names
from ..errors import GenSegError
from ..volume import Volume, read_volume
from .labels import renumber


@dataclass(frozen=True)
class OrganCase:
    """One labelled scan.

    Attributes:
        case_id: unique within the data set.
        image: the scan.
        labels: uint8 on the scan's grid, with the numbers of :data:`GenSegLogic.anatomy.ORGANS`.
        organs: which of ORGANS the data set labels; one that is labelled in no voxel is not in the scan.
    """

    case_id: str
    image: Volume
    labels: Volume
    organs: tuple[str, ...]


def read_pair(
    case_id: str, image_path: Path, labels_path: Path, numbers: Mapping[int, str], modality: str | None = None
) -> OrganCase:
    """Read a scan and its label volume.

    Args:
        numbers: label value -> organ.
        modality: what the scan is, where its file does not say.

    Raises:
        GenSegError: if one cannot be read, or they do not lie on one grid.
    """
    image, labels = read_volume(image_path), read_volume(labels_path)
    if labels.shape != image.shape:
        raise GenSegError(f"{labels_path} has {labels.shape} voxels, but {image_path} has {image.shape}; they are not "
                          "of one case.")
    if modality is not None:
        image = Volume(image.voxels, image.affine, image.name, {**image.metadata, "modality": modality})
    # On the scan's own affine: some label files carry a header that lost the position.
    on_grid = Volume(labels.voxels, image.affine, labels.name)
    return OrganCase(case_id, image, renumber(on_grid, numbers, str(labels_path)), check_names(numbers.values()))


def pairs_in(images: Path, labels: Path, image_name: str, label_name: str) -> list[tuple[str, Path, Path]]:
    """Case number, scan and labels of two folders, in order of number; files without a partner are left out.

    Args:
        image_name, label_name: names of files with ``{}`` for the number, such as ``img{}.nii.gz``.

    Raises:
        GenSegError: if a folder is missing, or there is no pair.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise GenSegError(f"{folder} is missing; give the folder into which the data set was unpacked.")
    pattern = re.compile(re.escape(image_name).replace(r"\{\}", r"(\d+)"))
    found = []
    for path in sorted(images.iterdir()):
        match = pattern.fullmatch(path.name)
        if match and (partner := labels / label_name.format(match[1])).is_file():
            found.append((match[1], path, partner))
    if not found:
        raise GenSegError(f"{images} and {labels} have no pair {image_name.format('N')} and {label_name.format('N')}.")
    return sorted(found, key=lambda pair: int(pair[0]))


def read_numbered(folder: Path, numbers: Mapping[int, str], modality: str | None = None) -> Iterator[OrganCase]:
    """Every ``image_N.nii.gz`` with its ``label_N.nii.gz`` anywhere below a folder, in order of N.

    The labels lie beside the image or, alone of their number, in a folder without an image of it.

    Raises:
        GenSegError: at the call, if there is none; while iterating, if one cannot be read.
    """
    found = []
    for image in sorted(Path(folder).rglob("image_*.nii.gz")):
        number = image.name.removeprefix("image_").removesuffix(".nii.gz")
        labels = image.with_name(f"label_{number}.nii.gz")
        partners = [labels] if labels.is_file() else [
            path for path in Path(folder).rglob(labels.name) if not path.with_name(image.name).is_file()
        ]
        if number.isdecimal() and len(partners) == 1:
            found.append((number, image, partners[0]))
    if not found:
        raise GenSegError(f"{folder} has no image_N.nii.gz with a label_N.nii.gz; choose another folder.")
    found.sort(key=lambda pair: int(pair[0]))
    return (read_pair(number, image, labels, numbers, modality) for number, image, labels in found)
