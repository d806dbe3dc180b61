"""What Slicer's ctest runs with ``--testing --no-main-window``: the module, its panel and its results, without a model.

Under ``--testing`` Slicer installs nothing, so nothing here needs torch. Outside of Slicer pytest runs the same cases
on the stand-ins.
"""

import json
import tempfile
import unittest
from pathlib import Path

import numpy as np
import slicer


def add_scan():
    """A CT of lung with two bright balls, 40 x 48 x 48 voxels."""
    voxels = np.full((40, 48, 48), -850, np.int16)
    k, j, i = np.ogrid[:40, :48, :48]
    voxels[((k - 10) * 2) ** 2 + (j - 14) ** 2 + (i - 12) ** 2 < 25] = 40
    voxels[((k - 28) * 2) ** 2 + (j - 30) ** 2 + (i - 33) ** 2 < 49] = 20
    node = slicer.util.addVolumeFromArray(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]), "Chest")
    node.SetAttribute("DICOM.Modality", "CT")
    return node


def add_run(scan):
    """Nodes as a run on :func:`add_scan` writes them, through GenSeg's own segmentation and measurement."""
    from GenSegLogic.nodules.measure import COLUMNS, measure
    from GenSegLogic.nodules.segments import Finding, nodules_from_residual
    from GenSegLogic.results import Results
    from GenSegScene.volumes import volume_from_node
    from GenSegScene.writing import results_to_scene

    volume = volume_from_node(scan)
    residual = volume.with_voxels((volume.voxels + 850).astype(np.float32), "residual")
    places = [Finding(tuple(volume.to_lps(np.array(ijk))), 12.0, 0.9) for ijk in ([12, 14, 10], [33, 30, 28])]
    segmentation = nodules_from_residual(residual, None, places, 150.0)
    results = Results(
        volumes={"counterfactual": volume.with_voxels(np.full_like(volume.voxels, -850)), "residual": residual},
        segmentations={"nodules": segmentation}, tables={"nodules": measure(volume, segmentation, places)},
        columns={"nodules": COLUMNS}, synthetic=frozenset({"counterfactual"}), summary="2 nodules.",
        provenance={"task": "nodules", "parameters": {"threshold": 150.0},
                    "inputs": {"image": {"affine_ijk_to_lps_mm": volume.affine.tolist()}},
                    "findings": [{"center": list(map(float, place.center)), "radius_mm": place.radius_mm,
                                  "probability": place.probability} for place in places]})
    return results_to_scene(results, scan)


