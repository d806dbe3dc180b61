"""A user's session with a panel, from import to a reopened scene, played by a script.

In the desktop, unchanged, with GenSeg's modules known to Slicer::

    Slicer --python-script Testing/desktop/walkthrough.py
    Slicer --python-script Testing/desktop/walkthrough.py -- --panel organs

Outside of it, on the stand-ins of the panel tests (real MRML, real Qt, real service process)::

    python Testing/desktop/walkthrough.py [--service Testing/panel/nodule_service.py]
    python Testing/desktop/walkthrough.py --panel organs [--bundle NAME]

Prints one line a step, and the longest time for which the window did not answer. Exit code 0: everything was as it
should be; 1: something was not, and the line says what.
"""

from __future__ import annotations

import argparse
import itertools
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class Failed(AssertionError):
    """A step did not end as it should."""


def check(condition: Any, sentence: str) -> None:
    """Raise Failed with a sentence unless the condition holds."""
    if not condition:
        raise Failed(sentence)


class Walkthrough:
    """The session. Every step leaves the panel ready for the next. What the panels differ in, is in the classes below.

    Attributes:
        module: the module's name.
        sample: kind of the sample phantom.
        overlayKey: of the run's volume that is laid over the scan.
        many: steps of a job that is long enough to be interrupted.
    """

    module = sample = overlayKey = ""
    many = 1

    def __init__(self, folder: Path, small: bool, bundle: str | None) -> None:
        """
        Args:
            folder: where the scene and the table are saved.
            small: a small scan instead of the sample phantom.
            bundle: what is chosen as model; None: what the panel starts with.
        """
        import slicer

        self.slicer, self.folder, self.small, self.bundle = slicer, folder, small, bundle
        slicer.util.selectModule(self.module)
        self.widget = getattr(slicer.modules, self.module.lower()).widgetRepresentation().self()
        self.ui = self.widget.ui
        self.longest = 0.0

    def smallScan(self) -> Any:
        """A volume node to work on instead of the sample."""
        raise TypeError(f"{type(self).__name__} has no small scan")

    def review(self) -> None:
        """Work with what was found."""
        raise TypeError(f"{type(self).__name__} has nothing to review")

    def leaveMark(self) -> None:
        """Do something with the results that a saved scene keeps."""

    def checkMark(self) -> None:
        """Look whether it was kept."""

    def play(self) -> None:
        """All steps, one line each."""
        from GenSegPanel import install

        missing = install.missing()  # the panel would ask whether to install it, and nobody would answer
        check(not missing, f"Install what GenSeg needs first, by pressing Apply: {', '.join(missing)}.")
        for step in (self.importScan, self.apply, self.review, self.cancel, self.killService, self.closeScene,
                     self.saveAndReopen):
            started, self.longest = time.monotonic(), 0.0
            step()
            said = self.ui.statusLabel.text or self.ui.preflightLabel.text
            seconds, pause = time.monotonic() - started, 1000 * self.longest
            print(f"{step.__name__:<14} {seconds:6.1f} s, longest pause {pause:4.0f} ms: {said}", flush=True)

    # What a user does

    def importScan(self) -> None:
        """Load the sample; the panel takes it and offers Apply."""
        self.scan = self.timed(self.smallScan) if self.small else self.drawnSample()
        self.timed(lambda: self.ui.inputSelector.setCurrentNode(self.scan))
        if self.bundle is not None:
            index = self.ui.bundleCombo.findText(self.bundle)
            check(index >= 0, f"There is no model {self.bundle}.")
            self.ui.bundleCombo.currentIndex = index
        check(self.ui.applyButton.enabled, f"Apply is off: {self.ui.preflightLabel.text}")
        check("CT" in self.ui.preflightLabel.text, "The preflight line does not name the modality.")

    def drawnSample(self) -> Any:
        """The sample, which another process draws; a timer notes the longest time for which the window did not live."""
        import qt

        from GenSegPanel import samples

        beats = [time.monotonic()]
        timer = qt.QTimer()
        timer.interval = 5
        timer.connect("timeout()", lambda: beats.append(time.monotonic()))
        timer.start()
        scan = samples.add_phantom(self.sample)
        timer.stop()
        beats.append(time.monotonic())
        self.longest = max(self.longest, *(after - before for before, after in itertools.pairwise(beats)))
        return scan

    def apply(self) -> None:
        """Apply, and look at what came."""
        from GenSegScene import runs

        self.ui.stepsSpinBox.value = 2
        before = self.nodes()
        self.start()
        self.waitForEnd()
        job = self.widget.controls.job
        check(job.state == "done", f"The job ended as {job.state}: {job.error}")
        self.segmentation = self.widget.review.node
        new = [node for node in self.nodes() if node not in before]
        related = [runs.related(self.segmentation, key) for key in (self.widget.review.tableKey, self.overlayKey)]
        check(all(node in new for node in [self.segmentation, *related]), "A node of the run is not in the scene.")
        check(self.ui.findingsTable.rowCount == self.segmentation.GetSegmentation().GetNumberOfSegments(),
              "The table does not have a row for each segment.")
        check(self.ui.findingsTable.rowCount > 0, "Nothing was found.")

    def cancel(self) -> None:
        """Apply and think better of it."""
        self.ui.stepsSpinBox.value = self.many
        before = self.nodes()
        self.start()
        self.waitFor(lambda: self.widget.controls.job.fraction > 0.1, 120, "the first step")
        check(self.ui.applyButton.text == "Cancel", "Apply did not turn into Cancel.")
        self.timed(self.ui.applyButton.click)
        self.waitForEnd(60)
        check(self.widget.controls.job.state == "cancelled", "Cancel did not cancel.")
        check(self.nodes() == before, "Cancel left nodes behind.")

    def killService(self) -> None:
        """The engine dies in mid-job; the next Apply works."""
        before = self.nodes()
        self.start()
        self.waitFor(lambda: self.widget.controls.job.fraction > 0.1, 120, "the first step")
        os.kill(self.widget.logic.service.pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        self.waitForEnd(60)
        check(self.widget.controls.job.state == "failed", "A killed service did not fail the job.")
        check("service" in self.ui.statusLabel.text, f"The message is not clear: {self.ui.statusLabel.text}")
        check(self.nodes() == before, "The failed job left nodes behind.")
        message = self.ui.statusLabel.text
        self.ui.stepsSpinBox.value = 1
        self.start()
        self.waitForEnd()
        check(self.widget.controls.job.state == "done", f"The next Apply failed: {self.widget.controls.job.error}")
        self.widget.controls.tell(message)

    def closeScene(self) -> None:
        """Close the scene in mid-job."""
        self.ui.stepsSpinBox.value = self.many
        self.start()
        job = self.widget.controls.job
        self.waitFor(lambda: job.fraction > 0.1, 120, "the first step")
        self.timed(lambda: self.slicer.mrmlScene.Clear(False))
        self.waitForEnd(60)
        check(job.state == "cancelled", f"Closing the scene ended the job as {job.state}: {job.error}")
        check(self.ui.findingsTable.rowCount == 0, "The table still shows findings of the closed scene.")

    def saveAndReopen(self) -> None:
        """Run, leave a mark, save as .mrb, reopen: nothing is lost."""
        from GenSegScene import runs

        self.importScan()
        self.apply()
        self.leaveMark()
        rows, count = self.ui.findingsTable.rowCount, len(self.nodes())
        path = self.folder / "walkthrough.mrb"
        check(self.timed(lambda: self.slicer.util.saveScene(str(path))), "The scene could not be saved.")
        self.timed(lambda: self.slicer.mrmlScene.Clear(False))
        self.timed(lambda: self.slicer.util.loadScene(str(path)))
        self.processEvents(0.5)
        check(len(self.nodes()) == count, f"{count} nodes were saved, {len(self.nodes())} came back.")
        check(runs.related(self.widget.review.node, self.overlayKey) is not None,
              "The panel does not show the saved run.")
        check(self.ui.findingsTable.rowCount == rows, "The table came back with other rows.")
        check(self.ui.inputSelector.currentNode() is not None, "The panel forgot its scan.")
        self.checkMark()

    # How

    def start(self) -> None:
        """Press Apply."""
        check(self.ui.applyButton.enabled and not self.widget.controls.busy, "Apply is off.")
        self.timed(self.ui.applyButton.click)
        check(self.widget.controls.busy, f"Apply did not start: {self.ui.statusLabel.text}")

    def waitForEnd(self, seconds: float = 900) -> None:
        """Let the window live until the job has ended."""
        self.waitFor(lambda: not self.widget.controls.busy, seconds, "the job's end")

    def waitFor(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Let the window live until a condition holds, and note the longest time it was not asked."""
        end = time.monotonic() + seconds
        while not condition():
            check(time.monotonic() < end, f"Waited {seconds:.0f} s for {what}.")
            self.timed(self.slicer.app.processEvents)
            time.sleep(0.005)

    def processEvents(self, seconds: float) -> None:
        """Let the window live for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.timed(self.slicer.app.processEvents)
            time.sleep(0.005)

    def timed(self, action: Callable[[], Any]) -> Any:
        """Do something, note how long the window could not answer, and return what came of it."""
        started = time.monotonic()
        result = action()
        self.longest = max(self.longest, time.monotonic() - started)
        return result

    def nodes(self) -> list[Any]:
        """The data nodes of the scene: what a user would miss or be bothered by."""
        kinds = ("vtkMRMLVolumeNode", "vtkMRMLSegmentationNode", "vtkMRMLTableNode", "vtkMRMLMarkupsNode")
        return [node for kind in kinds for node in self.slicer.util.getNodesByClass(kind)
                if not node.GetHideFromEditors()]


class NoduleWalkthrough(Walkthrough):
    """A session with the nodule panel."""

    module, sample = "GenSegNodules", "chest"
    overlayKey = "residual"
    many = 60

    def smallScan(self) -> Any:
        """A CT of lung with two bright balls, 40 x 48 x 48 voxels."""
        import numpy as np

        voxels = np.random.default_rng(5).normal(-850, 15, (40, 48, 48)).astype("int16")
        k, j, i = np.ogrid[:40, :48, :48]
        voxels[((k - 10) * 2) ** 2 + (j - 14) ** 2 + (i - 12) ** 2 < 25] = 40
        voxels[((k - 28) * 2) ** 2 + (j - 30) ** 2 + (i - 33) ** 2 < 49] = 20
        node = self.slicer.util.addVolumeFromArray(voxels, np.diag([-1.0, -1.0, 2.0, 1.0]), "Chest")
        node.SetAttribute("DICOM.Modality", "CT")
        return node

    def review(self) -> None:
        """Work through the findings: keys' actions, threshold, fade, side by side, export."""
        from GenSegScene import display, findings, runs

        name = runs.related(self.segmentation, "counterfactual").GetName()
        check("SYNTHETIC" in name, f"The counterfactual is called {name}.")
        review, layout = self.widget.review, display.register_layout()
        review.next()
        self.processEvents(0.2)
        first = review.currentSegment()
        review.accept()
        check(findings.status_of(self.segmentation, first) == "accepted", "Accept did not reach the segment.")
        before = layout.GetViewArrangement()
        self.ui.sideBySideButton.click()
        self.processEvents(0.5)
        check(layout.GetViewArrangement() == display.SIDE_BY_SIDE, "The side-by-side layout did not come.")
        self.ui.sideBySideButton.click()
        check(layout.GetViewArrangement() == before, "The user's layout did not come back.")
        self.ui.fadeSlider.value = 0.5
        check(abs(display.faded() - 0.5) < 1e-6, "The views did not fade.")
        self.ui.fadeSlider.value = 0.0
        residual = runs.related(self.segmentation, "residual")
        new = self.ui.thresholdSlider.value + 50
        self.timed(lambda: review.onThresholdDragged(new))
        check(abs(display.displayed_threshold(residual) - new) < 1e-3, "The display did not follow the slider.")
        self.timed(lambda: setattr(self.ui.thresholdSlider, "value", new))
        check(first in list(self.segmentation.GetSegmentation().GetSegmentIDs()), "An accepted finding was replaced.")
        path = self.folder / "findings.csv"
        review.exportTo(str(path))
        check(path.read_text(encoding="utf-8").count("\n") >= 2, "The table was not exported.")

    def leaveMark(self) -> None:
        """Accept a finding."""
        self.widget.review.goTo(0)
        self.widget.review.accept()

    def checkMark(self) -> None:
        """It is still accepted."""
        from GenSegScene import findings

        check(findings.findings(self.widget.review.node)[0].status == "accepted", "The status was lost.")


class OrganWalkthrough(Walkthrough):
    """A session with the organ panel."""

    module, sample = "GenSegOrgans", "abdomen-ct"
    overlayKey = "confidence"
    many = 50

    def smallScan(self) -> Any:
        """A CT phantom of the abdomen, 48 x 48 x 6 voxels."""
        from GenSegLogic.phantoms.abdomen import abdomen_phantom
        from GenSegScene.volumes import volume_to_node

        node = volume_to_node(abdomen_phantom(3, "ct", "test", size=48, slices=6).image, "Abdomen")
        node.SetAttribute("DICOM.Modality", "CT")
        return node

    def review(self) -> None:
        """Look at the organs: a row that moves the views, the confidence, export."""
        from GenSegPanel.run_review import is_shown
        from GenSegScene import runs

        table = self.ui.findingsTable
        found = [row for row in range(table.rowCount) if float(table.item(row, 1).text()) > 0]
        check(found, "No organ was found.")
        table.selectRow(found[-1])
        self.processEvents(0.2)
        segment = self.widget.review.currentSegment()
        (red,) = [node for node in self.slicer.util.getNodesByClass("vtkMRMLSliceNode")
                  if node.GetLayoutName() == "Red"]
        height = self.segmentation.GetSegmentCenterRAS(segment)[2]
        check(abs(red.GetSliceToRAS().GetElement(2, 3) - height) < 1.0, "The views did not move to the organ.")
        confidence = runs.related(self.segmentation, "confidence")
        for shown in (True, False):
            self.timed(lambda shown=shown: setattr(self.ui.confidenceCheckBox, "checked", shown))
            check(is_shown(confidence) == shown, "The confidence did not come or did not go.")
        path = self.folder / "organs.csv"
        self.widget.review.exportTo(str(path))
        check(path.read_text(encoding="utf-8").count("\n") > table.rowCount, "The table was not exported.")

    def leaveMark(self) -> None:
        """Show the confidence."""
        self.ui.confidenceCheckBox.checked = True

    def checkMark(self) -> None:
        """It is still shown."""
        check(self.ui.confidenceCheckBox.checked, "The confidence is no longer shown.")


PANELS = {"nodules": NoduleWalkthrough, "organs": OrganWalkthrough}


def main(arguments: list[str]) -> int:
    """Play the session; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--panel", choices=list(PANELS), default="nodules", help="whose session (default nodules)")
    parser.add_argument("--bundle", help="what to choose as model; default: what the panel starts with")
    parser.add_argument("--service", type=Path, help="a program to run in place of the real service")
    parser.add_argument("--small", action="store_true", help="a small scan in place of the sample phantom")
    options = parser.parse_args(arguments)
    panel = PANELS[options.panel]
    try:
        import slicer

        inside = hasattr(slicer, "app")
    except ImportError:
        inside = False
    if not inside:
        sys.path[:0] = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(ROOT / "GenSegExtension")]
        import panel_stand_in

        panel_stand_in.install()
        panel_stand_in.add_module(ROOT / "GenSegExtension" / panel.module / f"{panel.module}.py")
    from GenSegPanel import service

    if options.service is not None:
        service._shared = service.PanelService(program=options.service)
    with tempfile.TemporaryDirectory(prefix="genseg-walkthrough-") as folder:
        try:
            panel(Path(folder), options.small, options.bundle).play()
        except Failed as failure:
            print(f"FAILED: {failure}", flush=True)
            return 1
        finally:
            service.stop_shared_service()
    print("The walkthrough is through.", flush=True)
    return 0


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except Exception:  # whatever it is: Slicer goes on running unless the script exits with a code
        traceback.print_exc()
        code = 1
    sys.exit(code)
