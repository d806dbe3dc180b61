# ruff: noqa: N801 - the names are those of Slicer
"""Small PySide6 stand-ins for the qMRML*, qSlicer* and ctk* classes that the panels' ``.ui`` files name.

They have the desktop's properties, signals and slots as far as GenSeg uses them; :mod:`.pythonqt` refuses to show
anything that the desktop does not have. MRML below them is real.
"""

from __future__ import annotations

import enum
import warnings
from typing import Any

import slicer
import vtk
from PySide6 import QtCore, QtWidgets
from PySide6.QtCore import Property, Signal


def _plain(kind: Any, name: str, default: Any) -> Property:
    """A property that is stored and nothing else."""
    return Property(kind, lambda self: getattr(self, "_" + name, default),
                    lambda self, value: setattr(self, "_" + name, value))


class _SceneWidget(QtWidgets.QWidget):
    """Knows a scene and hears of its nodes."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene: Any = None
        self._observers: list[int] = []

    def setMRMLScene(self, scene: Any) -> None:
        if self._scene is not None:
            for tag in self._observers:
                self._scene.RemoveObserver(tag)
        self._scene, self._observers = scene, []
        if scene is not None:
            events = slicer.vtkMRMLScene
            for event, priority in ((events.NodeAboutToBeRemovedEvent, -10.0), (events.EndCloseEvent, 0.0),
                                    (events.EndImportEvent, 0.0)):  # the priorities of qMRMLSceneModel
                self._observers.append(scene.AddObserver(event, self._heard, priority))
        self._sceneChanged()

    def mrmlScene(self) -> Any:
        return self._scene

    def _sceneChanged(self) -> None:
        """The scene, or what is in it, is another."""

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _heard(self, scene: Any, event: str, node: Any = None) -> None:
        self._nodeRemoved(node)

    def _nodeRemoved(self, node: Any) -> None:
        """A node goes; None: any may have gone."""


class qMRMLWidget(_SceneWidget):
    """The root of every panel."""

    mrmlSceneChanged = Signal(object)

    def setMRMLScene(self, scene: Any) -> None:
        super().setMRMLScene(scene)
        self.mrmlSceneChanged.emit(scene)


class qSlicerScriptedLoadableModuleWidget(qMRMLWidget):
    """What Slicer gives a scripted module's widget as its parent."""

    isEntered = _plain(bool, "isEntered", False)


class qMRMLNodeComboBox(_SceneWidget):
    """Chooses a node of the scene; :meth:`choose` is what a user does with the mouse."""

    currentNodeChanged = Signal(object)
    currentNodeIDChanged = Signal(str)
    nodeActivated = Signal(object)

    nodeTypes = _plain("QStringList", "nodeTypes", [])
    showChildNodeTypes = _plain(bool, "showChildNodeTypes", True)
    noneEnabled = _plain(bool, "noneEnabled", False)
    addEnabled = _plain(bool, "addEnabled", True)
    removeEnabled = _plain(bool, "removeEnabled", True)
    renameEnabled = _plain(bool, "renameEnabled", False)
    noneDisplay = _plain(str, "noneDisplay", "")
    baseName = _plain(str, "baseName", "")

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._attributes: dict[tuple[str, str], str] = {}

    def addAttribute(self, class_name: str, attribute: str, value: str) -> None:
        self._attributes[class_name, attribute] = value

    def _accepts(self, node: Any) -> bool:
        return any(node.GetClassName() == name or (self.showChildNodeTypes and node.IsA(name))
                   for name in self.nodeTypes) and all(
            node.GetAttribute(attribute) == value
            for (class_name, attribute), value in self._attributes.items() if node.IsA(class_name))

    def currentNode(self) -> Any:
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        if isinstance(node, str):
            node = self._scene.GetNodeByID(node)
        if node is not None and (self._scene is None or not self._accepts(node) or not self._scene.IsNodePresent(node)):
            node = None
        if node is not self._node:
            self._node = node
            self.currentNodeChanged.emit(node)
            self.currentNodeIDChanged.emit(node.GetID() if node is not None else "")

    def choose(self, node: Any) -> None:
        self.setCurrentNode(node)
        self.nodeActivated.emit(self._node)

    def _nodes(self) -> list[Any]:
        nodes = [self._scene.GetNthNode(index) for index in range(self._scene.GetNumberOfNodes())]
        return [node for node in nodes if self._accepts(node)]

    def nodeCount(self) -> int:
        return len(self._nodes())

    def addNode(self) -> Any:
        node = self._scene.AddNewNodeByClass(self.nodeTypes[0], self._scene.GenerateUniqueName(self.baseName or "Node"))
        self.setCurrentNode(node)
        return node

    def _sceneChanged(self) -> None:
        self._nodeRemoved(None)

    def _nodeRemoved(self, node: Any) -> None:
        if node is not None and node is self._node and not self._scene.IsClosing():
            # As on the desktop: when a chosen row goes, Qt chooses the one that takes its place, or else the last one.
            row, others = self._nodes().index(node), [other for other in self._nodes() if other is not node]
            self.setCurrentNode(others[min(row, len(others) - 1)] if others else None)
        elif self._node is not None and (self._scene is None or not self._scene.IsNodePresent(self._node)):
            self.setCurrentNode(None)


