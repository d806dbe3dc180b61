"""The service: tasks of the engine over HTTP, on this machine only.

Voxels do not pass through HTTP: see :mod:`.exchange`. Everything that is sent or computed is kept until the client
deletes it, at most for a set time, and never longer than the service lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator
from typing import Any

import psutil
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException as StarletteHTTPException

from .. import __version__, memory, tasks
from ..bundles import is_shipped, list_bundles
from ..engine import Engine
from ..errors import GenSegError
from . import wire
from .exchange import Exchange
from .gate import Gate
from .jobs import Job, JobQueue, QueueFull
from .models import (
    DeviceAnswer,
    Event,
    EventsAnswer,
    HealthAnswer,
    JobAnswer,
    JobRequest,
    Refusal,
    VolumeAnnouncement,
    VolumeAnswer,
)
from .schema import describe_task, make_task
from .volumes import StoredVolume, TooLarge, VolumeStore

logger = logging.getLogger(__name__)

TIME_TO_LIVE_SECONDS = 3600.0


class Service:
    """What the routes work on: one queue per device, jobs and volumes by id.

    Args:
        devices: as :class:`GenSegLogic.engine.Engine` takes them.
        time_to_live: seconds after which volumes and finished jobs that nobody asked for are deleted.

    Raises:
        GenSegError: if there can be no such device.
    """

    def __init__(self, devices: list[str], time_to_live: float = TIME_TO_LIVE_SECONDS) -> None:
        engines = {device: Engine(device) for device in devices}  # first, for that refuses what is no device
        self.exchange = Exchange()
        self.volumes = VolumeStore(self.exchange)
        self.queues = {device: JobQueue(device, engine, self.exchange) for device, engine in engines.items()}
        self.jobs: dict[str, Job] = {}
        self.time_to_live = time_to_live

    def submit(self, request: JobRequest) -> Job:
        """Queue a job after checking everything that can be checked at once.

        Raises:
            GenSegError: saying what is wrong with the request.
        """
        task = make_task(request.task, request.parameters)
        for role in request.volumes:
            if role not in task.inputs:
                raise GenSegError(f"{task.name} takes no {role[:60]!r}; it takes {', '.join(task.inputs)}.")
        first = next(iter(task.inputs))
        if first not in request.volumes:
            raise GenSegError(f"{task.name} needs a volume as {first!r}.")
        volumes = {role: self.volume(volume_id) for role, volume_id in request.volumes.items()}
        for volume in volumes.values():
            volume.check()
        if request.device is not None and request.device not in self.queues:
            raise GenSegError(f"There is no device {request.device[:60]!r} here; there are {', '.join(self.queues)}.")
        queue = (self.queues[request.device] if request.device is not None
                 else min(self.queues.values(), key=lambda queue: queue.length))
        job = Job(task, volumes, queue.wanted)
        self.jobs[job.id] = job  # before the queue has it, so that its volumes count as in use
        try:
            queue.add(job)
        except QueueFull:
            del self.jobs[job.id]
            raise
        return job

    def job(self, job_id: str) -> Job:
        """The job of that id; 404 if there is none."""
        job = self.jobs.get(job_id)
        if job is None:
            raise HTTPException(404, "There is no such job; it may have been deleted.")
        job.touched = time.time()
        return job

    def results(self, job_id: str) -> dict[str, Any]:
        """The encoded results of a job; 409 if it has none."""
        job = self.job(job_id)
        if job.results is None:
            raise HTTPException(409, f"The job has no results: it is {job.state}.")
        return job.results

    def volume(self, volume_id: str) -> StoredVolume:
        """The volume of that id; 404 if there is none."""
        volume = self.volumes.get(volume_id)
        if volume is None:
            raise HTTPException(404, "There is no such volume; it may have been deleted.")
        return volume

    def describe(self, job: Job) -> JobAnswer:
        """Where a job stands."""
        state = job.state  # first: what belongs to it is set before it
        return JobAnswer(id=job.id, task=job.task.name, device=job.device, state=state, fraction=job.fraction,
                         message=job.message, error=job.error, position=self.queues[job.device].position(job),
                         created=job.created, finished=job.finished, event_count=job.event_count,
                         seconds=dict(job.seconds))

    def in_use(self, volume: StoredVolume) -> bool:
        """Whether a job that has not finished needs the volume."""
        return any(job.finished is None and volume in job.volumes.values() for job in list(self.jobs.values()))

    def delete_job(self, job: Job) -> None:
        """Forget a job, with its results; one that runs is cancelled."""
        self.jobs.pop(job.id, None)
        self.queues[job.device].delete(job)

    def delete_old(self) -> None:
        """Delete what nobody has asked for within the time to live."""
        moment = time.time() - self.time_to_live
        for job in list(self.jobs.values()):
            if job.finished is not None and max(job.touched, job.finished) < moment:
                self.delete_job(job)
        for volume in self.volumes.untouched_since(moment):
            if not self.in_use(volume):
                self.volumes.delete(volume)

    def close(self, seconds: float = 1.0) -> bool:
        """Cancel all jobs and delete all files; whether every job has stopped within some ``seconds``."""
        stopped = [queue.close(seconds) for queue in self.queues.values()]
        self.exchange.remove()
        return all(stopped)


def create_app(service: Service, token: str) -> FastAPI:
    """The application, with its description at ``/openapi.json``.

    Args:
        token: what every request must bring as its bearer token.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        for queue in service.queues.values():
            queue.start()
        cleaning = asyncio.create_task(_clean(service))
        yield
        cleaning.cancel()
        await asyncio.to_thread(service.close)

    refusals: dict[int | str, dict[str, Any]] = {
        code: {"model": Refusal} for code in (400, 401, 404, 409, 413, 421, 422, 429)}
    # Recent versions of FastAPI would export errors and timings if the machine's environment said so.
    os.environ["FASTAPI_OTEL_AUTO_CONFIGURE"] = "false"
    # The pages that FastAPI offers for reading the description load scripts from the internet: left out.
    app = FastAPI(title="GenSeg service", version=__version__, description=__doc__, docs_url=None, redoc_url=None,
                  lifespan=lifespan, responses=refusals, dependencies=[Depends(HTTPBearer(auto_error=False))])
    app.add_middleware(Gate, token=token)
    _add_refusals(app)
    _add_information(app, service)
    _add_volumes(app, service)
    _add_jobs(app, service)
    return app


