"""The nodule panel as a user meets it: real widgets, real scene, real service process."""

from __future__ import annotations

import gc
import time
import weakref

import panel_stand_in
import pytest
import shiboken6
import slicer

from GenSegScene import display, findings, runs


def wait_for(condition, seconds=180.0):
    """Let the event loop run until a condition holds."""
    assert panel_stand_in.process_events(seconds, condition), "it did not happen in time"


def apply_and_wait(panel):
    """Press Apply and wait until the job has ended."""
    panel.ui.applyButton.click()
    assert panel.controls.busy, panel.ui.statusLabel.text
    wait_for(lambda: not panel.controls.busy)
    return panel.controls.job


@pytest.fixture
def done(panel, chest):
    """The panel after a job on the chest."""
    panel.ui.stepsSpinBox.value = 1
    panel.ui.inputSelector.setCurrentNode(chest)
    job = apply_and_wait(panel)
    assert job.state == "done", job.error
    return panel


def test_apply_is_off_and_says_why_until_there_is_a_scan(panel, chest):
    assert not panel.ui.applyButton.enabled
    assert "Choose a chest CT" in panel.ui.preflightLabel.text
    panel.ui.inputSelector.setCurrentNode(chest)
    assert panel.ui.applyButton.enabled
    line = panel.ui.preflightLabel.text
    for part in ("CT, 48 × 48 × 40 voxels of 1.00 × 1.00 × 2.00 mm", "chest-flow + nodule-cnn", "GB", "takes about"):
        assert part in line


def test_apply_ends_with_segments_table_counterfactual_and_overlay(done, chest):
    node = done.review.node
    assert node.GetName() == "Chest nodules"
    assert done.ui.findingsTable.rowCount == 2 and node.GetSegmentation().GetNumberOfSegments() == 2
    assert runs.related(node, "counterfactual").GetName() == "Chest counterfactual SYNTHETIC"
    assert done.ui.residualCheckBox.checked
    assert all(composite.GetForegroundVolumeID() == runs.related(node, "residual").GetID()
               for composite in display.composites())
    assert "2 nodules." in done.ui.statusLabel.text
    assert done.ui.applyButton.text == "Apply" and done.ui.applyButton.enabled


def nodes():
    """All nodes of the scene but those of views and parameters, which come and go by themselves."""
    return {node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLNode")
            if not node.IsA("vtkMRMLScriptedModuleNode")}


def test_every_control_of_a_parameter_has_the_tasks_range_and_tool_tip(panel):
    from GenSegLogic.nodules.task import NoduleTask

    ui = panel.ui
    widgets = {"steps": ui.stepsSpinBox, "guidance": ui.guidanceSlider, "start": ui.startSlider, "seed": ui.seedSpinBox,
               "threshold": ui.thresholdSlider, "probability": ui.probabilitySlider,
               "evidence": ui.evidenceSlider, "most": ui.mostSpinBox}
    for name, widget in widgets.items():
        field = NoduleTask.parameters()[name]
        assert widget.toolTip == field.metadata["help"]
        assert widget.value == pytest.approx(field.default)
        assert widget.minimum == pytest.approx(field.metadata["minimum"])
        if field.metadata["maximum"] is not None:
            assert widget.maximum == pytest.approx(field.metadata["maximum"])
    assert ui.bundleCombo.currentText == "chest-flow" and ui.predictorCombo.currentText == "nodule-cnn"
    assert ui.bundleCombo.toolTip == NoduleTask.parameters()["bundle"].metadata["help"]


def test_a_slider_has_its_own_decimals_and_not_its_neighbours(panel):
    decimals = {"threshold": 0, "fade": 2, "guidance": 1, "start": 2, "probability": 2, "evidence": 2}
    assert {name: getattr(panel.ui, f"{name}Slider").decimals for name in decimals} == decimals


