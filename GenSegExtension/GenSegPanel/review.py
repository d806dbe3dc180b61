"""Going through the findings of a run: table, keys, status, live threshold, fading, side by side, copy, export."""

from __future__ import annotations

from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from GenSegLogic.errors import GenSegError
from GenSegScene import display, findings, runs
from GenSegScene.tables import SEGMENT_ID, STATUS, column_names

_HIDDEN_COLUMNS = ("nodule", "name", SEGMENT_ID, STATUS)
_THRESHOLD = "GenSeg.Threshold"  # what write_threshold leaves on the segmentation
KEYS = {"N": "next", "P": "previous", "Y": "accept", "X": "reject"}


class FindingsReview(VTKObservationMixin):
    """Drives the widgets of a panel's results section for the run of one segmentation node.

    Nothing here runs a model. All state lies in the scene (segment status, table, display, layout), so that a saved
    scene opens as it was left.
    """

    def __init__(self, ui: Any, parent: Any, tell: Any) -> None:
        """
        Args:
            ui: the panel's widgets by name.
            parent: the panel, for dialogs.
            tell: called with one sentence for the status line.
        """
        super().__init__()
        self.ui, self._parent, self._tell = ui, parent, tell
        self.node: Any = None
        self._updating = False
        self._shortcuts: list[Any] = []
        ui.findingsTable.connect("itemSelectionChanged()", self.onRowSelected)
        ui.nextButton.connect("clicked()", self.next)
        ui.previousButton.connect("clicked()", self.previous)
        ui.acceptButton.connect("clicked()", self.accept)
        ui.rejectButton.connect("clicked()", self.reject)
        ui.copyButton.connect("clicked()", self.copy)
        ui.exportButton.connect("clicked()", self.export)
        ui.editButton.connect("clicked()", self.editInSegmentEditor)
        ui.thresholdSlider.connect("valueIsChanging(double)", self.onThresholdDragged)
        ui.thresholdSlider.connect("valueChanged(double)", self.onThresholdReleased)
        ui.fadeSlider.connect("valueChanged(double)", self.onFade)
        ui.fadeSlider.connect("valueIsChanging(double)", self.onFade)
        ui.residualCheckBox.connect("toggled(bool)", self.onResidual)
        ui.sideBySideButton.connect("toggled(bool)", self.onSideBySide)
        self.refresh()

    # The run

    def setSegmentation(self, node: Any) -> None:
        """Show the run that ``node`` belongs to; None: nothing."""
        if self.node is not None:
            self.removeObservers()
        self.node = node
        if node is not None:
            for event in (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved,
                          slicer.vtkSegmentation.SegmentModified):
                self.addObserver(node, event, self._onSegmentsChanged)
            self._updating = True
            self.ui.thresholdSlider.value = self.threshold()
            self._updating = False
        self.refresh()

    def related(self, key: str) -> Any:
        """Another node of the run (``residual``, ``counterfactual``, ``input``, ``nodules_table``), or None."""
        return runs.related(self.node, key)

    def threshold(self) -> float:
        """The threshold in HU that the run's segments were made with."""
        written = self.node.GetAttribute(_THRESHOLD)
        if written:
            return float(written)
        return float(runs.provenance_of(self.node).get("parameters", {}).get("threshold")
                     or self.ui.thresholdSlider.value)

    def refresh(self) -> None:
        """Show what the scene holds: rows, status, fading, layout; switch off what has no node."""
        self._updating = True
        try:
            self._fillTable()
            residual, counterfactual = self.related("residual"), self.related("counterfactual")
            self.ui.fadeSlider.value = display.faded()
            self.ui.residualCheckBox.checked = residual is not None and _is_shown(residual)
            self.ui.sideBySideButton.checked = display.is_side_by_side()
            self.ui.fadeSlider.enabled = counterfactual is not None
            self.ui.sideBySideButton.enabled = counterfactual is not None or display.is_side_by_side()
            self.ui.residualCheckBox.enabled = residual is not None
            self.ui.copyButton.enabled = self.ui.exportButton.enabled = self.related("nodules_table") is not None
            rows = self.ui.findingsTable.rowCount > 0
            for button in (self.ui.nextButton, self.ui.previousButton, self.ui.acceptButton, self.ui.rejectButton):
                button.enabled = rows
            self.ui.editButton.enabled = self.node is not None
        finally:
            self._updating = False

    def _fillTable(self) -> None:
        widget, table = self.ui.findingsTable, self.related("nodules_table")
        found = findings.findings(self.node) if self.node is not None else []
        columns = [name for name in column_names(table) if name not in _HIDDEN_COLUMNS] if table is not None else []
        row = self.currentRow()
        widget.rowCount, widget.columnCount = len(found), 2 + len(columns)
        widget.setHorizontalHeaderLabels([_("Finding"), _("Status"), *(table.GetColumnTitle(name) for name in columns)])
        for index, finding in enumerate(found):
            texts = [finding.name, _status_text(finding.status), *(_cell(finding.row.get(name)) for name in columns)]
            for column, text in enumerate(texts):
                widget.setItem(index, column, qt.QTableWidgetItem(text))
        self._ids = [finding.segment_id for finding in found]
        if 0 <= row < len(found):
            widget.selectRow(row)

    def _onSegmentsChanged(self, caller: Any, event: str) -> None:
        if not self._updating:
            self.refresh()

    # Rows

    def currentRow(self) -> int:
        """The selected row, -1 without one."""
        return self.ui.findingsTable.currentRow()

    def currentSegment(self) -> str | None:
        """Identifier of the selected finding's segment."""
        row = self.currentRow()
        return self._ids[row] if self.node is not None and 0 <= row < len(self._ids) else None

    def onRowSelected(self) -> None:
        """Jump the views to the selected finding."""
        segment = self.currentSegment()
        if segment is not None and not self._updating and not findings.jump_to_finding(self.node, segment):
            self._tell(_("This finding has no voxels at the present threshold."))

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
            self.ui.findingsTable.selectRow((row + by) % len(self._ids) if row >= 0 else 0)

    def _review(self, status: str) -> None:
        segment = self.currentSegment()
        if segment is None:
            self._tell(_("Select a finding in the table first."))
            return
        reopened = findings.status_of(self.node, segment) == status
        self._updating = True
        try:
            findings.set_status(self.node, segment, findings.OPEN if reopened else status)
        finally:
            self._updating = False
        self.refresh()
        if not reopened:
            self.next()

    # Display

    def onThresholdDragged(self, value: float) -> None:
        """Move the display while the slider moves."""
        residual = self.related("residual")
        if residual is not None and not self._updating:
            display.set_threshold(residual, value)

    def onThresholdReleased(self, value: float) -> None:
        """Write the segments anew, without the model."""
        if self.node is None or self._updating or abs(value - self.threshold()) < 1e-6:
            return
        self._updating = True
        slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            ids = findings.write_threshold(self.node, value)
        except GenSegError as error:
            self._tell(str(error))
        else:
            kept = self.node.GetSegmentation().GetNumberOfSegments() - len(ids)
            self._tell(_("{count} findings at {value:.0f} HU, {kept} kept as you left them.").format(
                count=len(ids), value=value, kept=kept))
        finally:
            slicer.app.restoreOverrideCursor()
            self._updating = False
        self.refresh()

    def onFade(self, value: float) -> None:
        """Fade from the scan (0) to the counterfactual (1)."""
        if not self._updating:
            display.fade(value)

    def onResidual(self, shown: bool) -> None:
        """Show or hide the residual overlay."""
        if not self._updating:
            display.show_residual(self.related("residual") if shown else None)

    def onSideBySide(self, wanted: bool) -> None:
        """Put the scan beside its counterfactual in linked views, or give the user's layout back."""
        if self._updating:
            return
        if not wanted:
            display.leave_side_by_side()
        else:
            display.enter_side_by_side(self.related(runs.INPUT), self.related("counterfactual"),
                                       self.related("residual") if self.ui.residualCheckBox.checked else None)
        self.refresh()

    # Table and Segment Editor

    def copy(self) -> None:
        """Put the table on the clipboard, to be pasted into a report or a spreadsheet."""
        slicer.app.clipboard().setText(findings.table_as_text(self.related("nodules_table")))
        self._tell(_("The table is on the clipboard."))

    def export(self) -> None:
        """Ask for a file and write the table to it as CSV."""
        table = self.related("nodules_table")
        path = qt.QFileDialog.getSaveFileName(self._parent, _("Export findings"), f"{table.GetName()}.csv",
                                              _("Comma-separated values (*.csv)"))
        if path:
            self.exportTo(path)

    def exportTo(self, path: str) -> None:
        """Write the table to ``path`` as CSV, coordinates in RAS."""
        try:
            written = findings.export_table(self.related("nodules_table"), path)
        except GenSegError as error:
            self._tell(str(error))
        else:
            self._tell(_("The table was written to {path}.").format(path=written))

    def editInSegmentEditor(self) -> None:
        """Open the run's segmentation in the Segment Editor with its scan and the selected finding."""
        segment, scan = self.currentSegment(), self.related(runs.INPUT)
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.node)
        if scan is not None:
            editor.setSourceVolumeNode(scan)
        if segment is not None:
            editor.setCurrentSegmentID(segment)

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


def _is_shown(volume: Any) -> bool:
    return any(composite.GetForegroundVolumeID() == volume.GetID() for composite in display.composites())


def _status_text(status: str) -> str:
    return {findings.ACCEPTED: _("accepted"), findings.REJECTED: _("rejected")}.get(status, _("open"))


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"
    return "" if value is None else str(value)
