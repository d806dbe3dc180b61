"""The client's half of the service: standard library and numpy only, so that Slicer's own Python can use it as it is.

Two ways of use. Blocking: :meth:`Client.run`, or :meth:`Client.submit`, :meth:`Job.wait`, :meth:`Job.results`. From a
timer, where no call may last longer than some 50 ms: :meth:`Client.submitting`, :meth:`Job.poll`, :meth:`Job.cancel`,
:meth:`Job.fetching`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Cancelled, GenSegError
from ..progress import Progress, silent
from ..provenance import plain
from ..results import Results
from ..volume import Volume
from . import exchange, wire
from .calls import Call, ServiceGone

TICK_SECONDS = 0.03
"""How long a step of the timer's interface waits for an answer; a later step takes the answer up."""
UNRESPONSIVE_SECONDS = 120.0
"""A service that gives no answer for so long counts as gone. Importing PyTorch on a cold disk may take a minute."""


@dataclass(frozen=True)
class JobState:
    """Where a job stands.

    Attributes:
        state: ``queued``, ``running``, ``done``, ``failed`` or ``cancelled``.
        fraction: how much is done, in [0, 1].
        message: what is being done, in words.
        error: one sentence, when failed.
        position: how many jobs come before it.
        seconds: where the time went: ``queued``, ``reading``, ``running``, ``writing``.
    """

    state: str = "queued"
    fraction: float = 0.0
    message: str = "Waiting"
    error: str = ""
    position: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")


class Client:
    """Talks to one service.

    Args:
        port: where it listens on this machine.
        token: its bearer token.
        folder: its exchange folder; voxels are written and read nowhere else.
        why_gone: asked for one sentence when the service does not answer any more.
    """

    def __init__(self, port: int, token: str, folder: str | Path, why_gone: Callable[[], str] | None = None) -> None:
        self._port, self._token = port, token
        self.folder = Path(folder).resolve()
        self._why_gone = why_gone

    def health(self) -> dict[str, Any]:
        """Version, status, device, memory, busy."""
        return self.request("GET", "/health")

    def tasks(self) -> list[dict[str, Any]]:
        """Tasks with their inputs and parameters."""
        return self.request("GET", "/tasks")

    def bundles(self) -> list[dict[str, Any]]:
        """Bundles that tasks may name."""
        return self.request("GET", "/bundles")

    def submit(
        self, task: str, parameters: Mapping[str, Any], volumes: Mapping[str, Volume], device: str | None = None
    ) -> Job:
        """Send the volumes and queue a job.

        Args:
            task: its name, e.g. ``nodules``.
            parameters: name to value; what is left out keeps its default.
            volumes: role (``image``, ``lungs``) to volume.
            device: one of the service's; None: the one with least to do.

        Raises:
            GenSegError: the service's sentence, if it refuses.
            ServiceGone: if it does not answer.
        """
        submitting = self.submitting(task, parameters, volumes, device)
        for _fraction in submitting:
            pass
        return submitting.job

    def submitting(
        self, task: str, parameters: Mapping[str, Any], volumes: Mapping[str, Volume], device: str | None = None
    ) -> Submitting:
        """As :meth:`submit`, in steps: call ``next()`` on it from a timer until it is used up, then take ``.job``."""
        return Submitting(self, {"task": task, "parameters": plain(dict(parameters)), "device": device}, volumes)

    def run(
        self,
        task: str,
        parameters: Mapping[str, Any],
        volumes: Mapping[str, Volume],
        progress: Progress = silent,
        device: str | None = None,
    ) -> Results:
        """Run a task and wait for its results. Needs no event loop. Leaves nothing on the service.

        Args:
            progress: called from time to time; raising out of it cancels the job.

        Raises:
            GenSegError: the task's own sentence, if it failed.
            Cancelled: if ``progress`` raised it, or someone else cancelled the job.
        """
        job = self.submit(task, parameters, volumes, device)
        try:
            job.wait(progress)
            return job.results()
        finally:
            job.delete()

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """One request, waiting for its answer.

        Raises:
            GenSegError: the service's sentence, if it refuses.
            ServiceGone: if it does not answer.
        """
        return self.guarded(lambda: self.call(method, path, body).result())

    def call(self, method: str, path: str, body: Any = None) -> Call:
        """One request in flight."""
        return self.guarded(lambda: Call(self._port, self._token, method, path, body))

    def guarded(self, action: Callable[[], Any]) -> Any:
        """Do something with the service; if it is gone, say why.

        Raises:
            ServiceGone: with the reason that ``why_gone`` knows.
        """
        try:
            return action()
        except ServiceGone as error:
            if self._why_gone is None:
                raise
            raise ServiceGone(self._why_gone()) from error

    def awaited(self, method: str, path: str, body: Any = None) -> Generator[None, None, Any]:
        """One request in steps of some :data:`TICK_SECONDS`; the answer is the generator's return value."""
        call = self.call(method, path, body)
        try:
            while not self.guarded(lambda: call.answered(TICK_SECONDS)):
                yield
            return self.guarded(call.result)
        finally:
            call.close()

    def inside(self, path: str) -> Path:
        """A path that the service named.

        Raises:
            GenSegError: unless it lies directly in the exchange folder.
        """
        found = Path(path)
        if found.parent != self.folder:
            raise GenSegError("The GenSeg service named a file outside of its exchange folder; restart it.")
        return found


