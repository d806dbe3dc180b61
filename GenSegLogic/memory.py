"""How much memory is free, on the host and on a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Limit and use of the container that this process runs in (cgroup version 2, then 1). psutil sees the host only, and a
# process that believes the host is killed without a word.
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
     "/sys/fs/cgroup/memory/memory.stat"),
)


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on ``device``: GPU memory, or the host's and the container's for the CPU."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    import psutil

    free = psutil.virtual_memory().available
    for files in _CGROUP_FILES:
        container = container_free_bytes(*map(Path, files))
        if container is not None:
            return min(free, container)
    return free


def container_free_bytes(limit_file: Path, usage_file: Path, statistics_file: Path) -> int | None:
    """Bytes left in a control group; None where there is no such group or it sets no limit."""
    try:
        limit, usage = limit_file.read_text().strip(), int(usage_file.read_text())
        statistics = dict(line.split() for line in statistics_file.read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not limit.isdigit():
        return None
    cache = int(statistics.get("inactive_file", statistics.get("total_inactive_file", 0)))  # given back on demand
    return max(0, int(limit) - usage + cache)


def gigabytes(count: float) -> str:
    """``12.3 GB``, for messages."""
    return f"{count / 1e9:.1f} GB"
