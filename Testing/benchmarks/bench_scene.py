"""What the scene costs at 512 x 512 x 300, measured against Slicer's own way of adding one such volume."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "GenSegExtension"), str(ROOT / "Testing")]

SHAPE = (300, 512, 512)
FINDINGS = 10


def main() -> None:
    """Print seconds, and the ratio to slicer.util.addVolumeFromArray, of everything that pauses the window."""
    try:
        import slicer_stand_in
        slicer = slicer_stand_in.install()
    except ImportError:
        print("slicer-core is not installed: nothing to measure")
        return
    from GenSegLogic.nodules.segments import CATEGORY, REGION, TYPE
    from GenSegLogic.results import Results, Segment, Segmentation
    from GenSegScene import display, findings
    from GenSegScene.volumes import volume_from_node
    from GenSegScene.writing import results_to_scene

    scan = np.random.default_rng(0).integers(-1000, 400, SHAPE, dtype=np.int16)
    geometry = np.diag([-0.7, -0.7, 1.0, 1.0])
    # The first call of each also pays for memory that the process has never touched; the second is reported.
    measured: dict[str, float] = {}

    def clock(name: str, action: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        value = action()
        measured[name] = time.perf_counter() - started
        return value

    for _ in range(2):
        slicer_stand_in.clear_scene()
        node = clock("slicer.util.addVolumeFromArray, one volume",
                     lambda: slicer.util.addVolumeFromArray(scan, geometry, "Chest"))
        volume = clock("node to engine", lambda node=node: volume_from_node(node))
        labels = np.zeros(SHAPE, np.uint8)
        corners = [(20 + 25 * number, 120 + 20 * number, 400 - 30 * number) for number in range(FINDINGS)]
        for label, (k, j, i) in enumerate(corners, start=1):
            labels[k:k + 12, j:j + 18, i:i + 18] = label
        residual = (100 * (labels > 0)).astype(np.float32)
        segments = tuple(Segment(number + 1, f"Nodule {number + 1}", (1, 0, 0), CATEGORY, TYPE, REGION)
                         for number in range(FINDINGS))
        places = [np.add(corner, (6, 9, 9))[::-1] for corner in corners]
        results = Results(
            volumes={"counterfactual": volume.with_voxels(scan), "residual": volume.with_voxels(residual)},
            segmentations={"nodules": Segmentation(volume.with_voxels(labels), segments)},
            tables={"nodules": [{"nodule": number + 1} for number in range(FINDINGS)]},
            synthetic=frozenset({"counterfactual"}),
            provenance={"inputs": {"image": {"affine_ijk_to_lps_mm": volume.affine.tolist()}},
                        "findings": [{"center": volume.to_lps(place).tolist(), "radius_mm": 15.0, "probability": 1.0}
                                     for place in places]})
        nodes = clock("all results to the scene", lambda node=node, results=results: results_to_scene(results, node))
        clock("dragging the threshold, one step", lambda nodes=nodes: display.set_threshold(nodes["residual"], 50))
        segmentation = nodes["nodules_segmentation"]
        clock("writing the threshold", lambda segmentation=segmentation: findings.write_threshold(segmentation, 50))
        findings.set_status(segmentation, segmentation.GetSegmentation().GetNthSegmentID(0), findings.ACCEPTED)
        clock("writing the threshold, one finding accepted",
              lambda segmentation=segmentation: findings.write_threshold(segmentation, 40))
    unit = measured["slicer.util.addVolumeFromArray, one volume"]
    print(f"{'512 x 512 x 300, 10 findings':<50}{'seconds':>9}{'ratio':>8}")
    for name, seconds in measured.items():
        print(f"{name:<50}{seconds:>9.3f}{seconds / unit:>8.2f}")


if __name__ == "__main__":
    main()
