"""Review of findings: status, threshold without a model run, jumping, layout, fading, copy and export."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import slicer

import slicer_stand_in
from GenSegLogic.errors import GenSegError
from GenSegLogic.results import Segmentation
from GenSegScene import display, findings, runs
from GenSegScene.segmentations import lung_segments, mask_from_node, mask_from_segment
from GenSegScene.tables import read_table
from GenSegScene.volumes import volume_from_node, volume_to_node
from GenSegScene.writing import results_to_scene
from slicer_stand_in.application import load_scene, save_scene


@pytest.fixture
def nodes(plain_chest, make_results):
    return results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)


@pytest.fixture
def node(nodes):
    return nodes["nodules_segmentation"]


def by_value(make_results):
    """A segmenter that is exact on the test's residual: nodule 1 has 120 HU, nodule 2 has 60."""

    def segmenter(record, image, residual, threshold_hu):
        results = make_results(image)
        segmentation = results.segmentations["nodules"]
        keep = [segment for segment in segmentation.segments
                if residual.voxels[segmentation.labelmap.voxels == segment.label].min() >= threshold_hu]
        labels = np.where(np.isin(segmentation.labelmap.voxels, [segment.label for segment in keep]),
                          segmentation.labelmap.voxels, 0)
        rows = [{**results.tables["nodules"][segment.label - 1], "volume_mm3": threshold_hu} for segment in keep]
        return Segmentation(segmentation.labelmap.with_voxels(labels), tuple(keep)), rows

    return segmenter


def names(node):
    return [item.name for item in findings.findings(node)]


def test_dragging_moves_the_display_only(nodes, node):
    voxels = slicer.util.arrayFromVolume(nodes["residual"]).copy()
    before = node.GetSegmentation().GetMTime()
    display.set_threshold(nodes["residual"], 77.0)
    assert display.displayed_threshold(nodes["residual"]) == 77.0
    assert node.GetSegmentation().GetMTime() == before
    np.testing.assert_array_equal(slicer.util.arrayFromVolume(nodes["residual"]), voxels)


def test_threshold_replaces_open_findings(nodes, node, make_results):
    assert names(node) == ["Nodule 1", "Nodule 2"]
    findings.write_threshold(node, 100.0, by_value(make_results))
    assert names(node) == ["Nodule 1"]
    assert [row["volume_mm3"] for row in read_table(nodes["nodules_table"])] == [100.0]
    assert display.displayed_threshold(nodes["residual"]) == 100.0
    findings.write_threshold(node, 10.0, by_value(make_results))
    assert names(node) == ["Nodule 1", "Nodule 2"]
    for item in findings.findings(node):
        assert item.row["name"] == item.name


def test_threshold_keeps_what_a_person_touched(nodes, node, plain_chest, make_results):
    first, second = node.GetSegmentation().GetSegmentIDs()
    findings.set_status(node, first, findings.ACCEPTED)
    edited = mask_from_segment(node, second, plain_chest).voxels.copy()
    edited[0, 0, :3] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, node, second, plain_chest)
    own = node.GetSegmentation().AddEmptySegment("mine", "Mine")
    assert findings.owned_segments(node) == []
    findings.write_threshold(node, 10.0, by_value(make_results))
    assert list(node.GetSegmentation().GetSegmentIDs()) == [first, second, own]
    np.testing.assert_array_equal(mask_from_segment(node, second, plain_chest).voxels, edited)
    assert [row["status"] for row in read_table(nodes["nodules_table"])] == ["accepted", ""]


def test_renamed_segment_is_kept_and_names_stay_apart(node, make_results):
    first, second = node.GetSegmentation().GetSegmentIDs()
    node.GetSegmentation().GetSegment(first).SetName("Nodule 2")  # the user's own numbering
    assert findings.owned_segments(node) == [second]
    findings.write_threshold(node, 10.0, by_value(make_results))
    assert names(node) == ["Nodule 2", "Nodule 2 (2)"]