class qMRMLSegmentationShow3DButton(QtWidgets.QPushButton):
    """Makes the surfaces of a segmentation, or removes them, and follows both when others do it."""

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__("Show 3D", parent)
        self._node: Any = None
        self._observers: list[int] = []
        self.setCheckable(True)
        self.toggled.connect(self._toggled)
        self.updateWidgetFromMRML()

    def segmentationNode(self) -> Any:
        return self._node

    def setSegmentationNode(self, node: Any) -> None:
        for tag in self._observers:
            self._node.RemoveObserver(tag)
        events = slicer.vtkSegmentation
        self._node, self._observers = node, [] if node is None else [
            node.AddObserver(event, self.updateWidgetFromMRML)
            for event in (vtk.vtkCommand.ModifiedEvent, events.SegmentAdded, events.SegmentRemoved,
                          events.ContainedRepresentationNamesModified)]
        self.updateWidgetFromMRML()

    def updateWidgetFromMRML(self, caller: Any = None, event: Any = None) -> None:
        segmentation = self._node.GetSegmentation() if self._node is not None else None
        self.setEnabled(segmentation is not None and segmentation.GetNumberOfSegments() > 0)
        if segmentation is not None:  # without one, what was checked stays so
            blocked = self.blockSignals(True)
            surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
            self.setChecked(segmentation.ContainsRepresentation(surface))
            self.blockSignals(blocked)

    def _toggled(self, on: bool) -> None:
        if self._node is not None:
            self._node.CreateClosedSurfaceRepresentation() if on else self._node.RemoveClosedSurfaceRepresentation()


