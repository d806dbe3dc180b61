"""Many cases: on this machine's processes, or on a Ray cluster that shares its disks.

A case that fails ends with its reason and the others go on; a worker process that dies takes its own case with it only.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from . import memory, provenance
from .engine import Engine, choose_device
from .errors import Cancelled, GenSegError
from .progress import Progress, part, silent
from .saving import read_table, unchanged_files
from .task import Task
from .volume import read_volume
from .volume.files import EXTENSIONS

_POLL_SECONDS = 0.2
_SCANS = (*EXTENSIONS, ".nhdr", ".hdr")
"""What a scan's file ends in, that of its header where its voxels lie in another."""


@dataclass(frozen=True)
class Case:
    """One scan of a cohort.

    Attributes:
        name: its folder in the output.
        image: file or DICOM folder.
        masks: role -> file, for the task's other inputs.
    """

    name: str
    image: Path
    masks: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        error: one sentence if it failed, else empty.
        rows: the rows of the task's table, as in the case's CSV file.
        resumed: it had been done before with the same parameters.
        kept: one sentence for every file in the way of its results that was kept under another name.
    """

    case: str
    error: str = ""
    summary: str = ""
    rows: tuple[Mapping[str, Any], ...] = ()
    columns: tuple[str, ...] = ()
    resumed: bool = False
    seconds: float = 0.0
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cohort:
    """What to do with every case; sent to the workers as it is.

    Attributes:
        output: gets one folder per case.
        series: which series of a DICOM folder, see :func:`GenSegLogic.read_volume`.
        resume: leave out cases that are done already, with the same parameters, input, bundles and version.
    """

    task: Task
    output: Path
    device: str = "auto"
    series: str | None = None
    resume: bool = False


def find_cases(folder: Path, masks: Mapping[str, Path] | None = None, output: Path | None = None) -> list[Case]:
    """The cases in ``folder``: every image file, and every sub-folder (one image file, or DICOM slices).

    Results that GenSeg has written are no scans, so that ``output`` may be ``folder`` itself; phantoms are.

    Args:
        masks: role -> folder with one mask per case, called like the case; no case, should it lie inside ``folder``.
        output: left out, should it lie inside ``folder``.

    Raises:
        GenSegError: if ``folder`` is not there or holds no case.
    """
    if not folder.is_dir():
        raise GenSegError(f"{folder} is not a folder: give the folder that holds the scans.")
    images: list[Path] = []
    results = _results(folder)
    others = {path.resolve() for path in (output, *(masks or {}).values()) if path is not None}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() in others:
            continue
        if path.is_dir():
            images += _scan_in(path, output)
        elif _is_image(path) and path not in results:
            images.append(path)
    if not images:
        raise GenSegError(f"{folder} holds no scans: it needs {', '.join(_SCANS)} files or sub-folders with DICOM.")
    entries = [image if image.parent == folder else image.parent for image in images]
    names = [_stem(entry) for entry in entries]
    folded = [name.casefold() for name in names]  # some disks do not tell A from a
    cases = []
    for image, entry, name in zip(images, entries, names, strict=True):
        unique = name if folded.count(name.casefold()) == 1 else entry.name
        cases.append(Case(unique, image, {role: _mask_path(place, name) for role, place in (masks or {}).items()}))
    return cases


def _scan_in(folder: Path, output: Path | None) -> list[Path]:
    """The scan of a sub-folder: its one image file, or the folder itself; nothing where there is none to be expected.

    Results, with their folders, are passed over, and so is ``output``.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if output is not None and folder in output.parents:
        files = [path for path in files if output not in path.parents]
    results: set[Path] = set().union(*(_results(path.parent) for path in files if path.name == provenance.FILE_NAME))
    own = [path for path in files if path not in results]
    scans = [path for path in own if path.parent == folder and _is_image(path)]
    if len(scans) == 1:
        return scans
    # Beside results there may be notes; elsewhere what is no scan is a case that fails, so that nobody misses it.
    return [folder] if scans or any(map(_is_dicom, own)) or (own and not results) else []


def _results(folder: Path) -> set[Path]:
    """What GenSeg has written into a folder, its record included; not phantoms."""
    records = provenance.records(folder)
    names = {name for record in records.values() if "phantom" not in record for name in record["files"]}
    return {folder / name for name in names | ({provenance.FILE_NAME} if records else set())}


def loose_dicom(folder: Path) -> list[Path]:
    """DICOM files that lie in ``folder`` itself, where :func:`find_cases` takes none: which are one case?"""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    with contextlib.suppress(OSError), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"
    return False


def _is_image(path: Path) -> bool:
    name = path.name.lower()
    return path.is_file() and name.endswith(_SCANS) and not name.endswith(".seg.nrrd") and name[0] != "."


