
"""``slicer.i18n``, ``slicer.ScriptedLoadableModule`` and ``slicer.testing``: base classes without Qt."""

from __future__ import annotations

import unittest
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def translate(context: str, text: str, disambiguation: str | None = None, n: int = -1) -> str:
    """The text itself: no translation is installed."""
    return text


def tr(text: str, disambiguation: str | None = None, n: int = -1) -> str:
    """The text itself: no translation is installed."""
    return text


def getContext(source: str) -> str:
    """The translation context of a source file: the name of its module."""
    return Path(source).stem


class ScriptedLoadableModule:
    """Describes a module; ``parent`` receives title, categories and so on."""

    def __init__(self, parent: Any) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories, parent.dependencies, parent.contributors = [], [], []
        parent.helpText = parent.acknowledgementText = ""

    def getDefaultModuleDocumentationLink(self, docPage: str | None = None) -> str:
        """No documentation site here."""
        return ""


class ScriptedLoadableModuleWidget:
    """Base of a module's widget; the panel tests give ``parent`` and ``layout``."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent if parent is not None else SimpleNamespace()
        self.layout = getattr(parent, "layout", None)
        if callable(self.layout):
            self.layout = self.layout()
        self.moduleName = type(self).__name__.removesuffix("Widget")
        self.developerMode = False

    def resourcePath(self, filename: str) -> str:
        """Path of a file in the module's ``Resources``."""
        import sys

        return str(Path(sys.modules[type(self).__module__].__file__).parent / "Resources" / filename)

    def setup(self) -> None:
        """Build the developer section: none here."""

    def cleanup(self) -> None:
        """Called before the widget goes."""


class ScriptedLoadableModuleLogic:
    """Base of a module's logic: gives access to its parameter node, one singleton per module."""

    def __init__(self, parent: Any = None) -> None:
        self.parent = parent
        self.moduleName = type(self).__name__.removesuffix("Logic")
        self.isSingletonParameterNode = True

    def getParameterNode(self) -> Any:
        """The module's parameter node, created when it is missing."""
        import slicer

        node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.AddNode(self.createParameterNode())
        return node

    def createParameterNode(self) -> Any:
        """A new parameter node, not yet in the scene."""
        import slicer

        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        node.SetSingletonTag(self.moduleName)
        node.SetModuleName(self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """Base of a module's tests."""

    def delayDisplay(self, message: str, msec: int = 100) -> None:
        """Show a message for a while: not without a window."""

    def runTest(self) -> None:
        """Run every ``test_*`` method, each after ``setUp``."""
        for name in unittest.defaultTestLoader.getTestCaseNames(type(self)):
            self.setUp()
            getattr(self, name)()
            self.tearDown()


def runUnitTest(paths: str | Iterable[str], testname: str) -> bool:
    """Run the module ``testname`` from the folders ``paths``; whether every test passed."""
    import sys

    for path in [paths] if isinstance(paths, str) else paths:
        if path not in sys.path:
            sys.path.insert(0, path)
    suite = unittest.defaultTestLoader.loadTestsFromName(testname)
    return unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful()


PUBLIC = {
    "ScriptedLoadableModule": ScriptedLoadableModule,
    "ScriptedLoadableModuleWidget": ScriptedLoadableModuleWidget,
    "ScriptedLoadableModuleLogic": ScriptedLoadableModuleLogic,
    "ScriptedLoadableModuleTest": ScriptedLoadableModuleTest,
}
