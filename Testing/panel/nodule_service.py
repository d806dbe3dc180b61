"""The real service with a nodule task that needs no trained model: what it finds is known, how long it takes is chosen.

Started by path, as the real one is.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np

from GenSegLogic import tasks
from GenSegLogic.engine import Engine
from GenSegLogic.errors import GenSegError
from GenSegLogic.nodules.measure import COLUMNS, measure
from GenSegLogic.nodules.segments import Finding, nodules_from_residual
from GenSegLogic.nodules.task import NoduleTask
from GenSegLogic.progress import Progress
from GenSegLogic.results import Results
from GenSegLogic.service.__main__ import main
from GenSegLogic.volume import Volume

STEP_SECONDS = 0.1
LUNG = -850


@dataclass(frozen=True)
class BrightNodules(NoduleTask):
    """Calls what is denser than lung a nodule: one for each seed point, or for each blob.

    ``seed`` 13 fails with a sentence, 14 with a bug, 15 ends the process as a crash does.
    """

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """As much as the scan."""
        return volumes["image"].voxels.nbytes

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Take :data:`STEP_SECONDS` for each step, then subtract the lung."""
        from scipy import ndimage

        image = volumes["image"]
        for step in range(self.steps):
            progress(step / self.steps, f"Painting region 1 without a nodule, step {step + 1}")
            time.sleep(STEP_SECONDS)
        if self.seed == 13:
            raise GenSegError(f"{image.name} has no lung: choose a chest CT.")
        if self.seed == 14:
            raise ZeroDivisionError("a bug")
        if self.seed == 15:
            os._exit(9)
        dense = image.voxels > LUNG + 200
        if "lungs" in volumes:
            dense &= volumes["lungs"].voxels > 0
        residual = image.with_voxels(np.where(dense, image.voxels - LUNG, 0).astype(np.float32), "residual")
        places = [np.array(point) for point in self.seed_points] or [
            image.to_lps(np.array(center)[::-1])
            for center in ndimage.center_of_mass(dense, ndimage.label(dense)[0],
                                                 range(1, ndimage.label(dense)[1] + 1))]
        findings = [Finding(tuple(map(float, place)), 12.0, 0.9) for place in places]
        segmentation = nodules_from_residual(residual, None, findings, self.threshold)
        rows = measure(image, segmentation, findings)
        without = image.with_voxels(np.where(dense, LUNG, image.voxels).astype(image.voxels.dtype), "counterfactual")
        return Results(
            volumes={"counterfactual": without, "residual": residual}, segmentations={"nodules": segmentation},
            tables={"nodules": rows}, columns={"nodules": COLUMNS}, synthetic=frozenset({"counterfactual"}),
            summary=f"{len(rows)} nodules.", provenance={"findings": [asdict(finding) for finding in findings]})


if __name__ == "__main__":
    tasks.TASKS.clear()
    tasks.TASKS["nodules"] = "__main__:BrightNodules"
    sys.exit(main())
