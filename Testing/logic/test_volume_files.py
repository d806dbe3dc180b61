"""Reading and writing: round trips in every format and orientation, DICOM series, what is repaired and said."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import Volume, geometry, read_volume, resample_like, write_volume

REAL_DATA = Path(__file__).parents[3] / "shared/realdata"
FORMATS = (".nrrd", ".nii", ".nii.gz", ".mha", ".mhd")
needs_real_scans = pytest.mark.skipif(not REAL_DATA.is_dir(), reason="the real scans are not beside the repository")


def oblique(seed: int = 0, left_handed: bool = False, spacing: Sequence[float] = (0.7, 0.8, 2.5)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.random(random_state=seed).as_matrix() * spacing * (1, 1, -1 if left_handed else 1)
    affine[:3, 3] = (-123.4, 56.7, -890.1)
    return affine


def scan(shape: tuple[int, int, int] = (5, 6, 7), affine: np.ndarray | None = None, seed: int = 0) -> Volume:
    voxels = np.random.default_rng(seed).integers(-1000, 2000, shape).astype(np.int16)
    return Volume(voxels, oblique() if affine is None else affine, "scan")


def write_dicom(
    folder: Path,
    volume: Volume,
    series: str = "1.2.3",
    number: int = 1,
    modality: str = "CT",
    skip: Sequence[int] = (),
    shift_mm: Sequence[float] = (0, 0, 0),
) -> list[Path]:
    """Write one file per slice, in an order of names that is not the order of positions.

    ``shift_mm`` moves every further slice sideways, as a tilted gantry does; ``skip`` leaves slices out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    files = []
    _, spacing, direction = geometry(volume.affine)
    for k in range(volume.shape[0]):
        if k in skip:
            continue
        image = SimpleITK.GetImageFromArray(volume.voxels[k : k + 1])
        image.SetSpacing(spacing)
        image.SetDirection(direction)
        image.SetOrigin((volume.to_lps(np.array([0, 0, k])) + np.multiply(shift_mm, k)).tolist())
        tags = {
            "0008|0060": modality,
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"{series}.{k + 1}",
            "0020|000d": "1.2.3.4",
            "0020|000e": series,
            "0020|0011": str(number),
            "0020|0013": str(k + 1),
            "0008|103e": f"Series {number}",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        files.append(folder / f"image_{(k * 7) % 11}_{k}.dcm")
        writer.SetFileName(str(files[-1]))
        writer.Execute(image)
    return files


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.booleans(), st.tuples(*[st.floats(0.3, 6)] * 3), st.tuples(*[st.integers(2, 7)] * 3))
@pytest.mark.parametrize("extension", FORMATS)
def test_what_is_written_is_read_back(
    extension: str, seed: int, left_handed: bool, spacing: tuple, shape: tuple
) -> None:
    volume = scan(shape, oblique(seed, left_handed, spacing), seed)
    with tempfile.TemporaryDirectory() as folder:  # hypothesis and tmp_path do not mix
        path = Path(folder) / f"scan{extension}"
        write_volume(volume, path)
        again = read_volume(path)
    assert again.voxels.dtype == np.int16
    assert np.array_equal(again.voxels, volume.voxels)
    tolerance = 1e-4 if ".nii" in extension else 1e-9  # NIfTI keeps float32
    np.testing.assert_allclose(again.affine, volume.affine, atol=tolerance)
    assert again.metadata["repairs"] == []


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.float32])
def test_data_types_survive(tmp_path: Path, extension: str, dtype: type) -> None:
    volume = Volume((np.arange(60).reshape(3, 4, 5) % 7).astype(dtype), np.eye(4))
    write_volume(volume, tmp_path / f"scan{extension}")
    again = read_volume(tmp_path / f"scan{extension}")
    assert again.voxels.dtype == (np.uint8 if dtype is bool else dtype)
    assert np.array_equal(again.voxels, volume.voxels)


