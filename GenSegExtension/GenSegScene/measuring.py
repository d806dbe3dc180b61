"""Measuring anew what a person has edited, or drawn besides: the table tells of the segments as they now are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import vtk

from GenSegLogic.volume import Volume

from . import runs
from .segmentations import WRITTEN, mask_from_segment, segment_digests
from .tables import SEGMENT_ID, column_names, fill_table, read_table, to_ras
from .volumes import volume_from_node

MEASURED = "GenSeg.Measured"
"""Segment tag: digest of the name and the voxels that the table tells of, where they are no longer those written."""


def measure_edited(node: Any) -> list[str]:
    """Measure the segments of a run that are not as the table tells, and write it into the table.

    What the model said of a finding (probability, confidence) and its status stay as they were; a segment that a person
    drew besides gets a row without them.

    Args:
        node: segmentation node of the run.

    Returns:
        Identifiers of the segments that were measured; none where the scan or the table of the run is gone.
    """
    scan = runs.related(node, runs.INPUT)
    stem = next((stem for stem in _MEASURES if runs.related(node, f"{stem}_table") is not None), None)
    if scan is None or stem is None:
        return []
    table, segmentation = runs.related(node, f"{stem}_table"), node.GetSegmentation()
    digests = segment_digests(node, segmentation.GetSegmentIDs())
    edited = [segment_id for segment_id, digest in digests.items() if digest != _measured(node, segment_id)]
    if not edited:
        return []
    image, columns = volume_from_node(scan), column_names(table)
    rows = {row[SEGMENT_ID]: row for row in read_table(table)}
    for segment_id in edited:
        mask = mask_from_segment(node, segment_id, scan)
        row = rows.get(segment_id) or {columns[0]: mask.name, SEGMENT_ID: segment_id}
        rows[segment_id] = {**row, **to_ras(_MEASURES[stem](image, mask))}
        segmentation.GetSegment(segment_id).SetTag(MEASURED, digests[segment_id])
    fill_table(table, list(rows.values()), columns)
    return edited


def _measured(node: Any, segment_id: str) -> str:
    """The digest of the segment that the table tells of; empty for one that is in no table."""
    segment = node.GetSegmentation().GetSegment(segment_id)
    for name in (MEASURED, WRITTEN):
        text = vtk.reference("")
        if segment.GetTag(name, text):
            return str(text)
    return ""


def _nodule(image: Volume, mask: Volume) -> Mapping[str, Any]:
    from GenSegLogic.nodules.measure import measure_voxels

    return measure_voxels(image, np.argwhere(mask.voxels))


def _organ(image: Volume, mask: Volume) -> Mapping[str, Any]:
    from GenSegLogic.organs.measure import measure_labels

    return measure_labels(image, mask, [1])[0]


_MEASURES: Mapping[str, Callable[[Volume, Volume], Mapping[str, Any]]] = {"nodules": _nodule, "organs": _organ}
"""Stem of the run's nodes -> scan and mask on its grid -> the columns that can be measured, coordinates in LPS."""
