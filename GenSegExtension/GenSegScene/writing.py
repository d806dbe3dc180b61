"""Results -> nodes, all of them or none."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import slicer

from GenSegLogic.errors import GenSegError
from GenSegLogic.progress import Progress, silent
from GenSegLogic.results import Results

from . import display, runs
from .segmentations import segmentation_to_node
from .tables import SEGMENT_ID, STATUS, fill_table, read_table, table_to_node
from .transaction import SceneTransaction
from .volumes import volume_to_node

_RESIDUAL = "residual"
_CONFIDENCE = "confidence"


def results_to_scene(results: Results, input_node: Any, *, inputs: Mapping[str, Any] | None = None,
                     show: bool = True, closed_surface: bool = False, progress: Progress = silent) -> dict[str, Any]:
    """Write everything that a task returned into new nodes, named after the input and placed under it.

    No existing node is changed: a second run writes its own, and what is shown hides the first one's outlines. On
    failure, or when ``progress`` raises Cancelled, whatever was added is removed and the views are as they were.

    Args:
        results: what the engine returned; volumes and labelmaps on the input's grid.
        input_node: the volume node that the task ran on; nodes take its IJK-to-RAS matrix and its parent transform.
        inputs: further nodes that the task was given, by role (``lungs``), kept as node references.
        show: show the results in the slice views, in place of earlier runs of the task on the same scan; if not, the
            new segmentations are hidden, and nothing that is shown changes.
        closed_surface: also make the surface of each segment, for 3D views; takes longer.
        progress: called between nodes.

    Returns:
        Nodes by key: volumes by their stem (``counterfactual``, ``residual``), ``<stem>_segmentation``
        (``nodules_segmentation``) and ``<stem>_table`` (``nodules_table``).

    Raises:
        GenSegError: the input changed its size or left the scene while the job ran.
    """
    name = input_node.GetName()
    if not slicer.mrmlScene.IsNodePresent(input_node):
        raise GenSegError(f"{name} left the scene while the job ran: load it again and run it again.")
    nodes: dict[str, Any] = {}
    total = max(1, len(results.volumes) + len(results.segmentations) + len(results.tables))

    def step(message: str) -> None:
        progress(len(nodes) / total, message)

    with SceneTransaction() as transaction:
        for stem, volume in results.volumes.items():
            step(f"Writing {stem}")
            synthetic = stem in results.synthetic
            label = f"{name} {stem} {runs.MARK}" if synthetic else f"{name} {stem}"
            node = nodes[stem] = volume_to_node(volume, _unique(label), input_node)
            if synthetic:
                runs.mark_synthetic(node)
            if stem == _RESIDUAL:
                threshold = float(results.provenance.get("parameters", {}).get("threshold") or 0.0)
                display.show_as_residual(node, threshold, float(volume.voxels.max()), f"{stem.capitalize()} (HU)")
            elif stem == _CONFIDENCE:
                display.show_as_confidence(node)
            else:
                display.show_like(node, input_node)
        for stem, segmentation in results.segmentations.items():
            step(f"Writing {stem}")
            node = nodes[f"{stem}_segmentation"] = segmentation_to_node(
                segmentation, _unique(f"{name} {stem}"), input_node)
            display.show_segmentation(node)
            if closed_surface:
                node.CreateClosedSurfaceRepresentation()
        for stem in {**results.columns, **results.tables}:
            step(f"Writing {stem}")
            node = nodes[f"{stem}_table"] = table_to_node(
                results.tables.get(stem, []), results.columns.get(stem, ()), _unique(f"{name} {stem} table"))
            if f"{stem}_segmentation" in nodes:
                _number_findings(node, nodes[f"{stem}_segmentation"])
        run = uuid.uuid4().hex
        runs.link(nodes, {runs.INPUT: input_node, **(inputs or {})}, run, results.provenance)
        for node in nodes.values():
            runs.place_under(node, input_node)
        progress(1.0, "Results are in the scene")
        if show:
            transaction.on_undo(_views_as_they_are())
            display.show_in_views(input_node, nodes.get("counterfactual"), nodes.get(_RESIDUAL))
        for stem in results.segmentations:
            if show:
                display.hide_earlier_runs(nodes[f"{stem}_segmentation"])
            else:
                nodes[f"{stem}_segmentation"].SetDisplayVisibility(False)
    return nodes


def _number_findings(table: Any, segmentation: Any) -> None:
    """Tell each row its segment (rows and segments come in one order) and give it an open status."""
    rows = read_table(table)
    names = [table.GetColumnName(index) for index in range(table.GetNumberOfColumns())]
    ids = list(segmentation.GetSegmentation().GetSegmentIDs())
    for index, row in enumerate(rows):
        row[STATUS] = ""
        row[SEGMENT_ID] = ids[index] if index < len(ids) else ""
    fill_table(table, rows, [*names, STATUS, SEGMENT_ID])


def _unique(name: str) -> str:
    """``name``, or ``name_1`` ... when a node is already called so."""
    return slicer.mrmlScene.GenerateUniqueName(name) if slicer.mrmlScene.GetFirstNodeByName(name) else name


def _views_as_they_are() -> Any:
    """A callback that puts the slice views back to what they show now."""
    saved = []
    for composite in display.composites():
        copy = slicer.vtkMRMLSliceCompositeNode()
        copy.Copy(composite)
        saved.append((composite, copy))

    def restore() -> None:
        for composite, copy in saved:
            composite.Copy(copy)

    return restore
