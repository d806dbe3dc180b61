"""A bundle of one's own from a handful of cases: few-shot where they are labelled, source-free where they are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...bundles import Bundle
from ...progress import Progress, silent
from ...volume import Volume


@dataclass(frozen=True)
class Adapted:
    """What :func:`adapt` learned; ``write(folder)`` makes it a bundle.

    Attributes:
        networks, metadata: for :func:`GenSegLogic.bundles.write_bundle`.
        curve: one row a validation: minutes, loss, Dice on the held-out case.
        messages: sentences for the user.
    """

    networks: Mapping[str, Any]
    metadata: Mapping[str, Any]
    curve: list[dict[str, float]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path) -> Bundle:
        """Write the bundle, whole or not at all."""
        raise NotImplementedError


def adapt(
    cases: Sequence[tuple[Volume, Volume | None]],
    source: Bundle,
    minutes: float = 5.0,
    seed: int = 0,
    progress: Progress = silent,
    source_free: bool = False,
    organs: Mapping[int, str] | None = None,
    device: str = "cpu",
) -> Adapted:
    """Adapt the prior of ``source`` to other scans; SAM2 stays as it is.

    Args:
        cases: (scan, labels) pairs on any grid; labels None, or left unread with ``source_free``.
        source: a bundle of kind ``organs``.
        minutes: budget of computing; it may stop earlier, when the held-out case no longer improves.
        seed: of all random numbers.
        progress: called at every step; may raise.
        source_free: learn from the scans alone: self-training where an ensemble agrees, and aligned grey values.
        organs: label value -> organ name; None: the labels of ORGANS.
        device: where to train.

    Raises:
        GenSegError: if there is no case, labels do not lie on their scan or hold none of the organs.
    """
    raise NotImplementedError
