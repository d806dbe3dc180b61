"""The section "Adapt to my cases" of a panel: pick pairs of scan and segmentation, learn, keep the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError

from . import install
from .adaptation import Adaptation

_SCAN, _SEGMENTATION = "GenSegCaseScan", "GenSegCaseSegmentation"  # roles of node references, followed by a number


class AdaptationSection:
    """Drives the section's widgets; the pairs are node references of the parameter node, so they are saved with it."""

    def __init__(self, ui: Any, parameterNode: Callable[[], Any], onBundle: Callable[[str], None]) -> None:
        """
        Args:
            ui: widgets ``caseScanSelector``, ``caseSegmentationSelector``, ``addCaseButton``, ``clearCasesButton``,
                ``casesList``, ``adaptNameEdit``, ``adaptMinutesSpinBox``, ``adaptButton``, ``adaptProgressBar``,
                ``adaptStatusLabel``.
            parameterNode: gives the panel's parameter node (with ``cases``, ``bundle``, ``seed``, ``device``), or None.
            onBundle: called with the name of a bundle that was learned.
        """
        self.ui, self._parameterNode, self._onBundle = ui, parameterNode, onBundle
        self.adaptation: Adaptation | None = None
        ui.addCaseButton.connect("clicked()", self.onAdd)
        ui.clearCasesButton.connect("clicked()", self.onClear)
        ui.adaptButton.connect("clicked()", self.onAdapt)

    @property
    def busy(self) -> bool:
        """Whether it is learning."""
        return self.adaptation is not None and not self.adaptation.finished

    def cases(self) -> list[tuple[Any, Any]]:
        """The pairs of volume and segmentation node that are still in the scene."""
        node = self._parameterNode()
        if node is None:
            return []
        pairs = [(node.parameterNode.GetNodeReference(f"{_SCAN}{index}"),
                  node.parameterNode.GetNodeReference(f"{_SEGMENTATION}{index}")) for index in range(node.cases)]
        return [pair for pair in pairs if None not in pair]

    def refresh(self) -> None:
        """Show the pairs, and what the button does."""
        self.ui.casesList.clear()
        self.ui.casesList.addItems([f"{scan.GetName()} + {marked.GetName()}" for scan, marked in self.cases()])
        self.ui.adaptButton.text = _("Stop learning") if self.busy else _("Adapt")
        self.ui.adaptButton.enabled = self.busy or bool(self.cases())
        self.ui.adaptProgressBar.visible = self.busy

    def onAdd(self) -> None:
        """Add the pair that is chosen."""
        node = self._parameterNode()
        pair = self.ui.caseScanSelector.currentNode(), self.ui.caseSegmentationSelector.currentNode()
        if None in pair:
            self._tell(_("Choose a scan and the segmentation of its organs first."))
            return
        if pair not in self.cases():
            with slicer.util.NodeModify(node.parameterNode):
                node.parameterNode.SetNodeReferenceID(f"{_SCAN}{node.cases}", pair[0].GetID())
                node.parameterNode.SetNodeReferenceID(f"{_SEGMENTATION}{node.cases}", pair[1].GetID())
                node.cases = node.cases + 1
        self._tell("")
        self.refresh()

    def onClear(self) -> None:
        """Forget all pairs; the nodes stay."""
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
                    self.ui.adaptNameEdit.text.strip(), self.cases(), node.bundle, self.ui.adaptMinutesSpinBox.value,
                    node.seed, node.device, self._onProgress, self._onFinished, self._onFailed)
            else:
                self._tell(_("Nothing was installed, so nothing was started."))
        except GenSegError as error:
            self._tell(str(error))
        self.refresh()

    def stop(self) -> None:
        """End the learning, because the user or the end of the panel wants it."""
        if self.adaptation is not None:
            self.adaptation.cancel()
        self.refresh()

    def _onProgress(self, fraction: float, message: str) -> None:
        self.ui.adaptProgressBar.value = round(100 * fraction)
        self._tell(message)

    def _onFinished(self, name: str, messages: list[str]) -> None:
        self._tell(" ".join([_("The model {name} was learned and is chosen above.").format(name=name), *messages]))
        self.refresh()
        self._onBundle(name)

    def _onFailed(self, sentence: str, details: str) -> None:
        self._tell(sentence)
        self.ui.adaptStatusLabel.toolTip = details or _("What happened last.")
        self.refresh()

    def _tell(self, sentence: str) -> None:
        self.ui.adaptStatusLabel.text = sentence