def test_the_backend_finds_the_same_from_the_stored_residual(plain_chest, linear_transform, make_results):
    """The default segmenter is GenSegLogic's; its places move along with the scan."""
    volume = volume_from_node(plain_chest)
    results = make_results(volume)
    results.provenance["inputs"] = {"image": {"affine_ijk_to_lps_mm": volume.affine.tolist()}}
    results.provenance["findings"] = [
        {"center": [row["center_l_mm"], row["center_p_mm"], row["center_s_mm"]], "radius_mm": 6.0, "probability": 0.9}
        for row in results.tables["nodules"]]
    # The lungs that the run had; their outline was erased since, which is not the residual's affair.
    lungs = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Lungs")
    lungs.GetSegmentation().AddEmptySegment("lungs")
    nodes = results_to_scene(results, plain_chest, inputs={"lungs": lungs})
    node = nodes["nodules_segmentation"]
    assert runs.related(node, "lungs") is lungs
    for moved in (False, True):
        if moved:
            for item in (plain_chest, node, nodes["residual"]):
                item.SetAndObserveTransformNodeID(linear_transform.GetID())
        findings.write_threshold(node, 100.0)
        assert names(node) == ["Nodule 1"]
        findings.write_threshold(node, 10.0)
        assert names(node) == ["Nodule 1", "Nodule 2"]
        labels = results.segmentations["nodules"].labelmap.voxels
        for label, item in enumerate(findings.findings(node), start=1):
            np.testing.assert_array_equal(
                mask_from_segment(node, item.segment_id, plain_chest).voxels, labels == label)
            table_center = [item.row[f"center_{axis}_mm"] for axis in "ras"]
            np.testing.assert_allclose(table_center, findings.center_of(node, item.segment_id),
                                       atol=np.linalg.norm(plain_chest.GetSpacing()) / 2)


def test_a_lung_mask_may_be_a_volume_or_a_segmentation(nodes, plain_chest):
    segmentation = nodes["nodules_segmentation"]
    both = mask_from_node(segmentation, plain_chest)
    expected = sum(mask_from_segment(segmentation, segment_id, plain_chest).voxels
                   for segment_id in segmentation.GetSegmentation().GetSegmentIDs())
    np.testing.assert_array_equal(both.voxels, expected)
    labelmap = volume_to_node(both, "Lungs", like=plain_chest, class_name="vtkMRMLLabelMapVolumeNode")
    np.testing.assert_array_equal(mask_from_node(labelmap, plain_chest).voxels, expected)


LUNG_TYPES = {"lung": "39607008^Lung", "upper lobe": "45653009^Upper lobe of lung",
              "middle lobe": "72481006^Middle lobe of right lung", "lower lobe": "90572001^Lower lobe of lung"}


def add_box(node, name, box, like, kind=""):
    """A segment of one box, with a type of Slicer's terminology."""
    segment_id = node.GetSegmentation().AddEmptySegment("", name)
    voxels = np.zeros((12, 20, 24), np.uint8)
    voxels[box] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(voxels, node, segment_id, like)
    if kind:
        node.GetSegmentation().GetSegment(segment_id).SetTerminology(
            "Segmentation category and type - 3D Slicer General Anatomy list~SCT^123037004^Anatomical Structure~"
            f"SCT^{kind}~SCT^7771000^Left~Anatomic codes - DICOM master list~^^~^^")
    return voxels


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("lungs", [
    *[{"Left": kind} for kind in LUNG_TYPES.values()], {"lung_upper_lobe_left": "", "Right Lung": ""},
    {"Left": LUNG_TYPES["lung"], "right lung": ""}])
def test_of_a_whole_bodys_segments_the_lungs_are_taken(plain_chest, linear_transform, lungs, moved):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Body")
    node.SetReferenceImageGeometryParameterFromVolumeNode(plain_chest)
    for item in (plain_chest, node) if moved else ():
        item.SetAndObserveTransformNodeID(linear_transform.GetID())
    add_box(node, "Heart", np.s_[2:9, 5:12, 5:12], plain_chest, "80891009^Heart")
    add_box(node, "Rib", np.s_[0:2], plain_chest)
    add_box(node, "Lung tumour", np.s_[0:2, 4:9], plain_chest)
    expected = np.zeros((12, 20, 24), np.uint8)
    for number, (name, kind) in enumerate(lungs.items()):  # overlapping each other and the heart
        expected |= add_box(node, name, np.s_[4 + number:8 + number, 3:9, 4 + number:12], plain_chest, kind)
    before = slicer.mrmlScene.GetNumberOfNodes()
    np.testing.assert_array_equal(mask_from_node(node, plain_chest).voxels, expected)
    assert slicer.mrmlScene.GetNumberOfNodes() == before


