"""The section "Adapt to my cases" of a panel: pick scans, with or without segmentations, learn, keep the result."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError

from . import install
from .adaptation import Adaptation

_SCAN, _SEGMENTATION = "GenSegCaseScan", "GenSegCaseSegmentation"  # roles of node references, followed by a number


class AdaptationSection:
    """Drives the section's widgets; the cases are node references of the parameter node, so they are saved with it."""

    def __init__(self, ui: Any, parameterNode: Callable[[], Any], onBundle: Callable[[str], None]) -> None:
        """
        Args:
            ui: widgets ``caseScanSelector``, ``caseSegmentationLabel``, ``caseSegmentationSelector``,
                ``addCaseButton``, ``clearCasesButton``, ``casesList``, ``adaptNameEdit``, ``adaptMinutesSpinBox``,
                ``adaptButton``, ``adaptProgressBar``, ``adaptStatusLabel``.
            parameterNode: gives the panel's parameter node (with ``cases``, ``sourceFree``, ``bundle``, ``seed``,
                ``device``), or None.
            onBundle: called with the name of a bundle that was learned.
        """
        self.ui, self._parameterNode, self._onBundle = ui, parameterNode, onBundle
        self.adaptation: Adaptation | None = None
        self._toolTip = ui.adaptButton.toolTip
        ui.addCaseButton.connect("clicked()", self.onAdd)
        ui.clearCasesButton.connect("clicked()", self.onClear)
        ui.adaptButton.connect("clicked()", self.onAdapt)

    @property
    def busy(self) -> bool:
        """Whether it is learning."""
        return self.adaptation is not None and not self.adaptation.finished

    @property
    def sourceFree(self) -> bool:
        """Whether to learn from the scans alone."""
        node = self._parameterNode()
        return node is not None and node.sourceFree

    def cases(self) -> list[tuple[Any, Any | None]]:
        """The volume nodes that are still in the scene, each with its segmentation node or None."""
        return [pair for pair in self._pairs() if pair[0] is not None]

    def refresh(self) -> None:
        """Show the cases, which of them have labels, and what the button does."""
        self.ui.caseSegmentationLabel.visible = self.ui.caseSegmentationSelector.visible = not self.sourceFree
        self.ui.casesList.clear()
        self.ui.casesList.addItems([self._describe(*case) for case in self.cases()])
        self.ui.adaptButton.text = _("Stop learning") if self.busy else _("Adapt")
        self.ui.adaptButton.enabled = self.busy or bool(self.cases())
        self.ui.adaptButton.toolTip = (
            _("End the learning; no model is written.") if self.busy else
            self._toolTip if self.cases() else _("Add the cases to learn from first."))
        self.ui.adaptProgressBar.visible = self.busy

    def onAdd(self) -> None:
        """Add the scan that is chosen, with its segmentation or, learning without labels, alone.

        A scan is one case however often it is added; the last segmentation counts.
        """
        node, scan = self._parameterNode(), self.ui.caseScanSelector.currentNode()
        segmentation = None if self.sourceFree else self.ui.caseSegmentationSelector.currentNode()
        if scan is None or (segmentation is None and not self.sourceFree):
            self._tell(_("Choose a scan first.") if self.sourceFree else
                       _("Choose a scan and the segmentation of its organs first, or tick learning without labels."))
            return
        scans = [pair[0] for pair in self._pairs()]
        index = scans.index(scan) if scan in scans else len(scans)
        with slicer.util.NodeModify(node.parameterNode):
            node.parameterNode.SetNodeReferenceID(f"{_SCAN}{index}", scan.GetID())
            if segmentation is not None:
                node.parameterNode.SetNodeReferenceID(f"{_SEGMENTATION}{index}", segmentation.GetID())
            node.cases = max(node.cases, index + 1)
        self._tell("")
        self.refresh()

    def onClear(self) -> None:
        """Forget all cases; the nodes stay."""
        node = self._parameterNode()
        with slicer.util.NodeModify(node.parameterNode):
            for index in range(node.cases):
                for role in (_SCAN, _SEGMENTATION):
                    node.parameterNode.SetNodeReferenceID(f"{role}{index}", None)
            node.cases = 0
        self.refresh()

    def onAdapt(self) -> None:
        """Begin to learn, or stop."""
        if self.busy:
            self.stop()
            self._tell(_("Stopped; no model was written."))
            return
        node = self._parameterNode()
        try:
            if install.ensure():
                self._tell(_("Starting to learn"))
                self.adaptation = Adaptation(
                    self.ui.adaptNameEdit.text.strip(), self.cases(), node.sourceFree, node.bundle,
                    self.ui.adaptMinutesSpinBox.value, node.seed, node.device, self._onProgress, self._onFinished,
                    self._onFailed)
            else:
                self._tell(_("Nothing was installed, so nothing was started."))
        except GenSegError as error:
            self._tell(str(error))
        except OSError as error:  # a full disk, or no right to write
            self._tell(_("Learning could not start: {reason}.").format(reason=error))
        except Exception as error:  # a mistake of ours or of a library: one sentence, the log and the tool tip the rest
            logging.exception("GenSeg: learning could not start")
            self._tell(_("Learning could not start ({reason}).").format(reason=f"{type(error).__name__}: {error}"),
                       traceback.format_exc())
        self.refresh()

    def stop(self) -> None:
        """End the learning."""
        if self.adaptation is not None:
            self.adaptation.cancel()
        self.refresh()

    def onSceneStartClose(self) -> None:
        """The cases go away: end what still needs them. Learning that has them in files of its own goes on."""
        if self.adaptation is not None and self.adaptation.state == "preparing":
            self.stop()
            self._tell(_("The scene was closed before its cases were handed over; no model was written."))

    def _onProgress(self, fraction: float, message: str) -> None:
        self.ui.adaptProgressBar.value = round(100 * fraction)
        self._tell(message)

    def _onFinished(self, name: str, messages: list[str]) -> None:
        self._tell(" ".join([_("The model {name} was learned and is chosen above.").format(name=name), *messages]))
        self.refresh()
        self._onBundle(name)

    def _onFailed(self, sentence: str, details: str) -> None:
        self._tell(sentence, details)
        self.refresh()

    def _pairs(self) -> list[tuple[Any | None, Any | None]]:
        """All that were added, with None for what is no longer in the scene."""
        node = self._parameterNode()
        if node is None:
            return []
        return [(node.parameterNode.GetNodeReference(f"{_SCAN}{index}"),
                 node.parameterNode.GetNodeReference(f"{_SEGMENTATION}{index}")) for index in range(node.cases)]

    def _describe(self, scan: Any, segmentation: Any | None) -> str:
        """A line of the list: which scan, and what becomes of its labels."""
        if segmentation is None:
            return _("{scan}, no labels").format(scan=scan.GetName())
        line = _("{scan} + {segmentation}, labels not used") if self.sourceFree else "{scan} + {segmentation}"
        return line.format(scan=scan.GetName(), segmentation=segmentation.GetName())

    def _tell(self, sentence: str, details: str = "") -> None:
        self.ui.adaptStatusLabel.text = sentence
        self.ui.adaptStatusLabel.toolTip = details or _("What happened last.")
