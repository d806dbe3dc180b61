"""CHAOS: abdominal CT with the liver, and MR with liver, kidneys and spleen, of healthy people.

Kavur et al., "CHAOS challenge", Medical Image Analysis 69, 2021; data: Zenodo 3431873 (CC BY-NC-SA). The folder, as the
download unpacks it::

    CT/1/DICOM_anon/*.dcm            CT/1/Ground/liver_GT_000.png ...
    MR/1/T1DUAL/DICOM_anon/InPhase/*.dcm, OutPhase/*.dcm      MR/1/T1DUAL/Ground/*.png     (for both phases)
    MR/1/T2SPIR/DICOM_anon/*.dcm     MR/1/T2SPIR/Ground/*.png

The n-th ground truth by name belongs to the n-th DICOM file by name, and names may run from head to feet: where a
slice lies, only its DICOM header says. Files of one scan may carry different series UIDs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..anatomy import ORGANS, check_names
from ..errors import GenSegError
from ..volume import Volume
from ..volume.dicom import read_dicom_slices
from .organ_cases import OrganCase

SEQUENCES: dict[str, tuple[str, str]] = {
    "ct": ("CT/{}/DICOM_anon", "CT/{}/Ground"),
    "t1-in": ("MR/{}/T1DUAL/DICOM_anon/InPhase", "MR/{}/T1DUAL/Ground"),
    "t1-out": ("MR/{}/T1DUAL/DICOM_anon/OutPhase", "MR/{}/T1DUAL/Ground"),
    "t2-spir": ("MR/{}/T2SPIR/DICOM_anon", "MR/{}/T2SPIR/Ground"),
}
"""Word -> folders of the scan and of its ground truth, with {} for the patient."""

CT_VALUES = {"liver": (255, 255)}
MR_VALUES = {"liver": (55, 70), "right_kidney": (110, 135), "left_kidney": (175, 200), "spleen": (240, 255)}
"""Organ -> range of grey values in the ground truth (63, 126, 189 and 252, give or take), as the challenge states."""


def read_chaos(root: Path, sequence: str) -> Iterator[OrganCase]:
    """Read one kind of CHAOS scan, patient by patient, in order of number; one scan is in memory at a time.

    Args:
        root: the folder with ``CT`` or ``MR``, or one that holds ``Train_Sets``.
        sequence: a word of SEQUENCES.

    Raises:
        GenSegError: at the call, if the folder is not CHAOS's; while iterating, if scan and ground truth do not fit.
    """
    root = Path(root)
    root = root / "Train_Sets" if (root / "Train_Sets").is_dir() else root
    if sequence not in SEQUENCES:
        raise GenSegError(f"CHAOS has no sequence {sequence!r}; it has {', '.join(SEQUENCES)}.")
    scans, truths = SEQUENCES[sequence]
    kind = root / scans.split("/")[0]
    patients = sorted((path.name for path in kind.iterdir() if path.name.isdigit()), key=int) if kind.is_dir() else []
    patients = [name for name in patients if (root / truths.format(name)).is_dir()]
    if not patients:
        raise GenSegError(f"{root} has no {truths.format('N')}; give the folder into which CHAOS was unpacked.")
    return (_read(sequence, name, root / scans.format(name), root / truths.format(name)) for name in patients)


def _read(sequence: str, patient: str, scan: Path, truth: Path) -> OrganCase:
    files, pictures = sorted(scan.glob("*.dcm")), sorted(truth.glob("*.png"))
    if not files or len(files) != len(pictures):
        raise GenSegError(
            f"{scan} holds {len(files)} slices, but {truth} {len(pictures)} pictures; unpack CHAOS again."
        )
    picture_of = dict(zip(files, pictures, strict=True))
    image, ordered = read_dicom_slices(files, f"chaos-{sequence}-{patient}")
    values = CT_VALUES if sequence == "ct" else MR_VALUES
    labels = np.zeros(image.shape, np.uint8)
    for k, file in enumerate(ordered):
        labels[k] = _read_truth(picture_of[file], image.shape[1:], values)
    modality = "CT" if sequence == "ct" else "MR"
    image = Volume(image.voxels, image.affine, image.name, {**image.metadata, "modality": modality})
    return OrganCase(f"{sequence}-{patient}", image, image.with_voxels(labels), check_names(values))


def _read_truth(path: Path, shape: tuple[int, ...], values: dict[str, tuple[int, int]]) -> np.ndarray:
    """One picture (j, i) as labels with the numbers of ORGANS."""
    import SimpleITK

    try:
        grey = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        raise GenSegError(f"{path} is not a PNG picture; unpack CHAOS again.") from error
    if grey.shape != shape:
        raise GenSegError(f"{path} has {grey.shape} pixels, but its scan {shape}; unpack CHAOS again.")
    if values is CT_VALUES and grey.max() == 1:  # some tools save masks as one bit
        grey = grey.astype(np.uint8) * 255
    labels = np.zeros(shape, np.uint8)
    for name, (low, high) in values.items():
        labels[(grey >= low) & (grey <= high)] = ORGANS[name].label
    return labels