def test_without_a_lung_all_segments_are_the_mask(nodes, plain_chest):
    """A nodule lies in the region lung and is none."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Mask")
    node.SetReferenceImageGeometryParameterFromVolumeNode(plain_chest)
    assert not mask_from_node(node, plain_chest).voxels.any()
    expected = add_box(node, "Left", np.s_[2:9, 5:12, 5:12], plain_chest)
    expected |= add_box(node, "Right", np.s_[2:9, 10:18, 5:12], plain_chest)
    np.testing.assert_array_equal(mask_from_node(node, plain_chest).voxels, expected)
    assert lung_segments(nodes["nodules_segmentation"]) == []


def test_failed_threshold_leaves_the_segments(node, make_results):
    def wrong_size(record, image, residual, threshold_hu):
        segmentation, rows = by_value(make_results)(record, image, residual, threshold_hu)
        small = segmentation.labelmap.voxels[:5].copy()
        return Segmentation(type(image)(small, image.affine), segmentation.segments), rows

    before = list(node.GetSegmentation().GetSegmentIDs())
    with pytest.raises(GenSegError, match="Chest"):
        findings.write_threshold(node, 10.0, wrong_size)
    assert list(node.GetSegmentation().GetSegmentIDs()) == before


def test_threshold_needs_the_residual(nodes, node, make_results):
    slicer.mrmlScene.RemoveNode(nodes["residual"])
    with pytest.raises(GenSegError, match="residual of Chest nodules"):
        findings.write_threshold(node, 10.0, by_value(make_results))


def test_threshold_needs_to_know_the_places(node):
    with pytest.raises(GenSegError, match="Chest do not say where"):
        findings.write_threshold(node, 10.0)
    assert names(node) == ["Nodule 1", "Nodule 2"]


def test_ownership_survives_saving(nodes, node, plain_chest, make_results, tmp_path):
    first, second = node.GetSegmentation().GetSegmentIDs()
    findings.set_status(node, first, findings.REJECTED)
    save_scene(tmp_path / "scene.mrb")
    load_scene(tmp_path / "scene.mrb")
    again = slicer.mrmlScene.GetFirstNodeByName("Chest nodules")
    first, second = again.GetSegmentation().GetSegmentIDs()
    assert findings.owned_segments(again) == [second]
    assert [item.status for item in findings.findings(again)] == ["rejected", ""]
    assert not again.GetDisplayNode().GetSegmentVisibility(first)
    findings.write_threshold(again, 100.0, by_value(make_results))
    assert names(again) == ["Nodule 1"]  # the rejected one; nothing new is laid over it
    assert runs.related(again, "nodules_table").GetNumberOfRows() == 1


def test_status_is_slicers_own(node, nodes):
    first, second = node.GetSegmentation().GetSegmentIDs()
    logic = slicer.modules.segmentations.logic()
    findings.set_status(node, first, findings.ACCEPTED)
    findings.set_status(node, second, findings.REJECTED)
    segments = [node.GetSegmentation().GetSegment(segment_id) for segment_id in (first, second)]
    assert [logic.GetSegmentStatus(segment) for segment in segments] == [logic.Completed, logic.Flagged]
    assert [row["status"] for row in read_table(nodes["nodules_table"])] == ["accepted", "rejected"]
    assert not node.GetDisplayNode().GetSegmentVisibility(second)
    findings.set_status(node, second, findings.OPEN)
    assert findings.status_of(node, second) == findings.OPEN
    assert node.GetDisplayNode().GetSegmentVisibility(second)
    with pytest.raises(GenSegError, match="maybe"):
        findings.set_status(node, first, "maybe")
    with pytest.raises(GenSegError, match="Chest nodules has no segment"):
        findings.set_status(node, "gone", findings.OPEN)


def test_jump_goes_where_the_segment_is_shown(node, plain_chest, linear_transform):
    plain_chest.SetAndObserveTransformNodeID(linear_transform.GetID())
    node.SetAndObserveTransformNodeID(linear_transform.GetID())
    first = node.GetSegmentation().GetSegmentIDs()[0]
    assert findings.jump_to_finding(node, first)
    for slice_node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        to_slice = np.linalg.inv(slicer.util.arrayFromVTKMatrix(slice_node.GetSliceToRAS()))
        offset = to_slice @ [*findings.center_of(node, first), 1]
        assert abs(offset[2]) < 1e-6  # the point lies in the plane of every view
    node.GetSegmentation().AddEmptySegment("empty")
    assert not findings.jump_to_finding(node, "empty")


def test_fade_leaves_the_overlay_alone(nodes):
    display.fade(0.25)
    for composite in display.composites():
        assert composite.GetNthLayerOpacity(composite.Layer_Last) == 0.25
        assert composite.GetForegroundVolumeID() == nodes["residual"].GetID()
    assert display.faded() == 0.25
    display.fade(7.0)
    assert display.faded() == 1.0


def test_the_users_own_fusion_layer_comes_back_from_under_the_overlay(nodes, tmp_path):
    pet = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "PET")
    display.show_residual(None)
    for composite, opacity in zip(display.composites(), (0.3, 0.7, 0.9), strict=False):
        composite.SetForegroundVolumeID(pet.GetID())
        composite.SetForegroundOpacity(opacity)
    before = [(composite.GetForegroundVolumeID(), composite.GetForegroundOpacity())
              for composite in display.composites()]
    assert len(set(before)) > 1
    for overlay in (nodes["residual"], nodes["counterfactual"]):  # a second overlay is not what the user had
        display.show_residual(overlay)
        assert all(composite.GetForegroundVolumeID() == overlay.GetID() and composite.GetForegroundOpacity() == 0.5
                   for composite in display.composites())
    display.show_residual(None)
    assert before == [(composite.GetForegroundVolumeID(), composite.GetForegroundOpacity())
                      for composite in display.composites()]

    display.show_residual(nodes["residual"])
    chosen = display.composites()[0]
    chosen.SetForegroundVolumeID(None)  # the user thinks better of it
    display.show_residual(nodes["residual"])
    save_scene(tmp_path / "scene.mrb")
    load_scene(tmp_path / "scene.mrb")
    display.show_residual(None)
    shown = [composite.GetForegroundVolumeID() for composite in display.composites()]
    pet = slicer.mrmlScene.GetFirstNodeByName("PET")
    assert shown == [None, *[pet.GetID()] * (len(shown) - 1)]


def test_side_by_side_is_one_orientation_linked_and_undone(nodes, plain_chest):
    layout = slicer.util.getNodesByClass("vtkMRMLLayoutNode")[0]
    layout.SetViewArrangement(layout.SlicerLayoutFourUpView)
    display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
    slicer_stand_in.update_views()
    display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
    assert display.is_side_by_side()
    mapped = slicer.app.layoutLogic().GetViewNodes()
    views = {mapped.GetItemAsObject(index).GetLayoutName(): mapped.GetItemAsObject(index)
             for index in range(mapped.GetNumberOfItems())}
    assert set(views) == {display.ORIGINAL_VIEW, display.COUNTERFACTUAL_VIEW}
    assert {view.GetOrientation() for view in views.values()} == {"Axial"}
    shown = {composite.GetLayoutName(): composite for composite in display.composites()}
    assert shown[display.ORIGINAL_VIEW].GetBackgroundVolumeID() == plain_chest.GetID()
    assert shown[display.COUNTERFACTUAL_VIEW].GetBackgroundVolumeID() == nodes["counterfactual"].GetID()
    assert all(shown[view].GetLinkedControl() for view in views)
    display.leave_side_by_side()
    assert layout.GetViewArrangement() == layout.SlicerLayoutFourUpView


def test_a_run_that_ends_side_by_side_is_shown_side_by_side(nodes, plain_chest, make_results):
    display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
    slicer_stand_in.update_views()
    display.enter_side_by_side(plain_chest, nodes["counterfactual"], nodes["residual"])
    other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(plain_chest), name="Other")
    second = results_to_scene(make_results(volume_from_node(other)), other)
    shown = {composite.GetLayoutName(): composite for composite in display.composites()}
    left, right = shown.pop(display.ORIGINAL_VIEW), shown.pop(display.COUNTERFACTUAL_VIEW)
    assert left.GetBackgroundVolumeID() == other.GetID()
    assert left.GetForegroundVolumeID() == second["residual"].GetID()
    assert right.GetBackgroundVolumeID() == second["counterfactual"].GetID()
    assert right.GetForegroundVolumeID() is None
    assert {view.GetNthLayerVolumeID(view.Layer_Last) for view in (left, right)} == {None}
    for composite in shown.values():  # which the user goes back to
        assert composite.GetBackgroundVolumeID() == other.GetID()
        assert composite.GetNthLayerVolumeID(composite.Layer_Last) == second["counterfactual"].GetID()


def test_copy_and_export_say_frame_and_unit(nodes, tmp_path):
    table, node = nodes["nodules_table"], nodes["nodules_segmentation"]
    findings.set_status(node, "Segment_1", findings.ACCEPTED)
    lines = [line.split("\t") for line in findings.table_as_text(table, node).splitlines()]
    assert lines[0] == ["name", "center_r_mm", "center_a_mm", "center_s_mm", "volume_mm3", "status"]
    assert lines[1][0] == "Nodule 1" and lines[1][-1] == "accepted" and len(lines) == 3
    path = findings.export_table(table, node, tmp_path / "out.csv")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["center_r_mm"]) for row in rows] == [row["center_r_mm"] for row in read_table(table)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.csv"]
    with pytest.raises(GenSegError, match="nowhere"):
        findings.export_table(table, node, tmp_path / "nowhere" / "out.csv")