async def _clean(service: Service) -> None:
    while True:
        await asyncio.sleep(min(60.0, service.time_to_live / 4))
        await asyncio.to_thread(service.delete_old)


def _add_refusals(app: FastAPI) -> None:
    """Every failure is one sentence as ``{"detail": ...}``."""
    sentences = {  # what the libraries say -> a sentence
        "Not Found": "There is nothing at this address.",
        "Method Not Allowed": "This address does not take that method.",
        "There was an error parsing the body": "The request's body is not JSON that can be read.",
    }

    @app.exception_handler(StarletteHTTPException)
    async def http(_request: Request, error: StarletteHTTPException) -> JSONResponse:
        detail = sentences.get(error.detail, error.detail)
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part)[:60] for part in first["loc"][1:])[:200] or "body"
        return JSONResponse({"detail": f"The request does not fit: {place}: {first['msg']}."}, 422)

    @app.exception_handler(GenSegError)
    async def refused(_request: Request, error: GenSegError) -> JSONResponse:
        status = 413 if isinstance(error, TooLarge) else 429 if isinstance(error, QueueFull) else 422
        return JSONResponse({"detail": str(error)}, status)

    @app.exception_handler(Exception)
    async def broken(_request: Request, _error: Exception) -> JSONResponse:
        # Starlette raises it again after the answer, so that it stands in the log with its traceback.
        return JSONResponse({"detail": "The service failed at this request; its log says more."}, 500)


