"""Apply that turns into Cancel, the progress bar, the status line and the details on demand."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError

from .job import PanelJob


class JobControls:
    """Ties one job at a time to a button, a progress bar and a line of text."""

    def __init__(self, ui: Any, begin: Callable[[], PanelJob | None]) -> None:
        """
        Args:
            ui: widgets ``applyButton``, ``progressBar``, ``statusLabel``, ``detailsButton``.
            begin: starts a job; None if the user decided against it. What it raises becomes the status line.
        """
        self.ui, self._begin = ui, begin
        self.job: PanelJob | None = None
        self._ready, self._reason = False, ""
        self._details = ""
        ui.applyButton.connect("clicked()", self.onApply)
        ui.detailsButton.connect("clicked()", self.onDetails)
        ui.detailsButton.visible = False
        ui.progressBar.visible = False

    @property
    def busy(self) -> bool:
        """Whether a job is in hand."""
        return self.job is not None and not self.job.finished

    def setReady(self, ready: bool, reason: str) -> None:
        """Whether Apply may be pressed, and the tool tip that says what it does or why it is off."""
        self._ready, self._reason = ready, reason
        self.update()

    def onApply(self) -> None:
        """Start a job, or stop the one in hand."""
        if self.busy:
            assert self.job is not None
            self.job.cancel()
            self.tell(_("Stopping at the next step…"))
            self.update()
            return
        self.tell("")
        try:
            self.job = self._begin()
        except GenSegError as error:
            self.announce(str(error))
        except OSError as error:  # a full disk, or no right to write
            self.announce(_("Nothing could be started: {reason}.").format(reason=error))
        except Exception as error:  # a mistake of ours or of a library: one sentence, the log and the details the rest
            logging.exception("GenSeg: nothing was started")
            self.announce(_("Nothing could be started ({reason}).").format(reason=f"{type(error).__name__}: {error}"),
                          traceback.format_exc())
        self.update()

    def progress(self, fraction: float, message: str) -> None:
        """Show where the job is."""
        self.ui.progressBar.value = round(100 * fraction)
        self.tell(message)

    def tell(self, sentence: str, details: str = "") -> None:
        """Show one sentence; ``details`` can then be asked for."""
        self.ui.statusLabel.text = sentence
        self._details = details
        self.ui.detailsButton.visible = bool(details)

    def announce(self, sentence: str, details: str = "") -> None:
        """Show what came of a job, here and in the main window's status bar, where it is seen in other modules."""
        self.tell(sentence, details)
        if slicer.util.mainWindow() is not None:
            slicer.util.showStatusMessage(f"GenSeg: {sentence}", 10000)

    def update(self) -> None:
        """Let button and bar say what can be done now."""
        button, stopping = self.ui.applyButton, self.busy and self.job.state == "stopping"
        button.text = _("Cancel") if self.busy else _("Apply")
        button.enabled = not stopping if self.busy else self._ready
        button.toolTip = _("Stop within one step; the scene stays as it is.") if self.busy else self._reason
        self.ui.progressBar.visible = self.busy

    def onDetails(self) -> None:
        """Show what the service and Python said."""
        slicer.util.messageBox(self.ui.statusLabel.text, detailedText=self._details)
