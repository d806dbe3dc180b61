"""The line before Apply: what would run on what, how much it needs, and why it cannot or what is doubtful."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from slicer.i18n import tr as _

from GenSegLogic.engine import Engine
from GenSegLogic.errors import GenSegError
from GenSegLogic.memory import gigabytes
from GenSegLogic.task import Task
from GenSegLogic.volume import Volume
from GenSegScene import runs
from GenSegScene.volumes import NeedsHardeningError, volume_from_node


@dataclass(frozen=True)
class Preflight:
    """What is known before a job.

    Attributes:
        summary: modality, grid, bundles, memory, time; empty without a usable scan.
        doubts: sentences about what may go wrong.
        problem: one sentence why Apply is off; empty when it can start.
        node_to_harden: the scan, if a hardened copy of it would do.
    """

    summary: str = ""
    doubts: tuple[str, ...] = ()
    problem: str = ""
    node_to_harden: Any = None

    @property
    def ready(self) -> bool:
        """Whether a job can start."""
        return not self.problem

    def text(self) -> str:
        """All of it, one sentence a line, the most important first."""
        return "\n".join(part for part in (self.problem, self.summary, *self.doubts) if part)


def check(make_task: Callable[[], Task], scan: Any, expected_seconds: Callable[[Task, Volume], float | None],
          wanted: str) -> Preflight:
    """Look at a scan without any model; takes milliseconds.

    Args:
        make_task: builds the task from the panel's parameters; raises GenSegError where they do not fit.
        scan: the volume node, or None.
        expected_seconds: estimate for a task on a volume; None: not known.
        wanted: what to choose where there is no scan ("a chest CT").
    """
    if scan is None:
        return Preflight(problem=_("Choose {wanted} above, or load one with File > Add Data.").format(wanted=wanted))
    try:
        volume = volume_from_node(scan)
    except NeedsHardeningError as error:
        return Preflight(problem=str(error), node_to_harden=error.node)
    except GenSegError as error:
        return Preflight(problem=str(error))
    try:
        task = make_task()
        names = [bundle.name for bundle in task.bundles({"image": volume})]
        need = task.memory_bytes({"image": volume}, Engine("cpu"))
    except GenSegError as error:
        return Preflight(summary=_grid(volume), problem=str(error))
    free = free_memory_bytes()
    parts = [_grid(volume), " + ".join(names), _memory(need, free), _time(expected_seconds(task, volume))]
    doubts = list(task.preflight({"image": volume}))
    if scan.GetAttribute(runs.RUN):
        doubts.append(_("{name} is a result of GenSeg itself, not a scan.").format(name=scan.GetName()))
    if free is not None and need > free:
        doubts.append(_("The memory looks too small: crop the scan or close other programs."))
    return Preflight(" · ".join(part for part in parts if part), tuple(doubts))


def free_memory_bytes() -> int | None:
    """Bytes of memory that are free on this computer; None where nobody can tell yet."""
    try:
        import psutil
    except ImportError:  # comes with the first-run installation
        return None
    return int(psutil.virtual_memory().available)


def _grid(volume: Volume) -> str:
    k, j, i = volume.shape
    spacing = volume.spacing
    return _("{modality}, {i} × {j} × {k} voxels of {x:.2f} × {y:.2f} × {z:.2f} mm").format(
        modality=volume.metadata.get("modality") or _("modality not stated"), i=i, j=j, k=k,
        x=spacing[0], y=spacing[1], z=spacing[2])


def _memory(need: int, free: int | None) -> str:
    if free is None:
        return _("needs {need} of memory").format(need=gigabytes(need))
    return _("needs {need} of memory, {free} are free").format(need=gigabytes(need), free=gigabytes(free))


def _time(seconds: float | None) -> str:
    if seconds is None:
        return _("time not known before the first run")
    if seconds < 90:
        return _("takes about {seconds} s").format(seconds=max(5, round(seconds / 5) * 5))
    return _("takes about {minutes} min").format(minutes=round(seconds / 60))
