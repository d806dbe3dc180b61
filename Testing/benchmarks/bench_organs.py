"""What organs without prompts cost beside SAM 2's own propagation from a perfect prompt, on the same slices.

``python Testing/benchmarks/bench_organs.py``. Encoder included everywhere; all in the precision that the engine takes
here. Processor time of one thread, so that a machine that is shared does no harm; only ratios mean something elsewhere.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import numpy as np
import torch
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import find_bundle, load_bundle
from GenSegLogic.engine import precision
from GenSegLogic.organs.diffusam.models import OrganModels, organ_models
from GenSegLogic.organs.diffusam.propagate import segment
from GenSegLogic.organs.diffusam.task import OrgansTask
from GenSegLogic.phantoms.abdomen import abdomen_phantom

REPEATS = 3
SLICES = 32


@torch.inference_mode()
def native(models: OrganModels, voxels: np.ndarray, masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """SAM 2's own video propagation: every organ's true mask on its largest slice, then forward and backward.

    Returns:
        organ -> (K, S, S) bool.
    """
    sam2 = models.sam2
    video = (torch.from_numpy(voxels)[:, None] - sam2.mean) / sam2.std
    session = Sam2VideoInferenceSession(video=video, video_height=video.shape[-2], video_width=video.shape[-1],
                                        dtype=video.dtype, max_vision_features_cache_size=len(video))
    found = {}
    for number, (name, mask) in enumerate(masks.items()):
        session.reset_tracking_data()
        start = int(mask.sum((1, 2)).argmax())
        index = session.obj_id_to_idx(number)
        session.add_mask_inputs(index, start, torch.from_numpy(mask[start]).float()[None, None])
        session.obj_with_new_inputs = [number]
        result = np.zeros(mask.shape, bool)
        for reverse in (False, True):
            for output in sam2.model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                logits = torch.nn.functional.interpolate(output.pred_masks.float(), mask.shape[1:], mode="bilinear")
                result[output.frame_idx] = logits[0, 0].numpy() > 0
        found[name] = result
    return found


def seconds(work: Callable[[], object]) -> float:
    """Median of some runs, after one that warms up."""
    work()
    durations = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        durations.append(time.process_time() - began)
    return statistics.median(durations)


def ours(models: OrganModels, volume, organs: Sequence[str], steps: int) -> float:  # type: ignore[no-untyped-def]
    """Seconds of a volume with the task's ensemble."""
    return seconds(lambda: segment(volume, models, organs, steps, OrgansTask().samples))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision(device) == torch.bfloat16):
        _table()


def _table() -> None:
    models = organ_models(load_bundle(find_bundle("abdomen-ct")), load_bundle(find_bundle("abdomen-sam2")))
    for seed in itertools.count():  # the first patient who lacks no organ
        phantom = abdomen_phantom(seed, "ct", "test", slices=SLICES)
        labels = models.grid.apply_labels(phantom.labels, phantom.image)
        masks = {name: labels == organ.label for name, organ in ORGANS.items()}
        if all(mask.any() for mask in masks.values()):
            break
    volume = models.grid.apply(phantom.image)
    every, one = list(masks), ["liver"]
    times = {
        ("SAM 2's propagation", 1): seconds(lambda: native(models, volume.voxels, {"liver": masks["liver"]})),
        ("SAM 2's propagation", len(every)): seconds(lambda: native(models, volume.voxels, masks)),
    }
    for steps in (2, 8):
        for organs in (one, every):
            times[f"organs, {steps} steps", len(organs)] = ours(models, volume, organs, steps)
    print(f"{len(volume.voxels)} slices, {OrgansTask().samples} members, one thread")
    for (what, count), duration in times.items():
        ratio = duration / times["SAM 2's propagation", count]
        print(f"{what:22s} {count:3d} organs {duration:8.2f} s {ratio:6.2f} x SAM 2")
    for steps in (2, 8):
        ratio = times[f"organs, {steps} steps", len(every)] / times[f"organs, {steps} steps", 1]
        print(f"{len(every)} organs cost {ratio:.2f} x one at {steps} steps")


if __name__ == "__main__":
    main()