def test_what_the_user_sets_is_what_the_task_gets(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 1
    panel.ui.seedSpinBox.value = 7
    panel.ui.guidanceSlider.value = 2.5
    spots = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    spots.AddControlPoint(8.0, 16.0, -20.0)  # RAS, the first ball's middle
    panel.ui.seedSelector.setCurrentNode(spots)
    assert panel.ui.seedPlaceWidget.currentNode() is spots
    apply_and_wait(panel)
    record = runs.provenance_of(panel.review.node)["parameters"]
    assert (record["steps"], record["seed"], record["guidance"]) == (1, 7, 2.5)
    assert record["seed_points"] == [[-8.0, -16.0, -20.0]]
    assert panel.ui.findingsTable.rowCount == 1
    assert runs.related(panel.review.node, "seed_points") is spots


def test_chosen_spots_without_a_point_are_doubted_until_one_is_placed(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    spots = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    doubt = "Spots holds no point, so the whole lung would be searched"

    def doubted():
        return doubt in panel.ui.preflightLabel.text

    assert not doubted()
    panel.ui.seedSelector.setCurrentNode(spots)
    assert doubted() and panel.ui.applyButton.enabled
    spots.AddControlPoint(8.0, 16.0, -20.0)
    assert not doubted()
    spots.UnsetNthControlPointPosition(0)
    assert doubted()
    spots.SetNthControlPointPosition(0, 8.0, 16.0, -20.0)
    assert not doubted()
    spots.RemoveNthControlPoint(0)
    assert doubted()
    slicer.util.selectModule("SegmentEditor")
    assert not any(observed is spots for observed, *_ in panel.Observations)
    slicer.util.selectModule("GenSegNodules")
    others = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Others")
    others.AddControlPoint(8.0, 16.0, -20.0)
    panel.ui.seedSelector.setCurrentNode(others)
    assert not doubted()
    assert not any(observed is spots for observed, *_ in panel.Observations)
    others.RemoveAllControlPoints()
    assert "Others holds no point" in panel.ui.preflightLabel.text
    slicer.mrmlScene.RemoveNode(others)
    assert "holds no point" not in panel.ui.preflightLabel.text
    assert not any(observed is others for observed, *_ in panel.Observations)


@pytest.mark.parametrize(("parameter", "selector", "kind"), [
    ("inputVolume", "inputSelector", "vtkMRMLScalarVolumeNode"),
    ("seedPoints", "seedSelector", "vtkMRMLMarkupsFiducialNode"),
    ("lungs", "lungsSelector", "vtkMRMLSegmentationNode"),
    ("lungs", "lungsSelector", "vtkMRMLLabelMapVolumeNode")])
@pytest.mark.parametrize("entered", [True, False])
def test_in_place_of_a_deleted_node_nothing_is_chosen(panel, parameter, selector, kind, entered):
    first, chosen, last = (slicer.mrmlScene.AddNewNodeByClass(kind, name) for name in ("First", "Chosen", "Last"))
    widget = getattr(panel.ui, selector)
    for node in (chosen, last):  # the row in the middle, and the last one
        widget.setCurrentNode(node)
        assert getattr(panel._parameterNode, parameter) is node
        if not entered:
            slicer.util.selectModule("SegmentEditor")
        slicer.mrmlScene.RemoveNode(node)
        assert widget.currentNode() is None and getattr(panel.logic.getParameterNode(), parameter) is None
        slicer.util.selectModule("GenSegNodules")
        if parameter != "inputVolume":  # which is chosen when a user comes with none
            assert widget.currentNode() is getattr(panel._parameterNode, parameter) is None
    assert slicer.mrmlScene.IsNodePresent(first)


def test_the_lists_of_the_desktop_choose_the_neighbour_of_a_deleted_node(panel):
    from panel_stand_in import widgets

    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name) for name in "abc"]
    box = widgets.qMRMLNodeComboBox()
    box.setProperty("nodeTypes", ["vtkMRMLSegmentationNode"])
    box.setMRMLScene(slicer.mrmlScene)
    box.setCurrentNode(nodes[1])
    for node, neighbour in ((nodes[1], nodes[2]), (nodes[2], nodes[0]), (nodes[0], None)):
        assert box.currentNode() is node
        slicer.mrmlScene.RemoveNode(node)
        assert box.currentNode() is neighbour


def test_a_lung_mask_limits_the_search(panel, chest):
    import numpy as np

    lungs = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "Lungs")
    mask = np.zeros((40, 48, 48), np.uint8)
    mask[:20] = 1
    slicer.util.updateVolumeFromArray(lungs, mask)
    lungs.CopyOrientation(chest)
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.lungsSelector.setCurrentNode(lungs)
    panel.ui.stepsSpinBox.value = 1
    apply_and_wait(panel)
    assert panel.ui.findingsTable.rowCount == 1


