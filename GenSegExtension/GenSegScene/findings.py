"""Working through findings: status, jumping, the live threshold, copying and exporting the table. No Qt.

Every function takes the segmentation node of a run; the table, the residual and the scan are found from it
(:mod:`GenSegScene.runs`), in a reopened scene too.

The threshold has two steps. While a slider is dragged, :func:`GenSegScene.display.set_threshold` moves the display.
On release, :func:`write_threshold` replaces the open findings. What a person has touched stays: a segment that was
edited, renamed, accepted or rejected is no longer the job's to replace, and no new finding is laid over it.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from GenSegLogic.errors import GenSegError
from GenSegLogic.results import Segmentation
from GenSegLogic.volume import Volume

from . import display, runs
from .segmentations import add_segments, box_of_labels, merged_mask, segment_digests, written_digests
from .tables import SEGMENT_ID, STATUS, column_names, fill_table, read_table, to_ras
from .volumes import volume_from_node

OPEN, ACCEPTED, REJECTED = "", "accepted", "rejected"

Segmenter = Callable[[Mapping[str, Any], Volume, Volume, float], tuple[Segmentation, Sequence[Mapping[str, Any]]]]
"""``segmenter(record, image, residual, threshold_hu)`` -> the segmentation at that threshold and its table rows;
``record`` is the run's provenance."""


@dataclass(frozen=True)
class Finding:
    """One segment of a run.

    Attributes:
        segment_id: its identifier in the segmentation node.
        name: what people read.
        status: "", ``accepted`` or ``rejected``.
        row: its row of the table, empty when there is none.
    """

    segment_id: str
    name: str
    status: str
    row: Mapping[str, Any]


def findings(node: Any, table: Any = None) -> list[Finding]:
    """All segments of a run with their rows, in the order of the segments.

    Fast enough for every key that a reviewer presses: no voxel is looked at, as :func:`center_of` does.
    """
    table = table or _table(node)
    rows = {row.get(SEGMENT_ID): row for row in read_table(table)} if table is not None else {}
    return [Finding(segment_id, node.GetSegmentation().GetSegment(segment_id).GetName(), status_of(node, segment_id),
                    rows.get(segment_id, {}))
            for segment_id in node.GetSegmentation().GetSegmentIDs()]


def center_of(node: Any, segment_id: str) -> tuple[float, float, float] | None:
    """A point inside or near the middle of a segment, world RAS, mm, where it now lies; None when it has no voxels.

    Takes as long as the segments' labelmap is large.
    """
    image = node.GetSegmentation().GetSegment(segment_id).GetRepresentation("Binary labelmap")
    if image is None or image.IsEmpty():
        return None
    point = node.GetSegmentCenterRAS(segment_id)
    return tuple(float(value) for value in point) if point is not None else None


def jump_to_finding(node: Any, segment_id: str) -> bool:
    """Move all slice views to a finding; False when it has no voxels."""
    center = center_of(node, segment_id)
    if center is not None:
        display.jump_to(center)
    return center is not None


def status_of(node: Any, segment_id: str) -> str:
    """The reviewer's word on a finding: OPEN, ACCEPTED or REJECTED, kept as Slicer's own segment status."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    status = logic.GetSegmentStatus(_segment(node, segment_id))
    return {logic.Completed: ACCEPTED, logic.Flagged: REJECTED}.get(status, OPEN)


def set_status(node: Any, segment_id: str, status: str) -> None:
    """Accept, reject or reopen a finding. A rejected one is hidden, not deleted."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    values = {OPEN: logic.NotStarted, ACCEPTED: logic.Completed, REJECTED: logic.Flagged}
    if status not in values:
        raise GenSegError(f"{status!r} is no status: use 'accepted', 'rejected' or ''.")
    logic.SetSegmentStatus(_segment(node, segment_id), values[status])
    node.GetDisplayNode().SetSegmentVisibility(segment_id, status != REJECTED)
    table = _table(node)
    if table is not None:  # the one cell, so that a view of the table keeps its selection
        for index, row in enumerate(read_table(table)):
            if row.get(SEGMENT_ID) == segment_id:
                table.SetCellText(index, table.GetColumnIndex(STATUS), status)


def owned_segments(node: Any) -> list[str]:
    """Segments that are as GenSeg wrote them and not reviewed: the only ones that it may replace."""
    written = {segment_id: digest for segment_id, digest in written_digests(node).items()
               if status_of(node, segment_id) == OPEN}
    found = segment_digests(node, written)
    return [segment_id for segment_id, digest in written.items() if found[segment_id] == digest]


def write_threshold(node: Any, threshold_hu: float, segmenter: Segmenter | None = None) -> list[str]:
    """Segment the stored residual at another threshold, without running the model, and replace the open findings.

    Args:
        node: segmentation node of the run.
        threshold_hu: smallest residual that counts, in HU.
        segmenter: what turns the residual into segments; GenSegLogic's own by default.

    Returns:
        Identifiers of the new segments.

    Raises:
        GenSegError: the residual or the scan of the run is no longer in the scene.
    """
    residual_node, input_node = runs.related(node, "residual"), runs.related(node, runs.INPUT)
    if residual_node is None or input_node is None:
        raise GenSegError(f"The {'residual' if residual_node is None else 'scan'} of {node.GetName()} is no longer "
                          "in the scene: run it again to move the threshold.")
    segmentation, rows = (segmenter or _segment_residual)(
        runs.provenance_of(node), volume_from_node(input_node), volume_from_node(residual_node), float(threshold_hu))
    ids = replace_open_findings(node, segmentation, rows)
    display.set_threshold(residual_node, threshold_hu)
    node.SetAttribute("GenSeg.Threshold", f"{float(threshold_hu):g}")
    return ids