class Submitting:
    """Sends the volumes chunk by chunk, then the job. An iterator over the fraction done."""

    def __init__(self, client: Client, request: dict[str, Any], volumes: Mapping[str, Volume]) -> None:
        self._client, self._request, self._volumes = client, request, volumes
        self._job: Job | None = None
        self._sent: dict[str, str] = {}
        self._steps = self._send()

    @property
    def job(self) -> Job:
        """The job, once the iterator is used up.

        Raises:
            GenSegError: before that.
        """
        if self._job is None:
            raise GenSegError("The job has not been sent yet.")
        return self._job

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        return next(self._steps)

    def close(self) -> None:
        """Give up half-way: what has been sent is deleted."""
        self._steps.close()

    def _send(self) -> Generator[float, None, None]:
        try:
            for index, (role, volume) in enumerate(self._volumes.items()):
                for fraction in self._send_volume(role, volume):
                    yield (index + fraction) / len(self._volumes)
            steps = self._client.awaited("POST", "/jobs", self._request | {"volumes": self._sent})
            answer = yield from _at(1.0, steps)
        except BaseException:  # a generator that is closed raises GeneratorExit here
            _delete_volumes(self._client, self._sent.values())
            raise
        self._job = Job(self._client, answer["id"], tuple(self._sent.values()))

    def _send_volume(self, role: str, volume: Volume) -> Iterator[float]:
        stored = yield from _at(0.0, self._client.awaited("POST", "/volumes", wire.describe_volume(volume)))
        self._sent[role] = stored["id"]
        yield from exchange.writing(self._client.inside(stored["path"]), np.asarray(volume.voxels))