def test_cancel_leaves_the_scene_as_it_was(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 80
    before = nodes()
    panel.ui.applyButton.click()
    assert panel.ui.applyButton.text == "Cancel"
    assert not panel.ui.progressBar._object.isHidden()
    wait_for(lambda: "Painting" in panel.ui.statusLabel.text)
    pressed = time.monotonic()
    panel.ui.applyButton.click()
    assert not panel.ui.applyButton.enabled
    wait_for(lambda: not panel.controls.busy)
    assert time.monotonic() - pressed < 4.0  # 80 steps would take 8 s
    assert panel.controls.job.state == "cancelled" and nodes() == before
    assert panel.ui.applyButton.text == "Apply" and panel.ui.applyButton.enabled
    assert panel.ui.statusLabel.text == "Stopped; the scene is as it was."


@pytest.mark.parametrize(("seed", "said"), [
    (13, "Chest has no lung: choose a chest CT."),
    (14, "The task stopped unexpectedly (ZeroDivisionError: a bug); see the service's log."),
    (15, "The GenSeg service ended with exit code 9 while it was needed"),
])
def test_a_failure_is_one_sentence_and_the_next_apply_works(panel, chest, seed, said):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 1
    panel.ui.seedSpinBox.value = seed
    before = nodes()
    job = apply_and_wait(panel)
    assert job.state == "failed" and panel.ui.statusLabel.text.startswith(said)
    assert nodes() == before
    assert "genseg" in job.details.lower()  # the service's log, for the Details button
    panel.ui.seedSpinBox.value = 0
    assert apply_and_wait(panel).state == "done"
    assert panel.ui.statusLabel.text == "2 nodules."


def test_closing_the_scene_cancels_the_job(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 80
    panel.ui.applyButton.click()
    wait_for(lambda: "Painting" in panel.ui.statusLabel.text)
    slicer.mrmlScene.Clear(False)
    wait_for(lambda: not panel.controls.busy)
    assert panel.controls.job.state == "cancelled"
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLVolumeNode") == 0
    assert "Choose a chest CT" in panel.ui.preflightLabel.text


def test_the_scan_may_go_while_the_job_runs(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 15
    panel.ui.applyButton.click()
    wait_for(lambda: "Painting" in panel.ui.statusLabel.text)
    slicer.mrmlScene.RemoveNode(chest)
    wait_for(lambda: not panel.controls.busy)
    assert "Chest left the scene while the job ran" in panel.ui.statusLabel.text
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_unloading_the_panel_ends_its_job(panel, chest, service):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.stepsSpinBox.value = 80
    panel.ui.applyButton.click()
    wait_for(lambda: "Painting" in panel.ui.statusLabel.text)
    job = panel.controls.job
    slicer.util.selectModule("SegmentEditor")
    slicer.modules.gensegnodules.unload()
    assert job.state == "cancelled" and not service.jobs and not service.running


def test_cleaning_up_when_the_widgets_are_gone_ends_the_job_and_observes_nothing(done, service):
    done.ui.applyButton.click()
    job, module = done.controls.job, slicer.modules.gensegnodules
    slicer.util.selectModule("SegmentEditor")
    done.enter()
    shiboken6.delete(done.parent._object)  # as the main window does when the application ends
    done.cleanup()
    assert job.state == "cancelled" and not service.jobs and not service.running
    assert done.Observations == done.review.Observations == []
    module._representation = module._widget = None


def test_the_threshold_moves_the_display_live_and_the_segments_on_release(done):
    node, slider = done.review.node, done.ui.thresholdSlider
    residual = runs.related(node, "residual")
    before = {one.segment_id for one in findings.findings(node)}
    slider._object.valueIsChanging.emit(400.0)
    assert display.displayed_threshold(residual) == 400.0
    assert {one.segment_id for one in findings.findings(node)} == before
    slider._object.drag(500.0, 880.0)  # the second ball has 870 HU, the first 890
    assert display.displayed_threshold(residual) == 880.0
    assert done.ui.findingsTable.rowCount == 1 and done.review.threshold() == 880.0
    assert "Findings at 880 HU: 1;" in done.ui.statusLabel.text
    slider._object.drag(150.0)
    assert done.ui.findingsTable.rowCount == 2


def test_findings_are_worked_through_by_keys_and_kept(done):
    node, table = done.review.node, done.ui.findingsTable
    assert done.review.currentRow() == 0  # the first finding is shown at once
    slice_node = slicer.util.getNodesByClass("vtkMRMLSliceNode")[0]
    middle = pytest.approx(findings.center_of(node, node.GetSegmentation().GetNthSegmentID(0))[2], abs=2.0)
    assert slice_node.GetSliceToRAS().GetElement(2, 3) == middle
    display.jump_to((0.0, 0.0, 0.0))
    done.review.goTo(0)  # selected already, but the views have moved
    assert slice_node.GetSliceToRAS().GetElement(2, 3) == middle
    first, second = (one.segment_id for one in findings.findings(node))
    done.review.accept()
    assert findings.status_of(node, first) == "accepted" and done.review.currentSegment() == second
    done.review.reject()
    assert findings.status_of(node, second) == "rejected" and not node.GetDisplayNode().GetSegmentVisibility(second)
    assert [table.item(row, 1).text() for row in range(2)] == ["accepted", "rejected"]
    assert done.review.currentRow() == 0  # from the last to the first
    done.review.accept()  # again: reopened, and the row stays
    assert findings.status_of(node, first) == "" and done.review.currentRow() == 0
    done.review.previous()
    assert done.review.currentRow() == 1
    done.ui.thresholdSlider._object.drag(885.0)
    assert findings.status_of(node, second) == "rejected"  # a reviewed finding is never replaced


def test_a_key_looks_for_the_middle_of_no_segment_but_the_one_it_goes_to(done, monkeypatch):
    """It takes long in a large scan, and a key is answered within 100 ms."""
    segment, *_others = done.review.node.GetSegmentation().GetSegmentIDs()
    looked, center_of = [], findings.center_of
    monkeypatch.setattr(findings, "center_of", lambda node, segment: looked.append(segment) or center_of(node, segment))
    done.review.refresh()
    assert looked == []
    done.review.goTo(0)
    assert set(looked) == {segment}
    looked.clear()
    for action in (done.review.next, done.review.previous, done.review.accept, done.review.reject):
        action()
        assert len(looked) == 1
        looked.clear()


def test_a_click_jumps_to_the_selected_row_too(done):
    slice_node = slicer.util.getNodesByClass("vtkMRMLSliceNode")[0]
    middle = slice_node.GetSliceToRAS().GetElement(2, 3)
    display.jump_to((0.0, 0.0, 1000.0))
    done.ui.findingsTable._object.cellClicked.emit(0, 0)  # selected already
    assert slice_node.GetSliceToRAS().GetElement(2, 3) == middle


def test_the_selected_finding_stays_selected_and_no_other_takes_its_place(done):
    node = done.review.node

    def chosen():
        segment = done.review.currentSegment()
        return node.GetSegmentation().GetSegment(segment).GetName() if segment is not None else None

    done.review.goTo(1)
    done.review.accept()
    assert chosen() == "Nodule 1"
    done.ui.thresholdSlider._object.drag(200.0)  # what was accepted comes first now
    assert chosen() == "Nodule 1" and done.review.currentRow() == 1
    node.GetSegmentation().RemoveSegment(done.review._ids[0])
    assert chosen() == "Nodule 1" and done.review.currentRow() == 0
    node.GetSegmentation().RemoveSegment(done.review._ids[0])
    assert chosen() is None and done.review.currentRow() == -1


def test_a_row_of_one_run_is_not_selected_in_another(done):
    first = done.review.node
    assert apply_and_wait(done).state == "done" and done.review.node is not first
    done.review.goTo(1)
    done.ui.resultSelector._object.choose(first)
    assert done.review.currentSegment() is None
    done.review.accept()
    assert done.ui.statusLabel.text == "Select a finding in the table first."
    assert [one.status for one in findings.findings(first)] == ["", ""]


def test_keys_exist_while_the_panel_is_shown(done):
    keys = [shortcut.key.toString() for shortcut in done.review._shortcuts]
    assert sorted(keys) == ["N", "P", "X", "Y"]
    shortcut = next(one for one in done.review._shortcuts if one.key.toString() == "N")
    shortcut._object.activated.emit()
    assert done.review.currentRow() == 1
    slicer.util.selectModule("SegmentEditor")
    assert done.review._shortcuts == []
    slicer.util.selectModule("GenSegNodules")


def run_at(panel, threshold):
    """The segmentation of a new run at a threshold, with none of the panel's before."""
    panel._parameterNode.result = None
    panel.ui.thresholdSlider._object.drag(threshold)
    assert apply_and_wait(panel).state == "done"
    return panel.review.node


def state(node):
    """Threshold in HU and segments of a run."""
    segmentation = node.GetSegmentation()
    threshold = node.GetAttribute("GenSeg.Threshold") or runs.provenance_of(node)["parameters"]["threshold"]
    return float(threshold), [segmentation.GetSegment(one).GetName() for one in segmentation.GetSegmentIDs()]


def test_a_run_is_shown_at_its_own_threshold_and_only_the_slider_rewrites_it(panel, chest):
    panel.ui.stepsSpinBox.value = 1
    panel.ui.inputSelector.setCurrentNode(chest)
    low, high = run_at(panel, 150.0), run_at(panel, 880.0)
    before = [state(node) for node in (low, high)]
    assert [threshold for threshold, _segments in before] == [150.0, 880.0] and before[0] != before[1]
    for node, threshold in ((low, 150.0), (high, 880.0)):
        panel.ui.resultSelector._object.choose(node)
        assert panel.review.node is node and panel._parameterNode.result is node
        assert panel.ui.resultSelector.currentNode() is node
        assert panel.ui.thresholdSlider.value == panel._parameterNode.threshold == threshold
        panel.ui.stepsSpinBox.value += 1  # whatever else is changed
        slicer.util.selectModule("SegmentEditor")
        slicer.util.selectModule("GenSegNodules")
        assert panel.ui.thresholdSlider.value == threshold
        assert [state(one) for one in (low, high)] == before
    panel.ui.thresholdSlider._object.drag(150.0)
    assert state(high)[0] == 150.0 and state(low) == before[0]


def test_a_threshold_moved_while_a_job_runs_is_not_the_new_runs(panel, chest):
    panel.ui.stepsSpinBox.value = 6
    panel.ui.inputSelector.setCurrentNode(chest)
    panel.ui.applyButton.click()
    panel.ui.thresholdSlider._object.drag(880.0)
    wait_for(lambda: not panel.controls.busy)
    node = panel.review.node
    assert panel.ui.thresholdSlider.value == panel._parameterNode.threshold == state(node)[0] != 880.0
    before = state(node)
    slicer.util.selectModule("SegmentEditor")
    slicer.util.selectModule("GenSegNodules")
    assert state(node) == before


def test_only_runs_of_the_task_are_offered(done):
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Somebody else's")
    run = done.review.node
    done.ui.resultSelector.setCurrentNode(other)
    assert done.ui.resultSelector.currentNode() is None and done.review.node is None
    done.ui.resultSelector.setCurrentNode(run)
    assert done.review.node is run


def test_controls_follow_what_leaves_the_scene_and_the_layout(done):
    layout, ui = display.register_layout(), done.ui
    ui.sideBySideButton.click()
    assert ui.sideBySideButton.checked and not ui.fadeSlider.enabled and "Side by side" in ui.fadeSlider.toolTip
    layout.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)  # by Slicer's own menu
    assert not ui.sideBySideButton.checked and ui.fadeSlider.enabled
    own = ui.copyButton.toolTip
    slicer.mrmlScene.RemoveNode(done.review.related("nodules_table"))
    assert not ui.copyButton.enabled and not ui.exportButton.enabled and "not in the scene" in ui.copyButton.toolTip
    slicer.mrmlScene.RemoveNode(done.review.related("residual"))
    assert not ui.residualCheckBox.enabled
    slicer.mrmlScene.RemoveNode(done.review.node)
    assert not ui.editButton.enabled and "press Apply" in ui.editButton.toolTip and ui.copyButton.toolTip != own


def test_a_result_as_scan_is_doubted(done):
    done.ui.inputSelector.setCurrentNode(done.review.related("counterfactual"))
    assert "is a result of GenSeg itself" in done.ui.preflightLabel.text


def test_a_finished_job_holds_no_voxels(done):
    results = done.controls.job.results
    assert results.summary == "2 nodules." or results.summary.startswith("2 nodules")
    assert not results.volumes and not results.segmentations


def test_a_closed_scene_is_not_held_by_the_finished_job(done):
    job, held = weakref.ref(done.controls.job), weakref.ref(done.review.related("residual"))
    slicer.mrmlScene.Clear(False)
    gc.collect()
    assert job() is None and held() is None and done.ui.statusLabel.text == ""


@pytest.mark.parametrize("entered", [True, False])
def test_a_deleted_run_is_not_held(done, entered):
    if not entered:  # as in the module Data, where nodes are deleted
        slicer.util.selectModule("SegmentEditor")
    keys = ("residual", "counterfactual", "nodules_table")
    held = [weakref.ref(done.review.related(key)) for key in keys] + [weakref.ref(done.review.node)]
    for key in keys:
        slicer.mrmlScene.RemoveNode(done.review.related(key))
    slicer.mrmlScene.RemoveNode(done.review.node)
    gc.collect()
    assert [node() for node in held] == [None] * 4


def test_a_cancelled_job_does_not_hold_the_scan(panel, chest):
    panel.ui.inputSelector.setCurrentNode(other_patient(chest))
    held = weakref.ref(panel.ui.inputSelector.currentNode())
    panel.ui.stepsSpinBox.value = 80
    panel.ui.applyButton.click()
    slicer.mrmlScene.Clear(False)
    wait_for(lambda: not panel.controls.busy)
    gc.collect()
    assert panel.controls.job.state == "cancelled" and held() is None


def test_leaving_the_panel_ends_placing_and_no_other_mouse_mode(panel):
    mouse, place = slicer.app.applicationLogic().GetInteractionNode(), panel.ui.seedPlaceWidget
    spots = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    for before, after in ((mouse.Place, mouse.ViewTransform), (mouse.AdjustWindowLevel, mouse.AdjustWindowLevel)):
        panel.ui.seedSelector.setCurrentNode(spots)
        assert place.currentNode() is spots
        mouse.SetCurrentInteractionMode(before)
        slicer.util.selectModule("SegmentEditor")
        assert mouse.GetCurrentInteractionMode() == after
        slicer.util.selectModule("GenSegNodules")


def test_what_nobody_expected_is_told_in_the_panel(panel, chest, monkeypatch):
    def broken():
        raise RuntimeError("no such thing")

    panel.ui.inputSelector.setCurrentNode(chest)
    monkeypatch.setattr(panel.controls, "_begin", broken)
    panel.ui.applyButton.click()
    assert "RuntimeError: no such thing" in panel.ui.statusLabel.text
    assert panel.ui.applyButton.enabled and panel.ui.applyButton.text == "Apply"


def test_fade_overlay_and_side_by_side(done):
    done.ui.fadeSlider._object.drag(0.25, 0.5)
    assert display.faded() == pytest.approx(0.5)
    done.ui.residualCheckBox.checked = False
    assert all(composite.GetForegroundVolumeID() is None for composite in display.composites())
    done.ui.residualCheckBox.checked = True
    layout = display.register_layout()
    before = layout.GetViewArrangement()
    done.ui.sideBySideButton.click()
    assert layout.GetViewArrangement() == display.SIDE_BY_SIDE
    shown = {composite.GetLayoutName(): composite.GetBackgroundVolumeID() for composite in display.composites()}
    assert shown[display.ORIGINAL_VIEW] == done.review.related("input").GetID()
    assert shown[display.COUNTERFACTUAL_VIEW] == done.review.related("counterfactual").GetID()
    done.ui.sideBySideButton.click()
    assert layout.GetViewArrangement() == before


def load(scan):
    """What Slicer does with the views when a scan has been loaded."""
    application = slicer.app.applicationLogic()
    application.GetSelectionNode().SetActiveVolumeID(scan.GetID())
    application.PropagateVolumeSelection()


@pytest.mark.parametrize("module", ["GenSegNodules", "SegmentEditor"])
def test_the_next_patient_is_not_shown_under_the_last_ones_counterfactual(done, chest, module):
    done.ui.fadeSlider._object.drag(0.5, 1.0)
    slicer.util.selectModule(module)
    other = other_patient(chest)
    load(other)
    for composite in display.composites():
        assert composite.GetBackgroundVolumeID() == other.GetID()
        assert composite.GetNthLayerVolumeID(composite.Layer_Last) is None
    assert done.ui.fadeSlider.value == display.faded() == 0
    slicer.util.selectModule("GenSegNodules")
    done.ui.resultSelector._object.choose(done.review.node)
    done.ui.fadeSlider._object.drag(0.5, 1.0)
    assert shown()[0] == layers(done.review.node) and display.faded() == 1


def test_side_by_side_each_view_keeps_what_it_is_named_after(done, chest):
    layout = display.register_layout()
    before = layout.GetViewArrangement()
    layout.AddMaximizedViewNode(slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLSliceNode"))
    done.ui.sideBySideButton.click()
    assert layout.GetNumberOfMaximizedViewNodes() == 0
    load(other_patient(chest))
    beside = {composite.GetLayoutName(): composite.GetBackgroundVolumeID() for composite in display.composites()}
    assert beside[display.ORIGINAL_VIEW] == chest.GetID()
    assert beside[display.COUNTERFACTUAL_VIEW] == done.review.related("counterfactual").GetID()
    slicer.mrmlScene.Clear(0)
    assert layout.GetViewArrangement() == before


def test_outlines_are_hidden_and_shown_and_followed(done):
    first, box = done.review.node, done.ui.outlinesCheckBox
    assert box.enabled and box.checked and first.GetDisplayVisibility()
    box.checked = False
    assert not first.GetDisplayVisibility()
    first.SetDisplayVisibility(True)  # in another module
    assert box.checked
    first.GetDisplayNode().SetVisibility(False)
    assert not box.checked
    assert apply_and_wait(done).state == "done"
    second = done.review.node
    assert box.checked and second is not first
    done.ui.resultSelector.setCurrentNode(first)
    assert not box.checked and second.GetDisplayVisibility() and not first.GetDisplayVisibility()
    second.SetDisplayVisibility(False)  # not the run that is looked at
    first.SetDisplayVisibility(True)
    assert box.checked


def test_surfaces_are_of_the_run_that_is_chosen(done):
    node, button = done.review.node, done.ui.show3DButton

    def surfaces():
        return [node.GetClosedSurfaceInternalRepresentation(segment) is not None
                for segment in node.GetSegmentation().GetSegmentIDs()]

    assert button.enabled and not button.checked and surfaces() == [False, False]
    button.click()
    assert surfaces() == [True, True]
    done.ui.thresholdSlider._object.drag(200.0)
    assert button.checked and surfaces() == [True, True]
    button.click()
    assert surfaces() == [False, False]


def test_without_a_segment_there_is_nothing_to_show(done):
    node, controls = done.review.node, (done.ui.outlinesCheckBox, done.ui.show3DButton)
    own = [widget.toolTip for widget in controls]
    node.GetSegmentation().RemoveAllSegments()
    assert [(widget.enabled, widget.toolTip) for widget in controls] == [(False, "The run has no segments.")] * 2
    done.ui.resultSelector.setCurrentNode(None)
    assert done.ui.show3DButton.segmentationNode() is None and not done.ui.outlinesCheckBox.checked
    for widget in controls:
        assert not widget.enabled and "press Apply" in widget.toolTip
    assert apply_and_wait(done).state == "done"
    assert [widget.toolTip for widget in controls] == own and all(widget.enabled for widget in controls)


def test_copy_and_export_and_segment_editor(done, tmp_path):
    import qt

    done.review.copy()
    header, *lines = slicer.app.clipboard().text().strip().split("\n")
    assert "center_r_mm" in header.split("\t") and len(lines) == 2
    qt.QFileDialog.answer = str(tmp_path / "findings.csv")
    done.ui.exportButton.click()
    assert (tmp_path / "findings.csv").read_text(encoding="utf-8").count("\n") == 3
    qt.QFileDialog.answer = ""
    done.ui.exportButton.click()  # the user changed their mind
    done.review.next()
    chosen = done.review.currentSegment()
    done.ui.editButton.click()
    editor = slicer.modules.segmenteditor
    assert (editor.segmentation, editor.segment) == (done.review.node, chosen)
    assert editor.volume is done.review.related("input")


def test_back_from_the_segment_editor_the_table_tells_of_the_edited_segment(done, chest):
    node = done.review.node
    segment = node.GetSegmentation().GetNthSegmentID(0)
    before = findings.findings(node)[0].row
    done.exit()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, chest)
    mask[:, :12] = 0  # half of it erased
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, chest)
    done.enter()
    after = findings.findings(node)[0].row
    assert after["volume_mm3"] < before["volume_mm3"] and after["probability"] == before["probability"]
    shown = [done.ui.findingsTable.item(0, column).text() for column in range(done.ui.findingsTable.columnCount)]
    assert f"{after['volume_mm3']:.1f}" in shown
    name = node.GetSegmentation().GetSegment(segment).GetName()
    assert done.ui.statusLabel.text == f"Measured anew after editing: {name}."


def test_a_finding_deleted_in_the_segment_editor_is_neither_copied_nor_exported(done, tmp_path):
    import qt

    gone, stays = findings.findings(done.review.node)
    done.review.node.GetSegmentation().RemoveSegment(gone.segment_id)
    assert done.ui.findingsTable.rowCount == 1
    done.review.copy()
    qt.QFileDialog.answer = str(tmp_path / "findings.csv")
    done.ui.exportButton.click()
    written = (tmp_path / "findings.csv").read_text(encoding="utf-8")
    for text, separator in ((slicer.app.clipboard().text(), "\t"), (written, ",")):
        numbers = [line.split(separator)[0] for line in text.splitlines()]
        assert numbers == ["nodule", str(stays.row["nodule"])]


def test_a_second_run_writes_its_own_and_an_edited_segment_stays(done, chest):
    first = done.review.node
    segment = first.GetSegmentation().GetNthSegment(0)
    segment.SetName("Edited by hand")
    apply_and_wait(done)
    assert done.review.node is not first and done.review.node.GetName() == "Chest nodules_1"
    assert segment.GetName() == "Edited by hand"
    done.ui.resultSelector.setCurrentNode(first)
    assert done.review.node is first
    done.ui.thresholdSlider._object.drag(300.0)
    assert "Edited by hand" in [one.name for one in findings.findings(first)]


def shown():
    """What the slice views show, and which segmentations."""
    views = {(composite.GetBackgroundVolumeID(), composite.GetForegroundVolumeID(),
              composite.GetNthLayerVolumeID(composite.Layer_Last)) for composite in display.composites()
             if composite.GetLayoutName() not in (display.ORIGINAL_VIEW, display.COUNTERFACTUAL_VIEW)}
    return views, {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
                   if node.GetDisplayVisibility()}


def layers(segmentation):
    """What the slice views show of a run."""
    return {tuple(runs.related(segmentation, key).GetID() for key in ("input", "residual", "counterfactual"))}


def other_patient(chest):
    """Another scan."""
    return slicer.modules.volumes.logic().CloneVolume(slicer.mrmlScene, chest, "Other patient")


def test_choosing_a_run_shows_its_patient_and_only_its_segments(done, chest):
    first = done.review.node
    own = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "My own")
    own.CreateDefaultDisplayNodes()
    done.ui.inputSelector.setCurrentNode(other_patient(chest))
    apply_and_wait(done)
    second = done.review.node
    assert shown()[0] == layers(second)
    done.ui.fadeSlider._object.drag(0.5)
    done.ui.resultSelector._object.choose(first)
    assert done.review.node is first and shown() == (layers(first), {"Chest nodules", "My own"})
    assert done.ui.residualCheckBox.checked and done.ui.fadeSlider.value == 0.0
    done.ui.sideBySideButton.click()
    done.ui.resultSelector._object.choose(second)
    assert shown() == (layers(second), {"Other patient nodules", "My own"})
    pair = {composite.GetLayoutName(): composite.GetBackgroundVolumeID() for composite in display.composites()}
    assert pair[display.ORIGINAL_VIEW] == done.review.related("input").GetID()
    assert pair[display.COUNTERFACTUAL_VIEW] == done.review.related("counterfactual").GetID()
    for chosen in (own, None):  # no run: nothing to show
        done.ui.resultSelector._object.choose(chosen)
        assert shown() == (layers(second), {"Other patient nodules", "My own"})