def replace_open_findings(node: Any, segmentation: Segmentation, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put new findings in place of the open ones; a new one that touches a kept segment is left out.

    Args:
        node: segmentation node of the run.
        segmentation: the new findings, on the grid of the run's scan.
        rows: table rows in the order of ``segmentation.segments``, coordinates in LPS.

    Returns:
        Identifiers of the new segments.
    """
    target, input_node, table = node.GetSegmentation(), runs.related(node, runs.INPUT), _table(node)
    replaced = owned_segments(node)
    kept = [segment_id for segment_id in target.GetSegmentIDs() if segment_id not in replaced]
    covered = _labels_touching(node, kept, segmentation, input_node)
    pairs = [(segment, rows[index] if index < len(rows) else {})
             for index, segment in enumerate(segmentation.segments) if segment.label not in covered]
    taken = {target.GetSegment(segment_id).GetName() for segment_id in kept}
    segments = []
    for segment, _ in pairs:
        segments.append(replace(segment, name=_free_name(segment.name, taken)))
        taken.add(segments[-1].name)

    before = set(target.GetSegmentIDs())
    try:
        ids = add_segments(node, Segmentation(segmentation.labelmap, tuple(segments)), input_node)
    except BaseException:  # whatever it was, the node stays as it was
        for segment_id in set(target.GetSegmentIDs()) - before:
            target.RemoveSegment(segment_id)
        raise
    for segment_id in replaced:
        target.RemoveSegment(segment_id)
    if table is not None:
        stay = [row for row in read_table(table) if row.get(SEGMENT_ID) in kept]
        new = [{**to_ras(row), STATUS: OPEN, SEGMENT_ID: segment_id}
               for (_, row), segment_id in zip(pairs, ids, strict=True)]
        fill_table(table, stay + new, column_names(table))
    return ids


def table_as_text(table: Any, node: Any) -> str:
    """The table of ``node``'s run for the clipboard: tab-separated, one header line, coordinates in RAS.

    Segment ids are left out, and so are the rows of segments that were deleted.
    """
    return _written(table, node, delimiter="\t")


def export_table(table: Any, node: Any, path: str | Path) -> Path:
    """Write the table of ``node``'s run as CSV, whole or not at all; coordinates in RAS, as the column names say.

    Rows as for :func:`table_as_text`.

    Raises:
        GenSegError: the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(_written(table, node, delimiter=","), encoding="utf-8", newline="")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise GenSegError(f"{path} could not be written ({error.strerror}): choose another place.") from error
    return path


def _written(table: Any, node: Any, delimiter: str) -> str:
    names = [name for name in column_names(table) if name != SEGMENT_ID]
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, names, delimiter=delimiter, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    there = node.GetSegmentation().GetSegmentIDs()
    writer.writerows(row for row in read_table(table) if row.get(SEGMENT_ID) in there)
    return text.getvalue()


def _labels_touching(node: Any, kept: Sequence[str], segmentation: Segmentation, input_node: Any) -> set[int]:
    """Labels of the new findings that share a voxel with a kept segment."""
    box = box_of_labels(segmentation.labelmap)
    if not kept or box is None:
        return set()
    return set(np.unique(segmentation.labelmap.voxels[box][merged_mask(node, kept, input_node, box)]).tolist()) - {0}


def _free_name(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    return candidate


def _segment(node: Any, segment_id: str) -> Any:
    segment = node.GetSegmentation().GetSegment(segment_id)
    if segment is None:
        raise GenSegError(f"{node.GetName()} has no segment {segment_id}: it may have been deleted.")
    return segment


def _table(node: Any) -> Any:
    return runs.related(node, "nodules_table")


def _segment_residual(record: Mapping[str, Any], image: Volume, residual: Volume,
                      threshold_hu: float) -> tuple[Segmentation, Sequence[Mapping[str, Any]]]:
    """GenSegLogic's own segmentation of a residual; imported late, because it needs more than numpy.

    It is given no lungs: the residual is zero outside of those that the run had, whatever became of their mask since.
    """
    from GenSegLogic.nodules.measure import measure
    from GenSegLogic.nodules.segments import Finding as Place
    from GenSegLogic.nodules.segments import nodules_from_residual

    if "findings" not in record:
        raise GenSegError(f"The results of {image.name} do not say where their findings lie: run it again to move the "
                          "threshold.")
    # Places were recorded where the scan then lay; a transform may have moved it since.
    moved = image.affine @ np.linalg.inv(record["inputs"]["image"]["affine_ijk_to_lps_mm"])
    places = [Place(tuple(float(value) for value in (moved @ [*item["center"], 1.0])[:3]),
                    float(item["radius_mm"]), float(item["probability"])) for item in record["findings"]]
    segmentation = nodules_from_residual(residual, None, places, threshold_hu)
    return segmentation, measure(image, segmentation, places)