def _add_information(app: FastAPI, service: Service) -> None:
    process = psutil.Process()

    @app.get("/health")
    def health() -> HealthAnswer:
        """Version, device, memory, busy."""
        devices = [_describe_device(queue) for queue in service.queues.values()]
        ready = any(one.device and not one.problem for one in devices)
        failed = all(one.problem for one in devices)
        return HealthAnswer(version=__version__, status="ready" if ready else "failed" if failed else "starting",
                            busy=any(one.jobs for one in devices), device=devices[0].device, devices=devices,
                            process_memory_bytes=process.memory_info().rss)

    @app.get("/tasks")
    def all_tasks() -> list[dict[str, Any]]:
        """Every task with its inputs and parameters: type, default, range, unit and help."""
        described = []
        for name in tasks.TASKS:
            try:
                described.append(describe_task(name))
            except GenSegError as error:  # a library that only this task needs is missing; submitting it says so
                logger.warning("task %s is left out: %s", name, error)
        return described

    @app.get("/bundles")
    def bundles() -> list[dict[str, Any]]:
        """The bundles that tasks may name."""
        return [{"name": bundle.name, "kind": bundle.kind, "digest": bundle.digest, "size_bytes": bundle.size_bytes,
                 "ships": is_shipped(bundle), **{key: bundle.metadata[key] for key in (
                     "task", "description", "version", "licence", "commercial_use", "image", "metrics")}}
                for bundle in list_bundles()]


def _describe_device(queue: JobQueue) -> DeviceAnswer:
    free = None
    if queue.device is not None:
        import torch

        free = memory.free_bytes(torch.device(queue.device))
    return DeviceAnswer(wanted=queue.wanted, device=queue.device, jobs=queue.length, free_memory_bytes=free,
                        problem=queue.problem)


def _add_volumes(app: FastAPI, service: Service) -> None:
    @app.post("/volumes", status_code=201)
    def announce_volume(volume: VolumeAnnouncement) -> VolumeAnswer:
        """Announce a volume; the answer says where to write it."""
        stored = service.volumes.announce(volume.shape, volume.dtype, volume.affine, volume.name, volume.metadata)
        return VolumeAnswer(id=stored.id, path=str(stored.path), bytes=stored.bytes)

    @app.delete("/volumes/{volume_id}", status_code=204)
    def delete_volume(volume_id: str) -> Response:
        """Delete a volume, now."""
        volume = service.volume(volume_id)
        if service.in_use(volume):
            raise HTTPException(409, "A job still needs this volume; wait for the job or cancel it.")
        service.volumes.delete(volume)
        return Response(status_code=204)


def _add_jobs(app: FastAPI, service: Service) -> None:
    @app.post("/jobs", status_code=201)
    def submit(request: JobRequest) -> JobAnswer:
        """Queue a job."""
        return service.describe(service.submit(request))

    @app.get("/jobs")
    async def all_jobs() -> list[JobAnswer]:
        """All jobs that have not been deleted, oldest first."""
        return [service.describe(job) for job in list(service.jobs.values())]

    @app.get("/jobs/{job_id}")
    async def job(job_id: str) -> JobAnswer:
        """Where a job stands; answered at once."""
        return service.describe(service.job(job_id))

    @app.get("/jobs/{job_id}/events")
    async def events(job_id: str, since: int = Query(0, ge=0)) -> EventsAnswer:
        """The progress calls from number ``since`` on."""
        found = service.job(job_id)
        kept = [Event(number=number, time=moment, fraction=fraction, message=message)
                for number, moment, fraction, message in list(found.events) if number >= since]
        return EventsAnswer(events=kept, next=kept[-1].number + 1 if kept else since)

    @app.post("/jobs/{job_id}/cancel")
    async def cancel(job_id: str) -> JobAnswer:
        """Stop a job within one step; nothing if it has finished."""
        found = service.job(job_id)
        service.queues[found.device].cancel(found)
        return service.describe(found)

    @app.delete("/jobs/{job_id}", status_code=204)
    def delete_job(job_id: str) -> Response:
        """Delete a job and its results; one that runs is cancelled first."""
        service.delete_job(service.job(job_id))
        return Response(status_code=204)

    @app.get("/jobs/{job_id}/results")
    def results(job_id: str) -> dict[str, Any]:
        """Volumes and segmentations (with the path of their voxels), tables, messages and provenance."""
        return service.results(job_id)

    @app.get("/jobs/{job_id}/outputs/{name}", response_class=FileResponse)
    def output(job_id: str, name: str) -> FileResponse:
        """The voxels of one volume (``residual``) or labelmap (``nodules.seg``), by name, as .npy."""
        found = wire.stored_volumes(service.results(job_id)).get(name)
        if found is None or not os.path.isfile(found["path"]):
            raise HTTPException(404, "The job has no output of that name.")
        return FileResponse(found["path"], media_type="application/octet-stream", filename="voxels.npy")
