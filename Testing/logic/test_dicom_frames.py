"""Multi-frame DICOM: every frame is placed by its own position, and what is not one straight volume is refused."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import read_volume
from GenSegLogic.volume.dicom_elements import INTERCEPT, ORIENTATION, PIXEL_SPACING, POSITION, SLOPE, read_elements

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SEQUENCES = {0x00209113: (POSITION,), 0x00209116: (ORIENTATION,), 0x00289110: (PIXEL_SPACING,),
             0x00289145: (INTERCEPT, SLOPE)}
FRAMES = 6
SHARED = {ORIENTATION: r"1\0\0\0\1\0", PIXEL_SPACING: r"0.8\0.7", INTERCEPT: "-1000", SLOPE: "2"}
Texts = Mapping[int, str]


def stack(*heights: float, y: float = 0) -> list[Texts]:
    """One text for each frame: positions at these heights, each ``y`` mm behind the one before."""
    return [{POSITION: rf"0\{y * k:g}\{height:g}"} for k, height in enumerate(heights)]


EVEN = stack(0, 2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Encoding:
    """How elements are written: the transfer syntax, and whether sequences and items leave out their length."""

    syntax: str = EXPLICIT
    undefined: bool = False

    def pack(self, layout: str, *numbers: int) -> bytes:
        return struct.pack((">" if self.syntax == BIG_ENDIAN else "<") + layout, *numbers)

    def head(self, tag: int, vr: str, length: int) -> bytes:
        start = self.pack("2H", tag >> 16, tag & 0xFFFF)
        if self.syntax == IMPLICIT or not vr:
            return start + self.pack("I", length)
        return start + vr.encode() + (self.pack("2xI", length) if vr in ("OW", "SQ", "UN") else self.pack("H", length))

    def element(self, tag: int, vr: str, value: str | int | bytes) -> bytes:
        if isinstance(value, str):
            value = value.encode() + b" " * (len(value) % 2)
        value = self.pack("H", value) if isinstance(value, int) else value
        return self.head(tag, vr, len(value)) + value

    def sequence(self, tag: int, *items: bytes) -> bytes:
        if self.undefined:
            content = b"".join(
                self.head(0xFFFEE000, "", 0xFFFFFFFF) + item + self.head(0xFFFEE00D, "", 0) for item in items
            )
            return self.head(tag, "SQ", 0xFFFFFFFF) + content + self.head(0xFFFEE0DD, "", 0)
        content = b"".join(self.head(0xFFFEE000, "", len(item)) + item for item in items)
        return self.head(tag, "SQ", len(content)) + content

    def groups(self, texts: Texts, other: bytes) -> bytes:
        """The functional groups that hold ``texts``, before what else is in the item."""
        return b"".join(
            self.sequence(sequence, b"".join(self.element(tag, "DS", texts[tag]) for tag in tags))
            for sequence, tags in SEQUENCES.items()
            if set(tags) & set(texts)
        ) + other


def voxels(first: int = 0) -> np.ndarray:
    """As they are in the file."""
    return np.arange(first, first + FRAMES * 20, dtype=np.int16).reshape(FRAMES, 4, 5)


def write(
    path: Path,
    frames: list[Texts],
    shared: Texts = SHARED,
    encoding: Encoding = Encoding(),
    other: bytes = b"",
    uid: str = "1.2.3.1",
    first: int = 0,
) -> Path:
    """Write an enhanced CT of 4 rows and 5 columns; ``other`` goes into every item of its functional groups."""
    meta = Encoding()
    data = encoding
    elements = (
        meta.element(0x00020002, "UI", ENHANCED_CT), meta.element(0x00020003, "UI", uid),
        meta.element(0x00020010, "UI", encoding.syntax), data.element(0x00080016, "UI", ENHANCED_CT),
        data.element(0x00080018, "UI", uid), data.element(0x00080060, "CS", "CT"),
        data.element(0x0020000E, "UI", "1.2.3"), data.element(0x00280002, "US", 1),
        data.element(0x00280004, "CS", "MONOCHROME2"), data.element(0x00280008, "IS", str(len(frames))),
        data.element(0x00280010, "US", 4), data.element(0x00280011, "US", 5), data.element(0x00280100, "US", 16),
        data.element(0x00280101, "US", 16), data.element(0x00280102, "US", 15), data.element(0x00280103, "US", 1),
        data.sequence(0x52009229, data.groups(shared, other)),
        data.sequence(0x52009230, *(data.groups(texts, other) for texts in frames)),
        data.element(0x7FE00010, "OW", b"".join(data.pack("h", v) for v in voxels(first)[: len(frames)].flat)),
    )  # fmt: skip
    path.write_bytes(bytes(128) + b"DICM" + b"".join(elements))
    return path


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_frames_are_placed_by_their_positions(tmp_path: Path, syntax: str, undefined: bool) -> None:
    path = write(tmp_path / "scan.dcm", EVEN, encoding=Encoding(syntax, undefined))
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, 2 * voxels() - 1000) and volume.metadata["repairs"] == []
    np.testing.assert_allclose(volume.affine, np.diag([0.7, 0.8, 2, 1]))  # an axial scan may begin at the origin


def test_frames_are_sorted(tmp_path: Path) -> None:
    volume = read_volume(write(tmp_path / "scan.dcm", stack(6, 0, 8, 2, 10, 4)))
    assert np.array_equal(volume.voxels, 2 * voxels()[[1, 3, 5, 0, 2, 4]] - 1000)
    assert volume.spacing.tolist() == [0.7, 0.8, 2] and volume.affine[2, 3] == 0


def test_every_frame_may_say_for_itself_what_all_share(tmp_path: Path) -> None:
    path = write(tmp_path / "scan.dcm", [{**texts, **SHARED, SLOPE: "2.0"} for texts in EVEN], shared={})
    volume = read_volume(path)
    assert np.array_equal(volume.voxels, 2 * voxels() - 1000) and volume.spacing.tolist() == [0.7, 0.8, 2]


def test_several_files_of_one_series_are_one_stack(tmp_path: Path) -> None:
    write(tmp_path / "upper.dcm", stack(12, 14, 16, 18, 20, 22), uid="1.2.3.2", first=500)
    write(tmp_path / "lower.dcm", EVEN)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, 2 * np.concatenate([voxels(), voxels(500)]) - 1000)


def test_a_file_may_hold_one_frame(tmp_path: Path) -> None:
    for k, frame in enumerate(EVEN):
        write(tmp_path / f"{k}.dcm", [frame], uid=f"1.2.3.{k}", first=20 * k)
    volume = read_volume(tmp_path)
    assert np.array_equal(volume.voxels, 2 * voxels() - 1000) and volume.spacing.tolist() == [0.7, 0.8, 2]


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("vr", ["SQ", "UN"])
def test_other_sequences_are_passed_over(tmp_path: Path, vr: str, undefined: bool) -> None:
    """Philips repeats positions in private sequences; one of unknown kind is written implicitly."""
    inner = Encoding(IMPLICIT if vr == "UN" else EXPLICIT, undefined)
    content = inner.element(SLOPE, "DS", "7") + inner.sequence(0x20051402, inner.element(POSITION, "DS", r"7\7\7"))
    other = inner.sequence(0x2005140F, content)
    if vr == "UN":
        other = Encoding().head(0x2005140F, "UN", 0xFFFFFFFF if undefined else len(other) - 8) + other[8:]
    elements = read_elements(write(tmp_path / "scan.dcm", EVEN, other=other))
    assert elements.of_frames[POSITION] == [texts[POSITION] for texts in EVEN]
    assert elements.of_frames[SLOPE] == ["2"] and elements.voxel_bytes == FRAMES * 40


SAGITTAL = r"0\1\0\0\0\-1"


@pytest.mark.parametrize(
    ("frames", "shared", "expected"),
    [
        (stack(0, 2, 4, 10, 12, 14), SHARED, "unevenly spaced slices (steps from 2 to 6 mm)"),
        (stack(0, 2, 4, 0, 2, 4), SHARED, "4D, 2 images at every position); export its frames as single slices"),
        (stack(0, 2, 4, 6, 8, 10, y=1), SHARED, "tilted gantry (26.6 degrees)"),
        ([{**texts, ORIENTATION: SAGITTAL if k == 3 else SHARED[ORIENTATION]} for k, texts in enumerate(EVEN)],
         {tag: text for tag, text in SHARED.items() if tag != ORIENTATION}, "different orientation"),
        ([{**texts, SLOPE: str(1 + k % 2), INTERCEPT: "0"} for k, texts in enumerate(EVEN)],
         {tag: text for tag, text in SHARED.items() if tag not in (SLOPE, INTERCEPT)}, "rescales its frames"),
        (EVEN, {tag: text for tag, text in SHARED.items() if tag != PIXEL_SPACING}, "where its slices lie"),
        (EVEN, {**SHARED, PIXEL_SPACING: r"0\0"}, "how large its pixels are (PixelSpacing)"),
        ([*EVEN[:5], {}], SHARED, "where its slices lie in the patient, frame by frame; export it as single slices"),
    ],
)
def test_frames_that_are_no_volume(
    tmp_path: Path, frames: list[Texts], shared: Texts, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "scan.dcm", frames, shared)
    with pytest.raises(GenSegError) as caught:
        read_volume(path)
    assert str(caught.value).startswith(f"{path} ") and expected in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG_ENDIAN])
def test_voxels_that_end_too_soon(tmp_path: Path, syntax: str) -> None:
    """GDCM would take the rest from what the memory held."""
    path = write(tmp_path / "scan.dcm", EVEN, encoding=Encoding(syntax))
    whole = Encoding(syntax).head(0x7FE00010, "OW", FRAMES * 40)
    content = path.read_bytes()
    assert content.count(whole) == 1
    path.write_bytes(content.replace(whole, Encoding(syntax).head(0x7FE00010, "OW", FRAMES * 40 - 2))[:-2])
    with pytest.raises(GenSegError, match=r"scan\.dcm is truncated or damaged; copy the series again\."):
        read_volume(path)
