"""Looking at one run: rows that jump the views, outlines, 3D, copy, export, Segment Editor. What all panels share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
        updating: whether widgets and segments change by the review's own doing, and not by the user's.
    """

    tableKey = ""

    def __init__(self, ui: Any, parent: Any, tell: Any) -> None:
        """
        Args:
            ui: the panel's widgets by name: ``findingsTable``, ``outlinesCheckBox``, ``show3DButton``, ``copyButton``,
                ``exportButton``, ``editButton``.
            parent: the panel, for dialogs.
            tell: called with one sentence for the status line.
        """
        super().__init__()
        self.ui, self._parent, self._tell = ui, parent, tell
        self.node: Any = None
        self.updating = False
        self._ids: list[str] = []
        self._toolTips: dict[str, str] = {}
        ui.findingsTable.connect("itemSelectionChanged()", self.onRowSelected)
        ui.findingsTable.connect("cellClicked(int,int)", self.onRowClicked)
        ui.outlinesCheckBox.connect("toggled(bool)", self.onOutlines)
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
        if node is not self.node:
            self._ids = []  # a row that was selected in another run says nothing of this one
        self.node = node
        self.ui.show3DButton.setSegmentationNode(node)
        if node is not None:
            for event in (slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved,
                          slicer.vtkSegmentation.SegmentModified):
                self.addObserver(node, event, self._onSceneChanged)
            self.addObserver(node, node.DisplayModifiedEvent, self._onDisplayChanged)
            self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self._onSceneChanged)
        self.refresh()

    @contextmanager
    def quietly(self) -> Iterator[None]:
        """What changes inside is not the user's doing."""
        before, self.updating = self.updating, True
        try:
            yield
        finally:
            self.updating = before

    def onChosen(self, node: Any) -> None:
        """The user chose the run of ``node``: show it in the views too, whatever they show."""
        display.show_run(node)
        self.refresh()
        self.tellEdited()

    def onNew(self) -> None:
        """The run was written while the user was elsewhere: show it in the views, and its first row."""
        if self.node is not None:
            display.show_new_run(self.node)
        self.refresh()
        self.showFirst()

    def related(self, key: str) -> Any:
        """Another node of the run (``residual``, ``input``, ``nodules_table``), or None."""
        return runs.related(self.node, key)

    def table(self) -> Any:
        """The run's table node, or None."""
        return self.related(self.tableKey)

    def refresh(self) -> None:
        """Show what the scene holds; switch off what has no node."""
        with self.quietly():
            self._fillTable()
            self._showOutlines()
            for button in ("copyButton", "exportButton"):
                self.enable(button, self.table() is not None,
                            _("The run's table is not in the scene.") if self.node is not None else self.noRun())
            self.enable("editButton", self.node is not None, self.noRun())
            segments = self.node.GetSegmentation().GetNumberOfSegments() if self.node is not None else 0
            for name in ("outlinesCheckBox", "show3DButton"):
                self.enable(name, segments > 0,
                            _("The run has no segments.") if self.node is not None else self.noRun())
            self.refreshMore()

    def enable(self, name: str, can: bool, why: str) -> None:
        """Switch a widget on with its own tool tip, or off with the reason."""
        widget = getattr(self.ui, name)
        own = self._toolTips.setdefault(name, widget.toolTip)
        widget.enabled, widget.toolTip = can, own if can else why

    def noRun(self) -> str:
        """Why there is nothing to look at."""
        return _("There is no result yet: press Apply, or choose one above.")

    def refreshMore(self) -> None:
        """What a panel's own review shows besides; called by :meth:`refresh`."""

    def _fillTable(self) -> None:
        """Fill it anew; what was selected stays so, in whatever row it now is, and nothing else is."""
        widget, row = self.ui.findingsTable, self.currentRow()
        chosen = {self._ids[row], widget.item(row, 0).text()} if 0 <= row < len(self._ids) else set()
        rows, headings = self.rows() if self.node is not None else [], self.headings()
        widget.rowCount, widget.columnCount = len(rows), len(headings)
        widget.setHorizontalHeaderLabels(headings)
        for index, (_segment, texts) in enumerate(rows):
            for column, text in enumerate(texts):
                widget.setItem(index, column, qt.QTableWidgetItem(text))
        widget.resizeColumnsToContents()
        self._ids = [segment for segment, _texts in rows]
        found = [index for index, (segment, texts) in enumerate(rows) if segment in chosen or texts[0] in chosen]
        if found:
            widget.selectRow(found[0])
        else:
            widget.setCurrentCell(-1, -1)

    def _onSceneChanged(self, caller: Any, event: str) -> None:
        if not self.updating:
            self.refresh()

    def _onDisplayChanged(self, caller: Any, event: str) -> None:
        """Somebody may have shown or hidden the segmentation; much else changes its display, and often."""
        with self.quietly():
            self._showOutlines()

    def _showOutlines(self) -> None:
        self.ui.outlinesCheckBox.checked = self.node is not None and bool(self.node.GetDisplayVisibility())

    # Rows

    def currentRow(self) -> int:
        """The selected row, -1 without one."""
        return self.ui.findingsTable.currentRow()

    def currentSegment(self) -> str | None:
        """Identifier of the selected row's segment."""
        row = self.currentRow()
        return self._ids[row] if self.node is not None and 0 <= row < len(self._ids) else None

    def goTo(self, row: int) -> None:
        """Select a row and jump the views there, also where it is selected already."""
        if row == self.currentRow():
            self.onRowSelected()
        self.ui.findingsTable.selectRow(row)

    def showFirst(self) -> None:
        """Go to the first row whose segment has voxels, if there is one."""
        for row, segment in enumerate(self._ids):
            if findings.center_of(self.node, segment) is not None:
                self.goTo(row)
                return

    def onRowSelected(self) -> None:
        """Jump the views to the selected row's segment."""
        segment = self.currentSegment()
        if segment is not None and not self.updating and not findings.jump_to_finding(self.node, segment):
            self._tell(self.emptyText())

    def onRowClicked(self, row: int, column: int) -> None:
        """Jump there also where the row is selected already: the views may have moved since."""
        self.onRowSelected()

    # Display

    def onOutlines(self, shown: bool) -> None:
        """Show or hide the run's segmentation, when the user asks for it."""
        if not self.updating and self.node is not None:
            self.node.SetDisplayVisibility(shown)

    def onOverlay(self, node: Any, shown: bool) -> None:
        """Show or hide a volume of the run as overlay, when the user asks for it."""
        if not self.updating:
            display.show_residual(node if shown else None)

    # Table and Segment Editor

    def measureEdited(self) -> str:
        """Bring the table up to what the segments now are; a sentence for the user, if there is anything to say."""
        if self.node is None:
            return ""
        slicer.app.setOverrideCursor(qt.Qt.WaitCursor)
        try:
            with self.quietly():
                edited = measure_edited(self.node)
        except GenSegError as error:
            return str(error)
        finally:
            slicer.app.restoreOverrideCursor()
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
        name = re.sub(r"[^\w .()-]", "_", self.table().GetName())  # a "/" would be a folder
        path = qt.QFileDialog.getSaveFileName(self._parent, _("Export the table"), f"{name}.csv",
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
