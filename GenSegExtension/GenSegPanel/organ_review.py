"""Looking at the organs of a run: the table, and the overlay of what is doubtful."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slicer.i18n import tr as _

from GenSegScene.tables import SEGMENT_ID, STATUS, column_names, read_table

from .run_review import RunReview, cell, is_shown

_HIDDEN_COLUMNS = ("organ", SEGMENT_ID, STATUS)


class OrganReview(RunReview):
    """Drives the widgets of the organ panel's results section for the run of one segmentation node."""

    tableKey = "organs_table"

    def __init__(self, ui: Any, parent: Any, tell: Any) -> None:
        """
        Args:
            ui: the panel's widgets by name.
            parent: the panel, for dialogs.
            tell: called with one sentence for the status line.
        """
        super().__init__(ui, parent, tell)
        ui.confidenceCheckBox.connect("toggled(bool)", self.onConfidence)
        self.refresh()

    def refreshMore(self) -> None:
        """The overlay's box."""
        confidence = self.related("confidence")
        self.ui.confidenceCheckBox.checked = confidence is not None and is_shown(confidence)
        self.enable("confidenceCheckBox", confidence is not None,
                    _("The confidence is not in the scene.") if self.node is not None else self.noRun())

    def headings(self) -> list[str]:
        """The organ and what was measured."""
        return [_("Organ"), *(self.table().GetColumnTitle(name) for name in self._columns())]

    def rows(self) -> list[tuple[str, Sequence[str]]]:
        """The organs in the order of the table; those whose segment was deleted are left out."""
        segmentation, table, columns = self.node.GetSegmentation(), self.table(), self._columns()
        return [(row[SEGMENT_ID], [segmentation.GetSegment(row[SEGMENT_ID]).GetName(),
                                   *(cell(row[name]) for name in columns)])
                for row in (read_table(table) if table is not None else [])
                if segmentation.GetSegment(row[SEGMENT_ID]) is not None]

    def emptyText(self) -> str:
        """An organ that the scan does not show has a segment without voxels."""
        return _("This organ was not found in the scan; its segment is empty.")

    def onConfidence(self, shown: bool) -> None:
        """Show or hide what is doubtful."""
        self.onOverlay(self.related("confidence"), shown)

    def _columns(self) -> list[str]:
        table = self.table()
        return [name for name in column_names(table) if name not in _HIDDEN_COLUMNS] if table is not None else []
