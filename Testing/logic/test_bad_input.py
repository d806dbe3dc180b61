"""Every odd file ends in a volume or in exactly one sentence that names it; never in another exception."""

from __future__ import annotations

import gzip
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from GenSegLogic.errors import GenSegError
from GenSegLogic.organs.diffusam.canonical import CanonicalGrid
from GenSegLogic.volume import Volume, read_volume, write_volume

REAL_DATA = Path(__file__).parents[3] / "shared/realdata"
needs_real_scans = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real scans are not beside the repository")


def scan() -> Volume:
    voxels = np.random.default_rng(0).integers(-1000, 2000, (8, 20, 30)).astype(np.int16)
    return Volume(voxels, np.diag([0.7, -0.7, 2.0, 1]), "scan")


def refuse(path: Path, expected: str, capfd: pytest.CaptureFixture[str] | None = None) -> str:
    """Read what must be refused; check the message's form and what it says."""
    with pytest.raises(GenSegError) as caught:
        read_volume(path)
    message = str(caught.value)
    assert_is_one_sentence(message, path)
    assert expected in message
    if capfd is not None:
        assert capfd.readouterr().err == "", "the readers' own lines must not reach the user"
    return message


def assert_is_one_sentence(message: str, path: Path) -> None:
    assert str(path) in message, "the message names the file"
    assert message.endswith(".") and "\n" not in message
    about = message.replace(str(path), "")
    assert ". " not in about and len(about) < 900
    assert not any(word in about for word in ("ITK", "Exception", "Traceback", "0x"))


def nrrd(path: Path, header: str, data: bytes) -> None:
    path.write_bytes(f"NRRD0004\n{header}endian: little\nencoding: raw\n\n".encode() + data)


STRAIGHT = "type: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 6 5 4\n"


def patch_nifti(path: Path, offset: int, layout: str, *values: float) -> None:
    """Change a field in the header of an uncompressed NIfTI-1."""
    content = bytearray(path.read_bytes())
    content[offset : offset + struct.calcsize(layout)] = struct.pack(layout, *values)
    path.write_bytes(content)


@pytest.mark.parametrize("extension", [".nrrd", ".nii", ".nii.gz", ".mha"])
@pytest.mark.parametrize("kept", [0, 3, 100, 0.3, 0.7, -3])
def test_truncated_files(tmp_path: Path, extension: str, kept: float, capfd: pytest.CaptureFixture[str]) -> None:
    whole, path = tmp_path / f"whole{extension}", tmp_path / f"cut{extension}"
    write_volume(scan(), whole)
    content = whole.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if 0 < kept < 1 else int(kept)])
    if extension == ".nrrd" and kept == -3:  # only the checksum is missing
        assert np.array_equal(read_volume(path).voxels, scan().voxels)
    else:
        refuse(path, "empty" if kept == 0 else "", capfd)


def test_truncated_uncompressed_files(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    image = SimpleITK.GetImageFromArray(scan().voxels)
    for name in ("raw.nrrd", "raw.mha", "raw.nii"):
        SimpleITK.WriteImage(image, str(tmp_path / name))
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-100])
        refuse(path, "truncated", capfd)


def test_detached_voxels_missing_or_short(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan().voxels), str(tmp_path / "scan.mhd"))
    raw = tmp_path / "scan.raw"
    raw.write_bytes(raw.read_bytes()[:-100])
    refuse(tmp_path / "scan.mhd", "truncated", capfd)
    raw.unlink()
    assert "scan.raw" in refuse(tmp_path / "scan.mhd", "not beside it", capfd)
    (tmp_path / "scan.nhdr").write_text(
        f"NRRD0004\n{STRAIGHT}space directions: (1,0,0) (0,1,0) (0,0,1)\n"
        "endian: little\nencoding: raw\ndata file: no.raw\n"
    )
    assert "no.raw" in refuse(tmp_path / "scan.nhdr", "not beside it", capfd)


