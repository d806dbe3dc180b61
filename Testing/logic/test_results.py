"""Saving results: whole or not at all, other people's files kept, ``.seg.nrrd`` as Slicer reads it, the picture."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import threading
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from GenSegLogic import (
    Code,
    Engine,
    GenSegError,
    Results,
    Segment,
    Segmentation,
    Volume,
    overlay,
    provenance,
    read_volume,
    saving,
)
from GenSegLogic.segmentation_file import terminology_entry, write_segmentation
from Testing.logic.threshold_task import LUNG, MORPHOLOGIC, NODULE, ThresholdTask, bright_scan

FILES = ["bright.csv", "bright.seg.nrrd", "filtered.nrrd", "overlay.png", "provenance.json"]


@pytest.fixture(scope="module")
def results() -> Results:
    return Engine("cpu").run(ThresholdTask(names=("Upper | left", "Lower")), bright_scan())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def text_fields(path: Path) -> dict[str, str]:
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return {key: reader.GetMetaData(key) for key in reader.GetMetaDataKeys()}


# Files


def test_everything_is_written_and_named(results: Results, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "deep"
    files = results.save(folder, bright_scan())
    assert names(folder) == FILES == sorted(files)
    assert all(path == folder / name for name, path in files.items())
    assert names(tmp_path / "new") == ["deep"]


def test_without_the_scan_there_is_no_picture(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path)
    assert "overlay.png" not in names(tmp_path)


def test_volumes_come_back_on_the_input_grid_and_synthetic_ones_say_so(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path)
    scan, filtered = bright_scan(), read_volume(tmp_path / "filtered.nrrd")
    assert np.array_equal(filtered.voxels, results.volumes["filtered"].voxels)
    assert filtered.shape == scan.shape
    assert np.allclose(filtered.affine, scan.affine, rtol=0, atol=1e-9)
    assert text_fields(tmp_path / "filtered.nrrd")["GenSeg_Synthetic"].startswith("SYNTHETIC")
    assert "not for clinical use" in text_fields(tmp_path / "filtered.nrrd")["GenSeg_Notice"]
    assert "GenSeg_Synthetic" not in text_fields(tmp_path / "bright.seg.nrrd")
    assert json.loads((tmp_path / "provenance.json").read_text())["synthetic"] == ["filtered.nrrd"]


def test_the_table_has_its_columns_with_and_without_rows(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "some")
    with (tmp_path / "some" / "bright.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["Upper | left", "Lower"]
    for row, exact in zip(rows, results.tables["bright"], strict=True):
        assert float(row["volume_mm3"]) == pytest.approx(exact["volume_mm3"], rel=1e-5)
        assert float(row["center_s_mm"]) == pytest.approx(exact["center_s_mm"], rel=1e-5)
    Engine("cpu").run(ThresholdTask(threshold=3000.0), bright_scan()).save(tmp_path / "none")
    assert (tmp_path / "none" / "bright.csv").read_text() == (
        "name,center_l_mm,center_p_mm,center_s_mm,volume_mm3\n")


def test_cells_hold_plain_numbers(tmp_path: Path) -> None:
    row = {"a": np.float32(0.1), "b": float("nan"), "c": None, "d": np.int64(3), "e": "one, two", "f": 1234.5678}
    saving.write_table(tmp_path / "table.csv", [row])
    rows, columns = saving.read_table(tmp_path / "table.csv")
    assert columns == tuple("abcdef")
    assert rows == [{"a": "0.1", "b": "", "c": "", "d": "3", "e": "one, two", "f": "1234.57"}]


def test_the_same_results_give_the_same_bytes_but_for_the_times(tmp_path: Path) -> None:
    records = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        Engine("cpu").run(ThresholdTask(noise=20.0, seed=2), bright_scan()).save(folder, bright_scan())
        records.append(json.loads((folder / "provenance.json").read_text()))
    for name in FILES:
        if name != "provenance.json":
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    for record in records:
        del record["started"], record["duration_seconds"], record["digest"]
    assert records[0] == records[1]


# Whole or not at all


def test_saving_again_replaces_ours_and_keeps_the_users(results: Results, tmp_path: Path) -> None:
    more = Results(volumes=results.volumes | {"extra": results.volumes["filtered"]}, tables={"edited": [{"a": 1}]},
                   provenance=results.provenance)
    more.save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "edited.csv").write_text("a\n2\n")
    results.save(tmp_path, bright_scan())
    # extra.nrrd was ours and unchanged, so it would now contradict the rest; edited.csv is the user's since the edit.
    assert names(tmp_path) == sorted([*FILES, "notes.txt", "edited.csv"])
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "edited.csv").read_text() == "a\n2\n"


def test_results_of_another_task_stay_and_so_does_their_record(results: Results, tmp_path: Path) -> None:
    Results(volumes={"scan": bright_scan()}, provenance={"phantom": "bright"}).save(tmp_path)
    engine, scan = Engine("cpu"), read_volume(tmp_path / "scan.nrrd")
    engine.run(ThresholdTask(), scan).save(tmp_path, scan)  # beside its input, as people do
    other = Results(tables={"organs": [{"organ": "liver"}], "more": []}, columns={"more": ("a",)},
                    provenance={"task": "organs", "number": 1})
    other.save(tmp_path)
    assert {"scan.nrrd", "bright.csv", "organs.csv", "more.csv"} < set(names(tmp_path))
    del other.tables["more"]
    other.save(tmp_path)  # replaces its own alone
    assert {"scan.nrrd", "bright.csv", "organs.csv"} < set(names(tmp_path)) and not (tmp_path / "more.csv").exists()
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert (record["task"], set(record["before"])) == ("organs", {"bright", "threshold"})
    assert record["before"]["threshold"]["parameters"]["threshold"] == 100.0


def test_what_was_edited_is_kept_under_another_name(results: Results, tmp_path: Path) -> None:
    results = dataclasses.replace(results, messages=[])
    results.save(tmp_path, bright_scan())
    results.save(tmp_path, bright_scan())
    assert names(tmp_path) == sorted(FILES) and not results.messages  # what nobody has touched is ours to replace
    written = (tmp_path / "bright.csv").read_bytes()
    for edit in (b"mine", b"mine again"):
        (tmp_path / "bright.csv").write_bytes(edit)
        results.save(tmp_path, bright_scan())
    assert names(tmp_path) == sorted([*FILES, "kept-1-bright.csv", "kept-2-bright.csv"])
    assert (tmp_path / "kept-1-bright.csv").read_bytes() == b"mine"
    assert (tmp_path / "kept-2-bright.csv").read_bytes() == b"mine again"
    assert (tmp_path / "bright.csv").read_bytes() == written
    sentence = f"{tmp_path / 'bright.csv'} was not as GenSeg had written it: it is kept as kept-{{}}-bright.csv."
    assert results.messages == [sentence.format(1), sentence.format(2)]


def test_a_file_of_another_task_is_kept_and_found_again_by_its_record(tmp_path: Path) -> None:
    truth = Results(tables={"nodules": [{"truth": 1}]}, provenance={"phantom": "chest"})
    found = Results(tables={"nodules": [{"found": 1}]}, provenance={"task": "nodules"})
    table = tmp_path / "nodules.csv"
    truth.save(tmp_path)
    found.save(tmp_path)
    assert found.messages == [f"{table} belongs to the results of chest: it is kept as kept-1-nodules.csv."]
    assert table.read_text() == "found\n1\n" and (tmp_path / "kept-1-nodules.csv").read_text() == "truth\n1\n"
    found.save(tmp_path)  # replaces its own alone
    assert names(tmp_path) == ["kept-1-nodules.csv", "nodules.csv", "provenance.json"] and len(found.messages) == 1
    truth.save(tmp_path)  # and so does the phantom, whose record knows where its table went
    assert names(tmp_path) == ["kept-2-nodules.csv", "nodules.csv", "provenance.json"]
    assert table.read_text() == "truth\n1\n" and (tmp_path / "kept-2-nodules.csv").read_text() == "found\n1\n"
    before = json.loads((tmp_path / "provenance.json").read_text())["before"]
    assert list(before["nodules"]["files"]) == ["kept-2-nodules.csv"]


@pytest.mark.parametrize("content", [b"the user's own", b'{"note": "mine"}', b"[" * 100_000, b"\xff", b"9" * 5000])
def test_a_provenance_that_is_the_users_is_kept(results: Results, tmp_path: Path, content: bytes) -> None:
    results = dataclasses.replace(results, messages=[])
    (tmp_path / "provenance.json").write_bytes(content)
    results.save(tmp_path)
    assert (tmp_path / "kept-1-provenance.json").read_bytes() == content
    assert results.messages == [f"{tmp_path / 'provenance.json'} was not as GenSeg had written it: it is kept as "
                                "kept-1-provenance.json."]
    results.save(tmp_path)
    assert "kept-2-provenance.json" not in names(tmp_path)


def test_a_provenance_that_was_edited_is_kept(results: Results, tmp_path: Path) -> None:
    results = dataclasses.replace(results, provenance=results.provenance | {"note": "\N{SNOWMAN} \udcff"})
    results.save(tmp_path)
    edited = (tmp_path / "provenance.json").read_text(encoding="utf-8").replace("\N{SNOWMAN}", "\N{CLOUD}")
    assert provenance.read(tmp_path) is not None
    (tmp_path / "provenance.json").write_text(edited, encoding="utf-8")
    assert provenance.read(tmp_path) is None
    results.save(tmp_path)
    assert (tmp_path / "kept-1-provenance.json").read_text(encoding="utf-8") == edited


def test_zeros_in_a_provenance_stay_zeros(tmp_path: Path) -> None:
    Results(provenance={"task": "some", "note": "0" * 64}).save(tmp_path)
    found = provenance.read(tmp_path)
    assert found is not None and found["note"] == "0" * 64


def test_links_are_kept(results: Results, tmp_path: Path) -> None:
    (tmp_path / "bright.csv").symlink_to(tmp_path / "nowhere")
    results.save(tmp_path)
    assert (tmp_path / "kept-1-bright.csv").is_symlink() and not (tmp_path / "bright.csv").is_symlink()


@pytest.mark.skipif(os.name == "nt", reason="Windows locks no folders")
def test_two_saves_into_one_folder_wait_for_each_other(results: Results, tmp_path: Path) -> None:
    import fcntl

    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    saving = threading.Thread(target=results.save, args=[tmp_path])
    saving.start()
    saving.join(1.0)
    assert saving.is_alive() and not (tmp_path / "bright.csv").exists()
    os.close(folder)  # as when a process is killed
    saving.join(60)
    assert (tmp_path / "bright.csv").exists()


def test_a_name_that_is_no_unicode_costs_no_table(tmp_path: Path) -> None:
    Results(tables={"cases": [{"case": "b\udcffd"}]}, provenance={"inputs": "b\udcffd"}).save(tmp_path)
    assert (tmp_path / "cases.csv").read_text(encoding="utf-8") == "case\nb\\udcffd\n"
    assert json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))["inputs"] == "b\udcffd"


@pytest.mark.parametrize("fail_at", range(8))
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_move_leaves_the_folder_as_it_was(
    results: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fail_at: int, error: BaseException
) -> None:
    Results(tables={"bright": [{"old": 1}], "stale": [{"old": 2}]}, provenance=results.provenance).save(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "filtered.nrrd").write_text("mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    moves: list[Path] = []

    def fail_once(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == fail_at + 1:
            raise error
        os.replace(source, target)

    # Moves, in order: filtered.nrrd to its other name; stale.csv out; bright.csv out and in; bright.seg.nrrd and
    # filtered.nrrd in; the record out and in.
    monkeypatch.setattr(saving, "os", types.SimpleNamespace(**vars(os) | {"replace": fail_once}))
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else GenSegError) as caught:
        results.save(tmp_path)
    if isinstance(error, OSError):
        assert str(caught.value) == (
            f"The results cannot be written to {tmp_path}: No space left on device; choose another folder.")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_nothing_is_left_behind_when_writing_fails(results: Results, tmp_path: Path) -> None:
    bad = Results(volumes=results.volumes, segmentations={
        "bright": Segmentation(bright_scan(), (Segment(0, "Nothing", (1, 0, 0), MORPHOLOGIC, NODULE),))})
    with pytest.raises(GenSegError, match="labels of their own"):
        bad.save(tmp_path / "out")
    assert names(tmp_path) == []


def test_a_full_disk_is_told_by_the_place_where_the_file_should_be(results: Results, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")  # not on Windows
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # no file may grow beyond, as if the disk were full
    try:
        with pytest.raises(GenSegError) as caught:
            results.save(tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(caught.value) == (f"{tmp_path / 'out' / 'bright.seg.nrrd'} cannot be written; check the free space and "
                                 "the rights to its folder.")
    assert names(tmp_path) == []


@pytest.mark.parametrize("stem", ["../up", "a/b", "", ".hidden", "a\\b", "con:1"])
def test_a_stem_that_is_no_file_name_is_refused(stem: str, tmp_path: Path) -> None:
    with pytest.raises(GenSegError, match="no file name"):
        Results(volumes={stem: bright_scan()}).save(tmp_path)
    assert names(tmp_path) == []


def test_a_file_in_the_way_is_named(results: Results, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(GenSegError, match=r"cannot be written to .*out"):
        results.save(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


# Segmentations


def test_slicer_reads_names_colours_codes_and_voxels(results: Results, tmp_path: Path) -> None:
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    results.save(tmp_path)
    scene = slicer.vtkMRMLScene()
    node = scene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    storage = scene.AddNewNodeByClass("vtkMRMLSegmentationStorageNode")
    storage.SetFileName(str(tmp_path / "bright.seg.nrrd"))
    assert storage.ReadData(node) == 1
    segmentation = node.GetSegmentation()
    assert segmentation.GetSourceRepresentationName() == "Binary labelmap"
    assert segmentation.GetNumberOfSegments() == 2
    labels = results.segmentations["bright"].labelmap
    for number, expected in enumerate(results.segmentations["bright"].segments):
        segment = segmentation.GetNthSegment(number)
        assert segmentation.GetNthSegmentID(number) == f"Segment_{expected.label}"
        assert segment.GetName() == expected.name
        assert segment.GetColor() == pytest.approx(expected.color)
        assert segment.GetLabelValue() == expected.label
        assert _tag(segment, "TerminologyEntry") == (
            "Segmentation category and type - DICOM master list~SCT^49755003^Morphologically Altered Structure"
            "~SCT^27925004^Nodule~^^~Anatomic codes - DICOM master list~SCT^39607008^Lung~^^")
        image = segment.GetRepresentation("Binary labelmap")
        assert np.allclose(_matrix(image), np.diag([-1, -1, 1, 1]) @ labels.affine, atol=1e-5)  # MRML is RAS
        assert _count(image, expected.label) == int((labels.voxels == expected.label).sum())


def test_empty_segments_stay(tmp_path: Path) -> None:
    labelmap = bright_scan()
    labelmap = labelmap.with_voxels((labelmap.voxels > 350).astype(np.int16) * 300)
    segments = (Segment(300, "Here", (1, 0, 0), MORPHOLOGIC, NODULE, LUNG),
                Segment(2, "Nowhere", (0, 1, 0), MORPHOLOGIC, NODULE))
    write_segmentation(Segmentation(labelmap, segments), tmp_path / "two.seg.nrrd")
    fields = text_fields(tmp_path / "two.seg.nrrd")
    assert (fields["Segment0_Extent"], fields["Segment1_Extent"]) == ("15 19 12 14 7 9", "0 -1 0 -1 0 -1")
    assert fields["Segment1_Name"] == "Nowhere"
    assert fields["Segment1_Tags"].endswith("~SCT^27925004^Nodule~^^~~^^~^^|")
    assert read_volume(tmp_path / "two.seg.nrrd").voxels.max() == 300


def test_labels_without_a_segment_are_not_written(tmp_path: Path) -> None:
    labelmap = bright_scan()
    labelmap = labelmap.with_voxels(np.where(labelmap.voxels > 350, 2, np.where(labelmap.voxels > 250, 1, 0)))
    segment = Segment(2, "Two", (1, 0, 0), MORPHOLOGIC, NODULE)
    write_segmentation(Segmentation(labelmap, (segment,)), tmp_path / "one.seg.nrrd")
    assert np.unique(read_volume(tmp_path / "one.seg.nrrd").voxels).tolist() == [0, 2]


@pytest.mark.parametrize("labels", [(1, 1), (0, 1), (1, 65536)])
def test_labels_that_cannot_be_told_apart_are_refused(labels: tuple[int, ...], tmp_path: Path) -> None:
    segments = tuple(Segment(label, "x", (1, 0, 0), MORPHOLOGIC, NODULE) for label in labels)
    with pytest.raises(GenSegError, match="labels of their own from 1 to 65535"):
        write_segmentation(Segmentation(bright_scan(), segments), tmp_path / "bad.seg.nrrd")
    assert names(tmp_path) == []


def test_terminology_is_written_as_slicer_serialises_it() -> None:
    liver = Segment(1, "Liver", (1, 0, 0), Code("SCT", "123037004", "Anatomical Structure"),
                    Code("SCT", "10200004", "Liver"))
    assert terminology_entry(liver) == (
        "Segmentation category and type - DICOM master list~SCT^123037004^Anatomical Structure~SCT^10200004^Liver~^^"
        "~~^^~^^")
    kidney = replace(liver, type=Code("SCT", "64033007", "Kidney"), modifier=Code("SCT", "24028007", "Right"))
    assert terminology_entry(kidney).endswith("~SCT^64033007^Kidney~SCT^24028007^Right~~^^~^^")


# The picture


def test_views_lie_along_the_patients_axes_in_any_orientation() -> None:
    """A scan whose value is its L coordinate must grow to the right in the axial view, on every axis order."""
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        for sign in (1, -1):
            affine = np.eye(4)
            affine[:3, :3] = (np.diag([2.0, 1.5, sign * 3.0])[:, order])
            grid = Volume(np.zeros((9, 10, 11), np.float32), affine)
            points = grid.to_lps(np.moveaxis(np.indices(grid.shape), 0, -1)[..., ::-1])
            centre = points.reshape(-1, 3).mean(axis=0)
            for view, right, down in ((overlay.AXIAL, 0, 1), (overlay.CORONAL, 0, 2), (overlay.SAGITTAL, 1, 2)):
                plane = overlay.Plane(view, centre, 8.0, 8.0, 1.0)
                across = plane.sample(grid.with_voxels(points[..., right].astype(np.float32)), order=1)
                downwards = plane.sample(grid.with_voxels(points[..., down].astype(np.float32)), order=1)
                assert np.allclose(np.diff(across, axis=1), 1.0, atol=1e-4)
                assert np.allclose(np.diff(downwards, axis=0), -1.0 if down == 2 else 1.0, atol=1e-4)


def test_the_picture_shows_every_finding_in_its_colour(results: Results, tmp_path: Path) -> None:
    from matplotlib import image as matplotlib_image

    overlay.write_overlay(results, bright_scan(), tmp_path / "with.png")
    overlay.write_overlay(Results(), bright_scan(), tmp_path / "without.png")
    pixels = matplotlib_image.imread(tmp_path / "with.png")[..., :3]
    plain = matplotlib_image.imread(tmp_path / "without.png")[..., :3]
    assert min(pixels.shape[:2]) >= 400
    for segment in results.segmentations["bright"].segments:
        assert (np.abs(pixels - segment.color).max(axis=-1) < 0.02).sum() > 100
        assert not (np.abs(plain - segment.color).max(axis=-1) < 0.02).any()


def test_padding_and_metal_do_not_spoil_the_window() -> None:
    voxels = np.random.default_rng(0).normal(-400, 300, (20, 40, 40))
    voxels[:, :8], voxels[0, 0, :4] = -3024, 30000
    low, high = overlay.display_window(Volume(voxels, np.eye(4), metadata={"modality": "CT"}))
    assert -1100 <= low < -600 and 0 < high < 1500


def _tag(segment: object, name: str) -> str:
    import vtk

    value = vtk.reference("")
    assert segment.GetTag(name, value)
    return str(value)


def _matrix(image: object) -> np.ndarray:
    import vtk

    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _count(image: object, label: int) -> int:
    from vtk.util.numpy_support import vtk_to_numpy

    return int((vtk_to_numpy(image.GetPointData().GetScalars()) == label).sum())
