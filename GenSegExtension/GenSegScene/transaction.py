"""All or nothing: what a job adds to the scene goes again when it fails or is cancelled."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import slicer
import vtk


class SceneTransaction:
    """Context manager that, on any exception, removes every node and subject hierarchy item added inside it.

    Display, storage and colour nodes that came along are removed too, whoever made them. The exception goes on.
    Process no events inside, or what the user adds meanwhile counts as added by the job.

        with SceneTransaction() as transaction:
            node = volume_to_node(...)
            transaction.on_undo(lambda: view.SetBackgroundVolumeID(before))
    """

    def __init__(self, scene: Any = None) -> None:
        self._scene = scene or slicer.mrmlScene
        self._undo: list[Callable[[], None]] = []

    def __enter__(self) -> SceneTransaction:
        self._nodes_before = {node.GetID() for node in _nodes(self._scene)}
        self._items_before = set(_items(self._scene))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        if kind is not None:
            self.undo()

    def on_undo(self, callback: Callable[[], None]) -> None:
        """Also call ``callback`` on failure, last registered first, before nodes are removed."""
        self._undo.append(callback)

    def added(self) -> list[Any]:
        """The nodes that the scene has now and had not before, in the order of adding."""
        return [node for node in _nodes(self._scene) if node.GetID() not in self._nodes_before]

    def undo(self) -> None:
        """Take everything back; a second call finds nothing to do."""
        while self._undo:
            self._undo.pop()()
        for node in reversed(self.added()):
            if self._scene.IsNodePresent(node):
                self._scene.RemoveNode(node)
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(self._scene)
        for item in _items(self._scene):
            if item not in self._items_before:
                hierarchy.RemoveItem(item, False, False)


def _nodes(scene: Any) -> list[Any]:
    return [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]


def _items(scene: Any) -> list[int]:
    """All subject hierarchy items below the scene, children before their parents."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    found = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), found, True)
    return [found.GetId(index) for index in reversed(range(found.GetNumberOfIds()))]