@pytest.mark.parametrize("name", ["text.nii.gz", "text.nrrd", "text.mha", "text.dcm", "text.nii", "text.txt", "text"])
def test_text_under_an_images_name(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("This is not an image.\n" * 50)
    refuse(tmp_path / name, "not a", capfd)


def test_archives_and_pictures(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_volume(scan(), tmp_path / "scan.nrrd")
    for name in ("scan.zip", "zipped.nrrd", "zipped.nii.gz"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.write(tmp_path / "scan.nrrd", "scan.nrrd")
        refuse(tmp_path / name, "not a", capfd)
    (tmp_path / "text.nii.gz").write_bytes(gzip.compress(b"This is not an image." * 50))
    refuse(tmp_path / "text.nii.gz", "", capfd)
    SimpleITK.WriteImage(SimpleITK.Image(8, 8, SimpleITK.sitkUInt8), str(tmp_path / "picture.png"))
    refuse(tmp_path / "picture.png", "not a format", capfd)


def test_missing_unreadable_and_empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(tmp_path / "missing.nrrd", "does not exist")
    refuse(tmp_path / ("x" * 300), "")
    (tmp_path / "empty folder").mkdir()
    refuse(tmp_path / "empty folder", "no DICOM images")
    (tmp_path / "documents").mkdir()
    (tmp_path / "documents" / "report.txt").write_text("no images here")
    write_volume(scan(), tmp_path / "documents" / "scan.nrrd")
    refuse(tmp_path / "documents", "no DICOM images")

    path = tmp_path / "locked.nrrd"
    write_volume(scan(), path)
    path.chmod(0)
    if os.access(path, os.R_OK):  # the superuser may read everything

        def refuse_to_open(self: Path, *arguments: object, **options: object) -> None:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse_to_open)
    refuse(path, "Permission denied")


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".mha"])
def test_what_is_not_one_scalar_volume(tmp_path: Path, extension: str, capfd: pytest.CaptureFixture[str]) -> None:
    cases = {
        "4d": (SimpleITK.GetImageFromArray(np.zeros((3, 4, 5, 6), np.int16), isVector=False), "4D"),
        "colour": (SimpleITK.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), "3 numbers per voxel"),
        "complex": (SimpleITK.Image((6, 5, 4), SimpleITK.sitkComplexFloat32), "complex"),
        "slice": (SimpleITK.Image((6, 5, 1), SimpleITK.sitkInt16), "single slice"),
        "flat": (SimpleITK.Image((6, 5), SimpleITK.sitkInt16), "single slice"),
    }
    for name, (image, expected) in cases.items():
        path = tmp_path / f"{name}{extension}"
        if name == "complex" and extension != ".nii.gz":
            continue  # those formats have no complex numbers: they write vectors
        SimpleITK.WriteImage(image, str(path))
        refuse(path, expected, capfd)


def test_a_fourth_axis_of_one_is_dropped(tmp_path: Path) -> None:
    voxels = scan().voxels
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels[None], isVector=False), str(tmp_path / "one.nrrd"))
    assert np.array_equal(read_volume(tmp_path / "one.nrrd").voxels, voxels)


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".mha"])
def test_voxels_that_are_not_numbers(tmp_path: Path, extension: str) -> None:
    voxels = scan().voxels.astype(np.float32)
    voxels[2, 3, 4], voxels[5, 6, 7], voxels[1, 1, 1] = np.nan, np.inf, -np.inf
    path = tmp_path / f"few{extension}"
    write_volume(Volume(voxels, np.eye(4)), path)
    again = read_volume(path)
    assert np.isfinite(again.voxels).all()
    lowest = scan().voxels.min()
    assert again.voxels[2, 3, 4] == again.voxels[5, 6, 7] == again.voxels[1, 1, 1] == lowest
    assert (again.voxels == scan().voxels).sum() >= voxels.size - 3
    assert "3 voxels" in again.metadata["repairs"][0] and str(path) in again.metadata["repairs"][0]

    write_volume(Volume(np.full_like(voxels, np.nan), np.eye(4)), tmp_path / f"all{extension}")
    refuse(tmp_path / f"all{extension}", "NaN")


def test_a_scan_of_one_grey_value_is_named(tmp_path: Path) -> None:
    write_volume(Volume(np.zeros((8, 20, 30), np.int16), np.diag([2.0, 2, 2, 1])), tmp_path / "flat.nrrd")
    with pytest.raises(GenSegError, match=r"flat\.nrrd holds nothing but one grey value"):
        CanonicalGrid(size=16).apply(read_volume(tmp_path / "flat.nrrd"))


