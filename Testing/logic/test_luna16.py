"""LUNA16 and LIDC's contours, on a miniature of the real folder layout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from scipy.ndimage import binary_dilation, generate_binary_structure

from GenSegLogic.datasets.luna16 import Luna16Case, read_luna16
from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import Volume, geometry, resample_like

SHAPE = (20, 48, 64)
STRAIGHT = np.array([[0.7, 0, 0, -100], [0, 0.7, 0, -90], [0, 0, 1.25, -200.5], [0, 0, 0, 1]])
FLIPPED = STRAIGHT * [-1, -1, 1, 1]  # LUNA16 has such scans, turned round: i runs to the right, j to the front

WITH_NODULES, CLEAN, TURNED = "1.3.6.1.4.1.14519.5.2.1.6279.6001.1", "1.3.6.2", "1.3.6.3"


def ball(centre_ijk: Sequence[float], radius_mm: float, affine: np.ndarray = STRAIGHT) -> np.ndarray:
    scan = Volume(np.empty(SHAPE, np.uint8), affine)
    indices = np.stack(np.meshgrid(*[np.arange(count) for count in SHAPE], indexing="ij"), -1)[..., ::-1]
    return np.linalg.norm(scan.to_lps(indices) - scan.to_lps(np.array(centre_ijk)), axis=-1) <= radius_mm


def edge_map(inside: np.ndarray) -> list[tuple[int, int]]:
    """The first pixels outside of a convex region (j, i), in order round it, closed, as (x, y)."""
    ring = binary_dilation(inside, generate_binary_structure(2, 1)) & ~inside
    points = np.argwhere(ring)
    middle = np.argwhere(inside).mean(axis=0)
    order = np.argsort(np.arctan2(*(points - middle).T))
    closed = [*points[order].tolist(), points[order[0]].tolist()]
    return [(x, y) for y, x in closed]


def roi(z: float, edge: Sequence[tuple[int, int]], inclusion: bool = True) -> str:
    points = "".join(f"<edgeMap><xCoord>{x}</xCoord><yCoord>{y}</yCoord></edgeMap>" for x, y in edge)
    return (
        f"<roi><imageZposition>{z:.6f} </imageZposition><imageSOP_UID>1.2.3</imageSOP_UID>"
        f"<inclusion>{str(inclusion).upper()}</inclusion>{points}</roi>"
    )


def nodule(mask: np.ndarray, hole: np.ndarray | None = None, affine: np.ndarray = STRAIGHT) -> str:
    rois = ""
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        z = affine[2, 3] + affine[2, 2] * k
        rois += roi(z, edge_map(mask[k]))
        if hole is not None and hole[k].any():
            rois += roi(z, edge_map(hole[k]), inclusion=False)
    characteristics = "<characteristics><subtlety>5</subtlety><malignancy>3</malignancy></characteristics>"
    return f"<unblindedReadNodule><noduleID>Nodule 001</noduleID>{characteristics}{rois}</unblindedReadNodule>"


SMALL = f"<unblindedReadNodule><noduleID>1</noduleID>{roi(-188, [(20, 20)])}</unblindedReadNodule>"
NOT_A_NODULE = (
    "<nonNodule><nonNoduleID>2</nonNoduleID><imageZposition>-188.0</imageZposition>"
    "<locus><xCoord>30</xCoord><yCoord>9</yCoord></locus></nonNodule>"
)


def write_xml(path: Path, series: str, readers: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sessions = "".join(
        "<readingSession><annotationVersion>3.12</annotationVersion>"
        f"<servicingRadiologistID>anon</servicingRadiologistID>{content}</readingSession>"
        for content in readers
    )
    path.write_text(
        '<?xml version="1.0" encoding="UTF-8"?>\n<LidcReadMessage xmlns="http://www.nih.gov" uid="1.3.6">'
        f"<ResponseHeader><Version>1.8.1</Version><SeriesInstanceUid>{series}</SeriesInstanceUid></ResponseHeader>"
        f"{sessions}</LidcReadMessage>"
    )


def write_scan(path: Path, affine: np.ndarray, voxels: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if voxels is None:
        voxels = np.random.default_rng(0).integers(-1000, 300, SHAPE).astype(np.int16)
    image = SimpleITK.GetImageFromArray(voxels)
    origin, spacing, direction = geometry(affine)
    image.SetOrigin(origin)
    image.SetSpacing(spacing)
    image.SetDirection(direction)
    SimpleITK.WriteImage(image, str(path), useCompression=path.parent.name == "seg-lungs-LUNA16")


LARGE, LARGER, HOLE = ball((20, 24, 9), 5), ball((20, 24, 9), 6.5), ball((20, 24, 9), 1.6)
SECOND, LONELY = ball((45, 20, 12), 3.2), ball((50, 38, 4), 3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "LUNA16"
    write_scan(root / "subset0" / f"{WITH_NODULES}.mhd", STRAIGHT)
    write_scan(root / "subset0" / f"{CLEAN}.mhd", STRAIGHT)
    write_scan(root / "subset7" / f"{TURNED}.mhd", FLIPPED)
    lungs = np.zeros(SHAPE, np.uint8)
    lungs[:, :, :30], lungs[:, :, 34:], lungs[:, 20:24, 30:34] = 3, 4, 5
    write_scan(root / "seg-lungs-LUNA16" / f"{WITH_NODULES}.mhd", STRAIGHT, lungs)

    lines = ["seriesuid,coordX,coordY,coordZ,diameter_mm"]
    straight, turned = Volume(lungs, STRAIGHT), Volume(lungs, FLIPPED)
    for uid, scan, centre, diameter in (
        (WITH_NODULES, straight, (20, 24, 9), 10.9),
        (WITH_NODULES, straight, (45.5, 20, 12), 6.2),
        (TURNED, turned, (20, 24, 9), 10.0),
    ):
        lines.append(",".join(map(str, [uid, *scan.to_lps(np.array(centre)), diameter])))
    (root / "annotations.csv").write_text("\n".join(lines) + "\n")
    (root / "candidates_V2.csv").write_text(f"seriesuid,coordX,coordY,coordZ,class\n{CLEAN},-56.1,67.9,-311.9,0\n")

    xml = root / "tcia-lidc-xml"
    readers = [
        nodule(LARGE) + nodule(SECOND) + SMALL,
        nodule(LARGE, HOLE) + nodule(SECOND) + NOT_A_NODULE,
        nodule(LARGER, HOLE) + nodule(SECOND) + nodule(LONELY),
        SMALL,
    ]
    write_xml(xml / "157" / "158.xml", WITH_NODULES, readers)
    write_xml(xml / "185" / "001.xml", CLEAN, ["", "", "", ""])
    write_xml(xml / "186" / "002.xml", TURNED, [nodule(ball((20, 24, 9), 5, FLIPPED), affine=FLIPPED)] * 3 + [""])
    (xml / "187").mkdir()
    (xml / "187" / "chest-x-ray.xml").write_text(
        "<IdriReadMessage><CXRSeriesInstanceUid>1.9</CXRSeriesInstanceUid></IdriReadMessage>"
    )
    return root


@pytest.fixture
def cases(root: Path) -> list[Luna16Case]:
    return list(read_luna16(root))


def test_cases_come_in_order_with_their_folds(cases: list[Luna16Case]) -> None:
    assert [(case.case_id, case.subset) for case in cases] == [(WITH_NODULES, 0), (CLEAN, 0), (TURNED, 7)]
    assert [len(case.nodules) for case in cases] == [2, 0, 1]
    np.testing.assert_allclose(cases[0].image.affine, STRAIGHT)
    assert cases[1].nodules == cases[1].unconfirmed == ()


def test_masks_are_what_half_of_the_readers_have_inside_their_contours(cases: list[Luna16Case]) -> None:
    case = cases[0]
    first, second = case.nodules
    # Of four readers two are needed; the first has no hole, the second and third have, the third is larger, the fourth
    # saw nothing. So the hole has one vote, and the rim one. A hole's edge is not nodule either.
    hole = np.stack([binary_dilation(plane, generate_binary_structure(2, 1)) for plane in HOLE])
    assert np.array_equal(first.mask_like(case.image), LARGE & ~hole)
    assert np.array_equal(second.mask_like(case.image), SECOND)
    assert (first.readers, second.readers) == (3, 3)
    assert (first.diameter_mm, second.diameter_mm) == (10.9, 6.2)
    np.testing.assert_allclose(first.centre_lps, case.image.to_lps(np.array([20, 24, 9])))


def test_masks_lie_at_their_place_in_the_patient(cases: list[Luna16Case]) -> None:
    for case in (cases[0], cases[2]):
        for truth in case.nodules:
            boxed = Volume(truth.mask.voxels.astype(np.uint8), truth.mask.affine)
            on_scan = resample_like(boxed, case.image, "nearest", fill=0).voxels
            assert np.array_equal(on_scan.astype(bool), truth.mask_like(case.image))
            middle = case.image.to_lps(np.argwhere(on_scan)[:, ::-1].mean(axis=0))
            assert np.linalg.norm(middle - truth.centre_lps) < 0.5
    turned = cases[2]
    assert np.array_equal(turned.nodules[0].mask_like(turned.image), ball((20, 24, 9), 5, FLIPPED))


def test_what_one_reader_saw_alone_is_kept_apart(cases: list[Luna16Case]) -> None:
    (box,) = cases[0].unconfirmed
    assert not box.voxels.any()
    middle = box.to_lps((np.array(box.shape[::-1]) - 1) / 2)
    np.testing.assert_allclose(middle, cases[0].image.to_lps(np.array([50, 38, 4])), atol=0.5)


def test_lung_masks_are_read_on_demand(cases: list[Luna16Case]) -> None:
    lungs = cases[0].lungs()
    assert lungs is not None and lungs.voxels.dtype == bool and lungs.shape == SHAPE
    assert lungs.voxels[0, 0].sum() == 60 and not lungs.voxels[0, 21, 31]
    assert cases[1].lungs() is None


def test_cases_are_read_one_at_a_time(root: Path) -> None:
    iterator: Iterator[Luna16Case] = read_luna16(root)
    assert next(iterator).case_id == WITH_NODULES
    (root / "subset0" / f"{CLEAN}.raw").unlink()
    with pytest.raises(GenSegError, match=rf"{CLEAN}\.mhd needs its voxel file"):
        next(iterator)


def test_subsets_are_chosen(root: Path) -> None:
    assert [case.case_id for case in read_luna16(root, [7])] == [TURNED]
    with pytest.raises(GenSegError, match=r"subset3 is missing"):
        read_luna16(root, [0, 3])


def test_what_is_no_luna16_folder_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(GenSegError, match=r"annotations\.csv cannot be opened"):
        read_luna16(tmp_path)
    (tmp_path / "annotations.csv").write_text("seriesuid,coordX\n1.2.3,4\n")
    with pytest.raises(GenSegError, match="columns seriesuid"):
        read_luna16(tmp_path)
    (tmp_path / "annotations.csv").write_bytes((root / "annotations.csv").read_bytes())
    with pytest.raises(GenSegError, match="subset0 to subset9 is missing"):
        read_luna16(tmp_path)


def test_contours_that_are_missing_or_do_not_fit_are_refused(root: Path) -> None:
    xml = root / "tcia-lidc-xml" / "157" / "158.xml"
    content = xml.read_text()
    for broken, expected in (
        (content[: len(content) // 2], "not a whole LIDC annotation"),
        (content.replace("<xCoord>20<", "<xCoord>2000<"), "outside of"),
        (content.replace("<imageZposition>-188", "<imageZposition>-988"), "has no slice"),
        (content.replace("<inclusion>TRUE</inclusion>", ""), "not a whole LIDC annotation"),
    ):
        assert broken != content
        xml.write_text(broken)
        with pytest.raises(GenSegError, match=expected):
            next(read_luna16(root))
    write_xml(xml, WITH_NODULES, [nodule(SECOND)] * 4)
    with pytest.raises(GenSegError, match="no reader outlined"):
        next(read_luna16(root))
    xml.unlink()
    with pytest.raises(GenSegError, match=r"LIDC-XML-only\.zip"):
        next(read_luna16(root))