def test_opening_the_module_leaves_the_views_alone(done, chest):
    display.show_in_views(other_patient(chest))
    done.review.node.SetDisplayVisibility(False)
    before = shown()
    slicer.util.selectModule("SegmentEditor")
    slicer.util.selectModule("GenSegNodules")
    assert done.review.node is not None and shown() == before


def test_a_job_that_ends_while_the_user_is_elsewhere_leaves_the_views_alone(done, chest, monkeypatch):
    from panel_stand_in.pythonqt import PythonQtObject
    from PySide6 import QtWidgets

    first, other, window = done.review.node, other_patient(chest), QtWidgets.QMainWindow()
    done.ui.stepsSpinBox.value = 10
    done.ui.applyButton.click()
    slicer.util.selectModule("SegmentEditor")
    display.show_in_views(other)
    before = shown()
    assert first.GetDisplayVisibility()
    with monkeypatch.context() as patched:
        patched.setattr(slicer.util, "mainWindow", lambda: PythonQtObject(window))
        wait_for(lambda: not done.controls.busy)
    assert done.controls.job.state == "done" and shown() == before
    assert window.statusBar().currentMessage() == "GenSeg: 2 nodules."
    slicer.util.selectModule("GenSegNodules")
    second = done.review.node
    assert second is not first and shown() == (layers(second), {second.GetName()})
    assert done.ui.residualCheckBox.checked and done.review.currentRow() == 0
    display.show_in_views(other)
    first.SetDisplayVisibility(True)
    before = shown()
    slicer.util.selectModule("SegmentEditor")
    slicer.util.selectModule("GenSegNodules")
    assert shown() == before


