
"""``slicer.app``, ``slicer.mrmlScene`` and ``slicer.modules.*.logic()`` on real MRML, without a window."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import vtk


class Application:
    """The part of ``qSlicerApplication`` that code without a main window may use."""

    applicationName = "Slicer"
    applicationVersion = "5.12.4"
    majorVersion, minorVersion = 5, 12
    revision = "0"
    os = "linux"

    def __init__(self) -> None:
        self.temporaryPath = tempfile.mkdtemp(prefix="slicer-stand-in-")
        self.slicerHome = self.temporaryPath
        self._paused = 0
        self._callbacks: dict[str, list[Callable]] = {}
        self._logic: Any = None

    def set_scene(self, slicer: Any) -> None:
        """Create an empty scene with all logics and publish them as ``slicer.mrmlScene`` and ``slicer.modules``."""
        scene = slicer.vtkMRMLScene()
        slicer.mrmlScene = self.mrmlScene = scene
        scene.SetRootDirectory(self.temporaryPath)
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        scene.AddNode(crosshair)

        self._logic = slicer.vtkSlicerApplicationLogic()
        self._logic.SetHomeDirectory(self.slicerHome)
        self._logic.SetTemporaryPath(self.temporaryPath)
        self._logic.SetSliceLogics(vtk.vtkCollection())
        self._logic.SetViewLogics(vtk.vtkCollection())
        with _silent_vtk():  # the colour and terminology files of the application are not in the wheel
            self._logic.SetMRMLScene(scene)
            self._connect_data_io(slicer, scene)
            for name, logic in {
                "volumes": slicer.vtkSlicerVolumesLogic(),
                "segmentations": slicer.vtkSlicerSegmentationsModuleLogic(),
                "terminologies": slicer.vtkSlicerTerminologiesModuleLogic(),
                "subjecthierarchy": slicer.vtkSlicerSubjectHierarchyModuleLogic(),
                "colors": slicer.vtkSlicerColorLogic(),
                "markups": slicer.vtkSlicerMarkupsLogic(),
                "tables": slicer.vtkSlicerTablesLogic(),
                "transforms": slicer.vtkSlicerTransformLogic(),
            }.items():
                logic.SetMRMLApplicationLogic(self._logic)
                logic.SetMRMLScene(scene)
                self._logic.SetModuleLogic(name.capitalize(), logic)
                setattr(slicer.modules, name, SimpleNamespace(logic=lambda logic=logic: logic, name=name, path=""))
            self._logic.SetColorLogic(slicer.modules.colors.logic())
            if not scene.GetNodeByID("vtkMRMLColorTableNodeGrey"):
                slicer.modules.colors.logic().AddDefaultColorNodes()
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(scene)
        scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, _add_to_subject_hierarchy)
        self._layout_logic = slicer.vtkMRMLLayoutLogic()
        self._layout_logic.SetMRMLScene(scene)
        self.update_views()

    def _connect_data_io(self, slicer: Any, scene: Any) -> None:
        """Give the scene the cache folder without which it refuses to read a ``.mrb``."""
        remote_io, data_io = slicer.vtkMRMLRemoteIOLogic(), slicer.vtkDataIOManagerLogic()
        remote_io.SetMRMLApplicationLogic(self._logic)
        data_io.SetMRMLApplicationLogic(self._logic)
        self._logic.SetMRMLSceneDataIO(scene, remote_io, data_io)
        scene.GetCacheManager().SetRemoteCacheDirectory(self.temporaryPath)
        self._data_io = (remote_io, data_io)

    def update_views(self) -> None:
        """Give every slice node its composite node, which on the desktop comes with the slice widget."""
        import slicer

        have = {node.GetLayoutName() for node in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")}
        for slice_node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            if slice_node.GetLayoutName() not in have:
                node = slicer.vtkMRMLSliceCompositeNode()
                node.SetLayoutName(slice_node.GetLayoutName())
                self.mrmlScene.AddNode(node)

    # What scripts call

    def applicationLogic(self) -> Any:
        """The real ``vtkSlicerApplicationLogic``."""
        return self._logic

    mrmlApplicationLogic = applicationLogic

    def layoutLogic(self) -> Any:
        """The real ``vtkMRMLLayoutLogic``, which makes the view nodes of a layout (not on the desktop's app)."""
        return self._layout_logic

    def layoutManager(self) -> Any:
        """None, as in a Slicer without a main window."""
        return None

    def testingEnabled(self) -> bool:
        """Whether Slicer runs with ``--testing``; true here, so that no dialog opens."""
        return True

    def commandOptions(self) -> Any:
        """The command line options that modules ask about."""
        return SimpleNamespace(noMainWindow=True, testingEnabled=True)

    def processEvents(self) -> None:
        """Nothing waits here: there is no event loop."""

    def pauseRender(self) -> None:
        """Count a pause of rendering."""
        self._paused += 1

    def resumeRender(self) -> None:
        """End one pause of rendering."""
        self._paused -= 1

    def startupEnvironment(self) -> dict[str, str]:
        """The environment that Slicer was started in."""
        return dict(os.environ)

    def connect(self, signal: str, callback: Callable) -> None:
        """Keep ``callback``; :meth:`emit` calls it."""
        self._callbacks.setdefault(signal, []).append(callback)

    def emit(self, signal: str) -> None:
        """Call what was connected to ``signal`` (``startupCompleted()``)."""
        for callback in self._callbacks.get(signal, []):
            callback()

    def setOverrideCursor(self, cursor: Any) -> None:
        """No cursor without a window."""

    def restoreOverrideCursor(self) -> None:
        """No cursor without a window."""


def save_scene(path: Path) -> None:
    """Save the scene as ``.mrb`` through the real bundle writer; raises OSError if MRML refuses."""
    import slicer

    if path.suffix != ".mrb":
        raise ValueError(f"{path} does not end in .mrb")
    if not slicer.mrmlScene.WriteToMRB(str(path), None):
        raise OSError(f"the scene could not be written to {path}")


def load_scene(path: Path) -> None:
    """Replace the scene's content by a ``.mrb``; raises OSError if MRML refuses."""
    import slicer

    slicer.mrmlScene.Clear(False)
    if not slicer.mrmlScene.ReadFromMRB(str(path), False, None):
        raise OSError(f"the scene could not be read from {path}")


@vtk.calldata_type(vtk.VTK_OBJECT)
def _add_to_subject_hierarchy(scene: Any, event: str, node: Any) -> None:
    """Give data nodes their place in the hierarchy at once, as the application's plugin logic does."""
    import slicer

    shown = ("vtkMRMLDisplayableNode", "vtkMRMLTableNode", "vtkMRMLTextNode")
    if any(node.IsA(name) for name in shown) and not node.GetHideFromEditors() and not scene.IsImporting():
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if hierarchy.GetItemByDataNode(node) == hierarchy.GetInvalidItemID():
            hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)


@contextlib.contextmanager
def _silent_vtk() -> Iterator[None]:
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.GlobalWarningDisplayOn()