class GenSegNodulesDesktopTest(unittest.TestCase):
    """The module in a Slicer without a main window."""

    def setUp(self):
        """Start from an empty scene with the panel made."""
        slicer.mrmlScene.Clear(False)
        self.widget = slicer.modules.gensegnodules.widgetRepresentation().self()
        self.widget.enter()
        self.ui = self.widget.ui

    def tearDown(self):
        """Leave the panel, and the layout as it was."""
        from GenSegScene import display

        display.leave_side_by_side()
        self.widget.exit()
        slicer.mrmlScene.Clear(False)

    def test_module_is_there(self):
        """Slicer has loaded the module, and its logic can be made."""
        from GenSegNodules import GenSegNodulesLogic

        self.assertEqual(slicer.modules.gensegnodules.title, "GenSeg Nodules")
        self.assertTrue(callable(GenSegNodulesLogic().run))

    def test_parameters_start_at_the_tasks_defaults(self):
        """A new scene's parameter node holds the defaults of the task."""
        from GenSegLogic.nodules.task import NoduleTask
        from GenSegNodules import TASK_PARAMETERS, GenSegNodulesLogic

        node = GenSegNodulesLogic().getParameterNode()
        for name in TASK_PARAMETERS:
            self.assertEqual(getattr(node, name), NoduleTask.parameters()[name].default, name)

    def test_a_slider_has_its_own_decimals(self):
        """CTK's sliders take those of their neighbours if they are let: "150.00 HU"."""
        for name, decimals in {"threshold": 0, "fade": 2, "guidance": 1, "start": 2}.items():
            self.assertEqual(getattr(self.ui, f"{name}Slider").decimals, decimals, name)

    def test_panel_and_parameter_node_agree(self):
        """What is set on one side is seen on the other."""
        scan = add_scan()
        self.ui.inputSelector.setCurrentNode(scan)
        node = self.widget.logic.getParameterNode()
        self.assertIs(node.inputVolume, scan)
        self.ui.stepsSpinBox.value = 5
        self.assertEqual(node.steps, 5)
        node.guidance = 2.5
        self.assertAlmostEqual(self.ui.guidanceSlider.value, 2.5)

    def test_in_place_of_a_deleted_mask_nothing_is_chosen(self):
        """Qt would choose its neighbour in the list, and the neighbour would be the lung mask from then on."""
        masks = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name) for name in ("A", "B", "C")]
        for mask in masks[1:]:  # in the middle of the list, and at its end
            self.ui.lungsSelector.setCurrentNode(mask)
            self.assertIs(self.widget.logic.getParameterNode().lungs, mask)
            slicer.mrmlScene.RemoveNode(mask)
            self.assertIsNone(self.widget.logic.getParameterNode().lungs)
            self.assertIsNone(self.ui.lungsSelector.currentNode())

    def test_preflight_says_what_it_sees(self):
        """No scan: why Apply is off; a scan: modality and grid."""
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("Choose a chest CT", self.ui.preflightLabel.text)
        self.ui.inputSelector.setCurrentNode(add_scan())
        self.assertIn("CT, 48 × 48 × 40 voxels of 1.00 × 1.00 × 2.00 mm", self.ui.preflightLabel.text)

    def test_findings_can_be_reviewed(self):
        """Table, status, threshold and export on a run's nodes."""
        from GenSegScene import findings

        nodes = add_run(add_scan())
        segmentation = nodes["nodules_segmentation"]
        self.ui.resultSelector.setCurrentNode(segmentation)
        self.assertEqual(self.ui.findingsTable.rowCount, 2)
        self.widget.review.next()
        first = self.widget.review.currentSegment()
        self.widget.review.accept()
        self.assertEqual(findings.status_of(segmentation, first), "accepted")
        self.ui.thresholdSlider.value = 880.0  # the second ball has 870 HU; the accepted first one stays
        self.assertEqual([one.segment_id for one in findings.findings(segmentation)], [first])
        self.ui.thresholdSlider.value = 200.0
        self.assertEqual(self.ui.findingsTable.rowCount, 2)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "findings.csv"
            self.widget.review.exportTo(str(path))
            self.assertEqual(len(path.read_text(encoding="utf-8").splitlines()), 3)

    def test_outlines_and_surfaces_come_and_go(self):
        """The box and the button of the run that is chosen; without one both are off."""
        box, button = self.ui.outlinesCheckBox, self.ui.show3DButton
        self.assertFalse(box.enabled or button.enabled)
        segmentation = add_run(add_scan())["nodules_segmentation"]
        self.ui.resultSelector.setCurrentNode(segmentation)
        self.assertTrue(box.enabled and box.checked and button.enabled)
        box.checked = False
        self.assertFalse(segmentation.GetDisplayVisibility())
        segmentation.SetDisplayVisibility(True)
        self.assertTrue(box.checked)
        for wanted in (True, False):
            button.click()
            self.assertEqual(segmentation.GetSegmentation().ContainsRepresentation("Closed surface"), wanted)
            self.assertEqual(button.checked, wanted)

    def test_closing_the_scene_empties_the_panel(self):
        """Nothing of a closed scene stays, and nothing fails."""
        self.ui.resultSelector.setCurrentNode(add_run(add_scan())["nodules_segmentation"])
        slicer.mrmlScene.Clear(False)
        self.assertIsNone(self.widget.review.node)
        self.assertEqual(self.ui.findingsTable.rowCount, 0)

    def test_side_by_side_gives_the_layout_back(self):
        """The user's layout returns."""
        from GenSegScene import display

        self.ui.resultSelector.setCurrentNode(add_run(add_scan())["nodules_segmentation"])
        layout = display.register_layout()
        before = layout.GetViewArrangement()
        self.ui.sideBySideButton.checked = True
        self.assertEqual(layout.GetViewArrangement(), display.SIDE_BY_SIDE)
        self.ui.sideBySideButton.checked = False
        self.assertEqual(layout.GetViewArrangement(), before)

    def test_results_carry_their_record(self):
        """Every node of a run says how it was made, and the counterfactual that it is synthetic."""
        from GenSegScene import runs

        nodes = add_run(add_scan())
        for node in nodes.values():
            self.assertEqual(json.loads(node.GetAttribute("GenSeg.Provenance"))["task"], "nodules")
        self.assertTrue(runs.is_synthetic(nodes["counterfactual"]))
        self.assertIn("SYNTHETIC", nodes["counterfactual"].GetName())
