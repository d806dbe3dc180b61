"""Labels that others made, and the abdominal data sets, on miniatures of their real folder layouts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from GenSegLogic.anatomy import ORGANS, check_names
from GenSegLogic.datasets.amos import read_amos
from GenSegLogic.datasets.btcv import read_btcv
from GenSegLogic.datasets.chaos import SEQUENCES, read_chaos
from GenSegLogic.datasets.labels import NUMBERS, numbers_from, organ_named, read_labels
from GenSegLogic.datasets.organ_cases import read_numbered
from GenSegLogic.errors import GenSegError
from GenSegLogic.results import Segmentation
from GenSegLogic.segmentation_file import write_segmentation
from GenSegLogic.volume import Volume, crop, geometry, write_volume
from GenSegLogic.volume.grid import to_image
from Testing.logic.grids import affine_in

SHAPE = (6, 14, 12)
SPACING = (1.5, 1.5, 8.0)


def scan(values: np.ndarray | None = None, name: str = "scan") -> Volume:
    voxels = np.arange(np.prod(SHAPE)).astype(np.int16).reshape(SHAPE) if values is None else values
    return Volume(voxels, affine_in("LPS", SPACING, SHAPE), name)


def label_volume(values: list[int], dtype: type = np.uint8) -> Volume:
    """Slice k holds ``values[k]`` in one corner, so that every slice and its place can be told."""
    voxels = np.zeros(SHAPE, dtype)
    for k, value in enumerate(values):
        voxels[k, 2 : 4 + k, 1:4] = value
    return scan(voxels, "labels")


def refused(function: Callable[[], object]) -> str:
    with pytest.raises(GenSegError, match=r"\.$") as caught:
        function()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Anatomy and labels


def test_organs_have_btcvs_numbers() -> None:
    assert [organ.label for organ in ORGANS.values()] == list(range(1, 14))
    assert list(ORGANS)[:6] == ["spleen", "right_kidney", "left_kidney", "gallbladder", "esophagus", "liver"]
    assert len({organ.color for organ in ORGANS.values()}) == 13
    assert check_names(["liver", "spleen", "liver"]) == ("spleen", "liver")
    assert "no organ 'heart'" in refused(lambda: check_names(["heart"]))


@pytest.mark.parametrize(
    ("text", "organ"),
    [("Right kidney", "right_kidney"), ("kidney_left", "left_kidney"), ("Liver", "liver"),
     ("postcava", "inferior_vena_cava"), ("adrenal gland right", "right_adrenal"),
     ("Portal and splenic vein", "portal_vein"),
     ("kidney", None), ("left liver", None), ("", None), ("spleen 2", "spleen"), ("Oesophagus", "esophagus")],
)
def test_organs_are_known_by_the_names_people_use(text: str, organ: str | None) -> None:
    assert organ_named(text) == organ


def test_numbers_are_given_by_data_set_or_one_by_one() -> None:
    assert numbers_from("chaos")[63] == "liver"
    assert numbers_from("7=liver, 9=Left kidney") == {7: "liver", 9: "left_kidney"}
    for wrong in ("lits", "1=heart", "liver=1", "1", "\N{SUPERSCRIPT TWO}=liver", "9" * 5000 + "=liver"):
        assert repr(wrong) in refused(lambda wrong=wrong: numbers_from(wrong))


def test_slicers_segments_are_known_by_terminology_and_by_name(tmp_path: Path) -> None:
    from dataclasses import replace

    kidney, spleen = ORGANS["left_kidney"].segment(), ORGANS["spleen"].segment()
    unnamed = replace(kidney, label=5, name="Segment_1")
    uncoded = replace(spleen, label=2, name="spleen", type=replace(spleen.type, value="85756007", meaning="Tissue"))
    other = replace(spleen, label=3, name="tumour", type=uncoded.type)
    labels = label_volume([5, 2, 3])
    write_segmentation(Segmentation(labels, (unnamed, uncoded, other)), tmp_path / "mine.seg.nrrd")
    found = read_labels(tmp_path / "mine.seg.nrrd")
    expected = np.select([labels.voxels == 5, labels.voxels == 2], [3, 1], 0)
    assert found.voxels.dtype == np.uint8 and np.array_equal(found.voxels, expected)
    write_segmentation(Segmentation(labels, (other,)), tmp_path / "none.seg.nrrd")
    assert "no segment that is named after an organ" in refused(lambda: read_labels(tmp_path / "none.seg.nrrd"))


def test_segmentations_of_slicer_in_layers_or_on_a_part_of_the_grid(tmp_path: Path) -> None:
    """Slicer saves segments that overlap, or were imported one by one, in layers, and may crop to what is marked."""
    fields = {"Segment0_Name": "Liver", "Segment0_LabelValue": "1", "Segment0_Layer": "0",
              "Segment1_Name": "Spleen", "Segment1_LabelValue": "1", "Segment1_Layer": "1"}
    image = scan()
    layers = np.zeros((*SHAPE, 2), np.uint8)
    layers[1, :, :, 0] = layers[1:3, 4:, :, 1] = 1
    path = tmp_path / "layers.seg.nrrd"
    write_layers(layers, image, fields, path)
    expected = np.where(layers[..., 1] > 0, ORGANS["spleen"].label, ORGANS["liver"].label * layers[..., 0])
    assert np.array_equal(read_labels(path).voxels, expected)
    part = crop(image, (0, 2, 1), (SHAPE[2], SHAPE[1] - 2, 3))
    write_layers(layers[1:4, 2:], part, fields, path)
    found = read_labels(path, scan=image)
    assert found.shape == image.shape and np.array_equal(found.voxels[1:4, 2:], expected[1:4, 2:])
    assert not found.voxels[:, :2].any()
    write_layers(layers, image, {**fields, "Segment1_Layer": "2"}, path)
    assert "has no layer 2" in refused(lambda: read_labels(path))


def write_layers(layers: np.ndarray, grid: Volume, fields: dict[str, str], path: Path) -> None:
    """A NRRD of several numbers per voxel (k, j, i, n), as Slicer writes layers."""
    picture = SimpleITK.GetImageFromArray(layers, isVector=True)
    reference = to_image(grid)
    picture.SetOrigin(reference.GetOrigin())
    picture.SetSpacing(reference.GetSpacing())
    picture.SetDirection(reference.GetDirection())
    for key, value in fields.items():
        picture.SetMetaData(key, value)
    SimpleITK.WriteImage(picture, str(path))


def test_label_volumes_are_renumbered(tmp_path: Path) -> None:
    path = tmp_path / "labels.nii.gz"
    write_volume(label_volume([63, 126, 189, 252], np.float32), path)
    found = read_labels(path, NUMBERS["chaos"]).voxels
    assert [found[k].max() for k in range(6)] == [6, 2, 3, 1, 0, 0]
    sentence = refused(lambda: read_labels(path))
    assert "63, 126, 189, 252" in sentence and "--numbers" in sentence
    write_volume(scan(np.linspace(0, 1, int(np.prod(SHAPE)), dtype=np.float32).reshape(SHAPE)), path)
    assert "and not the scan" in refused(lambda: read_labels(path))
    write_volume(scan(scan().voxels - 40), path)
    assert "and not the scan" in refused(lambda: read_labels(path))


# Pairs of files


def write_pair(image: Path, labels: Path, values: list[int]) -> None:
    for path, volume in ((image, scan()), (labels, label_volume(values))):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_volume(volume, path)


@pytest.mark.parametrize("inside", ["", "RawData/Training"])
def test_btcv(tmp_path: Path, inside: str) -> None:
    root = tmp_path / inside
    for number in ("0010", "0002"):
        write_pair(root / f"img/img{number}.nii.gz", root / f"label/label{number}.nii.gz", [1, 13, 6])
    write_volume(scan(), root / "img/img0061.nii.gz")  # of the test set, which has no labels
    cases = list(read_btcv(tmp_path))
    assert [case.case_id for case in cases] == ["btcv-0002", "btcv-0010"]
    assert cases[0].organs == tuple(ORGANS) and cases[0].image.metadata["modality"] == "CT"
    assert np.array_equal(cases[0].labels.voxels, label_volume([1, 13, 6]).voxels)
    assert np.array_equal(cases[0].image.voxels, scan().voxels)
    assert "is missing" in refused(lambda: read_btcv(tmp_path / "nowhere"))


def test_amos_has_another_order_and_organs_that_are_not_ours(tmp_path: Path) -> None:
    for number in ("0001", "0507"):
        write_pair(tmp_path / f"imagesTr/amos_{number}.nii.gz", tmp_path / f"labelsTr/amos_{number}.nii.gz",
                   [10, 12, 13, 15, 3, 6])
    cases = list(read_amos(tmp_path))
    assert [case.image.metadata["modality"] for case in cases] == ["CT", "MR"]
    labels = cases[0].labels.voxels
    assert [labels[k].max() for k in range(6)] == [ORGANS["pancreas"].label, 13, 0, 0, 3, 6]
    assert "portal_vein" not in cases[0].organs and len(cases[0].organs) == 12
    assert [case.case_id for case in read_amos(tmp_path, modality="MR")] == ["amos-0507"]
    assert "has no PET" in refused(lambda: read_amos(tmp_path, modality="PET"))


def test_numbered_pairs_below_a_folder(tmp_path: Path) -> None:
    for images, labels, number in (("a", "a", 22), ("b/images", "b/c/labels", 1)):
        write_pair(tmp_path / images / f"image_{number}.nii.gz", tmp_path / labels / f"label_{number}.nii.gz", [1, 4])
    for name in ("a/image_7.nii.gz", "d/image_x.nii.gz", "d/label_x.nii.gz", "e/image_22.nii.gz"):  # no pair of a case
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    cases = list(read_numbered(tmp_path, NUMBERS["chaos-1234"], "MR"))
    assert [case.case_id for case in cases] == ["1", "22"]
    assert [cases[0].labels.voxels[k].max() for k in (0, 1)] == [ORGANS["liver"].label, ORGANS["spleen"].label]
    assert "has no image_N.nii.gz" in refused(lambda: read_numbered(tmp_path / "b/d", NUMBERS["btcv"]))
    write_volume(Volume(np.zeros((3, 4, 5), np.uint8), np.eye(4)), tmp_path / "a/label_22.nii.gz")
    cases_again = read_numbered(tmp_path, NUMBERS["chaos-1234"])
    next(cases_again)
    assert "not of one case" in refused(lambda: next(cases_again))


# CHAOS


def write_chaos(root: Path, sequence: str, patient: str, truth: list[int], head_first: bool) -> Volume:
    """A miniature of CHAOS: one file a slice, each with a series UID of its own, numbered from the head if asked."""
    scans, truths = (root / folder.format(patient) for folder in SEQUENCES[sequence])
    scans.mkdir(parents=True, exist_ok=True)
    truths.mkdir(parents=True, exist_ok=True)
    volume = scan()
    _, spacing, direction = geometry(volume.affine)
    writer = SimpleITK.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    pictures = label_volume(truth).voxels
    for k in range(SHAPE[0]):
        number = SHAPE[0] - 1 - k if head_first else k
        image = SimpleITK.GetImageFromArray(volume.voxels[k : k + 1])
        image.SetSpacing(spacing)
        image.SetDirection(direction)
        image.SetOrigin(volume.to_lps(np.array([0, 0, k])).tolist())
        tags = {"0008|0060": "CT" if sequence == "ct" else "MR", "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
                "0008|0018": f"1.2.3.{k + 1}", "0020|000d": "1.2.3.4", "0020|000e": f"1.2.9.{k + 1}"}
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(scans / f"IMG-0004-{2 * number + 1:05d}.dcm"))
        writer.Execute(image)
        name = f"liver_GT_{number:03d}.png" if sequence == "ct" else f"IMG-0004-{2 * number + 1:05d}.png"
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pictures[k]), str(truths / name))
    return volume


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("sequence", list(SEQUENCES))
def test_chaos_truth_lies_on_its_slices_whatever_the_order_of_names(
    tmp_path: Path, sequence: str, head_first: bool
) -> None:
    values = [255, 255, 0, 0, 255, 0] if sequence == "ct" else [63, 126, 189, 252, 0, 66]
    for patient in ("10", "2"):
        volume = write_chaos(tmp_path / "Train_Sets", sequence, patient, values, head_first)
    cases = list(read_chaos(tmp_path, sequence))
    assert [case.case_id for case in cases] == [f"{sequence}-2", f"{sequence}-10"]
    case = cases[0]
    assert np.array_equal(case.image.voxels, volume.voxels)
    np.testing.assert_allclose(case.image.affine, volume.affine, atol=1e-6)
    expected = [6, 6, 0, 0, 6, 0] if sequence == "ct" else [6, 2, 3, 1, 0, 6]
    assert np.array_equal(case.labels.voxels, label_volume(expected).voxels)
    assert case.organs == (("liver",) if sequence == "ct" else ("spleen", "right_kidney", "left_kidney", "liver"))
    assert case.image.metadata["modality"] == ("CT" if sequence == "ct" else "MR")


def test_chaos_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    assert "CHAOS has no sequence" in refused(lambda: read_chaos(tmp_path, "t2"))
    assert "into which CHAOS was unpacked" in refused(lambda: read_chaos(tmp_path, "ct"))
    write_chaos(tmp_path, "t2-spir", "1", [63], False)
    truths = tmp_path / SEQUENCES["t2-spir"][1].format("1")
    picture = sorted(truths.iterdir())[0]
    picture.write_bytes(b"no picture")
    assert "is not a PNG" in refused(lambda: list(read_chaos(tmp_path, "t2-spir")))
    picture.unlink()
    assert "6 slices, but" in refused(lambda: list(read_chaos(tmp_path, "t2-spir")))


def test_the_real_chaos_cases_have_the_liver_on_the_right(realdata: Path) -> None:
    cases = list(read_numbered(realdata / "shenqq377__Q-Net", NUMBERS["chaos-1234"], "MR"))
    assert [case.case_id for case in cases] == ["1", "2", "22"]
    for case in cases:
        middle = {name: case.image.to_lps(np.argwhere(case.labels.voxels == ORGANS[name].label)[:, ::-1]).mean(0)
                  for name in case.organs}
        assert middle["liver"][0] < middle["spleen"][0] and middle["right_kidney"][0] < middle["left_kidney"][0]
