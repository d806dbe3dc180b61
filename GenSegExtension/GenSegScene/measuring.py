"""Measuring anew what a person has edited, or drawn besides: the table tells of the segments as they now are."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import Volume, crop

from . import runs
from .findings import status_of
from .segmentations import box_of_labels, mask_from_segment, segment_digests, written_digests
from .tables import SEGMENT_ID, STATUS, column_names, fill_table, read_table, to_ras
from .volumes import volume_from_node

MEASURED = "GenSeg.Measured"
"""Attribute of the table: segment -> digest of the name and the voxels that its row was measured on, and whether a
person drew it; of a segment that is not in it, the row tells what was written. On the table and not on the segments,
for the Segment Editor's undo brings a segment's tags back with its voxels."""


def measure_edited(node: Any) -> list[str]:
    """Measure the segments of a run that are not as the table tells, and write it into the table.

    What the model said of a finding (number, probability, confidence) stays as it was; a segment that a person drew
    besides gets a row without probability and confidence.

    Args:
        node: segmentation node of the run.

    Returns:
        Identifiers of the segments that were measured; none where the run has no table.

    Raises:
        GenSegError: the scan of the run is gone, or a segment cannot be brought to its grid.
    """
    stem = next((stem for stem in _MEASURES if runs.related(node, f"{stem}_table") is not None), None)
    if stem is None:
        return []
    table, segmentation = runs.related(node, f"{stem}_table"), node.GetSegmentation()
    measured = json.loads(table.GetAttribute(MEASURED) or "{}")
    rows = {row[SEGMENT_ID]: row for row in read_table(table)}
    digests, written = segment_digests(node, segmentation.GetSegmentIDs()), written_digests(node)
    # An identifier may have been that of a segment which was deleted: of one that a person drew, nothing of it stays.
    drawn = {segment_id for segment_id in digests if segment_id not in written or segment_id not in rows}
    known = {segment_id for segment_id in drawn if measured.get(segment_id, ["", False])[1]}
    edited = [segment_id for segment_id, digest in digests.items() if segment_id in drawn - known
              or digest != measured.get(segment_id, [written.get(segment_id)])[0]]
    if not edited:
        return []
    scan = runs.related(node, runs.INPUT)
    if scan is None:
        raise GenSegError(f"The scan of {node.GetName()} is no longer in the scene, so that what was edited cannot be "
                          "measured anew.")
    image, columns, done = volume_from_node(scan), column_names(table), []
    for segment_id in edited:
        mask, is_drawn = mask_from_segment(node, segment_id, scan), segment_id in drawn
        if segment_id in drawn - known:
            if not mask.voxels.any():
                continue  # added, and nothing painted yet
            rows[segment_id] = {columns[0]: _name(stem, mask, rows.values()), SEGMENT_ID: segment_id}
        if is_drawn:
            rows[segment_id][STATUS] = status_of(node, segment_id)
        rows[segment_id] = {**rows[segment_id], **to_ras(_MEASURES[stem](image, mask))}
        measured[segment_id] = [digests[segment_id], is_drawn]
        done.append(segment_id)
    fill_table(table, list(rows.values()), columns)
    table.SetAttribute(MEASURED, json.dumps(measured))
    return done


def _name(stem: str, mask: Volume, rows: Iterable[Mapping[str, Any]]) -> int | str:
    """What a table calls a segment that a person drew: nodules have numbers, organs names."""
    if stem == "organs":
        return mask.name
    return 1 + max((row["nodule"] for row in rows if isinstance(row.get("nodule"), int)), default=0)


def _nodule(image: Volume, mask: Volume) -> Mapping[str, Any]:
    from GenSegLogic.nodules.measure import measure_voxels

    return measure_voxels(image, np.argwhere(mask.voxels))


def _organ(image: Volume, mask: Volume) -> Mapping[str, Any]:
    from GenSegLogic.organs.measure import measure_labels

    box = box_of_labels(mask) or (slice(0, 1),) * 3  # of a whole scan, this would take gigabytes
    start, size = [part.start for part in reversed(box)], [part.stop - part.start for part in reversed(box)]
    return measure_labels(crop(image, start, size), crop(mask, start, size), [1])[0]


_MEASURES: Mapping[str, Callable[[Volume, Volume], Mapping[str, Any]]] = {"nodules": _nodule, "organs": _organ}
"""Stem of the run's nodes -> scan and mask on its grid -> the columns that can be measured, coordinates in LPS."""
