"""One task on nodes of the scene, done in steps of some 50 ms, so that a window stays alive while it runs."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from typing import Any

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.results import Results
from GenSegLogic.service import ServiceGone
from GenSegLogic.task import Task
from GenSegLogic.volume import Volume
from GenSegScene.writing import results_to_scene

from . import install, timing
from .service import PanelService

STEP_SECONDS = 0.03
INTERVAL_MILLISECONDS = 40
_STARTING, _SENDING, _FETCHING = 0.02, 0.08, 0.95  # of the progress bar, when each phase ends

Write = Callable[[Results], dict[str, Any]]


class PanelJob:
    """A job from Apply to nodes in the scene.

    :meth:`start` drives it from a timer of the event loop, :meth:`run` from a loop of its own that needs none.
    The scene is written at the very end, in one step, whole or not at all. A scene that is closed cancels the job.

    Attributes:
        state: ``running``, ``stopping``, ``done``, ``failed`` or ``cancelled``.
        fraction, message: how far it is, in [0, 1] and in words.
        nodes: what it wrote, by key (see :func:`GenSegScene.writing.results_to_scene`); empty until it is done, and
            again once a panel has shown them.
        results: what the task said, without its volumes and segmentations, which are in the scene; None until then.
        error: one sentence, when failed.
        details: what a person who looks for the reason wants to see, when failed.
    """

    def __init__(self, service: PanelService, task: Task, volumes: Mapping[str, Volume], write: Write,
                 device: str = "auto", onProgress: Callable[[float, str], None] | None = None,
                 onFinished: Callable[[dict[str, Any]], None] | None = None,
                 onFailed: Callable[[str], None] | None = None, onCancelled: Callable[[], None] | None = None) -> None:
        """
        Args:
            service: where it runs.
            task: what to do.
            volumes: role to volume; they may be views of the nodes' memory.
            write: writes the results into the scene and returns the nodes.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            onProgress: called with the fraction and a message at every change; raising Cancelled stops the job.
            onFinished: called with the nodes. onFailed: with one sentence. onCancelled: with nothing.
        """
        self.state, self.fraction, self.message = "running", 0.0, _("Starting")
        self.nodes: dict[str, Any] = {}
        self.results: Results | None = None
        self.error = self.details = ""
        self.seconds = 0.0
        self._service, self._task, self._volumes, self._write, self._device = service, task, volumes, write, device
        self._onProgress, self._onFinished, self._onFailed, self._onCancelled = (
            onProgress, onFinished, onFailed, onCancelled)
        self._cancel_wanted = False
        self._started = time.monotonic()
        self._steps = self._work()
        self._timer: Any = None
        self._scene = slicer.mrmlScene
        self._observer = self._scene.AddObserver(slicer.vtkMRMLScene.StartCloseEvent, self._onSceneClose)
        service.jobs.add(self)

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")

    def start(self) -> PanelJob:
        """Go on from a timer; needs an event loop."""
        import qt

        self._timer = qt.QTimer()
        self._timer.interval = INTERVAL_MILLISECONDS
        self._timer.connect("timeout()", self.step)
        self._timer.start()
        return self

    def run(self) -> dict[str, Any]:
        """Go on until the end, with or without an event loop, and return the nodes.

        Raises:
            GenSegError: if it failed.
            Cancelled: if it was cancelled.
        """
        while not self.finished:
            self.step()
            time.sleep(0.01)
        if self.state == "failed":
            raise GenSegError(self.error)
        if self.state == "cancelled":
            raise Cancelled
        return self.nodes

    def cancel(self) -> None:
        """Stop within one step of the task; returns at once. The scene stays as it is."""
        if not self.finished:
            self._cancel_wanted = True
            self.state, self.message = "stopping", _("Stopping")

    def abandon(self) -> None:
        """Stop now and wait for nothing, because what shows the job goes away; calls nobody."""
        if not self.finished:
            self._onProgress = self._onFinished = self._onFailed = self._onCancelled = None
            self._steps.close()
            self._end("cancelled")

    def step(self) -> None:
        """Do what can be done within some 50 ms. The last step, which writes the scene, may take longer."""
        end = time.monotonic() + STEP_SECONDS
        more = True
        while more and not self.finished and time.monotonic() < end:
            try:
                if self._cancel_wanted:
                    self._cancel_wanted = False
                    more = self._steps.throw(Cancelled())
                else:
                    more = next(self._steps)
            except StopIteration:
                self._end("done")
            except Cancelled:
                self._end("cancelled")
            except GenSegError as error:
                self.error, self.details = str(error), self._service.log_tail()
                self._end("failed")
            except Exception as error:  # a mistake of ours: the user gets one sentence, the log the rest
                logging.exception("GenSeg: the job failed")
                self.error = _("GenSeg stopped unexpectedly ({reason}); the scene is unchanged.").format(
                    reason=f"{type(error).__name__}: {error}")
                self.details = traceback.format_exc()
                self._end("failed")

    def _work(self) -> Generator[bool, None, None]:
        """The phases; yields True to go on at once, False to wait for others."""
        self._tell(0.0, _("Starting the engine"))
        while (client := self._service.poll(self._device)) is None:
            yield False
        submitting = client.submitting(self._task.name, self._task.describe(), self._volumes)
        try:
            for fraction in submitting:
                self._tell(_STARTING + (_SENDING - _STARTING) * fraction, _("Handing over the scan"))
                yield fraction < 1.0
        finally:
            submitting.close()
        job = submitting.job
        try:
            while not (state := job.poll()).finished:
                self._tell(_SENDING + (_FETCHING - _SENDING) * state.fraction, state.message)
                yield False
            fetching = job.fetching()
            for fraction in fetching:
                self._tell(_FETCHING + (1.0 - _FETCHING) * fraction, _("Fetching the results"))
                yield True
            results = fetching.results
        except Cancelled:
            yield from self._stop(job)
            raise
        finally:
            job.delete()
        self.nodes = self._write(results)
        self.results = replace(results, volumes={}, segmentations={})

    def _stop(self, job: Any) -> Generator[bool, None, None]:
        """Ask the service to stop the job and wait until it has, or is gone itself."""
        try:
            job.cancel()
            while not job.poll().finished:
                yield False
        except ServiceGone:
            return

    def _tell(self, fraction: float, message: str) -> None:
        if self.state != "running" or (fraction, message) == (self.fraction, self.message):
            return
        self.fraction, self.message = fraction, message
        if self._onProgress is not None:
            self._onProgress(fraction, message)

    def _onSceneClose(self, caller: Any, event: str) -> None:
        self.cancel()

    def _end(self, state: str) -> None:
        if self._timer is not None:  # its connection would keep this job for ever
            self._timer.stop()
            self._timer.disconnect("timeout()", self.step)
            self._timer.deleteLater()
            self._timer = None
        self._scene.RemoveObserver(self._observer)
        self._service.jobs.discard(self)
        del self._volumes, self._write  # which hold the scan
        self.seconds = time.monotonic() - self._started
        self.state = state
        if state == "done" and self._onFinished is not None:
            self._onFinished(self.nodes)
        elif state == "failed" and self._onFailed is not None:
            self._onFailed(self.error)
        elif state == "cancelled" and self._onCancelled is not None:
            self._onCancelled()


def task_job(service: PanelService, task: Task, node: Any, scan: Volume, masks: Mapping[str, Volume | None],
             inputs: Mapping[str, Any], steps: int, device: str, show: bool | Callable[[], bool],
             onFinished: Callable[[dict[str, Any]], None] | None = None, **callbacks: Any) -> PanelJob:
    """A job whose results go into the scene beside its input, and whose time is remembered for later estimates.

    Args:
        service, task, device: as for :class:`PanelJob`.
        node: the scan's volume node. scan: what it holds.
        masks: role -> further volumes for the task; None where the user gave none.
        inputs: role -> further nodes that the run refers to.
        steps: sampler steps in all, as :func:`GenSegPanel.timing.expected_seconds` counts them.
        show: show the results in the slice views; a function is asked when they are written.
        onFinished, callbacks: as for :class:`PanelJob`.

    Raises:
        GenSegError: Python packages are missing.
    """
    install.check()
    million_voxels = scan.voxels.size / 1e6

    def write(results: Results) -> dict[str, Any]:
        with slicer.util.RenderBlocker():
            return results_to_scene(results, node, inputs=inputs, show=show() if callable(show) else show)

    def finished(nodes: dict[str, Any]) -> None:
        timing.remember(task.name, steps, million_voxels, device, job.seconds)
        if onFinished is not None:
            onFinished(nodes)

    volumes = {"image": scan} | {role: mask for role, mask in masks.items() if mask is not None}
    job = PanelJob(service, task, volumes, write, device, onFinished=finished, **callbacks)
    return job
