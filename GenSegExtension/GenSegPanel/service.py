"""The engine's process as the panels of one Slicer share it: started when first needed, restarted when it is gone."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError
from GenSegLogic.service import Client, ServiceProcess

START_SECONDS = 180.0
"""A service that does not answer by then has failed: a cold disk and a virus scanner take their time."""
STOP_SECONDS = 1.0
"""What a service has to end by itself, for the window stands still meanwhile; then it is killed. Where PythonSlicer
hands no standard input on, it does not even hear that it should end."""


class PanelService:
    """One service process; every panel and the Python console use :func:`shared_service`.

        while (client := service.poll("auto")) is None:
            ...                             # a later tick of a timer
    """

    def __init__(self, program: str | Path | None = None) -> None:
        """
        Args:
            program: what to run instead of GenSegLogic's own service; for tests.
        """
        self._program = program
        self._process: ServiceProcess | None = None
        self._device = ""
        self._started = 0.0
        self.jobs: set[Any] = set()
        """Jobs in hand; the service is not stopped under them by a panel that closes."""

    def poll(self, device: str = "auto") -> Client | None:
        """The client once the service answers, None as long as it is starting; takes a few milliseconds.

        A service that has ended is started anew, and one on another device is replaced unless it has jobs in hand.

        Args:
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

        Raises:
            GenSegError: if the process cannot be started, ends while it starts, or does not answer in time.
        """
        if self._process is not None and self._device != device and len(self.jobs) <= 1:
            self.stop()
        if self._process is None or (not self._process.running and self._answered()):
            self._start(device)
        assert self._process is not None
        try:
            client = self._process.poll()
        except GenSegError:
            self._process = None
            raise
        if client is None and time.monotonic() - self._started > START_SECONDS:
            log = self._process.log_path
            self.kill()
            raise GenSegError(_("The GenSeg service did not start within {seconds:.0f} s: run again, and see {log}.")
                              .format(seconds=START_SECONDS, log=log))
        return client

    def stop(self) -> None:
        """End the service; running jobs are cancelled. The next :meth:`poll` starts another."""
        if self._process is not None:
            self._process.stop(STOP_SECONDS)
            self._process = None

    def kill(self) -> None:
        """End the service at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process = None

    @property
    def running(self) -> bool:
        """Whether a process lives."""
        return self._process is not None and self._process.running

    @property
    def pid(self) -> int | None:
        """The process's number; None before it answers."""
        return self._process.pid if self._process is not None else None

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the service's log, for the error details that a user may ask for."""
        path = log_path()
        try:
            return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _answered(self) -> bool:
        """Whether the process was ready once; one that ends before says why when it is polled."""
        return self._process is not None and self._process.pid is not None

    def _start(self, device: str) -> None:
        self._device, self._started = device, time.monotonic()
        options: dict[str, Any] = {} if self._program is None else {"program": self._program}
        self._process = ServiceProcess.start(python=python_executable(), device=device,
                                             environment=slicer.util.startupEnvironment(), log_path=log_path(),
                                             **options)


def log_path() -> Path:
    """Where the service of this Slicer writes its log; one file for each Slicer that runs."""
    return Path(slicer.app.temporaryPath) / f"genseg-service-{os.getpid()}.log"


def python_executable() -> str:
    """The Python that has Slicer's packages: PythonSlicer, or this process's own outside of the application.

    Raises:
        GenSegError: if there is none.
    """
    name = "PythonSlicer.exe" if os.name == "nt" else "PythonSlicer"
    beside = Path(slicer.app.slicerHome) / "bin" / name
    if beside.is_file():
        return str(beside)
    found = shutil.which("PythonSlicer")
    if found:
        return found
    if Path(sys.executable).stem.lower().startswith("python"):
        return sys.executable
    raise GenSegError(_("PythonSlicer is not where it belongs ({path}): repair the Slicer installation.").format(
        path=beside))


_shared: PanelService | None = None


def shared_service() -> PanelService:
    """The service of this Slicer; it ends with Slicer, whatever ends it."""
    global _shared
    if _shared is None:
        _shared = PanelService()
        slicer.app.connect("aboutToQuit()", stop_shared_service)
    return _shared


def stop_shared_service() -> None:
    """End the shared service, if it was ever started."""
    if _shared is not None:
        _shared.stop()
