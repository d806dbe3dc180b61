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
    """An MR with two bright blocks, 24 x 48 x 48 voxels."""
    voxels = np.full((24, 48, 48), 60, np.int16)
    voxels[4:16, 10:30, 6:20] = 200
    voxels[14:20, 12:22, 30:42] = 150
    node = slicer.util.addVolumeFromArray(voxels, np.diag([-4.0, -4.0, 6.0, 1.0]), "Abdomen")
    node.SetAttribute("DICOM.Modality", "MR")
    return node


def add_run(scan):
    """Nodes as a run on :func:`add_scan` writes them, through GenSeg's own measurement: of two organs one is there."""
    from GenSegLogic.anatomy import ORGANS
    from GenSegLogic.organs.measure import COLUMNS, measure
    from GenSegLogic.results import Results, Segmentation
    from GenSegScene.volumes import volume_from_node
    from GenSegScene.writing import results_to_scene

    volume, organs = volume_from_node(scan), ("gallbladder", "liver")
    labels = volume.with_voxels(np.where(volume.voxels == 200, ORGANS["liver"].label, 0).astype(np.uint8))
    confidence = volume.with_voxels(np.where(volume.voxels == 150, 0.6, 0.95).astype(np.float32))
    results = Results(
        volumes={"confidence": confidence},
        segmentations={"organs": Segmentation(labels, tuple(ORGANS[name].segment() for name in organs))},
        tables={"organs": measure(volume, labels, confidence, organs)}, columns={"organs": COLUMNS},
        summary="1 of 2 organs found.", provenance={"task": "organs", "parameters": {"organs": list(organs)}})
    return results_to_scene(results, scan)


class GenSegOrgansDesktopTest(unittest.TestCase):
    """The module in a Slicer without a main window."""

    def setUp(self):
        """Start from an empty scene with the panel made."""
        slicer.mrmlScene.Clear(False)
        self.widget = slicer.modules.gensegorgans.widgetRepresentation().self()
        self.widget.enter()
        self.ui = self.widget.ui

    def tearDown(self):
        """Leave the panel."""
        self.widget.exit()
        slicer.mrmlScene.Clear(False)

    def test_module_is_there(self):
        """Slicer has loaded the module, and its logic can be made."""
        from GenSegOrgans import GenSegOrgansLogic

        self.assertEqual(slicer.modules.gensegorgans.title, "GenSeg Organs")
        self.assertTrue(callable(GenSegOrgansLogic().run))

    def test_the_list_offers_every_organ_and_keeps_what_is_ticked(self):
        """The bundles that ship know all organs; None unticks them, and a tick is kept in the scene."""
        import qt

        from GenSegLogic.anatomy import ORGANS

        self.ui.inputSelector.setCurrentNode(add_scan())
        self.assertEqual(self.ui.organsList.count, len(ORGANS))
        self.assertEqual(self.widget.tickedOrgans(), tuple(ORGANS))
        self.ui.noOrgansButton.click()
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("Tick at least one organ", self.ui.preflightLabel.text)
        self.ui.organsList.item(list(ORGANS).index("liver")).setCheckState(qt.Qt.Checked)
        self.assertEqual(self.widget.logic.getParameterNode().organs, "liver")

    def test_preflight_says_what_it_sees(self):
        """No scan: why Apply is off; a scan: modality and grid."""
        self.assertFalse(self.ui.applyButton.enabled)
        self.assertIn("Choose a CT or MR of the abdomen", self.ui.preflightLabel.text)
        self.ui.inputSelector.setCurrentNode(add_scan())
        self.assertIn("MR, 48 × 48 × 24 voxels of 4.00 × 4.00 × 6.00 mm", self.ui.preflightLabel.text)

    def test_organs_can_be_looked_at(self):
        """Table, the overlay's box and export on a run's nodes."""
        self.assertFalse(self.ui.confidenceCheckBox.enabled)
        self.ui.resultSelector.setCurrentNode(add_run(add_scan())["organs_segmentation"])
        self.assertTrue(self.ui.confidenceCheckBox.enabled)
        self.assertEqual([self.ui.findingsTable.item(row, 0).text() for row in range(2)], ["Gallbladder", "Liver"])
        self.ui.findingsTable.selectRow(0)
        self.assertIn("was not found", self.ui.statusLabel.text)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "organs.csv"
            self.widget.review.exportTo(str(path))
            self.assertEqual(len(path.read_text(encoding="utf-8").splitlines()), 3)

    def test_cases_to_learn_from_are_listed(self):
        """A scan with the segmentation of a run, and learning without labels."""
        scan = add_scan()
        segmentation = add_run(scan)["organs_segmentation"]
        self.ui.caseScanSelector.setCurrentNode(scan)
        self.ui.caseSegmentationSelector.setCurrentNode(segmentation)
        self.ui.addCaseButton.click()
        self.assertEqual(self.ui.casesList.item(0).text(), f"Abdomen + {segmentation.GetName()}")
        self.ui.sourceFreeCheckBox.checked = True
        self.assertIn("labels not used", self.ui.casesList.item(0).text())

    def test_outlines_and_surfaces_come_and_go(self):
        """The box and the button of the run that is chosen; without one both are off."""
        box, button = self.ui.outlinesCheckBox, self.ui.show3DButton
        self.assertFalse(box.enabled or button.enabled)
        segmentation = add_run(add_scan())["organs_segmentation"]
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
        self.ui.resultSelector.setCurrentNode(add_run(add_scan())["organs_segmentation"])
        slicer.mrmlScene.Clear(False)
        self.assertIsNone(self.widget.review.node)
        self.assertEqual(self.ui.findingsTable.rowCount, 0)

    def test_results_carry_their_record(self):
        """Every node of a run says how it was made."""
        from GenSegScene import runs

        for node in add_run(add_scan()).values():
            self.assertEqual(runs.provenance_of(node)["task"], "organs")
            self.assertEqual(json.loads(node.GetAttribute("GenSeg.Provenance"))["parameters"]["organs"],
                             ["gallbladder", "liver"])
