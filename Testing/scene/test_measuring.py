"""Segments that a person edited are measured anew; what the model said of them stays."""

from __future__ import annotations

import numpy as np
import pytest
import slicer

from GenSegLogic.errors import GenSegError
from GenSegLogic.nodules.measure import COLUMNS, measure_voxels
from GenSegLogic.organs.measure import measure
from GenSegLogic.results import Code, Results, Segment, Segmentation
from GenSegScene import findings
from GenSegScene.measuring import measure_edited
from GenSegScene.segmentations import mask_from_segment
from GenSegScene.tables import column_names, fill_table, read_table, to_ras
from GenSegScene.volumes import volume_from_node
from GenSegScene.writing import results_to_scene
from slicer_stand_in.application import load_scene, save_scene


@pytest.fixture
def measured(make_results):
    """``measured(scan)``: nodes of two nodules with the table that the task measures."""

    def make(scan):
        volume = volume_from_node(scan)
        results = make_results(volume)
        labels = results.segmentations["nodules"].labelmap.voxels
        rows = [{"nodule": label, **measure_voxels(volume, np.argwhere(labels == label)), "probability": chance}
                for label, chance in ((1, 0.6), (2, 0.7))]
        results.tables["nodules"], results.columns["nodules"] = rows, COLUMNS
        return results_to_scene(results, scan)

    return make


def paint(node, segment_id, like, box):
    """What an effect of the Segment Editor does."""
    mask = mask_from_segment(node, segment_id, like).voxels.copy()
    mask[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment_id, like)
    return mask


def test_what_nobody_edited_is_left_alone(measured, plain_chest):
    nodes = measured(plain_chest)
    before = read_table(nodes["nodules_table"])
    assert measure_edited(nodes["nodules_segmentation"]) == []
    assert read_table(nodes["nodules_table"]) == before


def test_an_edited_segment_is_measured_as_it_now_is_in_any_geometry_and_place(measured, chest, linear_transform):
    nodes = measured(chest)
    node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
    for moved in (chest, node):  # as when a registration is applied to the run
        moved.SetAndObserveTransformNodeID(linear_transform.GetID())
    first, _second = node.GetSegmentation().GetSegmentIDs()
    written, untouched = read_table(table)
    mask = paint(node, first, chest, np.s_[2:6, 4:8, 5:12])
    assert measure_edited(node) == [first]
    row, other = read_table(table)
    assert other == untouched
    expected = to_ras(measure_voxels(volume_from_node(chest), np.argwhere(mask)))
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert row["volume_mm3"] > 2 * written["volume_mm3"]
    assert (row["nodule"], row["probability"], row["segment_id"]) == (1, 0.6, first)
    assert measure_edited(node) == []  # told once


def test_a_drawn_segment_gets_a_row_and_an_emptied_one_keeps_its_own(measured, plain_chest):
    nodes = measured(plain_chest)
    node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
    first, _second = node.GetSegmentation().GetSegmentIDs()
    own = node.GetSegmentation().AddEmptySegment("mine", "Missed nodule")
    paint(node, own, plain_chest, np.s_[8:10, 2:4, 2:4])
    slicer.util.updateSegmentBinaryLabelmapFromArray(np.zeros((12, 20, 24), np.uint8), node, first, plain_chest)
    assert measure_edited(node) == [first, own]
    emptied, _kept, drawn = read_table(table)
    assert emptied["volume_mm3"] == 0 and emptied["long_axis_mm"] is None and emptied["probability"] == 0.6
    assert drawn["volume_mm3"] == pytest.approx(8 * 0.7 * 0.8 * 1.5, abs=0.05)
    assert (drawn["segment_id"], drawn["probability"], drawn["status"]) == (own, None, "")


def test_a_saved_scene_still_knows_what_was_measured(measured, plain_chest, tmp_path):
    node = measured(plain_chest)["nodules_segmentation"]
    paint(node, node.GetSegmentation().GetNthSegmentID(0), plain_chest, np.s_[2:6, 4:8, 5:12])
    assert len(measure_edited(node)) == 1
    save_scene(tmp_path / "run.mrb")
    load_scene(tmp_path / "run.mrb")
    reopened = slicer.util.getNode(node.GetName())
    assert measure_edited(reopened) == []
    scan = slicer.util.getNode("Chest")
    paint(reopened, reopened.GetSegmentation().GetNthSegmentID(1), scan, np.s_[9:11, 12:17, 14:18])
    assert len(measure_edited(reopened)) == 1


