"""The engine: one device, warm bundles, one task at a time."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from . import memory, provenance
from .errors import GenSegError
from .progress import Progress, silent
from .results import Results
from .task import Task
from .volume import Volume

if TYPE_CHECKING:
    import torch

    from .bundles import Bundle
    from .bundles.weights import LoadedBundle


@dataclass(frozen=True)
class Attempt:
    """One rung of the ladder: how a task is tried.

    Attributes:
        change: what is different from the rung before, for the message; empty on the first.
    """

    task: Task
    device: torch.device
    dtype: torch.dtype
    change: str = ""


@dataclass(frozen=True)
class _Warm:
    loaded: LoadedBundle
    device: torch.device
    bytes: int


class Engine:
    """Runs tasks on one device and keeps the networks that they use.

    ``Engine().run(NoduleTask(most=5), read_volume("chest.nrrd"))``

    Where the memory does not suffice, it tries the task's lighter variants, then lower precision, then the CPU, and
    says so in ``Results.messages``. Results made with the same seed by as many threads on the same kind of CPU are the
    same to the byte; another kind may compute in another precision (see :func:`precision`), and fewer threads in
    another order.
    Tasks from several threads run one after another.
    """

    def __init__(self, device: str = "auto", memory_limits: Mapping[str, int] | None = None) -> None:
        """
        Args:
            device: ``auto`` (a CUDA GPU where there is one, else the CPU), ``cpu``, ``cuda`` or ``cuda:N``.
            memory_limits: ``cpu`` and ``cuda`` -> bytes that may be used there at most, warm networks included; without
                one, what is free.

        Raises:
            GenSegError: if ``device`` is none of these words. Whether the GPU is there is seen on first use.
        """
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise GenSegError(f"The device is {device!r}, but must be auto, cpu, cuda or cuda:N.")
        self._wanted = device
        self._limits = dict(memory_limits or {})
        self._chosen: torch.device | None = None
        self._attempt: Attempt | None = None
        self._warm: OrderedDict[tuple[str, str], _Warm] = OrderedDict()  # least recently used first
        self._used: dict[str, Bundle] = {}
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        """Where the task in hand runs; between tasks, the device that was chosen.

        Raises:
            GenSegError: if PyTorch or the GPU that was asked for is not there.
        """
        if self._attempt is not None:
            return self._attempt.device
        if self._chosen is None:
            self._chosen = choose_device(self._wanted)
        return self._chosen

    @property
    def computes_on_host(self) -> bool:
        """Whether :attr:`device` is the CPU; an engine that was made for it knows without PyTorch."""
        return (self._attempt is None and self._wanted == "cpu") or self.device.type == "cpu"

    @property
    def dtype(self) -> torch.dtype:
        """The precision that tasks compute in, by autocast: weights and inputs stay float32, and what comes out of a
        network may be in this precision. See :func:`precision`.
        """
        if self._attempt is not None:
            return self._attempt.dtype
        return precision(self.device)

    def networks(self, bundle_name: str) -> LoadedBundle:
        """The networks of a bundle on :attr:`device`: float32, frozen, in evaluation mode, kept warm.

        Args:
            bundle_name: a bundle's name or folder. One that has changed on disk since is loaded again.

        Raises:
            GenSegError: if there is no such bundle or it is damaged.
        """
        from .bundles import find_bundle, load_bundle

        with self._lock:
            bundle = find_bundle(bundle_name)
            device = self.device
            key = (bundle.digest, str(device))
            if key not in self._warm:
                self._evict(device, until_free=bundle.size_bytes, keep={used.digest for used in self._used.values()})
                loaded = load_bundle(bundle, device)
                self._warm[key] = _Warm(loaded, device, _bytes_of(loaded))
            self._warm.move_to_end(key)
            if self._attempt is not None:  # within a run: part of its provenance, and not to be dropped under it
                self._used[bundle.name] = bundle
            return self._warm[key].loaded

    def warm_bundles(self) -> list[str]:
        """Names of the bundles in memory, least recently used first."""
        return [warm.loaded.bundle.name for warm in self._warm.values()]

    def release(self) -> None:
        """Drop all warm networks."""
        with self._lock:
            self._evict(None, until_free=None)

    def free_bytes(self, device: torch.device | None = None) -> int:
        """Bytes that a task may still use on ``device`` (None: :attr:`device`), within this engine's limit."""
        device = device or self.device
        free = memory.free_bytes(device)
        if device.type in self._limits:
            used = sum(warm.bytes for warm in self._warm.values() if warm.device == device)
            free = min(free, self._limits[device.type] - used)
        return max(0, free)

    def run(self, task: Task, volumes: Volume | Mapping[str, Volume], progress: Progress = silent) -> Results:
        """Run ``task`` and record its provenance.

        Args:
            task: what to do.
            volumes: the scan, or role -> volume with the scan as ``image``.
            progress: called with the fraction done and what is being done; raising Cancelled (or anything else) out of
                it stops the work within one step and comes out of here as it is.

        Raises:
            GenSegError: if an input is missing, the memory does not suffice anywhere, or the task fails.
        """
        if isinstance(volumes, Volume):
            volumes = {"image": volumes}
        _check_roles(task, volumes)
        while not self._lock.acquire(timeout=0.1):
            progress(0.0, "Waiting for the task before this one")
        try:
            return self._run(task, volumes, progress)
        finally:
            self._attempt = None
            self._used = {}
            self._lock.release()

    def _run(self, task: Task, volumes: Mapping[str, Volume], progress: Progress) -> Results:
        started, clock = datetime.now(UTC), time.perf_counter()
        progress(0.0, "Starting")
        messages = [str(repair) for volume in volumes.values() for repair in volume.metadata.get("repairs", ())]
        messages += task.preflight(volumes)
        record = provenance.record(task, volumes)
        results = self._climb_down(task, volumes, progress, messages)
        attempt = self._attempt
        assert attempt is not None  # set by the attempt that succeeded
        if attempt.task != task:
            record["parameters_used"] = provenance.plain(attempt.task.describe())
        record |= {
            "bundles": {
                name: {"digest": bundle.digest, "licence": bundle.metadata.get("licence", "")}
                for name, bundle in sorted(self._used.items())
            },
            "device": str(attempt.device),
            "precision": str(attempt.dtype).removeprefix("torch."),
            "threads": _torch().get_num_threads(),
            "started": started.isoformat(timespec="seconds"),
            "duration_seconds": round(time.perf_counter() - clock, 3),
        }
        results.messages = list(dict.fromkeys(messages + results.messages))
        results.provenance = results.provenance | record | {"summary": results.summary, "messages": results.messages}
        return results

    def _climb_down(
        self, task: Task, volumes: Mapping[str, Volume], progress: Progress, messages: list[str]
    ) -> Results:
        """Try the rungs of the ladder until one has enough memory; say in ``messages`` which were left."""
        reason, need = "", 0
        for attempt in ladder(task, self.device):
            self._attempt, self._used = attempt, {}
            if attempt.change:
                messages.append(f"{reason}, so the task went on {attempt.change}.")
                progress(0.0, messages[-1])
            need = attempt.task.memory_bytes(volumes, self)
            reason = self._shortage(attempt, volumes, need)
            if reason:
                continue
            try:
                with _reproducible(task.seed, attempt.device), _autocast(attempt):
                    return attempt.task.run(volumes, self, progress)
            except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
                if not _is_out_of_memory(error):
                    raise
                reason = f"The memory of {attempt.device} ran out"
            # Outside the except clause: the traceback held on to every tensor of the failed attempt.
            self._evict(attempt.device, until_free=None)
        lightest = ", at the smallest setting as well" if attempt.change else ""
        raise GenSegError(
            f"{reason} for {task.title or task.name} on {volumes['image'].name}{lightest}: "
            f"close other programs, crop the scan or use a machine with more than {memory.gigabytes(need)} free."
        )

    def _shortage(self, attempt: Attempt, volumes: Mapping[str, Volume], need: int) -> str:
        """Make room for ``need`` bytes by dropping warm networks; the reason why there is too little, or ""."""
        # The task's own networks are part of its need, so they stay and count as free.
        keep = {bundle.digest for bundle in attempt.task.bundles(volumes)}
        own_bytes = sum(warm.bytes for warm in self._warm.values()
                        if warm.device == attempt.device and warm.loaded.bundle.digest in keep)
        self._evict(attempt.device, until_free=need - own_bytes, keep=keep)
        free = self.free_bytes(attempt.device) + own_bytes
        if need <= free:
            return ""
        return (f"The memory of {attempt.device} is too small ({memory.gigabytes(need)} needed, "
                f"{memory.gigabytes(free)} free)")

    def _evict(
        self, device: torch.device | None, until_free: int | None, keep: set[str] | frozenset[str] = frozenset()
    ) -> None:
        """Drop warm networks on ``device`` (None: anywhere), least recently used first, until ``until_free`` bytes are
        free (None: all of them). Bundles whose digest is in ``keep`` stay."""
        candidates = [key for key, warm in self._warm.items() if device in (None, warm.device) and key[0] not in keep]
        for key in candidates:
            if until_free is not None and self.free_bytes(device) >= until_free:
                return
            del self._warm[key]
            gc.collect()
        if device is None or device.type == "cuda":
            torch = _torch()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def choose_device(wanted: str) -> torch.device:
    """The device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` stands for on this machine.

    Raises:
        GenSegError: if a GPU was asked for and is not there or does not work.
    """
    torch = _torch()
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device("cuda:0" if wanted in ("auto", "cuda") else wanted)
    problem = _gpu_problem(device)
    if not problem:
        return device
    if wanted == "auto":
        return torch.device("cpu")
    raise GenSegError(f"The device {wanted} cannot be used: {problem}; choose --device cpu or auto.")


