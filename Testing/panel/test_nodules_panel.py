"""The nodule panel as a user meets it: real widgets, real scene, real service process."""

from __future__ import annotations

import panel_stand_in
import pytest

from GenSegScene import display, runs


def wait_for(condition, seconds=60.0):
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