def test_sheared_and_degenerate_grids(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytes(240)
    nrrd(tmp_path / "shear.nrrd", STRAIGHT + "space directions: (1,0,0) (0.3,1,0) (0,0,2)\n", data)
    refuse(tmp_path / "shear.nrrd", "sheared", capfd)
    nrrd(tmp_path / "zero.nrrd", STRAIGHT + "space directions: (1,0,0) (0,0,0) (0,0,2)\n", data)
    refuse(tmp_path / "zero.nrrd", "zero", capfd)
    nrrd(tmp_path / "flat.nrrd", STRAIGHT + "space directions: (1,0,0) (1,0,0) (0,0,2)\n", data)
    refuse(tmp_path / "flat.nrrd", "", capfd)
    nrrd(tmp_path / "nan.nrrd", STRAIGHT + "space directions: (1,0,0) (0,nan,0) (0,0,2)\n", data)
    refuse(tmp_path / "nan.nrrd", "", capfd)
    nrrd(tmp_path / "spacings.nrrd", "type: short\ndimension: 3\nsizes: 6 5 4\nspacings: 0 1 1\n", data)
    refuse(tmp_path / "spacings.nrrd", "zero", capfd)
    nrrd(tmp_path / "nothing.nrrd", STRAIGHT.replace("6 5 4", "6 0 4"), b"")
    refuse(tmp_path / "nothing.nrrd", "", capfd)
    nrrd(tmp_path / "huge.nrrd", STRAIGHT.replace("6 5 4", "90000 90000 90000"), data)
    refuse(tmp_path / "huge.nrrd", "", capfd)
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\n"
    for name, line, expected in (
        ("shear.mha", "TransformMatrix = 1 0 0 0.3 0.95 0 0 0 1\nElementSpacing = 1 1 2\n", "sheared"),
        ("zero.mha", "ElementSpacing = 1 0 2\n", "zero"),
        ("word.mha", "CompressedData = True\nCompressedDataSize = many\n", "CompressedDataSize is not"),
    ):
        (tmp_path / name).write_bytes(f"{header}{line}ElementDataFile = LOCAL\n".encode() + data)
        refuse(tmp_path / name, expected, capfd)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_an_nrrd_that_claims_more_than_it_holds_is_refused_at_once(
    tmp_path: Path, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ITK would first make room for all of it."""
    header = STRAIGHT.replace("6 5 4", "1500 1500 1500") + "space directions: (1,0,0) (0,1,0) (0,0,1)\n"
    data = bytes(1000) if encoding == "raw" else gzip.compress(bytes(1000))
    for name, line, content in (("scan.nrrd", "", data), ("scan.nhdr", "data file: scan.raw\n", b"")):
        text = f"NRRD0004\n{header}endian: little\nencoding: {encoding}\n{line}\n"
        (tmp_path / name).write_bytes(text.encode() + content)
    (tmp_path / "scan.raw").write_bytes(data)
    monkeypatch.setattr(SimpleITK.ImageFileReader, "Execute", lambda reader: pytest.fail("ITK must not read it"))
    for name in ("scan.nrrd", "scan.nhdr"):
        refuse(tmp_path / name, "voxels are not all there")


@pytest.mark.parametrize(("line", "unit"), [
    ('space units: "cm" "cm" "cm"', "cm"), ('space units: "mm" "mm" "um"', "um"),
])
def test_an_nrrd_that_is_not_in_millimetres(tmp_path: Path, line: str, unit: str) -> None:
    directions = "space directions: (1,0,0) (0,1,0) (0,0,2)\n"
    nrrd(tmp_path / "scan.nrrd", f"{STRAIGHT}{directions}{line}\n", bytes(240))
    refuse(tmp_path / "scan.nrrd", f"voxel size in {unit}, but must give it in mm")
    nrrd(tmp_path / "scan.nrrd", f'{STRAIGHT}{directions}space units: "mm" "mm" "mm"\n', bytes(240))
    assert read_volume(tmp_path / "scan.nrrd").spacing.tolist() == [1, 1, 2]


@pytest.mark.parametrize(("line", "expected"), [
    ("DistanceUnits = cm\n", "voxel size in cm, but must give it in mm"),
    ("BinaryData = False\n", "keeps its voxels as text"),
    ("BinaryData = 0\n", "keeps its voxels as text"),
    ("CompressedData = T\n", "voxels are not all there"),
    ("HeaderSize = 4000\n", "voxels are not all there"),
    ("HeaderSize = some\n", "HeaderSize is not"),
])
def test_meta_images_that_are_read_wrongly_or_with_a_noise(
    tmp_path: Path, line: str, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementSpacing = 1 1 2\nElementType = MET_SHORT\n"
    (tmp_path / "scan.raw").write_bytes(b"1 " * 140)
    (tmp_path / "scan.mhd").write_text(f"{header}{line}ElementDataFile = scan.raw\n")
    refuse(tmp_path / "scan.mhd", expected, capfd)


@pytest.mark.parametrize("skipped", ["40", "-1"])
def test_meta_images_that_skip_what_is_before_their_voxels(tmp_path: Path, skipped: str) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementSpacing = 1 1 2\nElementType = MET_SHORT\n"
    (tmp_path / "scan.raw").write_bytes(bytes(40) + b"\7\0" * 120)
    (tmp_path / "scan.mhd").write_text(
        f"{header}DistanceUnits = mm\nHeaderSize = {skipped}\nElementDataFile = scan.raw\n"
    )
    assert (read_volume(tmp_path / "scan.mhd").voxels == 7).all()


def test_voxels_of_a_size_that_is_a_guess(tmp_path: Path) -> None:
    header = "ObjectType = Image\nNDims = 3\nDimSize = 6 5 4\nElementType = MET_SHORT\nElementDataFile = LOCAL\n"
    (tmp_path / "scan.mha").write_bytes(header.encode() + bytes(240))
    nrrd(tmp_path / "nan.nrrd", "type: short\ndimension: 3\nsizes: 6 5 4\nspacings: nan nan nan\n", bytes(240))
    nrrd(tmp_path / "none.nrrd", "type: short\ndimension: 3\nsizes: 6 5 4\n", bytes(240))
    for name in ("scan.mha", "nan.nrrd", "none.nrrd"):
        volume = read_volume(tmp_path / name)
        assert volume.spacing.tolist() == [1, 1, 1] and "1 mm was taken, a guess" in volume.metadata["repairs"][0]
        assert_is_one_sentence(volume.metadata["repairs"][0], tmp_path / name)


@pytest.mark.parametrize("offset", [0, 300, 348])
def test_nifti_voxels_inside_of_the_header(tmp_path: Path, offset: int) -> None:
    write_volume(scan(), tmp_path / "scan.nii")
    patch_nifti(tmp_path / "scan.nii", 108, "<f", offset)
    refuse(tmp_path / "scan.nii", f"begin inside its header (vox_offset {offset})")


def test_what_follows_a_nifti_stream_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    write_volume(scan(), path)
    whole = path.read_bytes()
    path.write_bytes(whole + b"garbage")
    assert np.array_equal(read_volume(path).voxels, scan().voxels)
    path.write_bytes(whole[:-8] + bytes(8))  # another checksum
    refuse(path, "")


def test_a_nifti_pair_in_capitals_and_one_that_is_broken(tmp_path: Path) -> None:
    pair = [tmp_path / "scan.hdr", tmp_path / "scan.img"]
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(scan().voxels), str(pair[0]))
    capitals = [path.rename(tmp_path / path.name.upper()) for path in pair]
    for path in capitals:
        assert np.array_equal(read_volume(path).voxels, scan().voxels)
    capitals[1].unlink()
    refuse(capitals[0], "needs SCAN.IMG, which is not beside it")


def write_nifti(path: Path, sform_code: int = 1, qform_code: int = 1) -> None:
    write_volume(scan(), path)
    patch_nifti(path, 252, "<2h", qform_code, sform_code)


def test_nifti_that_shears_or_contradicts_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "scan.nii"
    for qform_code in (0, 1):
        write_nifti(path, qform_code=qform_code)
        patch_nifti(
            path, 280, "<12f", -0.7, 0.3, 0, 0, 0, 0.7, 0, 0, 0, 0, 2, 0
        )  # ITK would take the qform, or straighten
        refuse(path, "sheared", capfd)
    write_nifti(path)
    patch_nifti(path, 280, "<12f", *[0] * 12)
    refuse(path, "no length", capfd)
    write_nifti(path)
    patch_nifti(path, 80, "<f", 0)
    refuse(path, "zero", capfd)
    write_nifti(path, qform_code=0)
    patch_nifti(path, 80, "<3f", 1, 1, 1)  # pixdim says 1 mm, the sform 0.7 and 2
    refuse(path, "contradicts itself", capfd)


def test_nifti_without_a_position_is_read_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    write_nifti(path, 0, 0)
    again = read_volume(path)
    assert np.array_equal(again.voxels, scan().voxels)
    np.testing.assert_allclose(again.spacing, (0.7, 0.7, 2), atol=1e-6)
    assert "left and right" in again.metadata["repairs"][0]


def test_nifti_with_two_positions_follows_slicer_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "scan.nii"
    write_nifti(path)
    patch_nifti(path, 280 + 12, "<f", 50)  # the sform's offset along x, in RAS
    followed = read_volume(path)
    assert followed.affine[0, 3] == -50 and "its sform was followed" in followed.metadata["repairs"][0]
    patch_nifti(path, 254, "<h", 2)  # an sform that is not the scanner's: ITK, hence Slicer, prefers the qform
    followed = read_volume(path)
    assert abs(followed.affine[0, 3]) < 1e-6 and "its qform was followed" in followed.metadata["repairs"][0]


def test_big_endian_nifti(tmp_path: Path) -> None:
    voxels = np.arange(60, dtype=">i2").reshape(3, 4, 5)
    header = bytearray(352)
    struct.pack_into(">i", header, 0, 348)
    struct.pack_into(">8h", header, 40, 3, 5, 4, 3, 1, 1, 1, 1)
    struct.pack_into(">2h", header, 70, 4, 16)
    struct.pack_into(">8f", header, 76, 1, 1, 2, 3, 0, 0, 0, 0)
    struct.pack_into(">f", header, 108, 352)
    struct.pack_into(">2h", header, 252, 0, 1)
    struct.pack_into(">12f", header, 280, 1, 0, 0, 7, 0, 2, 0, 8, 0, 0, 3, 9)
    header[344:348] = b"n+1\0"
    path = tmp_path / "big.nii"
    path.write_bytes(bytes(header) + voxels.tobytes())
    again = read_volume(path)
    assert np.array_equal(again.voxels, voxels)
    np.testing.assert_allclose(again.affine, [[-1, 0, 0, -7], [0, -2, 0, -8], [0, 0, 3, 9], [0, 0, 0, 1]])
    assert again.metadata["repairs"] == []


def test_nrrd_without_a_space_is_read_and_reported(tmp_path: Path) -> None:
    nrrd(tmp_path / "plain.nrrd", "type: short\ndimension: 3\nsizes: 6 5 4\nspacings: 1 2 3\n", bytes(240))
    again = read_volume(tmp_path / "plain.nrrd")
    assert again.spacing.tolist() == [1, 2, 3] and "left and right" in again.metadata["repairs"][0]


@pytest.mark.parametrize("extension", [".nrrd", ".nii", ".nii.gz", ".mha"])
def test_headers_with_random_bytes(tmp_path: Path, extension: str) -> None:
    """Damage that nobody thought of: a volume or a sentence, never another exception, and no crash of the readers."""
    random = np.random.default_rng(0)
    write_volume(scan(), tmp_path / f"whole{extension}")
    whole = (tmp_path / f"whole{extension}").read_bytes()
    path = tmp_path / f"damaged{extension}"
    for _ in range(150):
        content = bytearray(whole)
        for offset in random.integers(0, min(len(whole), 400), random.integers(1, 5)):
            content[offset] = random.choice([0, 255, ord("9"), ord("-"), random.integers(256)])
        path.write_bytes(content)
        try:
            volume = read_volume(path)
        except GenSegError as error:
            assert_is_one_sentence(str(error), path)
        else:
            assert min(volume.shape) >= 2 and np.isfinite(volume.affine).all()


DicomChange = Callable[[SimpleITK.Image, int], None]


def write_dicom(folder: Path, change: DicomChange, slices: int = 6, colour: bool = False) -> None:
    """Write a series of which ``change(image, k)`` spoils every slice."""
    folder.mkdir()
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in range(slices):
        pixels = np.random.default_rng(k).integers(0, 200, (1, 16, 16, 3) if colour else (1, 16, 16))
        image = SimpleITK.GetImageFromArray(pixels.astype(np.uint8 if colour else np.int16), isVector=colour)
        image.SetOrigin((0, 0, 2.0 * k))
        image.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.2")
        image.SetMetaData("0008|0018", f"1.2.3.{k + 1}")
        image.SetMetaData("0008|0060", "CT")
        image.SetMetaData("0020|000e", "1.2.3")
        change(image, k)
        writer.SetFileName(str(folder / f"{k}.dcm"))
        writer.Execute(image)


def missing_slice(image: SimpleITK.Image, k: int) -> None:
    image.SetOrigin((0, 0, 2.0 * (k + (k > 2))))


def tilted_gantry(image: SimpleITK.Image, k: int) -> None:
    image.SetOrigin((0, 0.5 * k, 2.0 * k))


def mixed_orientation(image: SimpleITK.Image, k: int) -> None:
    if k == 3:
        image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))


def two_phases(image: SimpleITK.Image, k: int) -> None:
    image.SetOrigin((0, 0, 2.0 * (k // 2)))


def one_position(image: SimpleITK.Image, k: int) -> None:
    image.SetOrigin((0, 0, 0))


def one_repeated(image: SimpleITK.Image, k: int) -> None:
    image.SetOrigin((0, 0, 2.0 * min(k, 4)))


def nothing(image: SimpleITK.Image, k: int) -> None:
    pass


@pytest.mark.parametrize(
    ("change", "slices", "colour", "expected"),
    [
        (missing_slice, 6, False, "unevenly spaced"),
        (tilted_gantry, 6, False, "tilted gantry (14.0 degrees)"),
        (mixed_orientation, 6, False, "different orientation"),
        (two_phases, 6, False, "4D, 2 images at every position"),
        (one_position, 6, False, "several images at one position"),
        (one_repeated, 6, False, "several images at one position"),
        (nothing, 1, False, "single slice"),
        (nothing, 4, True, "colour"),
    ],
)
def test_dicom_series_that_are_no_volume(
    tmp_path: Path, change: DicomChange, slices: int, colour: bool, expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write_dicom(tmp_path / "series", change, slices, colour)
    refuse(tmp_path / "series", expected, capfd)


@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_a_truncated_slice_is_named(tmp_path: Path, kept: float, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    last = folder / "5.dcm"  # without it the stack would still be even
    last.write_bytes(last.read_bytes()[: int(kept * last.stat().st_size)])
    message = refuse(folder, "truncated", capfd)
    assert str(last) in message
    refuse(last, "", capfd)
    refuse(folder / "2.dcm", "single DICOM slice", capfd)


def test_voxels_of_a_slice_that_end_too_soon(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GDCM would take the rest from what the memory held."""
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    path = folder / "3.dcm"
    content = path.read_bytes()
    start = content.rindex(struct.pack("<HH", 0x7FE0, 0x10))
    content = content[: start + 4] + struct.pack("<I", 500) + content[start + 8 : start + 508]
    path.write_bytes(content)
    assert str(path) in refuse(folder, "truncated", capfd)


def put(path: Path, tag: tuple[int, int], text: str) -> None:
    """Change a text in a DICOM file of implicit value representations to one of the same length or shorter."""
    content = bytearray(path.read_bytes())
    start = content.index(struct.pack("<HH", *tag)) + 8
    length = struct.unpack_from("<I", content, start - 4)[0]
    content[start : start + length] = text.ljust(length).encode()
    assert len(content) == path.stat().st_size
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("tag", "text"),
    [
        ((0x20, 0x37), r"1\0\0\0\0\0"),
        ((0x20, 0x37), r"1\0\0\1\0\0"),
        ((0x20, 0x37), r"2\0\0\0\1\0"),
        ((0x20, 0x37), r"1\0\0\0\1"),
        ((0x20, 0x37), "sagittal"),
        ((0x20, 0x32), r"0\0"),
        ((0x20, 0x32), r"\\"),
    ],
)
def test_slices_whose_place_is_no_place(
    tmp_path: Path, tag: tuple[int, int], text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    put(folder / "3.dcm", tag, text)
    refuse(folder, "does not say where its slices lie", capfd)


@pytest.mark.parametrize("text", [r"0\0", r"-1\1", r"1\0", "1", r"1\x", ""])
def test_slices_whose_pixels_have_no_size(tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    put(folder / "3.dcm", (0x28, 0x30), text)
    assert str(folder / "3.dcm") in refuse(folder, "how large its pixels are (PixelSpacing)", capfd)


def test_a_negative_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """GDCM would turn its numbers round before it makes HU of them."""
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    for path in folder.iterdir():
        put(path, (0x28, 4), "MONOCHROME1")
    refuse(folder, "MONOCHROME1", capfd)


@pytest.mark.parametrize(("lowest", "rescaled", "doubtful"), [
    (0, False, True), (0, True, False), (-1000, False, False),
])
def test_a_ct_that_may_not_be_in_hounsfield_units(
    tmp_path: Path, lowest: int, rescaled: bool, doubtful: bool
) -> None:
    def with_lowest(image: SimpleITK.Image, k: int) -> None:
        image[0, 0, 0] = lowest

    folder = tmp_path / "series"
    write_dicom(folder, with_lowest)
    for path in folder.iterdir() if not rescaled else ():
        put(path, (0x28, 0x1052), "")
        put(path, (0x28, 0x1053), "")
    repairs = read_volume(folder).metadata["repairs"]
    assert ["may not be HU" in repair for repair in repairs] == [True] * doubtful


def rgb(image: SimpleITK.Image, k: int) -> None:
    image.SetMetaData("0008|0060", "OT")
    image.SetMetaData("0020|000e", "1.2.4")


def dose(image: SimpleITK.Image, k: int) -> None:
    image.SetMetaData("0008|0060", "RTDOSE")
    image.SetMetaData("0020|000e", "1.2.4")


@pytest.mark.parametrize(("change", "colour"), [(rgb, True), (dose, False)])
def test_a_scan_is_taken_before_what_lies_beside_it(tmp_path: Path, change: DicomChange, colour: bool) -> None:
    write_dicom(tmp_path / "scan", nothing)
    write_dicom(tmp_path / "other", change, 20, colour)
    volume = read_volume(tmp_path)
    assert volume.shape[0] == 6 and volume.metadata["modality"] == "CT"
    assert "2 series; the largest scan was taken" in volume.metadata["repairs"][0]


def test_a_refused_series_is_listed_with_the_others(tmp_path: Path) -> None:
    write_dicom(tmp_path / "scan", missing_slice)
    write_dicom(tmp_path / "other", dose)
    message = refuse(tmp_path, "unevenly spaced")
    assert "(CT, 6 images, 1.2.3)" in message and "(RTDOSE, 6 images, 1.2.4)" in message


@pytest.mark.parametrize(("syntax", "name"), [
    ("1.2.840.10008.1.2.4.100", "MPEG video"), ("1.2.840.10008.1.2.4.110", "JPEG XL"),
    ("1.2.840.10008.1.2.4.202", "High-Throughput JPEG 2000"),
])
def test_compressions_that_are_not_read_are_named(
    tmp_path: Path, syntax: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    path = folder / "3.dcm"
    content = path.read_bytes()
    start = content.index(struct.pack("<HH2s", 2, 0x10, b"UI")) + 6
    length = struct.unpack_from("<H", content, start)[0]
    text = syntax.encode() + b"\0" * (len(syntax) % 2)
    path.write_bytes(content[:start] + struct.pack("<H", len(text)) + text + content[start + 2 + length :])
    assert str(path) in refuse(folder, f"compressed as {name}", capfd)


@pytest.mark.parametrize("left", [0, 40, 140, "zeros"])
def test_what_may_be_a_damaged_slice_is_named(
    tmp_path: Path, left: int | str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    last = folder / "5.dcm"  # without it the stack is even
    last.write_bytes(bytes(3000) if left == "zeros" else last.read_bytes()[: int(left)])
    if left != 40:  # such a stub shows by nothing but its name
        last = last.rename(folder / "IM0006")
    (folder / "notes.txt").write_text("not an image")
    (folder / ".nomedia").touch()
    volume = read_volume(folder)
    assert volume.shape[0] == 5
    [repair] = volume.metadata["repairs"]
    assert_is_one_sentence(repair, last)
    assert repair.startswith(f"{last} cannot be read") and "copy the series again" in repair
    (folder / "empty").touch()
    assert f" and 1 more in {folder} cannot be read" in read_volume(folder).metadata["repairs"][0]
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("spacing", "expected"), [
    (0.001, "0.001 x 1 x 1 mm"), (150.0, "150 x 1 x 1 mm"), (1e-30, "mm, but they must measure from 0.01 to 100 mm"),
])
def test_voxels_of_a_size_that_no_scan_has(tmp_path: Path, spacing: float, expected: str) -> None:
    for extension in (".nrrd", ".mha", ".nii"):
        image = SimpleITK.GetImageFromArray(scan().voxels)
        image.SetSpacing((spacing, 1, 1))
        SimpleITK.WriteImage(image, str(tmp_path / f"scan{extension}"))
        refuse(tmp_path / f"scan{extension}", expected)


@pytest.mark.parametrize("extension", [".nrrd", ".mha", ".nii"])
def test_a_size_that_no_scan_has(tmp_path: Path, extension: str) -> None:
    image = SimpleITK.GetImageFromArray(scan().voxels)
    image.SetSpacing((100, 100, 100))
    SimpleITK.WriteImage(image[:, :, :5], str(tmp_path / f"whole{extension}"))
    assert read_volume(tmp_path / f"whole{extension}").spacing.tolist() == [100, 100, 100]  # 3 m, but no more
    image = SimpleITK.Tile([image, image], (2, 1, 1))
    SimpleITK.WriteImage(image, str(tmp_path / f"scan{extension}"))
    refuse(tmp_path / f"scan{extension}", "gives an extent of 6000 x 2000 x 800 mm")


def test_a_series_of_a_size_that_no_scan_has(tmp_path: Path) -> None:
    def coarse(image: SimpleITK.Image, k: int) -> None:
        image.SetSpacing((100, 100, 1))
        image.SetOrigin((0, 0, 90.0 * k))

    write_dicom(tmp_path / "series", coarse, 40)
    refuse(tmp_path / "series", "gives an extent of 1600 x 1600 x 3600 mm")


def test_positions_that_no_scan_has(tmp_path: Path) -> None:
    def far(image: SimpleITK.Image, k: int) -> None:
        image.SetOrigin((2e6, 0, 2.0 * k))

    write_dicom(tmp_path / "series", far)
    refuse(tmp_path / "series", "position of more than a kilometre")
    image = SimpleITK.GetImageFromArray(scan().voxels)
    image.SetOrigin((0, -2e6, 0))
    SimpleITK.WriteImage(image, str(tmp_path / "scan.nrrd"))
    refuse(tmp_path / "scan.nrrd", "position of more than a kilometre")


@pytest.mark.parametrize("directions", [
    "none (0,1,0) (0,0,1)", "(1,0,0) (0,1,0) none", "(nan,nan,nan) (0,1,0) (0,0,1)",
])
def test_an_nrrd_axis_without_a_direction(
    tmp_path: Path, directions: str, capfd: pytest.CaptureFixture[str]
) -> None:
    nrrd(tmp_path / "scan.nrrd", f"{STRAIGHT}space directions: {directions}\n", bytes(240))
    refuse(tmp_path / "scan.nrrd", "how large its voxels are along every axis", capfd)


@needs_real_scans
def test_every_real_file_and_folder_ends_in_a_volume_or_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    files = [path for path in sorted(REAL_DATA.rglob("*")) if path.is_file()]
    folders = {path.parent for path in files if not any(child.is_dir() for child in path.parent.iterdir())}
    # Slices of long series are all alike.
    paths = [path for path in files if "Dicom" not in path.parent.name and "ct_dicom" not in path.parent.name]
    refused = {}
    for path in [*paths, *sorted(folders)]:
        try:
            volume = read_volume(path)
        except GenSegError as error:
            assert_is_one_sentence(str(error), path)
            refused[path.name if path.is_file() else f"{path.parent.name}/{path.name}"] = str(error)
        else:
            assert min(volume.shape) >= 2 and volume.voxels.dtype.kind in "iuf"
            assert np.isfinite(volume.voxels).all() and np.isfinite(volume.affine).all()
            for repair in volume.metadata["repairs"]:
                assert_is_one_sentence(repair, path)
    assert capfd.readouterr().err == ""
    for name, expected in {
        "shear.nii.gz": "sheared",
        "complex.nii.gz": "complex",
        "ct_perfusion.nii.gz": "numbers per voxel",
        "pcasl.nii.gz": "4D",
        "ct-patch.nrrd": "single slice",
        "gantrytilting/001": "tilted gantry",
        "notavolume/001": "several images at one position",
        "sliceincrement/001": "unevenly spaced",
        "sliceorientation/001": "different orientation",
        "liver.dcm": "DICOM segmentation",
    }.items():
        assert expected in refused[name]
    for name in ("LPS.nii.gz", "minimal.nii.gz", "low_res.nii.gz", "ras.hdr", "ct-64.nrrd", "anatomical.nii"):
        assert name not in refused


def not_utf8(folder: Path, extension: str) -> Path:
    """An empty file of that name, where the file system takes it."""
    path = Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff" + extension.encode()))
    try:
        path.touch()
    except OSError:
        pytest.skip("this file system has no names that are not UTF-8")
    return path


@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".dcm", ""])
def test_a_name_that_is_not_utf_8(tmp_path: Path, extension: str) -> None:
    """SimpleITK would end the whole process."""
    path = not_utf8(tmp_path, extension)
    path.write_bytes(bytes(1000))
    with pytest.raises(GenSegError) as caught:
        read_volume(path)
    shown = f"{tmp_path}{os.sep}bad\\udcff{extension}"
    assert str(caught.value) == f"{shown} has a name that is not UTF-8; rename it."
    with pytest.raises(GenSegError, match="not UTF-8"):
        write_volume(scan(), path)


def test_a_name_that_is_not_utf_8_among_slices(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    write_dicom(folder, nothing)
    stray = not_utf8(folder, ".txt")
    stray.write_text("not an image")
    assert read_volume(folder).metadata["repairs"] == []
    stray.rename(stray.with_suffix(".dcm"))
    [repair] = read_volume(folder).metadata["repairs"]
    assert repair.isascii() and repair.startswith(f"{folder}{os.sep}bad\\udcff.dcm cannot be read")
    stray.with_suffix(".dcm").write_bytes((folder / "3.dcm").read_bytes())
    with pytest.raises(GenSegError, match=r"udcff\.dcm has a name that is not UTF-8; rename it"):
        read_volume(folder)


@pytest.mark.parametrize("name", ["scan.Nii", "scan.nii.GZ", "scan.Nii.gz"])
def test_an_extension_of_mixed_case(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """NIfTI's library would print its own lines."""
    write_volume(scan(), tmp_path / "scan.nii")
    (tmp_path / "scan.nii").rename(tmp_path / name)
    refuse(tmp_path / name, "mixes upper and lower case", capfd)
    with pytest.raises(GenSegError, match="mixes upper and lower case"):
        write_volume(scan(), tmp_path / name)
    (tmp_path / name).unlink()
    write_dicom(tmp_path / name, nothing)  # a folder may be called so
    assert read_volume(tmp_path / name).shape[0] == 6
