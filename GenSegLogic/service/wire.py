"""Results as JSON whose volumes lie in the exchange folder, and back. Needs numpy only, so both sides use it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import GenSegError
from ..provenance import plain
from ..results import Code, Results, Segment, Segmentation
from ..volume import Volume

TOKEN_VARIABLE = "GENSEG_SERVICE_TOKEN"
LOOPBACK = "127.0.0.1"


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Everything about a volume but its voxels."""
    return {
        "shape": [int(length) for length in volume.voxels.shape],
        "dtype": volume.voxels.dtype.name,
        "affine": np.asarray(volume.affine, float).tolist(),
        "name": volume.name,
        "metadata": plain(dict(volume.metadata)),
    }


def volume_from(description: Mapping[str, Any], voxels: np.ndarray) -> Volume:
    """The volume of a description and its voxels."""
    affine = np.asarray(description["affine"], float)
    return Volume(voxels, affine, str(description["name"]), dict(description["metadata"]))


def encode_results(results: Results, store: Callable[[np.ndarray], str]) -> dict[str, Any]:
    """Results as JSON values; NaN and infinity become null.

    Args:
        store: writes an array to the exchange folder and returns its path.
    """

    def encode(volume: Volume) -> dict[str, Any]:
        return describe_volume(volume) | {"path": store(volume.voxels)}

    return {
        "volumes": {stem: encode(volume) for stem, volume in results.volumes.items()},
        "segmentations": {
            stem: {"labelmap": encode(segmentation.labelmap),
                   "segments": [dataclasses.asdict(segment) for segment in segmentation.segments]}
            for stem, segmentation in results.segmentations.items()
        },
        "tables": plain(results.tables),
        "columns": plain(results.columns),
        "messages": plain(results.messages),
        "synthetic": sorted(results.synthetic),
        "summary": results.summary,
        "provenance": plain(results.provenance),
    }


def stored_volumes(encoded: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name -> description with path: every volume by its stem, every labelmap as ``<stem>.seg``, as in their files."""
    return {**encoded["volumes"], **{f"{stem}.seg": one["labelmap"] for stem, one in encoded["segmentations"].items()}}


def decode_results(encoded: Mapping[str, Any], voxels: Mapping[str, np.ndarray]) -> Results:
    """The inverse of :func:`encode_results`.

    Args:
        voxels: name -> array, for every entry of :func:`stored_volumes`.

    Raises:
        GenSegError: if the answer is not what a service of this version sends.
    """
    try:
        return Results(
            volumes={stem: volume_from(one, voxels[stem]) for stem, one in encoded["volumes"].items()},
            segmentations={
                stem: Segmentation(volume_from(one["labelmap"], voxels[f"{stem}.seg"]),
                                   tuple(map(_segment, one["segments"])))
                for stem, one in encoded["segmentations"].items()
            },
            tables=encoded["tables"],
            columns={stem: tuple(names) for stem, names in encoded["columns"].items()},
            messages=list(encoded["messages"]),
            synthetic=frozenset(encoded["synthetic"]),
            summary=encoded["summary"],
            provenance=encoded["provenance"],
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise GenSegError("The GenSeg service gave an answer of another version; restart it.") from error


def _segment(encoded: Mapping[str, Any]) -> Segment:
    codes = {key: Code(**encoded[key]) if encoded[key] else None for key in ("region", "modifier")}
    return Segment(encoded["label"], encoded["name"], tuple(encoded["color"]), Code(**encoded["category"]),
                   Code(**encoded["type"]), **codes)