class Job:
    """One job of a service. :meth:`delete` it when it is no longer wanted; else the service does after an hour."""

    def __init__(self, client: Client, job_id: str, volume_ids: tuple[str, ...] = ()) -> None:
        self.id = job_id
        self.state = JobState()
        self._client = client
        self._volume_ids = volume_ids
        self._polling: Call | None = None
        self._asked = 0.0
        self._cancelling: Call | None = None

    def poll(self) -> JobState:
        """Where the job stands, as far as is known; takes at most some 50 ms. Made for a timer.

        Raises:
            ServiceGone: if the service does not answer any more.
        """
        if self.state.finished:
            return self.state
        call = self._polling
        if call is None:
            call, self._asked = self._client.call("GET", f"/jobs/{self.id}"), time.monotonic()
        self._polling = None  # unless it stays in flight, below
        if self._client.guarded(lambda: call.answered(TICK_SECONDS)):
            self.state = _state(self._client.guarded(call.result))
        elif time.monotonic() - self._asked > UNRESPONSIVE_SECONDS:
            call.close()
            raise ServiceGone("The GenSeg service has stopped answering; restart it and run again.")
        else:
            self._polling = call
        return self.state

    def wait(self, progress: Progress = silent, interval: float = 0.05) -> JobState:
        """Wait until the job has finished, however it ended.

        Args:
            progress: called with every change; raising out of it cancels the job.
            interval: seconds between two looks.

        Raises:
            ServiceGone: if the service does not answer any more.
        """
        shown: JobState | None = None
        try:
            while not self.poll().finished:
                if self.state != shown:
                    shown = self.state
                    progress(shown.fraction, shown.message)
                time.sleep(interval)
        except ServiceGone:
            raise
        except BaseException:  # whatever stops the waiting, an interrupt included, stops the job
            self.cancel()
            raise
        return self.state

    def cancel(self) -> None:
        """Ask the job to stop within one step; returns at once. :meth:`poll` tells when it has.

        Raises:
            ServiceGone: if the service does not answer any more.
        """
        if not self.state.finished and self._cancelling is None:
            call = self._client.call("POST", f"/jobs/{self.id}/cancel")
            if self._client.guarded(lambda: call.answered(TICK_SECONDS)):
                self._client.guarded(call.result)
            else:
                self._cancelling = call  # sent; kept open until the job is deleted

    def events(self, since: int = 0) -> tuple[list[dict[str, Any]], int]:
        """Progress calls from number ``since`` on (number, time, fraction, message), and what to ask for next."""
        answer = self._client.request("GET", f"/jobs/{self.id}/events?since={int(since)}")
        return answer["events"], answer["next"]

    def results(self) -> Results:
        """The results of a job that is done, all in this process's own memory.

        Raises:
            GenSegError: the task's sentence, if it failed.
            Cancelled: if it was cancelled.
        """
        fetching = self.fetching()
        for _fraction in fetching:
            pass
        return fetching.results

    def fetching(self) -> Fetching:
        """As :meth:`results`, one volume a step: ``next()`` until it is used up, then take ``.results``."""
        return Fetching(self._client, self)

    def delete(self) -> None:
        """Delete the job, its results and its input volumes from the service; cancels it first if it runs.

        A service that is gone has deleted them itself, or the next one will.
        """
        for call in (self._polling, self._cancelling):
            if call is not None:
                call.close()
        self._polling = self._cancelling = None
        try:
            self._client.request("DELETE", f"/jobs/{self.id}")
        except ServiceGone:
            return
        except GenSegError:  # deleted already
            pass
        _delete_volumes(self._client, self._volume_ids)


class Fetching:
    """Reads the results' volumes one after another. An iterator over the fraction done."""

    def __init__(self, client: Client, job: Job) -> None:
        self._client, self._job = client, job
        self._results: Results | None = None
        self._steps = self._fetch()

    @property
    def results(self) -> Results:
        """The results, once the iterator is used up.

        Raises:
            GenSegError: before that.
        """
        if self._results is None:
            raise GenSegError("The results have not been fetched yet.")
        return self._results

    def __iter__(self) -> Iterator[float]:
        return self

    def __next__(self) -> float:
        return next(self._steps)

    def _fetch(self) -> Iterator[float]:
        if self._job.state.state == "failed":
            raise GenSegError(self._job.state.error)
        if self._job.state.state == "cancelled":
            raise Cancelled
        encoded = yield from _at(0.0, self._client.awaited("GET", f"/jobs/{self._job.id}/results"))
        stored = wire.stored_volumes(encoded)
        voxels = {}
        for name, one in stored.items():
            path = self._client.inside(one["path"])
            voxels[name] = exchange.read(path, one["shape"], one["dtype"], f"The result {name}")
            yield len(voxels) / len(stored)
        self._results = wire.decode_results(encoded, voxels)


def _at(fraction: float, steps: Generator[None, None, Any]) -> Generator[float, None, Any]:
    """The steps of a request, all at one fraction; returns the request's answer."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
        yield fraction


def _state(answer: Mapping[str, Any]) -> JobState:
    return JobState(**{name: answer[name] for name in JobState.__dataclass_fields__})


def _delete_volumes(client: Client, ids: Iterable[str]) -> None:
    """Delete volumes; one that a job still reads is deleted by the service later."""
    for volume_id in tuple(ids):
        try:
            client.request("DELETE", f"/volumes/{volume_id}")
        except GenSegError:
            continue