def _stem(path: Path) -> str:
    endings = [ending for ending in (".seg.nrrd", *_SCANS) if path.name.lower().endswith(ending)]
    if path.is_dir() or not endings:
        return path.name
    return path.name[: -max(map(len, endings))]


def _mask_path(folder: Path, name: str) -> Path:
    """The mask called like the case; where there is none, the path whose absence the reader will name."""
    found = [path for path in sorted(folder.glob("*")) if _stem(path) == name]
    return found[0] if found else folder / f"{name}.nrrd"


def run_case(cohort: Cohort, case: Case, engine: Engine, progress: Progress = silent) -> Outcome:
    """Run one case and save it; every failure but cancelling becomes the outcome's ``error``."""
    started = time.perf_counter()
    directory = cohort.output / case.name
    try:
        volumes = {"image": read_volume(case.image, series=cohort.series)}
        volumes |= {role: read_volume(path) for role, path in case.masks.items()}
        found = provenance.records(directory).get(cohort.task.name) if cohort.resume else None
        resumed = found is not None and _is_done(found, directory, cohort.task, volumes)
        kept: tuple[str, ...] = ()
        if not resumed:
            results = engine.run(cohort.task, volumes, progress)
            known = len(results.messages)
            results.save(directory, volumes["image"])
            kept = tuple(results.messages[known:])
            found = provenance.read(directory)
        rows, columns = _saved_rows(directory, found or {}, cohort.task)
        summary = str((found or {}).get("summary", ""))
        return Outcome(case.name, "", summary, rows, columns, resumed, time.perf_counter() - started, kept)
    except Cancelled:
        raise
    except GenSegError as error:
        reason = str(error)
    # One case must not stop the others, whatever happens in it: its row in the table says what did.
    except Exception as error:
        reason = (f"This is a defect in GenSeg ({type(error).__name__}: {error}); "
                  "run the case alone with GENSEG_DEBUG=1 and report what it prints.")
    return Outcome(case.name, reason, seconds=time.perf_counter() - started)


def _is_done(found: Mapping[str, Any], directory: Path, task: Task, volumes: Mapping[str, Any]) -> bool:
    if not provenance.same_request(found, task):
        return False
    if found.get("inputs") != {role: provenance.describe_volume(volume) for role, volume in volumes.items()}:
        return False
    files = found.get("files", {})
    if not all((directory / name).is_file() for name in files):
        return False
    tables = {name: digest for name, digest in files.items() if name.endswith(".csv")}
    if unchanged_files(directory, {"files": tables}) != tables.keys():
        return False  # its rows go into the cohort's table, so they must be those that were found
    try:
        digests = {bundle.name: bundle.digest for bundle in task.bundles(volumes)}
    except GenSegError:
        return False
    return all(digests.get(name) == entry["digest"] for name, entry in found.get("bundles", {}).items())


def _saved_rows(
    directory: Path, record: Mapping[str, Any], task: Task
) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """Rows and columns of the task's table: the one called like the task, else the first."""
    tables = sorted(name for name in record.get("files", ()) if name.endswith(".csv"))
    if not tables:
        return (), ()
    rows, columns = read_table(directory / (f"{task.name}.csv" if f"{task.name}.csv" in tables else tables[0]))
    return tuple({key: _number(value) for key, value in row.items()} for row in rows), columns


def _number(text: str) -> Any:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def table(outcomes: Sequence[Outcome]) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """One table for the cohort: each row with its case; a case without rows, or one that failed, has one row."""
    columns = list(dict.fromkeys(column for outcome in outcomes for column in outcome.columns))
    rows: list[dict[str, Any]] = []
    for outcome in outcomes:
        for row in outcome.rows or ({},):
            rows.append({"case": outcome.case, "error": outcome.error, **row})
    return rows, ("case", "error", *columns)


def run_cohort(
    cohort: Cohort, cases: Sequence[Case], workers: int = 1, ray_address: str | None = None, progress: Progress = silent
) -> Iterator[Outcome]:
    """Run all cases and hand out each outcome as soon as it is there (not in the order of ``cases``).

    Args:
        workers: processes on this machine; each has its own engine and an equal share of cores and memory. With 1, the
            cases run in this process.
        ray_address: run on this Ray cluster instead (``auto``: the one that this machine belongs to; ``local``: start
            one). Its machines must see the same files under the same paths.
        progress: also called while waiting; raising out of it cancels all cases within one step.

    Raises:
        GenSegError: if the device is not there, Ray is not installed or its cluster does not answer.
    """
    if ray_address is not None:
        yield from _run_on_ray(cohort, cases, ray_address, progress)
        return
    choose_device(cohort.device)  # a GPU that is not there is said once, and not for every case
    if workers <= 1:
        engine = Engine(cohort.device)
        for number, case in enumerate(cases):
            yield run_case(cohort, case, engine, part(progress, number / len(cases), (number + 1) / len(cases)))
    else:
        yield from _run_in_processes(cohort, cases, min(workers, len(cases)), progress)


