"""Adds Qt to :mod:`slicer_stand_in`: ``qt``, ``ctk``, the widgets of panels, and modules that can be opened.

    import panel_stand_in
    slicer = panel_stand_in.install()       # needs Testing and Testing/panel on sys.path
    slicer.util.selectModule("GenSegNodules")
    widget = slicer.modules.gensegnodules.widgetRepresentation().self()
    panel_stand_in.process_events(0.5)

Qt runs with its offscreen platform; nothing is mocked below the widgets: MRML is real, and so are the service's
process and the requests to it.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import slicer_stand_in

__all__ = ["add_module", "install", "process_events"]

_application: Any = None
_loop: Any = None
"""Its processEvents is used, because that of QApplication loses a reference to None at every call (PySide6 6.12)."""


def install() -> Any:
    """Complete ``slicer`` and add ``qt`` and ``ctk``; a second call changes nothing."""
    global _application, _loop
    slicer = slicer_stand_in.install()
    if "qt" in sys.modules:
        return slicer
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    from PySide6 import QtCore, QtWidgets

    _application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["slicer"])
    _loop = QtCore.QEventLoop()
    from . import application, connectors, qt_module, widgets

    sys.modules["qt"] = qt_module.make(Path(tempfile.mkdtemp(prefix="panel-stand-in-")) / "settings.ini")
    sys.modules["ctk"] = types.ModuleType("ctk")
    connectors.register()
    application.extend(slicer)
    for cls in widgets.CUSTOM:
        setattr(slicer if cls.__name__.startswith("q") else sys.modules["ctk"], cls.__name__,
                qt_module.QtClass(cls))
    return slicer


def add_module(path: Path) -> Any:
    """Load a scripted module as Slicer does at start-up; it can then be opened with ``slicer.util.selectModule``."""
    from .application import ScriptedModule

    return ScriptedModule(path)


def process_events(seconds: float = 0.0, until: Callable[[], bool] | None = None) -> bool:
    """Let the event loop run for some seconds, or until ``until()`` is true; returns whether it became true."""
    end = time.monotonic() + seconds
    while True:
        _loop.processEvents()
        if until is not None and until():
            return True
        if time.monotonic() >= end:
            return until is None
        time.sleep(0.002)
