"""Results to nodes: geometry, terminology, presets, table, provenance, hierarchy, undo, a second run, .mrb."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

import slicer_stand_in
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.results import Results
from GenSegScene import display, runs
from GenSegScene.segmentations import mask_from_segment
from GenSegScene.tables import read_table
from GenSegScene.volumes import volume_from_node
from GenSegScene.writing import results_to_scene
from slicer_stand_in.application import load_scene, save_scene

KEYS = {"counterfactual", "residual", "nodules_segmentation", "nodules_table"}


def node_ids():
    return {slicer.mrmlScene.GetNthNode(index).GetID() for index in range(slicer.mrmlScene.GetNumberOfNodes())}


def hierarchy():
    return slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)


def matrix_of(node):
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return slicer.util.arrayFromVTKMatrix(matrix)


@pytest.mark.parametrize("moved", [False, True])
def test_everything_lands_on_the_grid_of_the_input(chest, linear_transform, make_results, moved):
    if moved:
        chest.SetAndObserveTransformNodeID(linear_transform.GetID())
    volume = volume_from_node(chest)
    results = make_results(volume)
    nodes = results_to_scene(results, chest)
    assert set(nodes) == KEYS
    for key in ("counterfactual", "residual"):
        np.testing.assert_array_equal(matrix_of(nodes[key]), matrix_of(chest))
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(nodes[key]), results.volumes[key].voxels)
    for key in ("counterfactual", "residual", "nodules_segmentation"):
        assert nodes[key].GetTransformNodeID() == chest.GetTransformNodeID()
    segmentation, labels = nodes["nodules_segmentation"], results.segmentations["nodules"].labelmap.voxels
    ids = segmentation.GetSegmentation().GetSegmentIDs()
    for label, segment_id in enumerate(ids, start=1):
        np.testing.assert_array_equal(mask_from_segment(segmentation, segment_id, chest).voxels, labels == label)
    # The table says where Slicer shows the segments, by MRML's own computation.
    for segment_id, row in zip(ids, read_table(nodes["nodules_table"]), strict=True):
        np.testing.assert_allclose(segmentation.GetSegmentCenterRAS(segment_id),
                                   [row["center_r_mm"], row["center_a_mm"], row["center_s_mm"]],
                                   atol=np.linalg.norm(chest.GetSpacing()) / 2)  # MRML takes a voxel's centre
        assert row["segment_id"] == segment_id


def test_segments_carry_names_colours_terminology_and_reference(plain_chest, make_results):
    node = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)["nodules_segmentation"]
    segment = node.GetSegmentation().GetSegment("Segment_2")
    assert segment.GetName() == "Nodule 2"
    np.testing.assert_allclose(segment.GetColor(), [1.0, 0.5, 0.5])
    entry = slicer.vtkSlicerTerminologyEntry()
    logic = slicer.modules.terminologies.logic()
    assert logic.DeserializeTerminologyEntry(segment.GetTerminology(), entry)
    assert entry.GetTypeObject().GetCodeValue() == "27925004"
    assert entry.GetCategoryObject().GetCodeValue() == "49755003"
    assert entry.GetRegionObject().GetCodeMeaning() == "Lung"
    assert node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole()) is plain_chest
    assert segment.GetRepresentation("Binary labelmap").GetNumberOfPoints() < 12 * 20 * 24 / 2  # stored cropped


def test_closed_surface_on_request(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    without = results_to_scene(results, plain_chest)["nodules_segmentation"]
    with_surface = results_to_scene(results, plain_chest, closed_surface=True)["nodules_segmentation"]
    assert not without.GetSegmentation().ContainsRepresentation("Closed surface")
    surface = with_surface.GetClosedSurfaceInternalRepresentation("Segment_1")
    assert surface.GetNumberOfPoints() > 20


def test_presets_threshold_and_legend(plain_chest, make_results):
    nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    counterfactual = nodes["counterfactual"].GetDisplayNode()
    assert (counterfactual.GetWindow(), counterfactual.GetLevel()) == (1400, -500)
    assert not counterfactual.GetAutoWindowLevel()
    residual = nodes["residual"].GetDisplayNode()
    assert residual.GetApplyThreshold() and residual.GetLowerThreshold() == 30.0
    assert residual.GetWindowLevelMax() == 120.0
    assert residual.GetColorNodeID() != counterfactual.GetColorNodeID()
    legend = slicer.modules.colors.logic().GetColorLegendDisplayNode(nodes["residual"])
    assert "HU" in legend.GetTitleText() and legend.GetVisibility()
    for composite in display.composites():
        assert composite.GetBackgroundVolumeID() == plain_chest.GetID()
        assert composite.GetForegroundVolumeID() == nodes["residual"].GetID()
        assert composite.GetNthLayerVolume(composite.Layer_Last) is nodes["counterfactual"]
    assert display.faded() == 0.0
    assert len(display.composites()) == 3


def test_names_marks_and_provenance(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    nodes = results_to_scene(results, plain_chest)
    assert all(node.GetName().startswith("Chest ") for node in nodes.values())
    assert [key for key, node in nodes.items() if "SYNTHETIC" in node.GetName()] == ["counterfactual"]
    assert [key for key, node in nodes.items() if runs.is_synthetic(node)] == ["counterfactual"]
    for node in nodes.values():
        assert runs.provenance_of(node) == results.provenance
        assert runs.related(node, "residual") is nodes["residual"]
        assert runs.related(node, "input") is plain_chest
    assert len({node.GetAttribute(runs.RUN) for node in nodes.values()}) == 1


def test_results_lie_under_the_input(plain_chest, make_results):
    nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
    parent = hierarchy().GetItemByDataNode(plain_chest)
    for node in nodes.values():
        assert hierarchy().GetItemParent(hierarchy().GetItemByDataNode(node)) == parent
    item = hierarchy().GetItemByDataNode(nodes["counterfactual"])
    assert hierarchy().GetItemAttribute(item, "DICOM.SeriesDescription") == "SYNTHETIC"


def test_synthetic_volumes_stay_out_of_the_study(plain_chest, make_results):
    patient = hierarchy().CreateSubjectItem(hierarchy().GetSceneItemID(), "Doe")
    study = hierarchy().CreateStudyItem(patient, "CT chest")
    hierarchy().CreateItem(study, plain_chest)
    for _ in range(2):
        nodes = results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest)
        folder = hierarchy().GetItemParent(hierarchy().GetItemByDataNode(nodes["counterfactual"]))
        assert hierarchy().GetItemName(folder) == "Chest SYNTHETIC"
        assert hierarchy().GetItemParent(folder) == hierarchy().GetSceneItemID()
        residual = hierarchy().GetItemByDataNode(nodes["residual"])
        assert hierarchy().GetItemAncestorAtLevel(residual, "Study") == study


def snapshot():
    """Nodes, hierarchy items and what the views show."""
    items = vtk.vtkIdList()
    hierarchy().GetItemChildren(hierarchy().GetSceneItemID(), items, True)
    views = [(node.GetBackgroundVolumeID(), node.GetForegroundVolumeID(), node.GetForegroundOpacity(),
              node.GetNthLayerVolumeID(node.Layer_Last)) for node in display.composites()]
    return node_ids(), [items.GetId(index) for index in range(items.GetNumberOfIds())], views


@pytest.mark.parametrize("stop_at", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("in_study", [False, True])
def test_cancel_leaves_the_scene_as_it_was(plain_chest, make_results, stop_at, in_study):
    study = hierarchy().CreateStudyItem(hierarchy().GetSceneItemID(), "CT chest")
    hierarchy().CreateItem(study if in_study else hierarchy().GetSceneItemID(), plain_chest)
    display.show_in_views(plain_chest)
    before, calls = snapshot(), []

    def cancel(fraction, message):
        calls.append(fraction)
        if len(calls) == stop_at + 1:
            raise Cancelled

    with pytest.raises(Cancelled):
        results_to_scene(make_results(volume_from_node(plain_chest)), plain_chest, progress=cancel)
    assert len(calls) == stop_at + 1
    assert snapshot() == before


def test_failure_leaves_the_scene_as_it_was(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    display.show_in_views(plain_chest)
    hierarchy().CreateItem(hierarchy().GetSceneItemID(), plain_chest)
    before = snapshot()
    slicer.util.updateVolumeFromArray(plain_chest, np.zeros((3, 4, 5), np.int16))  # the user cropped the scan meanwhile
    with pytest.raises(GenSegError, match=r"Chest.*changed while the job ran"):
        results_to_scene(results, plain_chest)
    assert snapshot() == before


def test_a_closed_scene_stays_empty(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    slicer_stand_in.clear_scene()
    before = snapshot()
    with pytest.raises(GenSegError, match="Chest left the scene"):
        results_to_scene(results, plain_chest)
    assert snapshot() == before


def test_a_second_run_keeps_the_first_one(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    first = results_to_scene(results, plain_chest)
    edited = np.zeros((12, 20, 24), np.uint8)
    edited[0, 0, 0] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(edited, first["nodules_segmentation"], "Segment_1", plain_chest)
    slicer.util.arrayFromVolume(first["residual"])[0] = 7
    second = results_to_scene(results, plain_chest)
    assert not {node.GetID() for node in first.values()} & {node.GetID() for node in second.values()}
    assert len({node.GetName() for node in [*first.values(), *second.values()]}) == 8
    np.testing.assert_array_equal(
        slicer.util.arrayFromSegmentBinaryLabelmap(first["nodules_segmentation"], "Segment_1", plain_chest), edited)
    assert (slicer.util.arrayFromVolume(first["residual"])[0] == 7).all()
    assert runs.related(first["nodules_table"], "residual") is first["residual"]


def test_outlines_of_earlier_runs_of_the_task_on_the_same_scan_are_hidden(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    other_scan = slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, plain_chest, "Other")
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Drawn by hand")
    own.CreateDefaultDisplayNodes()
    first, other = (results_to_scene(results, scan)["nodules_segmentation"] for scan in (plain_chest, other_scan))
    results.provenance["task"] = "organs"
    organs = results_to_scene(results, plain_chest)["nodules_segmentation"]
    results.provenance["task"] = "nodules"
    before = [composite.GetForegroundVolumeID() for composite in display.composites()]
    unseen = results_to_scene(results, plain_chest, show=False)["nodules_segmentation"]
    assert first.GetDisplayVisibility() and not unseen.GetDisplayVisibility()
    assert before == [composite.GetForegroundVolumeID() for composite in display.composites()]
    spots = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    results_to_scene(results, plain_chest, inputs={"seed_points": spots})
    assert first.GetDisplayVisibility()
    second = results_to_scene(results, plain_chest)["nodules_segmentation"]
    shown = [node.GetDisplayVisibility() for node in (first, second, other, organs, own)]
    assert shown == [0, 1, 1, 1, 1]


def test_no_findings_is_a_result_too(plain_chest, make_results):
    results = make_results(volume_from_node(plain_chest))
    from GenSegLogic.results import Segmentation

    empty = results.segmentations["nodules"].labelmap
    results.segmentations["nodules"] = Segmentation(empty.with_voxels(np.zeros(empty.shape, np.uint8)), ())
    results.tables["nodules"] = []
    nodes = results_to_scene(results, plain_chest)
    assert nodes["nodules_segmentation"].GetSegmentation().GetNumberOfSegments() == 0
    assert nodes["nodules_table"].GetNumberOfRows() == 0
    assert nodes["nodules_table"].GetColumnIndex("center_r_mm") >= 0


def test_results_without_anything_write_nothing(plain_chest):
    assert results_to_scene(Results(), plain_chest) == {}


def test_saved_and_reopened_the_run_is_whole(plain_chest, linear_transform, make_results, tmp_path):
    plain_chest.SetAndObserveTransformNodeID(linear_transform.GetID())
    volume = volume_from_node(plain_chest)
    results = make_results(volume)
    nodes = results_to_scene(results, plain_chest)
    names = {key: node.GetName() for key, node in nodes.items()}
    save_scene(tmp_path / "scene.mrb")
    load_scene(tmp_path / "scene.mrb")
    again = {key: slicer.mrmlScene.GetFirstNodeByName(name) for key, name in names.items()}
    for node in again.values():
        assert runs.provenance_of(node) == results.provenance
        assert runs.related(node, "input") is slicer.mrmlScene.GetFirstNodeByName("Chest")
        assert runs.related(node, "nodules_segmentation") is again["nodules_segmentation"]
    assert runs.is_synthetic(again["counterfactual"])
    reopened = volume_from_node(again["residual"])
    np.testing.assert_allclose(reopened.affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(reopened.voxels, results.volumes["residual"].voxels)
    segmentation = again["nodules_segmentation"].GetSegmentation()
    assert [segmentation.GetNthSegment(index).GetName() for index in range(2)] == ["Nodule 1", "Nodule 2"]
    assert "SCT^27925004^Nodule" in segmentation.GetNthSegment(0).GetTerminology()
    assert again["residual"].GetDisplayNode().GetLowerThreshold() == 30.0
    assert slicer.modules.colors.logic().GetColorLegendDisplayNode(again["residual"]) is not None
    assert read_table(again["nodules_table"])[1]["name"] == "Nodule 2"
