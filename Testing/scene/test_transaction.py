"""Whatever is added inside a failed transaction goes again, whoever made it."""

from __future__ import annotations

import numpy as np
import pytest
import slicer
import vtk

from GenSegScene.transaction import SceneTransaction


def state():
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    items = vtk.vtkIdList()
    hierarchy.GetItemChildren(hierarchy.GetSceneItemID(), items, True)
    nodes = [slicer.mrmlScene.GetNthNode(index).GetID() for index in range(slicer.mrmlScene.GetNumberOfNodes())]
    return nodes, [items.GetId(index) for index in range(items.GetNumberOfIds())]


def add_a_bit_of_everything():
    volume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6)), name="Added")
    volume.AddDefaultStorageNode()
    colors = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "Colours")
    volume.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Segments")
    segmentation.CreateDefaultDisplayNodes()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    folder = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "Folder")
    hierarchy.CreateItem(folder, volume)
    hierarchy.CreateItem(hierarchy.GetItemByDataNode(volume), segmentation)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_takes_everything_back_and_goes_on(error):
    kept = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6)), name="Kept")
    before, undone = state(), []
    with pytest.raises(error), SceneTransaction() as transaction:
        transaction.on_undo(lambda: undone.append("first"))
        transaction.on_undo(lambda: undone.append("second"))
        add_a_bit_of_everything()
        assert len(transaction.added()) >= 6
        raise error
    assert state() == before
    assert undone == ["second", "first"]
    assert slicer.mrmlScene.IsNodePresent(kept) and kept.GetDisplayNode() is not None


def test_success_keeps_everything():
    with SceneTransaction() as transaction:
        add_a_bit_of_everything()
        added = transaction.added()
    assert all(slicer.mrmlScene.IsNodePresent(node) for node in added)


def test_nodes_that_the_job_removed_itself_are_no_trouble():
    before = state()
    with pytest.raises(ValueError), SceneTransaction():
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Temporary")
        slicer.mrmlScene.RemoveNode(node)
        raise ValueError
    assert state() == before