class qSlicerMarkupsPlaceWidget(_SceneWidget):
    """Places points in the views; :meth:`click` is what a user does with the mouse."""

    buttonsVisible = _plain(bool, "buttonsVisible", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._place, self._delete = QtWidgets.QToolButton(self), QtWidgets.QToolButton(self)

    def placeButton(self) -> QtWidgets.QToolButton:
        return self._place

    def deleteButton(self) -> QtWidgets.QToolButton:
        return self._delete

    def _setPlacing(self, wanted: bool) -> None:
        mode = slicer.app.applicationLogic().GetInteractionNode()
        if self._node is not None:  # as on the desktop, switching it off ends any other mode too
            mode.SetCurrentInteractionMode(mode.Place if wanted else mode.ViewTransform)

    def _placing(self) -> bool:
        mode = slicer.app.applicationLogic().GetInteractionNode()
        return self._node is not None and mode.GetCurrentInteractionMode() == mode.Place

    placeModeEnabled = Property(bool, _placing, _setPlacing)

    def currentNode(self) -> Any:
        return self._node

    def setCurrentNode(self, node: Any) -> None:
        self._node = node

    def _nodeRemoved(self, node: Any) -> None:
        if node is None or node is self._node:
            self._node = None


class ctkCollapsibleButton(QtWidgets.QWidget):
    """A section that opens and closes."""

    contentsCollapsed = Signal(bool)
    text = _plain(str, "text", "")

    def _setCollapsed(self, collapsed: bool) -> None:
        self._collapsed = collapsed
        for child in self.children():
            if isinstance(child, QtWidgets.QWidget):
                child.setVisible(not collapsed)
        self.contentsCollapsed.emit(collapsed)

    collapsed = Property(bool, lambda self: getattr(self, "_collapsed", False), _setCollapsed)


# PySide6 warns that it cannot know the flags of a class that is still being made, and then knows them.
warnings.filterwarnings("ignore", message="libpyside: .* Invalid property type \"ctkSliderWidget::SynchronizeSiblings")


class ctkSliderWidget(QtWidgets.QWidget):
    """A slider with a spin box. Without tracking, ``valueChanged`` comes on release and ``valueIsChanging`` before.

    As on the desktop, sliders in one widget all take the decimals that one of them is given, unless told not to.
    """

    @QtCore.QFlag
    class SynchronizeSiblings(enum.Flag):
        NoSynchronize, SynchronizeWidth, SynchronizeDecimals = 0, 1, 2

    valueChanged = Signal(float)
    valueIsChanging = Signal(float)

    singleStep = _plain(float, "singleStep", 1.0)
    pageStep = _plain(float, "pageStep", 10.0)
    suffix = _plain(str, "suffix", "")
    prefix = _plain(str, "prefix", "")
    tracking = _plain(bool, "tracking", True)

    def __init__(self, parent: QtWidgets.QWidget | None = None) -> None:
        super().__init__(parent)
        self._minimum, self._maximum, self._value = 0.0, 99.0, 0.0
        self._decimals, self._synchronized = 2, ~self.SynchronizeSiblings.NoSynchronize

    def _setDecimals(self, decimals: int) -> None:
        self._decimals, together = decimals, self.SynchronizeSiblings.SynchronizeDecimals
        if self.parent() is not None and together in self._synchronized:
            for sibling in self.parent().findChildren(ctkSliderWidget):
                if together in sibling._synchronized:
                    sibling._decimals = decimals

    def _setSynchronized(self, flags: SynchronizeSiblings) -> None:
        self._synchronized = flags
        self._setDecimals(self._decimals)

    decimals = Property(int, lambda self: self._decimals, _setDecimals)
    synchronizeSiblings = Property("ctkSliderWidget::SynchronizeSiblings", lambda self: self._synchronized,
                                   _setSynchronized)

    def setValue(self, value: float) -> None:
        value = round(min(max(float(value), self._minimum), self._maximum), self.decimals)
        if value != self._value:
            self._value = value
            self.valueChanged.emit(value)

    def _setMinimum(self, value: float) -> None:
        self._minimum = value
        self.setValue(self._value)

    def _setMaximum(self, value: float) -> None:
        self._maximum = value
        self.setValue(self._value)

    value = Property(float, lambda self: self._value, setValue)
    minimum = Property(float, lambda self: self._minimum, _setMinimum)
    maximum = Property(float, lambda self: self._maximum, _setMaximum)

    def drag(self, *values: float) -> None:
        """What a user does with the mouse: move over all values and let go at the last."""
        for value in values:
            if self.tracking:
                self.setValue(value)
            else:
                self.valueIsChanging.emit(value)
        self.setValue(values[-1])


CUSTOM = (qMRMLWidget, qSlicerScriptedLoadableModuleWidget, qMRMLNodeComboBox, qMRMLSegmentationShow3DButton,
          qSlicerMarkupsPlaceWidget, ctkCollapsibleButton, ctkSliderWidget)


class UiLoader(QtCore.QObject):
    """``qt.QUiLoader``: loads a ``.ui`` file with the stand-ins, and makes its connections.

    PySide6 cannot make connections whose signatures name MRML classes, so they are made here.
    """

    def load(self, file: QtCore.QFile) -> QtWidgets.QWidget:
        import xml.etree.ElementTree as ElementTree

        from PySide6.QtUiTools import QUiLoader

        tree = ElementTree.fromstring(bytes(file.readAll()))
        connections = tree.find("connections")
        wanted = [[connection.findtext(part) for part in ("sender", "signal", "receiver", "slot")]
                  for connection in (connections if connections is not None else ())]
        if connections is not None:
            tree.remove(connections)
        loader = QUiLoader()
        for cls in CUSTOM:
            loader.registerCustomWidget(cls)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(tree))
        buffer.open(QtCore.QIODevice.OpenModeFlag.ReadOnly)
        root = loader.load(buffer)
        if root is None:
            raise RuntimeError(loader.errorString())
        for sender, signal, receiver, slot in wanted:
            source = root if root.objectName() == sender else root.findChild(QtCore.QObject, sender)
            target = root.findChild(QtCore.QObject, receiver)
            getattr(source, signal.split("(")[0]).connect(getattr(target, slot.split("(")[0]))
        return root
