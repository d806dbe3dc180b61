"""The real service with small tasks added: what they compute is known beforehand, and how long they take is chosen.

Started by path, as the real one is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from GenSegLogic import tasks
from GenSegLogic.engine import Engine
from GenSegLogic.errors import GenSegError
from GenSegLogic.progress import Progress
from GenSegLogic.results import Code, Results, Segment, Segmentation
from GenSegLogic.service.__main__ import main
from GenSegLogic.task import Task, parameter
from GenSegLogic.volume import Volume

CATEGORY, KIND = Code("SCT", "49755003", "Morphologically Altered Structure"), Code("SCT", "27925004", "Nodule")


@dataclass(frozen=True)
class StepsTask(Task):
    """Negates the scan in small steps."""

    name: ClassVar[str] = "steps"
    title: ClassVar[str] = "Steps"
    inputs: ClassVar[Mapping[str, str]] = {"image": "the scan", "mask": "where to look"}

    steps: int = parameter(3, "How many steps.", minimum=1, maximum=10000)
    seconds: float = parameter(0.0, "How long each takes.", minimum=0.0, maximum=10.0, unit="s")
    fail: str = parameter("no", "How it ends.", choices=("no", "sentence", "bug", "leave", "memory", "gpu", "exit"))
    points: tuple[tuple[float, float, float], ...] = parameter((), "Where to look.", unit="mm")
    bundle: str = parameter("", "A bundle.")

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """As much as the scan."""
        return volumes["image"].voxels.nbytes

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Negate, threshold and count."""
        image = volumes["image"]
        for step in range(self.steps):
            progress(step / self.steps, f"Step {step + 1} of {self.steps}")
            time.sleep(self.seconds)
        if self.fail == "sentence":
            raise GenSegError(f"{image.name} has nothing to negate.")
        if self.fail == "bug":
            raise ZeroDivisionError("a bug\nwith a second line")
        if self.fail == "leave":
            sys.exit("a library's way out")
        if self.fail == "gpu":  # the text that PyTorch gives; a real one needs a broken GPU
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
        if self.fail == "memory":
            import torch

            torch.empty(1 << 60)
        if self.fail == "exit":
            os._exit(7)
        labels = (image.voxels > 0).astype(np.uint8)
        rows = [{"center_l_mm": point[0], "volume_mm3": float("nan"), "count": np.int64(labels.sum())}
                for point in self.points]
        return Results(
            volumes={"negative": image.with_voxels(-image.voxels, "negative")},
            segmentations={"negative": Segmentation(image.with_voxels(labels),
                                                    (Segment(1, "Nodule 1", (1.0, 0.5, 0.0), CATEGORY, KIND),))},
            tables={"negative": rows},
            columns={"negative": ("center_l_mm", "volume_mm3", "count")},
            synthetic=frozenset({"negative"}),
            summary=f"{int(labels.sum())} voxels above 0.",
        )


@dataclass(frozen=True)
class EchoTask(Task):
    """Gives the scan back, for measuring its way there and back."""

    name: ClassVar[str] = "echo"
    title: ClassVar[str] = "Echo"

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """Nothing besides the scan."""
        return 0

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Give the scan back."""
        return Results(volumes={"echo": volumes["image"]})


if __name__ == "__main__":
    tasks.TASKS.clear()
    tasks.TASKS["echo"] = "__main__:EchoTask"
    tasks.TASKS["steps"] = "__main__:StepsTask"
    sys.exit(main())