# --- processes of this machine ---------------------------------------------------------------------------------------


def _run_in_processes(
    cohort: Cohort, cases: Sequence[Case], workers: int, progress: Progress
) -> Iterator[Outcome]:
    # Spawned, not forked: fork is not there on Windows and breaks threads and CUDA elsewhere. One pool of one process
    # for each worker, because a pool breaks as a whole when one of its processes dies.
    context = multiprocessing.get_context("spawn")
    cancel = context.Event()
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    finished: queue.SimpleQueue[Outcome | BaseException] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)

    limits = _shares_of_memory(cohort.device, workers)

    def new_pool() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, context, _start_worker, (cohort.device, workers, limits, cancel))

    def serve() -> None:
        pool = new_pool()
        try:
            while not cancel.is_set():
                case = waiting.get_nowait()
                try:
                    finished.put(pool.submit(_run_in_worker, cohort, case).result())
                except BrokenProcessPool:
                    finished.put(Outcome(case.name, "The worker process died, most likely for lack of memory; "
                                                    "try fewer workers."))
                    pool = new_pool()
        except queue.Empty:
            pass
        except BaseException as error:  # handed to the caller's thread, which raises it
            finished.put(error)
        finally:
            pool.shutdown()

    threads = [threading.Thread(target=serve, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for done in range(len(cases)):
            yield _next(finished, progress, done, len(cases))
    finally:
        cancel.set()
        for thread in threads:
            thread.join()


def _next(
    finished: queue.SimpleQueue[Outcome | BaseException], progress: Progress, done: int, count: int
) -> Outcome:
    while True:
        progress(done / count, f"{done} of {count} cases done")
        with contextlib.suppress(queue.Empty):
            item = finished.get(timeout=_POLL_SECONDS)
            if isinstance(item, BaseException):
                raise item
            return item


def _shares_of_memory(device: str, workers: int) -> dict[str, int]:
    """Bytes that each of the workers may use, on the GPU and on the CPU, to which a task may have to step down."""
    places = {place.type: place for place in (choose_device("cpu"), choose_device(device))}
    return {kind: memory.free_bytes(place) // workers for kind, place in places.items()}


_worker: tuple[Engine, Event] | None = None  # of this process, when it is a worker


def _start_worker(device: str, workers: int, limits: Mapping[str, int], cancel: Event) -> None:
    global _worker
    # Ctrl-C, and a terminal that is closed, reach every process; the parent passes them on as a cancel.
    for number in (signal.SIGINT, getattr(signal, "SIGHUP", None)):
        if number is not None:  # Windows has no SIGHUP
            signal.signal(number, signal.SIG_IGN)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
    _worker = (Engine(device, limits), cancel)


def _run_in_worker(cohort: Cohort, case: Case) -> Outcome:
    assert _worker is not None  # set by the pool's initialiser
    engine, cancel = _worker

    def check(fraction: float, message: str) -> None:
        if cancel.is_set():
            raise Cancelled

    return run_case(cohort, case, engine, check)


# --- a Ray cluster ---------------------------------------------------------------------------------------------------


@functools.cache
def _engine_on_ray(device: str) -> Engine:
    """One engine for each Ray process, which Ray uses for many cases."""
    return Engine(device)


def _run_case_on_ray(cohort: Cohort, case: Case) -> Outcome:
    return run_case(cohort, case, _engine_on_ray(cohort.device))


def _run_on_ray(cohort: Cohort, cases: Sequence[Case], address: str, progress: Progress) -> Iterator[Outcome]:
    try:
        import ray
    except ImportError as error:
        raise GenSegError('Ray is not installed: install it with pip install "GenSegLogic[ray]", '
                          "or use --workers on this machine.") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GenSegError(f"No Ray cluster answers at {address!r} ({error}): start one with ray start --head, "
                          "or use --workers on this machine.") from error
    try:
        gpus = 1 if cohort.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1 else 0
        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run_case_on_ray)
        running = {remote.remote(cohort, case): case for case in cases}
        while running:
            progress(1 - len(running) / len(cases), f"{len(cases) - len(running)} of {len(cases)} cases done")
            ready, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for reference in ready:
                case = running.pop(reference)
                try:
                    yield ray.get(reference)
                except ray.exceptions.RayError as error:
                    reason = str(error).strip().splitlines()[0]
                    yield Outcome(case.name, f"Ray lost the case ({reason}); see the logs of the cluster.")
    finally:
        ray.shutdown()  # ends the job: cases that still run are stopped
