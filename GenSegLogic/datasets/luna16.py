"""LUNA16: 888 chest CTs of LIDC-IDRI with the nodules that at least three of four readers accepted.

Setio et al., "Validation, comparison, and combination of algorithms for automatic detection of pulmonary nodules in
computed tomography images: the LUNA16 challenge", Medical Image Analysis 42, 2017. Data: luna16.grand-challenge.org.
LIDC is in MAISI's training data: say so beside any figure.

The folder, as the download unpacks it (``candidates*.csv`` are other detectors' findings, no truth, and not read)::

    subset0/<series UID>.mhd, .raw    ...    subset9/
    annotations.csv                   seriesuid, coordX, coordY, coordZ (LPS mm), diameter_mm
    seg-lungs-LUNA16/<series UID>.mhd, .zraw      3 and 4 = lungs, 5 = windpipe
    **/*.xml                          LIDC-XML-only.zip from the Cancer Imaging Archive, unpacked anywhere below
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import GenSegError
from ..volume import Volume, crop, paste, read_volume
from .lidc import Consensus, index_contours, read_consensus

LUNG_LABELS = (3, 4)
"""Labels of the two lungs in ``seg-lungs-LUNA16``."""


@dataclass(frozen=True)
class NoduleTruth:
    """One nodule of the reference standard.

    Attributes:
        mask: boolean volume, the box around the readers' contours at its place in the patient; voxels that at least
            half of the readers have inside. Without any where they do not agree on a single voxel.
        start_ijk: index of the box's first voxel in the scan.
        centre_lps: LPS mm, from ``annotations.csv``.
        diameter_mm: mean of the readers', from ``annotations.csv``.
        readers: how many of them outlined it.
    """

    mask: Volume
    start_ijk: tuple[int, int, int]
    centre_lps: np.ndarray
    diameter_mm: float
    readers: int

    def mask_like(self, scan: Volume) -> np.ndarray:
        """The mask on the whole grid of its scan: boolean, in k, j, i order."""
        whole = np.zeros(scan.shape, bool)
        paste(self.mask.voxels, whole, self.start_ijk)
        return whole


@dataclass(frozen=True)
class Luna16Case:
    """One scan.

    Attributes:
        case_id: series UID.
        subset: 0 to 9, the official fold.
        image: the CT.
        nodules: the reference standard; may be empty.
        unconfirmed: what only one or two readers outlined, as boxes like ``NoduleTruth.mask`` (empty for one reader);
            by LUNA16's rules a finding there is neither a hit nor a false positive.
        lungs_path: the lung mask's file; None if ``seg-lungs-LUNA16`` is not there.
    """

    case_id: str
    subset: int
    image: Volume
    nodules: tuple[NoduleTruth, ...]
    unconfirmed: tuple[Volume, ...]
    lungs_path: Path | None

    def lungs(self) -> Volume | None:
        """Read the lung mask (boolean) that comes with LUNA16; None if it is not there."""
        if self.lungs_path is None:
            return None
        labels = read_volume(self.lungs_path)
        return labels.with_voxels(np.isin(labels.voxels, LUNG_LABELS))


def read_luna16(root: Path, subsets: Sequence[int] | None = None) -> Iterator[Luna16Case]:
    """Read LUNA16 case by case, in order of subset and series UID; one scan is in memory at a time.

    Args:
        root: the folder with ``annotations.csv`` and the subsets.
        subsets: which of 0 to 9; None takes those that are there.

    Raises:
        GenSegError: at the call, if the folder is not LUNA16's; while iterating, if a scan with nodules has no XML, or
            the two do not fit.
    """
    root = Path(root)
    annotations = _read_annotations(root / "annotations.csv")
    folders = {subset: root / f"subset{subset}" for subset in (range(10) if subsets is None else subsets)}
    if subsets is None:
        folders = {subset: folder for subset, folder in folders.items() if folder.is_dir()}
    missing = [str(folder) for folder in folders.values() if not folder.is_dir()]
    if missing or not folders:
        what = missing[0] if missing else f"{root}/subset0 to subset9"
        raise GenSegError(f"{what} is missing; give the folder into which LUNA16 was unpacked.")
    return _cases(root, folders, annotations)


def _cases(
    root: Path, folders: dict[int, Path], annotations: dict[str, list[tuple[np.ndarray, float]]]
) -> Iterator[Luna16Case]:
    contours = index_contours(root)
    for subset, folder in sorted(folders.items()):
        for path in sorted(folder.glob("*.mhd")):
            case_id = path.stem
            image = read_volume(path)
            findings = read_consensus(contours[case_id], image) if case_id in contours else []
            if case_id in annotations and case_id not in contours:
                raise GenSegError(
                    f"{path} has nodules but no reader contours below {root}; unpack LIDC-XML-only.zip "
                    "from the Cancer Imaging Archive there."
                )
            nodules, confirmed = [], set()
            for centre, diameter in annotations.get(case_id, []):
                index = _nearest(path, image, centre, diameter, findings)
                confirmed.add(index)
                found = findings[index]
                nodules.append(NoduleTruth(_boxed(image, found), found.start_ijk, centre, diameter, found.readers))
            rest = [found for index, found in enumerate(findings) if index not in confirmed]
            lungs = root / "seg-lungs-LUNA16" / path.name
            yield Luna16Case(
                case_id,
                subset,
                image,
                tuple(nodules),
                tuple(_boxed(image, found) for found in rest),
                lungs if lungs.is_file() else None,
            )


def _nearest(path: Path, image: Volume, centre: np.ndarray, diameter: float, findings: list[Consensus]) -> int:
    """Index of the readers' finding that an annotation was averaged from."""
    middles = [(np.array(found.mask.shape[::-1]) - 1) / 2 + found.start_ijk for found in findings]
    distances = [float(np.linalg.norm(image.to_lps(middle) - centre)) for middle in middles]
    if not distances or min(distances) > max(diameter, 3.0):
        where = ", ".join(f"{value:.1f}" for value in centre)
        raise GenSegError(f"{path} has a nodule at L, P, S {where} mm that no reader outlined; check the XML files.")
    return int(np.argmin(distances))


def _boxed(image: Volume, finding: Consensus) -> Volume:
    """A finding's mask as a volume of its own, at its place in the patient."""
    box = crop(image, finding.start_ijk, finding.mask.shape[::-1])
    return Volume(finding.mask, box.affine, image.name)


def _read_annotations(path: Path) -> dict[str, list[tuple[np.ndarray, float]]]:
    """Series UID -> centre in LPS mm and diameter in mm of every nodule."""
    annotations: defaultdict[str, list[tuple[np.ndarray, float]]] = defaultdict(list)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                centre = np.array([float(row[key]) for key in ("coordX", "coordY", "coordZ")])
                annotations[row["seriesuid"].strip()].append((centre, float(row["diameter_mm"])))
    except OSError as error:
        raise GenSegError(f"{path} cannot be opened; give the folder into which LUNA16 was unpacked.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise GenSegError(
            f"{path} is not LUNA16's (columns seriesuid, coordX, coordY, coordZ, diameter_mm); download it again."
        ) from error
    return dict(annotations)