def _gpu_problem(device: torch.device) -> str:
    """Why the GPU cannot be used, or "". A GPU may be there and yet too old for this build, so one sum is computed."""
    torch = _torch()
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} finds no CUDA GPU"
    if device.index >= torch.cuda.device_count():
        return f"this machine has {torch.cuda.device_count()} CUDA GPU(s), counted from 0"
    try:
        torch.ones(1, device=device).add(1).item()
    except RuntimeError as error:
        return str(error).splitlines()[0].rstrip(".")
    return ""


def precision(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively (there it is several times faster), else float32."""
    torch = _torch()
    if device.type == "cuda":
        native = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # torch says this of a CPU in private functions only; without them, float32 is always right.
        asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
        native = any(supported() for supported in asked if supported is not None)
    return torch.bfloat16 if native else torch.float32


def ladder(task: Task, device: torch.device) -> Iterator[Attempt]:
    """Smaller windows, then half precision at the smallest window where that is not used anyway, then the CPU."""
    torch = _torch()
    first = precision(device)
    yield Attempt(task, device, first)
    lightest = task
    while (lighter := lightest.lighter()) is not None:
        lightest = lighter
        yield Attempt(lightest, device, first, "with a smaller window")
    if device.type == "cpu":
        return  # half precision on a CPU without bfloat16 is slower, not lighter: most kernels widen to float32
    if first == torch.float32:
        yield Attempt(lightest, device, torch.float16, "in half precision")
    for attempt in ladder(task, torch.device("cpu")):
        yield Attempt(attempt.task, attempt.device, attempt.dtype, attempt.change or "on the CPU")


@contextlib.contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Deterministic kernels and seeded global generators inside; the process's own settings again after.

    Tasks draw from generators of their own; the global ones are seeded for the sake of libraries that do not.
    """
    torch = _torch()
    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
              torch.backends.cudnn.benchmark)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        # Warn only: some gradients have no deterministic kernel on a GPU, and only the CPU promises the same bytes.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.backends.cudnn.benchmark = before[2]


