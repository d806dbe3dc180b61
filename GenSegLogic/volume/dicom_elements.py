"""What SimpleITK does not show of a DICOM file: the sequences that place its frames, and how long its voxels are."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TRANSFER_SYNTAX = 0x00020010
POSITION = 0x00200032
ORIENTATION = 0x00200037
PIXEL_SPACING = 0x00280030
INTERCEPT = 0x00281052
SLOPE = 0x00281053

_SEQUENCE_OF = {
    TRANSFER_SYNTAX: 0,
    POSITION: 0x00209113,
    ORIENTATION: 0x00209116,
    PIXEL_SPACING: 0x00289110,
    INTERCEPT: 0x00289145,
    SLOPE: 0x00289145,
}
"""The sequence in which an element is looked for. Others, private ones above all, repeat them with other meanings."""

_ITEM, _END_OF_ITEM, _END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_ENTERED = {0x52009229, 0x52009230, _ITEM, *_SEQUENCE_OF.values()}
"""Shared and per-frame functional groups, and what of them is needed."""
_PIXEL_DATA = 0x7FE00010
_UNDEFINED = 0xFFFFFFFF
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_LONG_VALUES = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
"""Value representations (VR) whose length takes four bytes."""


@dataclass(frozen=True)
class DicomElements:
    """Some elements of a DICOM file.

    Attributes:
        syntax: the transfer syntax, a UID; "" if the file does not say.
        of_frames: the texts of POSITION, ORIENTATION, PIXEL_SPACING, INTERCEPT and SLOPE in the functional groups of an
            enhanced file, in its order: one for each frame, or one for all.
        voxel_bytes: length of the voxels; None where they are compressed, or were not found.
    """

    syntax: str
    of_frames: Mapping[int, list[str]]
    voxel_bytes: int | None


def read_elements(path: Path) -> DicomElements:
    """Walk through a DICOM file up to its voxels, or as far as it can be followed; any other file gives nothing.

    Explicit and implicit value representations, both byte orders, sequences of defined and undefined length; a deflated
    file cannot be followed.
    """
    texts: dict[int, list[str]] = {tag: [] for tag in _SEQUENCE_OF}
    voxel_bytes = None
    order, says_vr = "<", True  # so it is in the file's first group
    in_data_set = False
    sequence = 0  # the last that was entered
    passed: list[bool] = []  # what is passed over to its end, since its length is undefined: whether it says its VRs
    with path.open("rb") as file:
        start = file.read(132)
        if start[128:] != b"DICM":  # some files begin without it, with their first or second group
            if start[:2] not in (b"\2\0", b"\x08\0"):
                return DicomElements("", texts, None)
            file.seek(0)
        while len(head := file.read(8)) == 8:
            if not in_data_set and head[:2] != b"\2\0":
                in_data_set = True
                order = ">" if texts[TRANSFER_SYNTAX] == [_BIG_ENDIAN] else "<"
                says_vr = head[4:6].isupper()
            group, element = struct.unpack(f"{order}2H", head[:4])
            tag = group << 16 | element
            explicit = passed[-1] if passed else says_vr
            vr = head[4:6] if explicit and group != 0xFFFE else b""
            if vr in _LONG_VALUES:
                length = struct.unpack(f"{order}I", file.read(4).ljust(4, b"\0"))[0]
            elif vr:
                length = struct.unpack(f"{order}H", head[6:])[0]
            else:
                length = struct.unpack(f"{order}I", head[4:])[0]
            if group == 0:
                break  # zeros, no elements
            if tag in (_END_OF_ITEM, _END_OF_SEQUENCE):
                passed = passed[:-1]
            elif not passed and tag == _PIXEL_DATA:
                voxel_bytes = None if length == _UNDEFINED else length
                break
            elif not passed and tag in _ENTERED:
                sequence = sequence if tag == _ITEM else tag
            elif not passed and _SEQUENCE_OF.get(tag) == sequence:
                texts[tag].append(file.read(length).decode("ascii", "replace").strip(" \0"))
            elif length == _UNDEFINED:
                passed.append(explicit and vr != b"UN")  # a sequence of unknown kind is implicit inside
            else:
                file.seek(length, 1)
    return DicomElements("".join(texts.pop(TRANSFER_SYNTAX)), texts, voxel_bytes)
