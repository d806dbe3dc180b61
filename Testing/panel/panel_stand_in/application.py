"""What the window adds to ``slicer.app`` and ``slicer.modules``: modules that are opened, clipboard, views."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PySide6 import QtCore, QtWidgets

import slicer_stand_in

from .pythonqt import PythonQtObject, wrap
from .widgets import qSlicerScriptedLoadableModuleWidget


class Environment(dict):
    """QProcessEnvironment, as far as ``slicer.util.startupEnvironment`` asks it."""

    def value(self, name: str, default: str = "") -> str:
        """The value of a variable."""
        return self.get(name, default)


class ScriptedModule:
    """A scripted module and its panel, opened and left as Slicer's module selector does."""

    def __init__(self, path: Path) -> None:
        import slicer

        self.name, self.path = path.stem, str(path)
        spec = importlib.util.spec_from_file_location(self.name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module
        spec.loader.exec_module(module)
        self._parent = SimpleNamespace(path=self.path)
        self.module = getattr(module, self.name)(self._parent)
        self.module.resourcePath = lambda name: str(path.parent / "Resources" / name)
        self._widget: Any = None
        self._representation: Any = None
        setattr(slicer.modules, self.name.lower(), self)

    @property
    def title(self) -> str:
        """The name that people read."""
        return self._parent.title

    def widgetRepresentation(self) -> Any:
        """The panel; made on first use. ``.self()`` is the module's widget."""
        if self._representation is None:
            widget = qSlicerScriptedLoadableModuleWidget()
            QtWidgets.QVBoxLayout(widget)
            self._representation = Representation(widget, self)
            self._widget = getattr(sys.modules[self.name], f"{self.name}Widget")(self._representation)
            self._widget.setup()
        return self._representation

    def self(self) -> Any:
        """The module's widget."""
        return self._widget

    def enter(self) -> None:
        """What the module selector does when the module is chosen."""
        self.widgetRepresentation()._object.setProperty("isEntered", True)
        self._widget.enter()

    def exit(self) -> None:
        """What it does when another one is chosen."""
        self._representation._object.setProperty("isEntered", False)
        self._widget.exit()

    def unload(self) -> None:
        """What reloading does first: the panel cleans up and goes."""
        if self._widget is not None:
            if self._representation.isEntered:
                self.exit()
            self._widget.cleanup()
            self._representation._object.deleteLater()
            self._representation = self._widget = None


class Representation(PythonQtObject):
    """The widget that Slicer gives to a scripted module."""

    __slots__ = ("_module",)

    def __init__(self, widget: Any, module: ScriptedModule) -> None:
        super().__init__(widget)
        object.__setattr__(self, "_module", module)

    def self(self) -> Any:
        """The module's widget, a Python object."""
        return self._module.self()


class SegmentEditor:
    """The Segment Editor as far as other modules hand work over to it."""

    def __init__(self) -> None:
        self.editor = self
        self.segmentation = self.volume = self.segment = None

    def widgetRepresentation(self) -> SegmentEditor:
        """Its panel."""
        return self

    def self(self) -> SegmentEditor:
        """Its widget."""
        return self

    def setSegmentationNode(self, node: Any) -> None:
        """qMRMLSegmentEditorWidget's slot of that name."""
        self.segmentation = node

    def setSourceVolumeNode(self, node: Any) -> None:
        """qMRMLSegmentEditorWidget's slot of that name."""
        self.volume = node

    def setCurrentSegmentID(self, segment: str) -> None:
        """qMRMLSegmentEditorWidget's slot of that name."""
        self.segment = segment

    def enter(self) -> None:
        """Nothing to show."""

    def exit(self) -> None:
        """Nothing to hide."""


def extend(slicer: Any) -> None:
    """Add what a window adds to ``slicer.app``, ``slicer.modules`` and ``slicer.util``."""
    app = slicer.app
    current: list[Any] = []

    def select(module: Any) -> None:
        chosen = getattr(slicer.modules, (module if isinstance(module, str) else module.name).lower())
        if current:
            current.pop().exit()
        chosen.enter()
        current.append(chosen)

    def set_scene(slicer_module: Any) -> None:
        type(app).set_scene(app, slicer_module)
        slicer_module.modules.segmenteditor = SegmentEditor()
        layout = slicer_module.util.getNodesByClass("vtkMRMLLayoutNode")[0]
        layout.AddObserver("ModifiedEvent", lambda caller, event: slicer_stand_in.update_views())

    def save_scene(path: str, properties: Any = None) -> bool:
        slicer_stand_in.application.save_scene(Path(path))
        return True

    def load_scene(path: str, properties: Any = None) -> bool:
        slicer_stand_in.application.load_scene(Path(path))
        return True

    slicer.util.selectModule = select
    slicer.util.saveScene, slicer.util.loadScene = save_scene, load_scene  # the desktop's need its IO manager
    app.set_scene = set_scene
    app.set_scene(slicer)
    app.startupEnvironment = lambda: Environment(os.environ)
    app.topLevelWidgets = lambda: []
    app.clipboard = lambda: wrap(QtWidgets.QApplication.clipboard())
    app.processEvents = QtCore.QEventLoop().processEvents  # not QApplication's: see panel_stand_in._loop
