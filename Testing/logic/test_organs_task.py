"""The organs task from scan to results, with small random networks in real bundles, and what surrounds the networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from GenSegLogic import Cancelled, Engine, GenSegError, OrgansTask, Volume, read_volume, write_volume
from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import cache_folder
from GenSegLogic.cli import main
from GenSegLogic.organs.diffusam.canonical import CanonicalGrid
from GenSegLogic.organs.diffusam.propagate import Confidence
from GenSegLogic.organs.diffusam.task import BUNDLES, modality_of
from GenSegLogic.organs.measure import COLUMNS, measure
from GenSegLogic.organs.regions import label_scan, plausible, without_doubtful
from GenSegLogic.phantoms.abdomen import abdomen_phantom
from GenSegLogic.results import Results
from GenSegLogic.volume import crop, resample
from Testing.logic.bundle_samples import write_sample
from Testing.logic.grids import ORIENTATIONS, affine_in
from Testing.logic.organ_bundles import KNOWN, NEVER, write_organ_bundles

SOME = ("liver", "left_kidney", "right_kidney", "pancreas")


@pytest.fixture(scope="module", autouse=True)
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SAM 2 and two priors where fetched bundles lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSEG_HOME", str(tmp_path_factory.mktemp("home")))
        folder = cache_folder() / "bundles"
        write_organ_bundles(folder, names=("tiny-sam2", "tiny-ct", "tiny-mr"))
        yield


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("cpu")


@pytest.fixture(scope="module")
def ct() -> Volume:
    image = abdomen_phantom(3, "ct", "test", size=48, slices=6).image
    return Volume(image.voxels.astype(np.int16), image.affine, "ct.nrrd", {"modality": "CT"})


def task(**parameters) -> OrgansTask:
    return OrgansTask(**{"bundle": "tiny-ct", "samples": 1, "steps": 1, "organs": SOME, **parameters})


@pytest.fixture(scope="module")
def results(engine: Engine, ct: Volume) -> Results:
    return engine.run(task(), ct)


# From probabilities to organs

GRID = Volume(np.zeros((12, 40, 48), np.uint8), affine_in("LPS", (4.0, 4.0, 6.0), (12, 40, 48)), "grid")


def box(k: slice, j: slice, i: slice, value: float = 0.9) -> np.ndarray:
    probability = np.zeros(GRID.shape, np.float32)
    probability[k, j, i] = value
    return probability


MIDDLE = slice(3, 9)


def test_one_component_of_an_organ_is_kept_and_its_holes_are_filled() -> None:
    large, small = box(MIDDLE, slice(5, 15), slice(5, 15)), box(MIDDLE, slice(30, 33), slice(30, 33))
    holed = np.maximum(large, small)
    holed[5:7, 9:11, 9:11] = 0
    crumb = box(slice(0, 1), slice(0, 1), slice(0, 3))  # 0.29 ml
    kept = plausible({"liver": holed, "spleen": crumb}, GRID)
    assert np.array_equal(kept["liver"] > 0.5, large > 0.5)
    assert not kept["spleen"].any()


def test_a_neighbour_neither_splits_an_organ_nor_is_covered_by_it() -> None:
    """A band of kidney is more certain than the liver that it crosses: one piece of liver stays, the other is kidney's
    where the kidney reaches; a gallbladder inside of the liver is no hole of it."""
    liver = box(MIDDLE, slice(5, 25), slice(4, 24), 0.8)
    band = box(MIDDLE, slice(5, 25), slice(18, 21), 0.9)
    kidney = np.maximum(band, box(MIDDLE, slice(5, 25), slice(21, 26), 0.6))
    gallbladder = box(slice(5, 7), slice(10, 14), slice(8, 12), 0.9)
    kept = plausible({"liver": np.where(gallbladder > 0, 0, liver), "right_kidney": kidney,
                      "gallbladder": gallbladder}, GRID)
    labels = label_scan(kept, GRID, GRID).voxels
    assert (labels[MIDDLE, 5:25, 4:18] != 2).all() and (labels[MIDDLE, 5:25, 18:26] == 2).all()
    assert np.array_equal(labels == ORGANS["gallbladder"].label, gallbladder > 0)


def test_the_most_certain_component_wins_and_not_the_largest() -> None:
    certain, vague = box(MIDDLE, slice(5, 15), slice(5, 15), 0.95), box(MIDDLE, slice(25, 36), slice(25, 36), 0.55)
    assert np.array_equal(plausible({"liver": np.maximum(certain, vague)}, GRID)["liver"] > 0.5, certain > 0.5)


def test_what_is_too_small_for_an_organ_has_to_be_certain() -> None:
    small, large = box(MIDDLE, slice(5, 12), slice(5, 12)), box(MIDDLE, slice(20, 36), slice(20, 36))  # 28, 147 ml
    below, above = (box(part, slice(5, 12), slice(5, 12)) for part in (slice(0, 3), slice(GRID.shape[0] - 3, None)))
    for size, confidence, stays in ((small, 0.7, False), (small, 0.9, True), (large, 0.7, True),
                                    (below, 0.7, True), (above, 0.7, True)):  # of these, the rest is out of sight
        kept = without_doubtful({"spleen": size}, np.full(GRID.shape, confidence, np.float32), GRID)
        assert np.array_equal(kept["spleen"], size if stays else np.zeros_like(size))


def test_confidence_is_lower_where_the_slices_above_and_below_read_something_else() -> None:
    organ = box(MIDDLE, slice(10, 20), slice(10, 20))
    lone = box(slice(5, 6), slice(10, 20), slice(30, 40))  # 6 mm of something, in one slice
    confidence = Confidence(GRID)
    confidence.add(organ, organ)
    confidence.add(lone, lone)
    result = confidence.result()
    assert result[5, 15, 35] < result[8, 15, 15] < result[5, 15, 15]
    assert result[4, 15, 35] < result[1, 30, 5] == 1


@pytest.mark.parametrize("mirrored", [False, True])
def test_kidneys_are_never_on_the_wrong_side_of_each_other(mirrored: bool) -> None:
    """Each kidney's network also fires on the other one, more strongly; the right one lies to the patient's right."""
    grid = GRID
    first, second = box(MIDDLE, slice(10, 18), slice(5, 12)), box(MIDDLE, slice(10, 18), slice(36, 43))
    if mirrored:  # i grows to the right: the same voxels are now the other side
        affine = GRID.affine.copy()
        affine[:3, 0] *= -1
        grid = Volume(GRID.voxels, affine, "mirrored")
        first, second = second, first
    confused = {"right_kidney": np.maximum(0.7 * first / 0.9, second), "left_kidney": np.maximum(first, 0.7 * second)}
    kept = plausible(confused, grid)
    assert np.array_equal(kept["right_kidney"] > 0.5, first > 0)
    assert np.array_equal(kept["left_kidney"] > 0.5, second > 0)
    swapped = plausible({"right_kidney": second, "left_kidney": 0.8 * first}, grid)
    assert np.array_equal(swapped["right_kidney"] > 0.5, second > 0) and not swapped["left_kidney"].any()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_organs_lie_where_they_lay_on_any_scans_grid(orientation: str) -> None:
    spacing, shape = (2.0, 2.5, 3.0), (30, 60, 70)
    scan = Volume(np.zeros(shape, np.int16), affine_in(orientation, spacing, shape), orientation)
    liver, spleen = box(MIDDLE, slice(5, 25), slice(4, 20)), box(MIDDLE, slice(10, 20), slice(30, 44))
    liver = np.maximum(liver, 0.6 * (spleen > 0))  # where both claim a voxel, the more certain one has it
    labels = label_scan({"liver": liver, "spleen": spleen}, GRID, scan)
    assert labels.shape == shape and np.array_equal(labels.affine, scan.affine) and labels.voxels.dtype == np.uint8
    expected = np.zeros(shape, np.uint8)
    for probability, name in ((box(MIDDLE, slice(5, 25), slice(4, 20)), "liver"), (spleen, "spleen")):
        moved = resample(Volume(probability, GRID.affine), shape, scan.affine, fill=0).voxels
        expected[moved > 0.5] = ORGANS[name].label
    assert (expected > 0).sum() > 1000 and np.array_equal(labels.voxels, expected)


def test_an_organ_outside_of_the_scan_has_no_voxel() -> None:
    affine = GRID.affine.copy()
    affine[0, 3] += 1000
    scan = Volume(np.zeros(GRID.shape, np.int16), affine, "elsewhere")
    assert not label_scan({"liver": box(MIDDLE, MIDDLE, MIDDLE)}, GRID, scan).voxels.any()


def test_the_table_says_what_was_measured() -> None:
    labels = GRID.with_voxels((box(MIDDLE, MIDDLE, MIDDLE) > 0).astype(np.uint8) * ORGANS["liver"].label)
    image = GRID.with_voxels(np.where(labels.voxels > 0, 55, -1000).astype(np.int16))
    confidence = GRID.with_voxels(np.where(labels.voxels > 0, 0.75, 0.1).astype(np.float32))
    rows = measure(image, labels, confidence, ("spleen", "liver"))
    assert rows[0] == dict(zip(COLUMNS, ("spleen", 0.0, None, None), strict=True))
    assert rows[1] == dict(zip(COLUMNS, ("liver", round(6**3 * 4 * 4 * 6 / 1000, 2), 55.0, 0.75), strict=True))


# The task


def test_results_come_back_on_the_inputs_grid(results: Results, ct: Volume, tmp_path: Path) -> None:
    segmentation, confidence = results.segmentations["organs"], results.volumes["confidence"]
    for part in (segmentation.labelmap, confidence):
        assert part.shape == ct.shape and np.array_equal(part.affine, ct.affine)
    assert [segment.label for segment in segmentation.segments] == [2, 3, 6, 11]
    assert set(np.unique(segmentation.labelmap.voxels)) <= {0, 2, 3, 6} and segmentation.labelmap.voxels.any()
    assert confidence.voxels.dtype == np.float32 and 0 <= confidence.voxels.min() < confidence.voxels.max() <= 1
    assert results.columns["organs"] == COLUMNS
    assert [row["organ"] for row in results.tables["organs"]] == ["right_kidney", "left_kidney", "liver", "pancreas"]
    assert [name for name in results.provenance["bundles"]] == ["tiny-ct", "tiny-sam2"]
    results.save(tmp_path, ct)
    assert {"organs.seg.nrrd", "confidence.nrrd", "organs.csv", "overlay.png", "provenance.json"} == {
        path.name for path in tmp_path.iterdir()}
    header = read_volume(tmp_path / "organs.seg.nrrd").metadata
    assert "SCT^64033007^Kidney~SCT^24028007^Right" in header["Segment0_Tags"]
    assert header["Segment2_Name"] == "Liver" and header["Segment3_Extent"] == "0 -1 0 -1 0 -1"


def test_what_the_bundle_does_not_know_is_empty_and_said(results: Results) -> None:
    assert results.tables["organs"][3] == {"organ": "pancreas", "volume_ml": 0.0, "mean_intensity": None,
                                           "confidence": None}
    assert [m for m in results.messages if "pancreas" in m] == ["The bundle has not learned pancreas: left empty."]


def test_an_organ_that_is_not_there_is_empty_and_said(engine: Engine, ct: Volume) -> None:
    found = engine.run(task(organs=("liver", NEVER)), ct)
    rows = {row["organ"]: row for row in found.tables["organs"]}
    assert rows[NEVER]["volume_ml"] == 0 and rows["liver"]["volume_ml"] > 0
    assert found.provenance["organs_not_found"] == [NEVER]
    assert found.messages == [f"ct.nrrd shows no {NEVER} that could be found: left empty."]
    assert found.summary == "1 of 2 organs found."


def test_the_patient_decides_and_not_the_order_of_axes(engine: Engine, ct: Volume, results: Results) -> None:
    """The same voxels stored with other axes, two of them flipped: the same organs at the same places."""
    order, flips = (2, 0, 1), (1, 2)  # of the array's axes
    voxels = np.flip(ct.voxels.transpose(order), flips)
    # Column a of the affine belongs to array axis 2 - a.
    affine = ct.affine.copy()
    for new, old in enumerate(order):
        step = ct.affine[:3, 2 - old]
        sign = -1 if new in flips else 1
        affine[:3, 2 - new] = sign * step
        if sign < 0:
            affine[:3, 3] += step * (ct.shape[old] - 1)
    turned = Volume(np.ascontiguousarray(voxels), affine, "turned.nrrd", {"modality": "CT"})
    again = engine.run(task(), turned).segmentations["organs"].labelmap.voxels
    back = np.flip(again, flips).transpose(np.argsort(order))
    before = results.segmentations["organs"].labelmap.voxels
    assert before.any() and (back == before).mean() > 0.999


def test_the_same_seed_gives_the_same_bytes(engine: Engine, ct: Volume, results: Results) -> None:
    again = Engine("cpu").run(task(), ct)
    assert again.volumes["confidence"].voxels.tobytes() == results.volumes["confidence"].voxels.tobytes()
    other = engine.run(task(seed=1), ct)
    assert other.volumes["confidence"].voxels.tobytes() != results.volumes["confidence"].voxels.tobytes()


def test_cancelling_stops_within_a_slice(engine: Engine, ct: Volume) -> None:
    told: list[float] = []

    def cancel(fraction: float, message: str) -> None:
        if message == "Segmenting slice by slice":
            told.append(fraction)
            if len(told) == 2:
                raise Cancelled

    with pytest.raises(Cancelled):
        engine.run(task(), ct, cancel)
    assert len(told) == 2
    fractions: list[float] = []
    engine.run(task(organs=("liver",)), ct, lambda fraction, message: fractions.append(fraction))
    assert fractions == sorted(fractions) and len(fractions) >= 4 and fractions[-1] <= 1


# Which bundle, and refusals


def test_auto_takes_the_bundle_of_the_modality(
    engine: Engine, ct: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    for modality in ("CT", "MR"):
        monkeypatch.setitem(BUNDLES, modality, f"tiny-{modality.lower()}")
    unknown = Volume(ct.voxels, ct.affine, "scan.nii.gz")
    mr = Volume(np.abs(ct.voxels), ct.affine, "mr.nii.gz")
    for image, taken in ((ct, "CT"), (unknown, "CT"), (mr, "MR")):
        results = engine.run(task(bundle="auto", organs=("liver",)), image)
        assert list(results.provenance["bundles"]) == [f"tiny-{taken.lower()}", "tiny-sam2"]
        said = f"{image.name} does not say what it is; by its grey values it was taken for {taken}."
        assert (said in results.messages) == (image is not ct)
    messages = " ".join(engine.run(task(organs=("liver",)), mr).messages)
    assert "mr.nii.gz is MR, but the bundle tiny-ct was learned from CT." in messages


def test_all_that_the_bundle_knows_is_segmented_without_a_list(engine: Engine, ct: Volume) -> None:
    found = engine.run(task(organs=()), ct)
    assert tuple(row["organ"] for row in found.tables["organs"]) == KNOWN


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"organs": ("heart",)}, "There is no organ 'heart'"), ({"steps": 0}, "steps is 0"),
     ({"bundle": "tiny-sam2"}, "tiny-sam2 is a bundle of kind sam2"), ({"bundle": "nowhere"}, "nowhere")],
)
def test_bad_input_ends_in_one_sentence(engine: Engine, ct: Volume, change: dict, sentence: str) -> None:
    with pytest.raises(GenSegError, match=r"\.$") as caught:
        engine.run(task(**change), ct)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_a_scan_of_one_grey_value_is_refused(engine: Engine, ct: Volume) -> None:
    flat = Volume(np.full(ct.shape, 7, np.int16), ct.affine, "flat.nrrd", {"modality": "MR"})
    with pytest.raises(GenSegError, match="one grey value"):
        engine.run(task(bundle="tiny-mr"), flat)


def test_doubts_are_told_before_the_work(ct: Volume) -> None:
    assert task().preflight({"image": ct}) == []
    pet = Volume(np.zeros((8, 8, 8), np.int16), np.diag([2.0, 2, 12, 1]), "pet.nrrd", {"modality": "PT"})
    doubts = " ".join(task().preflight({"image": pet}))
    assert "is PT" in doubts and "12 mm" in doubts and "16 x 16 x 96 mm" in doubts
    wide = ct.affine @ np.diag([1.4, 1.4, 1.0, 1.0])
    assert "only its inner 352 mm are looked at" in " ".join(task().preflight({"image": Volume(ct.voxels, wide, "ct")}))


def test_the_memory_grows_with_the_ensemble_and_the_scan(ct: Volume) -> None:
    def needed(image: Volume, samples: int) -> int:
        return task(samples=samples).memory_bytes({"image": image}, Engine("cpu"))

    huge = Volume(np.broadcast_to(np.int16(0), (600, 512, 512)), np.diag([0.8, 0.8, 1.0, 1]), "huge")
    assert needed(ct, 1) < needed(ct, 16) and needed(ct, 1) < needed(huge, 1)
    masks = len(ORGANS) * 16 * CanonicalGrid().slices(huge) * 80**2 * 4  # of sixteen members, float32
    assert masks < needed(huge, 16) - 20 * huge.voxels.size < 4 * masks


# The command line


def command(*words: object) -> list[str]:
    return [*map(str, words), "--device", "cpu"]


def test_the_command_line_writes_the_contracts_files(
    ct: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_volume(ct, tmp_path / "scan.nrrd")
    code = main(command("organs", tmp_path / "scan.nrrd", "-o", tmp_path / "out", "--organs", "liver,pancreas",
                        "--bundle", "tiny-ct", "--samples", 1, "--json"))
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    expected = {"organs.seg.nrrd", "confidence.nrrd", "organs.csv", "overlay.png", "provenance.json"}
    assert expected == {path.name for path in (tmp_path / "out").iterdir()}
    assert set(json.loads(output.out.splitlines()[-1])["files"]) == expected
    assert (tmp_path / "out/organs.csv").read_text().splitlines()[0] == "organ,volume_ml,mean_intensity,confidence"


def test_a_word_that_is_no_organ_is_wrong_use(ct: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_volume(ct, tmp_path / "scan.nrrd")
    assert main(command("organs", tmp_path / "scan.nrrd", "-o", tmp_path / "out", "--organs", "liver,heart")) == 2
    assert "no organ 'heart'" in capsys.readouterr().err


def test_a_service_describes_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from GenSegLogic.service.schema import describe_task, make_task

    parameters = {entry["name"]: entry for entry in describe_task("organs")["parameters"]}
    assert parameters["organs"]["type"] == {"items": {"type": "string"}, "type": "array"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "liver").mkdir()  # of whoever started the service there
    write_sample(tmp_path / "my-model")
    assert make_task("organs", {"organs": ["liver"], "steps": 8}) == OrgansTask(organs=("liver",), steps=8)
    with pytest.raises(GenSegError, match="there is no bundle 'my-model'; paths are not accepted here"):
        make_task("organs", {"bundle": "my-model"})


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--image", "scan.nrrd"), 2, "1 --image and 0 --labels"),
        (("--image", "scan.nrrd", "--labels", "scan.nrrd", "--numbers", "lits"), 2, "'lits' does not say"),
        (("--image", "nowhere.nrrd", "--labels", "scan.nrrd"), 1, "nowhere.nrrd does not exist"),
        (("--image", "scan.nrrd", "--labels", "scan.nrrd"), 1, "give the labels and not the scan"),
        (("--image", "scan.nrrd", "--source-free", "--bundle", "nowhere"), 1, "nowhere"),
    ],
)
def test_adapt_refuses_before_it_learns(
    ct: Volume, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], code: int, sentence: str,
) -> None:
    write_volume(ct, tmp_path / "scan.nrrd")
    monkeypatch.chdir(tmp_path)
    assert main(command("adapt", "organs", "-o", tmp_path / "mine", *words)) == code
    assert sentence in capsys.readouterr().err and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("name", ["My Bundle", "other"])
def test_adapt_refuses_folders_that_cannot_hold_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("three years of work")
    assert main(command("adapt", "organs", "-o", tmp_path / name, "--image", "x", "--labels", "x")) == 1
    assert "choose" in capsys.readouterr().err


# Real scans


@pytest.mark.parametrize(
    ("path", "bundle"),
    [("wasserth__TotalSegmentator/tests/reference_files/example_ct_sm.nii.gz", "tiny-ct"),
     ("shenqq377__Q-Net/data/CHAOST2/chaos_MR_T2_normalized/image_22.nii.gz", "tiny-mr")],
)
def test_real_scans_come_back_on_their_grid(realdata: Path, engine: Engine, path: str, bundle: str) -> None:
    image = read_volume(realdata / path)
    image = crop(image, (0, 0, 8), (*image.shape[:0:-1], 6))
    assert modality_of(image) == bundle[-2:].upper()
    found = engine.run(task(bundle=bundle, organs=("liver",)), image)
    labels = found.segmentations["organs"].labelmap
    assert labels.shape == image.shape and np.array_equal(labels.affine, image.affine)