def test_a_single_spot_that_nobody_saw_is_looked_at_beside_the_others(done):
    first = done.review.node
    spots = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "Spots")
    spots.AddControlPoint(8.0, 16.0, -20.0)
    done.ui.seedSelector.setCurrentNode(spots)
    done.ui.applyButton.click()
    slicer.util.selectModule("SegmentEditor")
    wait_for(lambda: not done.controls.busy)
    slicer.util.selectModule("GenSegNodules")
    second = done.review.node
    assert second is not first and shown() == (layers(second), {first.GetName(), second.GetName()})


def test_a_run_that_nobody_saw_is_not_looked_for_in_the_next_scene(done, tmp_path):
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    done.ui.applyButton.click()
    slicer.util.selectModule("SegmentEditor")
    wait_for(lambda: not done.controls.busy)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    display.show_residual(None)
    before = shown()
    slicer.util.selectModule("GenSegNodules")
    assert done.review.node is not None and shown() == before


def test_a_saved_scene_opens_as_it_was_left(done, tmp_path):
    done.ui.guidanceSlider.value = 3.0
    done.ui.thresholdSlider._object.drag(300.0)
    done.review.accept()
    slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    slicer.mrmlScene.Clear(False)
    assert done.ui.findingsTable.rowCount == 0 and done.review.node is None
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    assert done.ui.inputSelector.currentNode().GetName() == "Chest"
    assert done.ui.guidanceSlider.value == 3.0 and done.ui.thresholdSlider.value == 300.0
    assert done.ui.findingsTable.rowCount == 2
    assert [one.status for one in findings.findings(done.review.node)] == ["accepted", ""]
    done.ui.thresholdSlider._object.drag(200.0)  # still without the model
    assert "Findings at 200 HU: " in done.ui.statusLabel.text and "left them: 1." in done.ui.statusLabel.text


