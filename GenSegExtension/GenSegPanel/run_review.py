"""Looking at one run: its table whose rows jump the views, copy, export, Segment Editor. What all panels share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from GenSegLogic.errors import GenSegError
from GenSegScene import display, findings, runs
from GenSegScene.measuring import measure_edited


class RunReview(VTKObservationMixin):
    """Drives the table of a panel's results section for the run of one segmentation node.

    Nothing here runs a model. All state lies in the scene, so that a saved scene opens as it was left. A panel's own
    review says which table it is and what its rows are.

    Attributes:
        tableKey: the run's table (``nodules_table``).
        node: the run's segmentation node; None without one.
    """

    tableKey = ""

    def __init__(self, ui: Any, parent: Any, tell: Any) -> None:
        """
        Args:
            ui: the panel's widgets by name: ``findingsTable``, ``copyButton``, ``exportButton``, ``editButton``.
            parent: the panel, for dialogs.
            tell: called with one sentence for the status line.
        """
        super().__init__()
        self.ui, self._parent, self._tell = ui, parent, tell
        self.node: Any = None
        self._updating = False
        self._ids: list[str] = []
        ui.findingsTable.connect("itemSelectionChanged()", self.onRowSelected)
        ui.copyButton.connect("clicked()", self.copy)
        ui.exportButton.connect("clicked()", self.export)
        ui.editButton.connect("clicked()", self.editInSegmentEditor)

    # What a panel's own review gives

    def headings(self) -> list[str]:
        """Titles of the columns."""
        return []

    def rows(self) -> list[tuple[str, Sequence[str]]]:
        """Identifier of the segment and texts of the columns, of every row."""
        return []

    def emptyText(self) -> str:
        """Why the views do not move to a row."""
        return _("This segment is empty.")

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
        self.refresh()

    def onChosen(self, node: Any) -> None:
        """The user chose the run of ``node``: show it in the views too, whatever they show."""
        display.show_run(node)
        self.refresh()
        self.tellEdited()

    def related(self, key: str) -> Any:
        """Another node of the run (``residual``, ``input``, ``nodules_table``), or None."""
        return runs.related(self.node, key)

    def table(self) -> Any:
        """The run's table node, or None."""
        return self.related(self.tableKey)

    def refresh(self) -> None:
        """Show what the scene holds; switch off what has no node."""
        self._updating = True
        try:
            self._fillTable()
            self.ui.copyButton.enabled = self.ui.exportButton.enabled = self.table() is not None
            self.ui.editButton.enabled = self.node is not None
            self.refreshMore()
        finally:
            self._updating = False

    def refreshMore(self) -> None:
        """What a panel's own review shows besides; called by :meth:`refresh`."""

    def _fillTable(self) -> None:
        widget, row = self.ui.findingsTable, self.currentRow()
        rows, headings = self.rows() if self.node is not None else [], self.headings()
        widget.rowCount, widget.columnCount = len(rows), len(headings)
        widget.setHorizontalHeaderLabels(headings)
        for index, (_segment, texts) in enumerate(rows):
            for column, text in enumerate(texts):
                widget.setItem(index, column, qt.QTableWidgetItem(text))
        self._ids = [segment for segment, _texts in rows]
        if 0 <= row < len(rows):
            widget.selectRow(row)

    def _onSegmentsChanged(self, caller: Any, event: str) -> None:
        if not self._updating:
            self.refresh()

    # Rows

    def currentRow(self) -> int:
        """The selected row, -1 without one."""
        return self.ui.findingsTable.currentRow()

    def currentSegment(self) -> str | None:
        """Identifier of the selected row's segment."""
        row = self.currentRow()
        return self._ids[row] if self.node is not None and 0 <= row < len(self._ids) else None

    def onRowSelected(self) -> None:
        """Jump the views to the selected row's segment."""
        segment = self.currentSegment()
        if segment is not None and not self._updating and not findings.jump_to_finding(self.node, segment):
            self._tell(self.emptyText())

    # Display

    def onOverlay(self, node: Any, shown: bool) -> None:
        """Show or hide a volume of the run as overlay, when the user asks for it."""
        if not self._updating:
            display.show_residual(node if shown else None)

    # Table and Segment Editor

    def measureEdited(self) -> str:
        """Bring the table up to what the segments now are; a sentence for the user, if there is anything to say."""
        if self.node is None:
            return ""
        self._updating = True
        slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            edited = measure_edited(self.node)
        except GenSegError as error:
            return str(error)
        finally:
            slicer.app.restoreOverrideCursor()
            self._updating = False
        if not edited:
            return ""
        self.refresh()
        names = ", ".join(self.node.GetSegmentation().GetSegment(segment).GetName() for segment in edited)
        return _("Measured anew after editing: {names}.").format(names=names)

    def tellEdited(self) -> None:
        """The user comes back, maybe from editing segments: measure those, and say so."""
        if sentence := self.measureEdited():
            self._tell(sentence)

    def copy(self) -> None:
        """Put the table on the clipboard, to be pasted into a report or a spreadsheet."""
        edited = self.measureEdited()
        slicer.app.clipboard().setText(findings.table_as_text(self.table(), self.node))
        self._tell(" ".join([_("The table is on the clipboard."), edited]).strip())

    def export(self) -> None:
        """Ask for a file and write the table to it as CSV."""
        path = qt.QFileDialog.getSaveFileName(self._parent, _("Export the table"), f"{self.table().GetName()}.csv",
                                              _("Comma-separated values (*.csv)"))
        if path:
            self.exportTo(path)

    def exportTo(self, path: str) -> None:
        """Write the table to ``path`` as CSV, coordinates in RAS."""
        edited = self.measureEdited()
        try:
            written = findings.export_table(self.table(), self.node, path)
        except GenSegError as error:
            self._tell(str(error))
        else:
            self._tell(" ".join([_("The table was written to {path}.").format(path=written), edited]).strip())

    def editInSegmentEditor(self) -> None:
        """Open the run's segmentation in the Segment Editor with its scan and the selected segment."""
        segment, scan = self.currentSegment(), self.related(runs.INPUT)
        slicer.util.selectModule("SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        editor.setSegmentationNode(self.node)
        if scan is not None:
            editor.setSourceVolumeNode(scan)
        if segment is not None:
            editor.setCurrentSegmentID(segment)


def is_shown(volume: Any) -> bool:
    """Whether a volume is the overlay of any slice view."""
    return any(composite.GetForegroundVolumeID() == volume.GetID() for composite in display.composites())


def cell(value: Any) -> str:
    """A value as a table shows it: enough digits to read, no more."""
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) < 1 else f"{value:.1f}"
    return "" if value is None else str(value)
