"""The module ``qt``: every class of QtCore, QtGui and QtWidgets with PythonQt's manners."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtWidgets

from . import facts
from .pythonqt import PythonQtObject, QtClass
from .widgets import UiLoader


class FileDialog:
    """``qt.QFileDialog``, whose static functions give one text in PythonQt. A test puts the user's answer here."""

    answer = ""

    @staticmethod
    def getSaveFileName(parent: Any = None, caption: str = "", folder: str = "", filter: str = "") -> str:
        """The file that the user chooses; empty for none."""
        return FileDialog.answer


def make(settings_file: Path) -> types.ModuleType:
    """Build the module; ``QSettings`` writes to ``settings_file``, never to the user's own."""
    module = types.ModuleType("qt")

    def settings() -> PythonQtObject:
        return PythonQtObject(QtCore.QSettings(str(settings_file), QtCore.QSettings.Format.IniFormat))

    def find(name: str) -> Any:
        cls = facts.qt_class(name)
        if cls is None:
            raise AttributeError(f"qt has no {name}")
        return QtClass(cls) if isinstance(cls, type) and name != "Qt" else cls

    module.__getattr__ = find  # type: ignore[method-assign]
    module.QSettings, module.QUiLoader, module.QFileDialog = settings, QtClass(UiLoader), FileDialog
    module.QColor = facts.qt_class("QColor")  # slicer.util subclasses it
    module.QWidget = QtClass(QtWidgets.QWidget)
    return module
