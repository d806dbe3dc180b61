"""Jobs and the queue of one device: a thread that runs them one after another on a warm engine."""

from __future__ import annotations

import collections
import gc
import logging
import secrets
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import Cancelled, GenSegError
from . import wire
from .exchange import Exchange, remove
from .volumes import StoredVolume

if TYPE_CHECKING:
    from pathlib import Path

    from ..engine import Engine
    from ..task import Task

logger = logging.getLogger(__name__)

EVENTS_KEPT = 1000
QUEUE_LIMIT = 32


class QueueFull(GenSegError):
    """Too many jobs wait."""


@dataclass(eq=False)  # each is itself; comparing their arrays has no truth value
class Job:
    """One run of a task.

    Attributes:
        volumes: role -> the volume that was sent.
        state: ``queued``, ``running``, then one of ``done``, ``failed`` and ``cancelled``.
        error: one sentence, when failed.
        events: (number, seconds since the epoch, fraction, message), the last :data:`EVENTS_KEPT`.
        results: encoded results, when done; their volumes lie at ``paths``.
        seconds: where the time went: ``queued``, ``reading``, ``running``, ``writing``.
        touched: when the client last asked for it, seconds since the epoch.
    """

    task: Task
    volumes: Mapping[str, StoredVolume]
    device: str
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    state: str = "queued"
    error: str = ""
    fraction: float = 0.0
    message: str = "Waiting"
    created: float = field(default_factory=time.time)
    finished: float | None = None
    touched: float = field(default_factory=time.time)
    event_count: int = 0
    events: collections.deque = field(default_factory=lambda: collections.deque(maxlen=EVENTS_KEPT))
    results: dict[str, Any] | None = None
    paths: list[Path] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    cancel_wanted: threading.Event = field(default_factory=threading.Event)
    deleted: bool = False

    def progress(self, fraction: float, message: str) -> None:
        """The task's progress call.

        Raises:
            Cancelled: if the user has asked to stop.
        """
        if self.cancel_wanted.is_set():
            raise Cancelled
        if (fraction, message) != (self.fraction, self.message):
            self.fraction, self.message = min(1.0, max(0.0, float(fraction))), str(message)
            self.events.append((self.event_count, time.time(), self.fraction, self.message))
            self.event_count += 1


