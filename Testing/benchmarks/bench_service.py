"""What the service costs: a volume's way there and back, and the second job beside the first one.

``python Testing/benchmarks/bench_service.py``. Times of one run on this machine; only their ratios mean something
elsewhere.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from GenSegLogic.service import Client, ServiceProcess
from GenSegLogic.volume import Volume

PROGRAM = Path(__file__).resolve().parents[1] / "service" / "tiny_service.py"
SHAPE = (300, 512, 512)
REPEATS = 5


def transport(client: Client) -> dict[str, float]:
    """Median seconds for a 512×512×300 int16 volume: sent, read by the service, and one like it written and fetched."""
    scan = Volume(np.random.default_rng(0).integers(-1000, 1000, SHAPE, np.int16), np.eye(4))
    rows: list[dict[str, float]] = []
    for _repeat in range(REPEATS):
        start = time.perf_counter()
        job = client.submit("echo", {}, {"image": scan})
        sent = time.perf_counter()
        state = job.wait()
        start_fetching = time.perf_counter()
        results = job.results()
        rows.append({"sent": sent - start, "read": state.seconds["reading"], "written": state.seconds["writing"],
                     "fetched": time.perf_counter() - start_fetching})
        assert np.array_equal(results.volumes["echo"].voxels, scan.voxels)
        job.delete()
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def overhead(client: Client, steps_seconds: float, started: float) -> tuple[float, float]:
    """Seconds besides the task's own steps: of the first job, the service's start included, and of the second."""
    scan = Volume(np.ones((60, 128, 128), np.int16), np.eye(4))
    parameters = {"steps": 10, "seconds": steps_seconds / 10}
    client.run("steps", parameters, {"image": scan})
    first = time.perf_counter() - started - steps_seconds
    started = time.perf_counter()
    client.run("steps", parameters, {"image": scan})
    return first, time.perf_counter() - started - steps_seconds


def main() -> None:
    """Print both tables, and one JSON line."""
    started = time.perf_counter()
    with ServiceProcess.start(device="cpu", program=PROGRAM) as service:
        client = service.wait()
        first, second = overhead(client, 0.5, started)
        seconds = transport(client)
    print(f"Overhead besides the task's own steps: first job {first:.2f} s, second {second:.2f} s, ratio "
          f"{second / first:.3f}")
    print("A volume of 512×512×300 int16, median of", REPEATS)
    for name, value in seconds.items():
        print(f"  {name:8s} {value:6.3f} s")
    print(f"  {'in all':8s} {sum(seconds.values()):6.3f} s")
    print(json.dumps({"benchmark": "service", "first_overhead_seconds": first, "second_overhead_seconds": second,
                      "ratio": second / first, "transport_seconds": seconds}))


if __name__ == "__main__":
    main()