def _autocast(attempt: Attempt) -> contextlib.AbstractContextManager[Any]:
    """In half precision, cast what meets the networks and keep sums and norms in float32: tasks need not care."""
    torch = _torch()
    return torch.autocast(attempt.device.type, attempt.dtype, enabled=attempt.dtype != torch.float32)


_OUT_OF_MEMORY = ("DefaultCPUAllocator", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED",
                  "CUDNN_STATUS_ALLOC_FAILED", "CUDA error: out of memory", "Failed to allocate memory for image")
"""How plain RuntimeErrors say that memory ran out: of torch's allocator on the CPU, CUDA's libraries, SimpleITK."""


def _is_out_of_memory(error: BaseException) -> bool:
    return (isinstance(error, (MemoryError, _torch().OutOfMemoryError))
            or any(text in str(error) for text in _OUT_OF_MEMORY))


def _bytes_of(loaded: LoadedBundle) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for network in loaded.networks.values()
        for tensor in (*network.parameters(), *network.buffers())
    )


def _check_roles(task: Task, volumes: Mapping[str, Volume]) -> None:
    if "image" not in volumes:
        raise GenSegError(f"{task.name}: there is no scan; give a volume as 'image'.")
    unknown = sorted(set(volumes) - set(task.inputs))
    if unknown:
        raise GenSegError(f"{task.name}: {unknown[0]!r} is no input of this task; it takes {', '.join(task.inputs)}.")


def _torch() -> Any:
    """PyTorch, imported on first use: it takes seconds, and a first run in Slicer has to work without it."""
    try:
        import torch
    except ImportError as error:
        raise GenSegError(f"PyTorch cannot be loaded ({error}): install it with pip install torch.") from error
    return torch
