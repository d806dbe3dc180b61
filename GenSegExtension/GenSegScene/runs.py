"""What ties the nodes of one run together, to their input and to the record of how they were made.

Every node of a run refers to every other one (node references ``GenSeg.<key>``), so that from any of them the rest is
found again after the scene was saved, reopened or merged into another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import slicer

from GenSegLogic.provenance import plain

RUN = "GenSeg.Run"
TASK = "GenSeg.Task"
PROVENANCE = "GenSeg.Provenance"
SYNTHETIC = "GenSeg.Synthetic"
MARK = "SYNTHETIC"
INPUT = "input"


def link(nodes: Mapping[str, Any], inputs: Mapping[str, Any], run: str, provenance: Mapping[str, Any]) -> None:
    """Make the nodes of a run findable from each other and write its record on each.

    Args:
        nodes: key -> node, as :func:`GenSegScene.writing.results_to_scene` returns them.
        inputs: role (``input``, ``lungs``) -> node that the task was given; None values are left out.
        run: identifier of the run.
        provenance: ``Results.provenance``.
    """
    text = json.dumps(plain(provenance), ensure_ascii=False)
    for node in nodes.values():
        node.SetAttribute(RUN, run)
        node.SetAttribute(TASK, str(provenance.get("task", "")))
        node.SetAttribute(PROVENANCE, text)
        for key, other in {**nodes, **inputs}.items():
            if other is not None:
                node.SetNodeReferenceID(f"GenSeg.{key}", other.GetID())


def related(node: Any, key: str) -> Any:
    """The node ``key`` of the run that ``node`` belongs to (``residual``, ``input``); None when it is gone."""
    return node.GetNodeReference(f"GenSeg.{key}") if node is not None else None


def provenance_of(node: Any) -> dict[str, Any]:
    """The record of how a node was made; empty when it was not made by GenSeg."""
    return json.loads(node.GetAttribute(PROVENANCE) or "{}")


def mark_synthetic(node: Any) -> None:
    """Mark a volume as made by a model, wherever Slicer carries a mark: attribute, description, DICOM description."""
    node.SetAttribute(SYNTHETIC, "1")
    node.SetDescription(f"{MARK}: made by a generative model, not acquired. Not for clinical use.")
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(node)
    if item != hierarchy.GetInvalidItemID():
        hierarchy.SetItemAttribute(item, "DICOM.SeriesDescription", MARK)


def is_synthetic(node: Any) -> bool:
    """Whether a node was marked by :func:`mark_synthetic`."""
    return node is not None and node.GetAttribute(SYNTHETIC) == "1"


def place_under(node: Any, parent_node: Any) -> None:
    """Put ``node`` under its input in the subject hierarchy.

    A synthetic volume of a scan that lies in a patient's study goes into a folder beside the patients instead:
    DICOM export takes patient and study from the hierarchy, and would make it look acquired.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    parent = _item(hierarchy, parent_node) if parent_node is not None else hierarchy.GetSceneItemID()
    constants = slicer.vtkMRMLSubjectHierarchyConstants
    study = hierarchy.GetItemAncestorAtLevel(parent, constants.GetDICOMLevelStudy()) if parent_node is not None else 0
    if is_synthetic(node) and study:
        folder = f"{parent_node.GetName()} {MARK}"
        parent = hierarchy.GetItemChildWithName(hierarchy.GetSceneItemID(), folder)
        if not parent:
            parent = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), folder)
    hierarchy.SetItemParent(_item(hierarchy, node), parent)
    if is_synthetic(node):
        mark_synthetic(node)


def _item(hierarchy: Any, node: Any) -> int:
    """The item of a node; the application makes it by itself, a process without it does not."""
    item = hierarchy.GetItemByDataNode(node)
    return item if item != hierarchy.GetInvalidItemID() else hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