def test_a_drawn_segment_takes_nothing_from_a_deleted_one_of_its_identifier(measured, plain_chest):
    nodes = measured(plain_chest)
    node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
    segment = node.GetSegmentation().GetNthSegmentID(1)
    paint(node, segment, plain_chest, np.s_[9:11, 12:17, 14:18])
    for known in (False, True):  # the deleted one's row is as the task wrote it, or as it was measured after editing
        if known:
            assert measure_edited(node) == [segment]
        node.GetSegmentation().RemoveSegment(segment)
        assert node.GetSegmentation().AddEmptySegment(segment, "Mine") == segment
        assert measure_edited(node) == []  # nothing was drawn yet
        paint(node, segment, plain_chest, np.s_[8:10, 2:4, 2:4])
        assert measure_edited(node) == [segment]
        row = read_table(table)[1]
        assert (row["probability"], row["volume_mm3"]) == (None, pytest.approx(6.7, abs=0.05))
        findings.set_status(node, segment, findings.ACCEPTED)
        paint(node, segment, plain_chest, np.s_[8:10, 2:5, 2:4])
        assert measure_edited(node) == [segment]
        again = read_table(table)[1]
        assert (again["nodule"], again["status"]) == (row["nodule"], "accepted") and again["volume_mm3"] > 10
        node.GetSegmentation().RemoveSegment(segment)
        nodes = measured(plain_chest)
        node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
        segment = node.GetSegmentation().GetNthSegmentID(1)
        paint(node, segment, plain_chest, np.s_[9:11, 12:17, 14:18])


def test_undoing_an_edit_is_measured_too(measured, plain_chest):
    nodes = measured(plain_chest)
    node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
    before, segment = read_table(table), node.GetSegmentation().GetNthSegmentID(0)
    kept = slicer.vtkSegment()
    kept.DeepCopy(node.GetSegmentation().GetSegment(segment))
    paint(node, segment, plain_chest, np.s_[2:6, 4:8, 5:12])
    assert measure_edited(node) == [segment] and read_table(table) != before
    node.GetSegmentation().GetSegment(segment).DeepCopy(kept)  # voxels and tags, as the Segment Editor's undo does
    assert measure_edited(node) == [segment]
    assert read_table(table) == before


def test_a_first_drawn_finding_of_an_empty_run_has_numbers(measured, plain_chest):
    nodes = measured(plain_chest)
    node, table = nodes["nodules_segmentation"], nodes["nodules_table"]
    for segment in list(node.GetSegmentation().GetSegmentIDs()):
        node.GetSegmentation().RemoveSegment(segment)
    fill_table(table, [], column_names(table))
    for number, box in enumerate((np.s_[8:10, 2:4, 2:4], np.s_[2:4, 2:4, 2:4]), start=1):
        paint(node, node.GetSegmentation().AddEmptySegment(), plain_chest, box)
        assert len(measure_edited(node)) == 1
        assert [row["nodule"] for row in read_table(table)] == list(range(1, number + 1))
    assert all(isinstance(row["volume_mm3"], float) for row in read_table(table))


def test_without_its_scan_nothing_can_be_measured_and_it_is_said(measured, plain_chest):
    nodes = measured(plain_chest)
    node = nodes["nodules_segmentation"]
    paint(node, node.GetSegmentation().GetNthSegmentID(0), plain_chest, np.s_[2:6, 4:8, 5:12])
    before = read_table(nodes["nodules_table"])
    slicer.mrmlScene.RemoveNode(plain_chest)
    with pytest.raises(GenSegError, match="scan of Chest nodules is no longer"):
        measure_edited(node)
    assert read_table(nodes["nodules_table"]) == before


def test_an_edited_organ_keeps_its_confidence(plain_chest):
    volume = volume_from_node(plain_chest)
    labels = volume.with_voxels(np.zeros(volume.shape, np.uint8))
    labels.voxels[2:6, 4:9, 5:12] = 1
    confidence = volume.with_voxels(np.full(volume.shape, 0.75, np.float32))
    code = Code("SCT", "78961009", "Spleen")
    segments = tuple(Segment(label, name, (1.0, 0.5, 0.5), code, code, None)
                     for label, name in ((1, "Spleen"), (2, "Right kidney")))
    rows = measure(volume, labels, confidence, ["spleen", "right_kidney"])
    results = Results(
        volumes={"confidence": confidence}, segmentations={"organs": Segmentation(labels, segments)},
        tables={"organs": rows}, columns={"organs": tuple(rows[0])}, provenance={"task": "organs"})
    nodes = results_to_scene(results, plain_chest)
    node, table = nodes["organs_segmentation"], nodes["organs_table"]
    assert measure_edited(node) == []
    spleen = node.GetSegmentation().GetNthSegmentID(0)
    mask = paint(node, spleen, plain_chest, np.s_[6:8, 4:9, 5:12])
    assert measure_edited(node) == [spleen]
    row, absent = read_table(table)
    assert row["volume_ml"] == pytest.approx(mask.sum() * np.prod(volume.spacing) / 1000, abs=0.01)
    assert row["mean_intensity"] == pytest.approx(volume.voxels[mask > 0].mean(), abs=0.01)
    assert (row["organ"], row["confidence"]) == ("spleen", 0.75)
    assert absent["volume_ml"] == 0 and absent["mean_intensity"] is None