class JobQueue:
    """Runs jobs on one device, one after another, in the order in which they came.

    PyTorch is imported as soon as the thread starts, so that the first job finds the engine ready.
    """

    def __init__(self, device: str, engine: Engine, exchange: Exchange) -> None:
        """
        Args:
            device: what the engine was made for, e.g. ``auto``.
            engine: used by this queue's thread only.
            exchange: where results are written.
        """
        self.wanted = device
        self.device: str | None = None
        self.problem = ""
        self.engine = engine
        self._exchange = exchange
        self._waiting: collections.deque[Job] = collections.deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        # Daemon: a step that never ends must not keep the process alive after Slicer is gone.
        self._thread = threading.Thread(target=self._work, name=f"genseg-{device}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, job: Job) -> None:
        """Put a job at the end.

        Raises:
            QueueFull: if too many wait already.
        """
        with self._changed:
            if len(self._waiting) >= QUEUE_LIMIT:
                raise QueueFull(f"{QUEUE_LIMIT} jobs are waiting already; wait for some or cancel them.")
            self._waiting.append(job)
            self._changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Stop a job: at once if it waits, at its next step if it runs; nothing if it has finished."""
        with self._changed:
            job.cancel_wanted.set()
            if job in self._waiting:
                self._waiting.remove(job)
                _finish(job, "cancelled")

    def delete(self, job: Job) -> None:
        """Cancel a job if it has not finished, and delete its results now or as soon as it stops."""
        with self._changed:
            job.deleted = True
            self.cancel(job)
            if job.finished is not None:
                _discard(job)

    def position(self, job: Job) -> int:
        """How many jobs run or wait before this one; 0 once it runs."""
        with self._changed:
            if job not in self._waiting:
                return 0
            return self._waiting.index(job) + (self._running is not None)

    @property
    def length(self) -> int:
        """How many jobs run or wait."""
        with self._changed:
            return len(self._waiting) + (self._running is not None)

    def close(self, seconds: float) -> bool:
        """Cancel everything and wait; whether the thread has ended within ``seconds``."""
        with self._changed:
            self._closed = True
            while self._waiting:
                _finish(self._waiting.popleft(), "cancelled")
            if self._running is not None:
                self._running.cancel_wanted.set()
            self._changed.notify_all()
        if self._thread.ident is None:
            return True
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _work(self) -> None:
        self._warm_up()
        while True:
            with self._changed:
                self._running = None
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                job = self._running = self._waiting.popleft()
                job.state, job.message = "running", "Starting"
                job.seconds["queued"] = time.time() - job.created
            self._run(job)
            if job.state != "done":
                _free_memory()

    def _warm_up(self) -> None:
        try:
            self.device = str(self.engine.device)
            logger.info("engine ready on %s", self.device)
        except (GenSegError, ImportError, OSError, RuntimeError) as error:  # as a broken installation of PyTorch raises
            self.problem = _sentence(error)
            logger.exception("engine not ready")

    def _run(self, job: Job) -> None:
        """Run one job to its end, whatever happens: the queue must go on."""
        logger.info("job %s: %s starts", job.id, job.task.name)
        try:
            if self.problem:
                raise GenSegError(self.problem)
            clock = time.perf_counter()
            job.progress(0.0, "Reading the volumes")
            volumes = {role: volume.read() for role, volume in job.volumes.items()}
            job.seconds["reading"], clock = time.perf_counter() - clock, time.perf_counter()
            results = self.engine.run(job.task, volumes, job.progress)
            job.seconds["running"], clock = time.perf_counter() - clock, time.perf_counter()
            job.progress(1.0, "Writing the results")
            job.results = wire.encode_results(results, lambda array: self._store(job, array))
            job.seconds["writing"] = time.perf_counter() - clock
            _finish(job, "done")
        except Cancelled:
            _finish(job, "cancelled")
        except GenSegError as error:
            _finish(job, "failed", str(error))
        except (Exception, SystemExit) as error:  # a task's own bug is that job's failure, not the end of the service
            logger.exception("job %s failed", job.id)
            if "CUDA error" in str(error):  # every later call fails as well, until the process is another
                self.problem = "The GPU has stopped working; restart the GenSeg service."
            _finish(job, "failed", self.problem or _sentence(error))
        with self._changed:
            if job.state != "done" or job.deleted:
                _discard(job)
        logger.info("job %s: %s %s", job.id, job.state,
                    " ".join(f"{name} {seconds:.3f} s" for name, seconds in job.seconds.items()))

    def _store(self, job: Job, array: Any) -> str:
        path = self._exchange.write(array)
        job.paths.append(path)
        return str(path)


def _discard(job: Job) -> None:
    """Delete the files of a job's results; under the queue's lock."""
    job.results = None
    while job.paths:
        remove(job.paths.pop())


def _finish(job: Job, state: str, error: str = "") -> None:
    job.error, job.finished, job.touched = error, time.time(), time.time()
    job.message = {"done": "Done", "failed": error, "cancelled": "Cancelled"}[state]
    job.state = state  # last, for this is what others look at


def _sentence(error: BaseException) -> str:
    """One sentence for a failure that nobody foresaw."""
    if isinstance(error, GenSegError):
        return str(error)
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return "The memory ran out; close other programs, crop the scan or choose lighter settings."
    if isinstance(error, ImportError):
        return f"A part that GenSeg needs is not installed ({error}); install GenSeg's requirements and restart."
    lines = str(error).strip().splitlines() or ["no message"]
    reason = f"{type(error).__name__}: {lines[0][:200].rstrip('.')}"
    return f"The task stopped unexpectedly ({reason}); see the service's log."


def _free_memory() -> None:
    """Give back what a failed job has left, so that the next one finds room."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
