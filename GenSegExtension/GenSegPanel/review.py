"""Going through the findings of a run: table, keys, status, live threshold, fading, side by side, copy, export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt
import slicer
import vtk
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError
from GenSegScene import display, findings, runs
from GenSegScene.tables import SEGMENT_ID, STATUS, column_names

from .run_review import RunReview, cell, is_shown

_HIDDEN_COLUMNS = ("nodule", "name", SEGMENT_ID, STATUS)
_THRESHOLD = "GenSeg.Threshold"  # what write_threshold leaves on the segmentation
KEYS = {"N": "next", "P": "previous", "Y": "accept", "X": "reject"}


class FindingsReview(RunReview):
    """Drives the widgets of the nodule panel's results section for the run of one segmentation node.

    All state lies in the scene (segment status, table, display, layout).
    """

    tableKey = "nodules_table"

    def __init__(self, ui: Any, parent: Any, tell: Any) -> None:
        """
        Args:
            ui: the panel's widgets by name.
            parent: the panel, for dialogs.
            tell: called with one sentence for the status line.
        """
        super().__init__(ui, parent, tell)
        self._shortcuts: list[Any] = []
        ui.nextButton.connect("clicked()", self.next)
        ui.previousButton.connect("clicked()", self.previous)
        ui.acceptButton.connect("clicked()", self.accept)
        ui.rejectButton.connect("clicked()", self.reject)
        ui.thresholdSlider.connect("valueIsChanging(double)", self.onThresholdDragged)
        ui.fadeSlider.connect("valueChanged(double)", self.onFade)
        ui.fadeSlider.connect("valueIsChanging(double)", self.onFade)
        ui.residualCheckBox.connect("toggled(bool)", self.onResidual)
        ui.sideBySideButton.connect("toggled(bool)", self.onSideBySide)
        self.refresh()

    # The run

    def setSegmentation(self, node: Any) -> None:
        """Show the run that ``node`` belongs to; None: nothing."""
        super().setSegmentation(node)
        layout = display.register_layout()
        if node is not None and layout is not None:  # Slicer's own menu changes it too
            self.addObserver(layout, vtk.vtkCommand.ModifiedEvent, self._onSceneChanged)

    def threshold(self) -> float:
        """The threshold in HU that the run's segments were made with."""
        written = self.node.GetAttribute(_THRESHOLD)
        if written:
            return float(written)
        return float(runs.provenance_of(self.node).get("parameters", {}).get("threshold")
                     or self.ui.thresholdSlider.value)

    def refreshMore(self) -> None:
        """Fading, overlay, layout, and the buttons for rows."""
        for composite in display.composites():
            if not self.hasObserver(composite, vtk.vtkCommand.ModifiedEvent, self._onViewChanged):
                self.addObserver(composite, vtk.vtkCommand.ModifiedEvent, self._onViewChanged)
        residual, counterfactual = self.related("residual"), self.related("counterfactual")
        self.ui.fadeSlider.value = display.faded()
        self.ui.residualCheckBox.checked = residual is not None and is_shown(residual)
        side_by_side = self.ui.sideBySideButton.checked = display.is_side_by_side()
        gone = _("The counterfactual is not in the scene.") if self.node is not None else self.noRun()
        self.enable("fadeSlider", counterfactual is not None and not side_by_side,
                    _("Side by side, the counterfactual has a view of its own.") if side_by_side else gone)
        self.enable("sideBySideButton", counterfactual is not None or side_by_side, gone)
        self.enable("residualCheckBox", residual is not None,
                    _("The residual is not in the scene.") if self.node is not None else self.noRun())
        for button in ("nextButton", "previousButton", "acceptButton", "rejectButton"):
            self.enable(button, bool(self._ids),
                        _("The run has no findings.") if self.node is not None else self.noRun())

    def headings(self) -> list[str]:
        """Name, status and what was measured."""
        return [_("Finding"), _("Status"), *(self.table().GetColumnTitle(name) for name in self._columns())]

    def rows(self) -> list[tuple[str, Sequence[str]]]:
        """The findings in the order of their segments."""
        columns = self._columns()
        return [(one.segment_id, [one.name, _status_text(one.status), *(cell(one.row.get(name)) for name in columns)])
                for one in findings.findings(self.node)]

    def emptyText(self) -> str:
        """The threshold may have taken all of a finding."""
        return _("This finding has no voxels at the present threshold.")

    def _columns(self) -> list[str]:
        table = self.table()
        names = [name for name in column_names(table) if name not in _HIDDEN_COLUMNS] if table is not None else []
        return sorted(names, key=lambda name: name.startswith("center_"))  # a narrow panel shows sizes first

    def _onViewChanged(self, composite: Any, event: str) -> None:
        if display.let_counterfactual_go(composite):
            with self.quietly():
                self.ui.fadeSlider.value = display.faded()

    # Rows

    def next(self) -> None:
        """Go to the next finding, from the last to the first."""
        self._go(1)

    def previous(self) -> None:
        """Go to the previous finding, from the first to the last."""
        self._go(-1)

    def accept(self) -> None:
        """Accept the selected finding, or reopen it if it is accepted, and go on."""
        self._review(findings.ACCEPTED)

    def reject(self) -> None:
        """Reject the selected finding, or reopen it if it is rejected, and go on."""
        self._review(findings.REJECTED)

    def _go(self, by: int) -> None:
        if self._ids:
            row = self.currentRow()
            self.goTo((row + by) % len(self._ids) if row >= 0 else 0)

    def _review(self, status: str) -> None:
        segment = self.currentSegment()
        if segment is None:
            self._tell(_("Select a finding in the table first."))
            return
        reopened = findings.status_of(self.node, segment) == status
        with self.quietly():
            findings.set_status(self.node, segment, findings.OPEN if reopened else status)
        self.refresh()
        if not reopened:
            self.next()

    # Display

    def onThresholdDragged(self, value: float) -> None:
        """Move the display while the slider moves."""
        residual = self.related("residual")
        if residual is not None and not self.updating:
            display.set_threshold(residual, value)

    def showThreshold(self, value: float) -> None:
        """Show a threshold, without writing any segment."""
        with self.quietly():
            self.ui.thresholdSlider.value = value

    def writeThreshold(self, value: float) -> None:
        """Write the segments anew at another threshold, without the model; only because the user asks for it."""
        if self.node is None or abs(value - self.threshold()) < 1e-6:
            return
        slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            with self.quietly():
                ids = findings.write_threshold(self.node, value)
        except GenSegError as error:
            self._tell(str(error))
        else:
            kept = self.node.GetSegmentation().GetNumberOfSegments() - len(ids)
            self._tell(_("Findings at {value:.0f} HU: {count}; kept as you left them: {kept}.").format(
                count=len(ids), value=value, kept=kept))
        finally:
            slicer.app.restoreOverrideCursor()
        self.refresh()

    def onFade(self, value: float) -> None:
        """Fade from the scan (0) to the counterfactual (1)."""
        if not self.updating:
            display.fade(value)

    def onResidual(self, shown: bool) -> None:
        """Show or hide the residual overlay."""
        self.onOverlay(self.related("residual"), shown)

    def onSideBySide(self, wanted: bool) -> None:
        """Put the scan beside its counterfactual in linked views, or give the user's layout back."""
        if self.updating:
            return
        if not wanted:
            display.leave_side_by_side()
        else:
            display.enter_side_by_side(self.related(runs.INPUT), self.related("counterfactual"),
                                       self.related("residual") if self.ui.residualCheckBox.checked else None)
        self.refresh()

    # Keys

    def installKeys(self) -> None:
        """Let the keys of :data:`KEYS` work while the panel is shown."""
        self.removeKeys()
        owner = slicer.util.mainWindow() or self._parent
        for key, action in KEYS.items():
            shortcut = qt.QShortcut(owner)
            shortcut.setKey(qt.QKeySequence(key))
            shortcut.connect("activated()", getattr(self, action))
            self._shortcuts.append(shortcut)

    def removeKeys(self) -> None:
        """Give the keys back."""
        for shortcut in self._shortcuts:
            shortcut.disconnect("activated()")
            shortcut.setParent(None)
        self._shortcuts = []


def _status_text(status: str) -> str:
    return {findings.ACCEPTED: _("accepted"), findings.REJECTED: _("rejected")}.get(status, _("open"))