def test_wide_data_types_are_narrowed_where_nothing_is_lost(tmp_path: Path) -> None:
    for dtype, top, expected in (
        (np.int32, 3000, np.int16),
        (np.int64, 100_000, np.int32),
        (np.uint32, 2**32 - 1, np.uint32),
        (np.float64, 2.5, np.float32),
    ):
        voxels = np.zeros((2, 3, 4), dtype)
        voxels[1, 2, 3] = top
        write_volume(Volume(voxels, np.eye(4)), tmp_path / "wide.nrrd")
        again = read_volume(tmp_path / "wide.nrrd").voxels
        assert again.dtype == expected and again[1, 2, 3] == top


@pytest.mark.parametrize("extension", FORMATS)
def test_header_fields_are_written(tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"scan{extension}"
    write_volume(scan(), path, {"GenSeg.note": "SYNTHETIC:\nnot a scan"})
    image = SimpleITK.ReadImage(str(path))
    key = "descrip" if ".nii" in extension else "GenSeg.note"
    assert image.GetMetaData(key) == "SYNTHETIC: not a scan"
    if ".nii" not in extension:
        assert read_volume(path).metadata["GenSeg.note"] == "SYNTHETIC: not a scan"


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.mhd"
    write_volume(scan(), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def disk_full(image: object, name: str, **options: object) -> None:
        Path(name).write_bytes(b"half")
        raise RuntimeError("ITK ERROR: no space left on device")

    monkeypatch.setattr(SimpleITK, "WriteImage", disk_full)
    with pytest.raises(GenSegError, match=r"scan\.mhd cannot be written"):
        write_volume(scan(seed=1), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    with pytest.raises(GenSegError, match=r"missing.*cannot be written"):
        write_volume(scan(), tmp_path / "missing" / "scan.nrrd")
    with pytest.raises(GenSegError, match="extension"):
        write_volume(scan(), tmp_path / "scan.png")


@pytest.mark.parametrize("missing", [1, 1000, 20_000])
@pytest.mark.parametrize("extension", FORMATS)
def test_a_disk_that_does_not_take_the_last_bytes_is_a_failure(tmp_path: Path, extension: str, missing: int) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    path = tmp_path / f"scan{extension}"
    write_volume(scan((20, 40, 40)), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    room = max(map(len, before.values())) - missing
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # no file may grow beyond, as if the disk were full
    try:
        with pytest.raises(GenSegError, match=r"scan\..* cannot be written; check the free space"):
            write_volume(scan((20, 40, 40)), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("seed", range(4))
def test_dicom_series_is_read_with_its_grid(tmp_path: Path, seed: int) -> None:
    volume = scan(affine=oblique(seed))
    write_dicom(tmp_path / "deep" / "series", volume)
    (tmp_path / "notes.txt").write_text("not an image")
    again = read_volume(tmp_path)
    assert np.array_equal(again.voxels, volume.voxels) and again.voxels.dtype == np.int16
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-3)  # DICOM's decimal strings have 16 characters
    assert again.metadata["modality"] == "CT" and again.metadata["repairs"] == []


def test_the_largest_series_is_taken_unless_one_is_named(tmp_path: Path) -> None:
    small, large = scan((3, 6, 7), seed=1), scan((5, 6, 7), seed=2)
    write_dicom(tmp_path / "a", small, "1.2.30", number=4)
    write_dicom(tmp_path / "b", large, "1.2.40", number=7, modality="MR")
    taken = read_volume(tmp_path)
    assert np.array_equal(taken.voxels, large.voxels) and taken.metadata["modality"] == "MR"
    assert "2 series" in taken.metadata["repairs"][0] and "number 7" in taken.metadata["repairs"][0]
    for series in ("1.2.30", 4, "4"):
        assert np.array_equal(read_volume(tmp_path, series=series).voxels, small.voxels)
    with pytest.raises(GenSegError, match=r"no series '9'.*number 7.*number 4"):
        read_volume(tmp_path, series=9)


def test_copies_of_slices_are_left_out_and_reported(tmp_path: Path) -> None:
    volume = scan()
    files = write_dicom(tmp_path, volume)
    (tmp_path / "again.dcm").write_bytes(files[2].read_bytes())
    again = read_volume(tmp_path)
    assert np.array_equal(again.voxels, volume.voxels)
    assert "1 copies of slices" in again.metadata["repairs"][0]


def test_ct_padding_is_read_as_air_and_reported(tmp_path: Path) -> None:
    volume = scan((6, 20, 20))
    volume.voxels[:, :4] = -3024
    write_volume(volume, tmp_path / "padded.nrrd")
    before = (tmp_path / "padded.nrrd").read_bytes()
    again = read_volume(tmp_path / "padded.nrrd")
    assert again.voxels.min() == -1024
    assert np.array_equal(again.voxels[:, 4:], volume.voxels[:, 4:])
    assert "padded with -3024" in again.metadata["repairs"][0]
    assert (tmp_path / "padded.nrrd").read_bytes() == before

    write_dicom(tmp_path / "ct", volume)
    assert read_volume(tmp_path / "ct").voxels.min() == -1024
    write_dicom(tmp_path / "mr", volume, modality="MR")
    assert read_volume(tmp_path / "mr").voxels.min() == -3024


def test_a_ct_of_nothing_but_padding_is_refused(tmp_path: Path) -> None:
    write_volume(Volume(np.full((3, 4, 5), -3024, np.int16), np.eye(4)), tmp_path / "scan.nrrd", {"modality": "CT"})
    with pytest.raises(GenSegError, match=r"scan\.nrrd holds nothing but padding"):
        read_volume(tmp_path / "scan.nrrd")


def test_a_phase_image_is_not_taken_for_a_padded_ct(tmp_path: Path) -> None:
    phase = np.random.default_rng(0).integers(-4096, 4096, (8, 20, 20)).astype(np.int16)
    write_volume(Volume(phase, np.eye(4)), tmp_path / "phase.nii.gz")
    again = read_volume(tmp_path / "phase.nii.gz")
    assert np.array_equal(again.voxels, phase) and again.metadata["repairs"] == []


def test_modality_is_read_from_nrrd_and_meta_image(tmp_path: Path) -> None:
    write_volume(scan(), tmp_path / "scan.nrrd", {"modality": "CT"})
    assert read_volume(tmp_path / "scan.nrrd").metadata["modality"] == "CT"
    path = tmp_path / "scan.mha"
    write_volume(scan(), path)
    assert "modality" not in read_volume(path).metadata
    path.write_bytes(path.read_bytes().replace(b"DimSize", b"Modality = MET_MOD_MR\nDimSize"))
    assert read_volume(path).metadata["modality"] == "MR"


@pytest.mark.parametrize("name", ["Müller Ångström 肺.nrrd", "a scan with spaces.nii.gz", "肺.mhd"])
def test_paths_with_spaces_and_other_scripts(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "Größe und 大小"
    folder.mkdir()
    write_volume(scan(), folder / name)
    assert np.array_equal(read_volume(folder / name).voxels, scan().voxels)
    write_dicom(folder / "série", scan())
    assert np.array_equal(read_volume(os.fspath(folder / "série")).voxels, scan().voxels)


@needs_real_scans
def test_the_same_scan_from_nrrd_and_dicom() -> None:
    folder = REAL_DATA / "acil-bwh__ChestImagingPlatform/Testing/Data/Input"
    from_nrrd, from_dicom = read_volume(folder / "ct-64.nrrd"), read_volume(folder / "ct-64Dicom")
    np.testing.assert_allclose(from_nrrd.affine, from_dicom.affine, atol=0.02)
    assert np.array_equal(from_nrrd.voxels, from_dicom.voxels)


@needs_real_scans
def test_labels_in_another_voxel_order_meet_their_jpeg_2000_scan() -> None:
    folder = REAL_DATA / "wasserth__TotalSegmentator/tests/reference_files"
    image, labels = read_volume(folder / "example_ct_dicom"), read_volume(folder / "example_seg_dicom.nii.gz")
    assert np.linalg.det(labels.affine[:3, :3]) < 0 < np.linalg.det(image.affine[:3, :3])
    moved = resample_like(labels, image, "nearest")
    assert np.array_equal(moved.voxels, labels.voxels[:, ::-1]) or np.array_equal(
        moved.voxels, labels.voxels[:, :, ::-1]
    )
    liver = image.voxels[moved.voxels == 5]  # TotalSegmentator's label of the liver
    assert 60 < np.median(liver) < 180
