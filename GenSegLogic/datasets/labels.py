"""Labels that others made: segmentations of 3D Slicer and label volumes with the numbers of public data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..anatomy import LEFT, ORGANS, RIGHT
from ..errors import GenSegError
from ..volume import Volume, read_volume, resample_like

NUMBERS: dict[str, dict[int, str]] = {
    "btcv": {organ.label: organ.name for organ in ORGANS.values()},
    # 255 is the liver of its CT ground truth, 252 the spleen of its MR ground truth.
    "chaos": {63: "liver", 126: "right_kidney", 189: "left_kidney", 252: "spleen", 255: "liver"},
    # CHAOS T2 as SSL-ALPNet, Q-Net and others distribute it.
    "chaos-1234": {1: "liver", 2: "right_kidney", 3: "left_kidney", 4: "spleen"},
    # 13 duodenum, 14 bladder and 15 prostate or uterus are none of ours.
    "amos": {number: name for number, name in enumerate((
        "spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta",
        "inferior_vena_cava", "pancreas", "right_adrenal", "left_adrenal"), start=1)},
}
"""Data set -> what its label values stand for."""

MOST_LABELS = 256
"""More values than this are a scan's."""

_SAME = {"oesophagus": "esophagus", "postcava": "inferior vena cava", "ivc": "inferior vena cava",
         "gall bladder": "gallbladder", "portal and splenic vein": "portal vein",
         "portal vein and splenic vein": "portal vein"}

_WHOLE = re.compile(r"[0-9]{1,9}")


def numbers_from(text: str) -> dict[int, str]:
    """What label values stand for, from a word of NUMBERS or ``1=liver,2=right_kidney``.

    Raises:
        GenSegError: if it is neither.
    """
    if text in NUMBERS:
        return NUMBERS[text]
    numbers = {}
    for part in text.split(","):
        value, _, name = part.partition("=")
        organ = organ_named(name)
        if not _WHOLE.fullmatch(value.strip()) or organ is None:
            raise GenSegError(f"{text!r} does not say what label values stand for: give {', '.join(NUMBERS)}, or pairs "
                              "such as 1=liver,2=right_kidney.")
        numbers[int(value)] = organ
    return numbers


def organ_named(text: str) -> str | None:
    """The organ that a name means ("Right kidney", "kidney_right", "Kidney, right"), None if there is none."""
    words = re.findall("[a-z]+", text.lower())
    words = _SAME.get(" ".join(words), " ".join(words)).split()
    wanted = {word for word in words if word != "gland"}
    return next((name for name in ORGANS if set(name.split("_")) == wanted), None)


def read_labels(path: Path, numbers: Mapping[int, str] | None = None, scan: Volume | None = None) -> Volume:
    """Labels with the numbers of ORGANS, uint8.

    Args:
        path: a ``.seg.nrrd`` of 3D Slicer, whose segments are known by terminology or name, or a label volume.
        numbers: label value -> organ, for label volumes; None: the numbers of BTCV, which are ours.
        scan: what a ``.seg.nrrd`` belongs to. Slicer may save a segmentation on a part of the scan's grid, or on one
            of its own; it comes back on the scan's. None: as it is.

    Raises:
        GenSegError: if the file cannot be read, or holds none of our organs.
    """
    path = Path(path)
    if not path.name.lower().endswith(".seg.nrrd"):
        return renumber(read_volume(path), NUMBERS["btcv"] if numbers is None else numbers, str(path))
    first = read_volume(path, layer=0)
    segments = _segments(first)
    if not segments:
        raise GenSegError(f"{path} has no segment that is named after an organ; name them {', '.join(ORGANS)}.")
    labels = first.with_voxels(np.zeros(first.shape, np.uint8))
    for layer in sorted({layer for layer, _, _ in segments}):  # segments that overlap lie in layers of their own
        voxels = read_volume(path, layer=layer).voxels
        for _, value, organ in (segment for segment in segments if segment[0] == layer):
            labels.voxels[voxels == value] = ORGANS[organ].label
    return labels if scan is None else resample_like(labels, scan, "nearest", fill=0)


def renumber(labels: Volume, numbers: Mapping[int, str], where: str) -> Volume:
    """Labels with other numbers as labels with those of ORGANS, uint8.

    Raises:
        GenSegError: naming ``where``, if the values are a scan's and not labels, or none of them is an organ's.
    """
    values = np.unique(labels.voxels)
    whole = np.rint(values.astype(np.float64))
    fractions = np.abs(values - whole).max() > 1e-3  # float labels of some data sets are not quite whole
    if fractions or values.min() < 0 or len(values) > MOST_LABELS:
        raise GenSegError(f"{where} holds fractions, values below 0 or more than {MOST_LABELS} values, so it is no "
                          "label volume; give the labels and not the scan.")
    known = [value for value in whole if int(value) in numbers]
    if not known and whole.any():
        found = ", ".join(f"{value:g}" for value in whole[whole != 0][:8])
        raise GenSegError(f"{where} holds the values {found}, of which none stands for an organ; say what they stand "
                          "for with --numbers.")
    renumbered = np.zeros(labels.shape, np.uint8)
    rounded = np.rint(labels.voxels)
    for value in known:
        renumbered[rounded == value] = ORGANS[numbers[int(value)]].label
    return labels.with_voxels(renumbered)


def _segments(labels: Volume) -> list[tuple[int, int, str]]:
    """Layer, label value and organ of the segments in the header of a ``.seg.nrrd``."""
    segments = []
    for key, name in labels.metadata.items():
        if not (match := re.fullmatch(r"(Segment\d+)_Name", key)):
            continue
        organ = organ_coded(str(labels.metadata.get(f"{match[1]}_Tags", ""))) or organ_named(str(name))
        value = str(labels.metadata.get(f"{match[1]}_LabelValue", ""))
        layer = str(labels.metadata.get(f"{match[1]}_Layer", "0"))
        if organ is not None and _WHOLE.fullmatch(value) and _WHOLE.fullmatch(layer):
            segments.append((int(layer), int(value), organ))
    return segments


def organ_coded(tags: str) -> str | None:
    """The organ that Slicer's terminology tag names, None if it is none of ours or has no side where it needs one."""
    for organ in ORGANS.values():
        sides = [side for side in (LEFT, RIGHT) if f"^{side.value}^" in tags]
        if f"SCT^{organ.type.value}^" in tags and sides == ([organ.modifier] if organ.modifier else []):
            return organ.name
    return None
