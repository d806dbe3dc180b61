"""Many independent jobs over processes, each result kept in a file, so that a run that was killed goes on."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GenSegError
from ..progress import Progress

if TYPE_CHECKING:
    import torch

    from .methods import Models

Job = dict[str, Any]
"""Plain JSON values: what to compute, on which case, with which predictor."""
Record = dict[str, Any]
"""Plain JSON values: what came out."""


@dataclass(frozen=True)
class ModelNames:
    """Names or folders of the bundles to evaluate, and where they run.

    Attributes:
        segmenter: None leaves the supervised upper bound out.
        threads: of torch in every process; 0: torch's own choice.
    """

    flow: str
    predictor: str
    segmenter: str | None
    device: str = "auto"
    threads: int = 0


def load_models(names: ModelNames) -> Models:
    """The models behind the names, loaded once per process.

    Raises:
        GenSegError: if a bundle is not there or of another kind.
    """
    if names.threads:
        import torch

        torch.set_num_threads(names.threads)
    return _load(names)


def autocast(device: torch.device | str) -> contextlib.AbstractContextManager[Any]:
    """The precision that tasks compute in on a device (or ``auto``), so that the figures are those of what ships."""
    import torch

    from ..engine import Engine, precision

    device = Engine(str(device)).device
    dtype = precision(device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@functools.lru_cache(maxsize=4)
def _load(names: ModelNames) -> Models:
    from ..engine import Engine
    from ..networks.predictors import NodulePredictor
    from ..nodules.models import latent_flow
    from .methods import Models

    engine = Engine(names.device)
    predictor = engine.networks(names.predictor)
    network = predictor.networks.get("predictor")
    if not isinstance(network, NodulePredictor):
        raise GenSegError(
            f"{predictor.bundle.name} is no predictor that can be evaluated: give nodule-cnn, nodule-tinyvit or a "
            "bundle that the same recipes trained."
        )
    segmenter = None
    if names.segmenter is not None:
        loaded = engine.networks(names.segmenter)
        if "segmenter" not in loaded.networks:
            raise GenSegError(f"{loaded.bundle.name} is a bundle of kind {loaded.bundle.kind}, but the upper "
                              "bound needs a segmenter.")
        segmenter = loaded.networks["segmenter"]
    return Models(latent_flow(engine.networks(names.flow)), network, segmenter)


def digests(names: ModelNames) -> list[str]:
    """Digests of the bundles, so that results of others are never taken for these."""
    from ..bundles import find_bundle

    given = [name for name in (names.flow, names.predictor, names.segmenter) if name is not None]
    return [find_bundle(name).digest[:16] for name in given]


@functools.cache
def code_digest() -> str:
    """Digest of GenSegLogic's sources, 16 hexadecimal digits: a figure may depend on any of them."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


class Cache:
    """Records by job, in one JSON-lines file; without a folder, in memory alone. Other code's records do not count."""

    def __init__(self, folder: Path | None, name: str) -> None:
        """
        Args:
            folder: made where it is not there.
            name: of the benchmark; the file is ``<name>.jsonl``.

        Raises:
            GenSegError: if the file cannot be read or made.
        """
        self._path = None if folder is None else Path(folder) / f"{name}.jsonl"
        self._records: dict[str, Record] = {}
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        except OSError as error:
            raise GenSegError(f"{self._path} cannot be used as a cache: {error.strerror}.") from error
        for line in lines:
            try:
                entry = json.loads(line)
                self._records[entry["job"]] = entry["record"]
            except (ValueError, KeyError, TypeError):
                continue  # a process was killed while it wrote this line: the job is done again
        # What was cut off must not be the beginning of the next line.
        self._ends_whole = not lines or self._path.read_bytes().endswith(b"\n")

    def get(self, job: Job) -> Record | None:
        """What a job gave before; None if it has not been done."""
        return self._records.get(_key(job))

    def put(self, job: Job, record: Record) -> None:
        """Keep a record, on the disk as well.

        Raises:
            GenSegError: if it cannot be written.
        """
        self._records[_key(job)] = record
        if self._path is None:
            return
        line = json.dumps({"job": _key(job), "record": record}) + "\n"
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line if self._ends_whole else "\n" + line)
        except OSError as error:
            raise GenSegError(f"{self._path} cannot be written: {error.strerror}.") from error
        self._ends_whole = True


def _key(job: Job) -> str:
    # Digests stand for the models: where they lie and where they ran does not matter.
    told = {name: value for name, value in job.items() if name != "models"}
    return json.dumps(told | {"code": code_digest()}, sort_keys=True)


def run_jobs(
    function: Callable[[Job], Record],
    jobs: Sequence[Job],
    cache: Cache,
    workers: int,
    progress: Progress,
    message: str,
) -> list[Record]:
    """Records of all jobs, in their order; those in the cache are not done again.

    Args:
        function: of a module's top level, so that a fresh process finds it.
        workers: processes; 1 works in this one.
        progress: raising out of it stops the run; what is done stays in the cache.
        message: what the jobs do, for progress.
    """
    missing = [job for job in jobs if cache.get(job) is None]
    done = len(jobs) - len(missing)

    def told() -> None:
        progress(done / max(len(jobs), 1), f"{message}: {done} of {len(jobs)}")

    told()
    if workers == 1 or len(missing) < 2:
        for job in missing:
            cache.put(job, function(job))
            done += 1
            told()
    else:
        # Spawned, not forked: torch's threads do not survive a fork, and Windows has none.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(missing)), mp_context=context) as pool:
            futures = {pool.submit(function, job): job for job in missing}
            try:
                for future in as_completed(futures):
                    cache.put(futures[future], future.result())
                    done += 1
                    told()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    records = [cache.get(job) for job in jobs]
    return [record for record in records if record is not None]


def threads_of(workers: int) -> int:
    """Threads for torch in each of so many processes; 0 (its own choice) for one."""
    return 0 if workers == 1 else max(1, (os.cpu_count() or 1) // workers)