def test_a_scan_under_a_warp_is_hardened_by_one_click(panel, chest):
    import vtk

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "Tilt")
    warp = vtk.vtkThinPlateSplineTransform()
    node.SetAndObserveTransformToParent(warp)
    chest.SetAndObserveTransformNodeID(node.GetID())
    panel.ui.inputSelector.setCurrentNode(chest)
    if not node.IsLinear() and not panel._preflight.ready:
        assert "non-linear transform Tilt" in panel.ui.preflightLabel.text
    panel.checkCanApply()
    assert not panel.ui.applyButton.enabled and not panel.ui.hardenButton._object.isHidden()
    panel.ui.hardenButton.click()
    assert panel.ui.inputSelector.currentNode() is not chest
    assert panel.ui.applyButton.enabled and panel.ui.hardenButton._object.isHidden()


def test_a_bundle_that_is_not_here_is_named(panel, chest):
    panel.ui.inputSelector.setCurrentNode(chest)
    panel._parameterNode.bundle = "chest-flow-of-another-computer"
    assert not panel.ui.applyButton.enabled
    assert "chest-flow-of-another-computer" in panel.ui.preflightLabel.text
    assert panel.ui.bundleCombo.currentText == "chest-flow-of-another-computer"
    panel.ui.bundleCombo.currentIndex = 0
    assert panel.ui.applyButton.enabled


def test_an_mr_scan_is_doubted_not_refused(panel, chest):
    chest.SetAttribute("DICOM.Modality", "MR")
    panel.ui.inputSelector.setCurrentNode(chest)
    assert panel.ui.applyButton.enabled
    assert "Chest is MR, but nodules are searched in CT." in panel.ui.preflightLabel.text


def test_an_apply_that_cannot_read_or_write_ends_as_one_sentence(panel, tmp_path):
    from GenSegPanel.controls import JobControls

    JobControls(panel.ui, (tmp_path / "missing").read_bytes).onApply()
    assert "Nothing could be started: " in panel.ui.statusLabel.text
    assert str(tmp_path / "missing") in panel.ui.statusLabel.text
