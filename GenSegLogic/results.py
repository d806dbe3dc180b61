"""What a task returns: named volumes, segmentations with terminology, tables, provenance."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .volume import Volume


@dataclass(frozen=True)
class Code:
    """A coded concept, e.g. ``Code("SCT", "27925004", "Nodule")``."""

    scheme: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Segment:
    """One segment of a :class:`Segmentation`.

    Attributes:
        label: its voxel value in the labelmap, 1 and up.
        name: what people read.
        color: red, green, blue in [0, 1].
        category, type, region: DICOM segmentation terminology (region = anatomic region), None where there is none.
        modifier: what narrows the type down, such as the side of a paired organ.
    """

    label: int
    name: str
    color: tuple[float, float, float]
    category: Code
    type: Code
    region: Code | None = None
    modifier: Code | None = None


@dataclass(frozen=True)
class Segmentation:
    """A labelmap on the input's grid and what its values mean. Segments may be empty."""

    labelmap: Volume
    segments: tuple[Segment, ...]


@dataclass
class Results:
    """Everything that a task hands back.

    Attributes:
        volumes: file stem -> volume on the input's grid (``counterfactual``, ``residual``).
        segmentations: file stem -> segmentation (``nodules``), written as ``<stem>.seg.nrrd``.
        tables: file stem -> rows, each a dict of column -> value; all rows share their columns (``nodules.csv``).
            ``columns`` gives the header of a table without rows.
        columns: table stem -> column names.
        messages: sentences for the user (what was repaired, what is doubtful, what the engine stepped down to).
        synthetic: stems of ``volumes`` that a model has generated; they are marked so wherever they go.
        summary: one sentence in plain words ("3 nodules; the largest 12 mm").
        provenance: filled in by the engine.
    """

    volumes: dict[str, Volume] = field(default_factory=dict)
    segmentations: dict[str, Segmentation] = field(default_factory=dict)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    synthetic: frozenset[str] = frozenset()
    summary: str = ""
    provenance: dict[str, Any] = field(default_factory=dict)

    def save(self, directory: str | Path, image: Volume | None = None) -> dict[str, Path]:
        """Write everything into ``directory``, whole or not at all; see :func:`GenSegLogic.saving.save_results`.

        Args:
            directory: made if it is not there. Files in it that an earlier save did not write are kept.
            image: the scan; with it comes ``overlay.png``.

        Returns:
            File name -> path of every file written.
        """
        from .saving import save_results

        return save_results(self, Path(directory), image)
