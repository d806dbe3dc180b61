"""Nodules in ratios: plain training-free guidance against what ships, lung volume against time, peaks of memory.

Seconds are of processor time, so that other work on the machine does not count.

Memory is measured twice, above the loaded models: the most that tensors hold at once, as
`torch.cuda.max_memory_allocated` counts it on a GPU, and the growth of a process of its own, to which libraries add
what they load and keep on first use, whatever the method. Plain guidance holds all that torch keeps for a gradient. All
methods paint the same nodules of the phantoms from the same noise, and then their place anew, as the task does; without
the second pass, as published, plain guidance is faster and outlines worse.

The steps of the default and of plain guidance were chosen on the validation split: ``--split validation --nodules 28``
prints what they were chosen by.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MEGABYTE = 1e6


def plain(steps: int) -> dict[str, Any]:
    """Plain guidance, with the default's strength in 4 steps, and each as much weaker where there are more."""
    return {"iterations": 1, "recurrences": 1, "samples": 1, "through_network": True, "only_darker": False,
            "whole_field": True, "steps": steps, "strength": 2.4 / steps}


METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": plain(12),
    "plain, one pass": plain(12),
    "plain, same window": {**plain(12), "whole_field": False},
    "plain, 4 steps": plain(4),
    "plain, 8 steps": plain(8),
    "plain, 16 steps": plain(16),
}
"""Guidance by its settings. Plain guidance takes 12 steps, beyond which it gains little on the validation split: over
28 nodules its mean Dice is 0.701 in 4, as many as the default's, 0.736 in 8, 0.760 in 12 and 0.775 in 16; the
default's is 0.813."""
MAISI_STEPS: dict[str, tuple[str, bool]] = {
    "default": ("default", True),
    "plain": ("plain", False),
    "plain, same window": ("plain, same window", False),
    "plain, our norms": ("plain", True),
}
"""Of the methods those that differ within one step, and whether the decoder normalises as ours does or as MONAI's."""
WIDE_SCAN = (400, 512, 512)


def peak_bytes() -> int:
    """The most memory that this process has held; Linux only, for `resource` counts the parent's in after a fork."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def shipped():
    """The shipped models and the precision that they run in."""
    from GenSegLogic.evaluation.jobs import ModelNames, autocast, load_models

    names = ModelNames("chest-flow", "nodule-cnn", None, "cpu")
    return load_models(names), autocast("cpu")


def flow_of(method: str, flow):
    """The flow that a method paints with: only the default's decoder is sparing."""
    from GenSegLogic.nodules.models import LatentFlow

    class Plain(LatentFlow):
        decode_for_gradient = LatentFlow.decode

    return flow if method == "default" else Plain(**vars(flow))


def paint_case(split: str, number: int) -> dict[str, dict[str, float]]:
    """Paint one nodule by every method, at the default's centre and spacing.

    Returns:
        By method: seconds of its one or two passes, and Dice after them.
    """
    import torch

    from GenSegLogic.evaluation.cases import nodule_case
    from GenSegLogic.evaluation.methods import TASK, Situation, as_the_task
    from GenSegLogic.evaluation.metrics import dice
    from GenSegLogic.evaluation.nodules import FIELD_MARGIN_MM
    from GenSegLogic.nodules.region import paint, paint_anew
    from GenSegLogic.nodules.residual import combine

    models, autocast = shipped()
    half = models.flow.spacings_mm[-1] * models.flow.field_voxels / 2 + FIELD_MARGIN_MM
    case = nodule_case(split, number, half)
    result = {}
    with autocast:
        default = Situation(case, models).region
        center, spacing = default.center, default.spacing_mm
        for method, changes in METHODS.items():
            setting = replace(TASK.guidance_settings(), **changes)
            generator = torch.Generator().manual_seed(case.seed)
            started = time.process_time()
            flow = flow_of(method, models.flow)
            region, _ = paint(case.image, center, spacing, flow, models.predictor, setting, generator)
            if method != "plain, one pass":
                region = paint_anew(case.image, region, models.flow, generator, TASK.threshold)
            seconds = time.process_time() - started
            situation = Situation(case, models, painted={TASK.guidance: region})
            found = as_the_task(combine(case.image, [region]), situation, TASK.threshold)
            result[method] = {"seconds": seconds, "dice": dice(found, case.truth)}
    return result


def tensor_bytes(function: Callable[[], object]) -> int:
    """The most bytes that the tensors made by a function hold at once."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        function()
    changes = [(event.start_ns(), event.nbytes()) for event in measured.profiler.kineto_results.events()
               if event.name() == "[memory]"]
    return int(np.cumsum([size for _, size in sorted(changes, key=lambda change: change[0])]).max())


def painting(method: str) -> Callable[[], object]:
    """One step of painting one field by the shipped models."""
    import torch

    from GenSegLogic import Volume
    from GenSegLogic.evaluation.methods import TASK
    from GenSegLogic.nodules.region import paint

    models, autocast = shipped()
    image = Volume(np.full((64, 64, 64), -850, np.int16), np.diag([1.5, 1.5, 1.5, 1]), "lung", {})
    setting = replace(TASK.guidance_settings(), **{**METHODS[method], "steps": 1})
    flow = flow_of(method, models.flow)

    def paint_once() -> None:
        with autocast:
            paint(image, np.full(3, 48.0), 1.5, flow, models.predictor, setting, torch.Generator())

    return paint_once


def tensors_of(load: Callable[[], Callable[[], object]]) -> int:
    """Bytes that the tensors hold at most in what a function loads, above what it loaded."""
    return tensor_bytes(load())


def process_of(load: Callable[[], Callable[[], object]]) -> tuple[object, int, int]:
    """What a loaded function returns, by how many bytes it raises the process's peak, and to how many."""
    work = load()
    loaded = peak_bytes()
    result = work()
    return result, peak_bytes() - loaded, peak_bytes()


def peak_of_wide_scan() -> int:
    """Bytes that a process takes for the whole task on a scan of 512 x 512 x 400, interpreter and models included."""
    from scipy import ndimage

    from GenSegLogic import Engine, NoduleTask, Volume
    from GenSegLogic.evaluation.cases import whole_scan

    scan = whole_scan("test", 0, (2, 2)).image
    factors = np.array(WIDE_SCAN) / np.array(scan.shape)
    voxels = ndimage.zoom(scan.voxels, factors, order=0)
    image = Volume(voxels, scan.affine @ np.diag([*(1 / factors[::-1]), 1.0]), "wide scan", {})
    Path("/proc/self/clear_refs").write_text("5")  # drawing the phantom does not count
    Engine("cpu").run(NoduleTask(most=2), image)
    return peak_bytes()


def maisi_step(method: str, our_norms: bool) -> Callable[[], float]:
    """Guidance by MAISI's own networks, random weights, on 64^3 voxels; called, it tells the second step's seconds."""
    import torch
    from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi

    from GenSegLogic.evaluation.methods import TASK
    from GenSegLogic.networks import build
    from GenSegLogic.networks.maisi import MAISI_AUTOENCODER, MAISI_VELOCITY
    from GenSegLogic.networks.predictors import cnn
    from GenSegLogic.nodules.counterfactual import ball, counterfactual
    from GenSegLogic.nodules.models import LatentFlow
    from GenSegLogic.nodules.region import REGION_RADIUS

    monais = partial(AutoencoderKlMaisi, norm_float16=False, num_splits=1)
    autoencoder = build("maisi-autoencoder", MAISI_AUTOENCODER) if our_norms else monais(**MAISI_AUTOENCODER)
    networks = [autoencoder, build("maisi-velocity", MAISI_VELOCITY)]
    for network in networks:
        network.eval().requires_grad_(False)
    flow = flow_of(method, LatentFlow(networks[0], networks[1], 1.0, 4, (-1000.0, 1000.0), "RAS", field_voxels=64))
    predictor = cnn().eval().requires_grad_(False)
    region = ball((16,) * 3, (7.5,) * 3, REGION_RADIUS * 16 - 1, 2.0)
    setting = replace(TASK.guidance_settings(), **{**METHODS[method], "steps": 2})

    def guide() -> float:
        told: list[float] = []
        counterfactual(flow, predictor, torch.rand(1, 1, 64, 64, 64), region, 1.0, setting, torch.Generator(),
                       lambda step, steps: told.append(time.process_time()))
        return told[-1] - told[-2]  # the first step warms up

    return guide


def seconds_by_lung(parts: tuple[float, ...] = (0.5, 1.0)) -> list[tuple[float, float]]:
    """Litres of lung and seconds of its search, for the lower part of a scan's lungs and for all of them."""
    from GenSegLogic.evaluation.cases import whole_scan
    from GenSegLogic.nodules.lungs import lung_mask
    from GenSegLogic.nodules.search import find_candidates

    scan = whole_scan("test", 0, (2, 2)).image
    models, autocast = shipped()
    lungs = lung_mask(scan)
    rows = np.cumsum(lungs.voxels.sum((1, 2)) > 0)
    result = []
    for share in (parts[0], *parts):  # the first run warms up and does not count
        kept = lungs.with_voxels(np.where((rows <= share * rows[-1])[:, None, None], lungs.voxels, 0))
        started = time.process_time()
        with autocast:
            find_candidates(scan, kept, models.predictor, models.flow.window_hu)
        litres = float(kept.voxels.sum() * np.prod(kept.spacing)) / 1e6
        result.append((litres, time.process_time() - started))
    return result[1:]


LOADS: dict[str, Callable[[], Callable[[], object]]] = {
    **{name: partial(painting, name) for name in METHODS},  # of the first pass, which holds the most
    **{f"MAISI, {name}": partial(maisi_step, *kind) for name, kind in MAISI_STEPS.items()},
}
IN_A_PROCESS: dict[str, Callable[[], Any]] = {
    **{f"tensors of {name}": partial(tensors_of, load) for name, load in LOADS.items()},
    **{f"process of {name}": partial(process_of, load) for name, load in LOADS.items()},
    "wide scan": peak_of_wide_scan,
}


def in_a_process(name: str) -> Any:
    """What a function of IN_A_PROCESS returns in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--only", name], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_ratios(title: str, measured: dict[str, dict[str, float]], more: dict[str, str]) -> None:
    """One row a method, each measure also in multiples of the default's; measure -> method -> value."""
    heads = "".join(f"{measure:>12s}      x" for measure in measured)
    print(f"{title:20s}{heads}{'   Dice  default - this, 95 %' if more else ''}")
    for name in next(iter(measured.values())):
        cells = [f"{values[name]:12.2f} {values[name] / values['default']:6.2f}" for values in measured.values()]
        print(f"{name:20s}{''.join(cells)}{more.get(name, '')}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodules", type=int, default=60, help="how many of them (default 60)")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="which (default test)")
    parser.add_argument("--only", choices=IN_A_PROCESS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(IN_A_PROCESS[arguments.only]()))
        return
    from GenSegLogic.evaluation.metrics import bootstrap_interval

    cases = [paint_case(arguments.split, number) for number in range(arguments.nodules)]
    measured = {key: {name: np.array([case[name][key] for case in cases]) for name in METHODS}
                for key in ("seconds", "dice")}
    told = {}
    for name, scores in measured["dice"].items():
        low, high = bootstrap_interval(measured["dice"]["default"] - scores)
        told[name] = f" {scores.mean():6.3f}  [{low:.3f}, {high:.3f}]"
    alone = {name: in_a_process(f"process of {name}") for name in LOADS}
    tensors = {name: in_a_process(f"tensors of {name}") / MEGABYTE for name in LOADS}
    print_ratios(f"{len(cases)} nodules", {
        "seconds": {name: seconds.mean() for name, seconds in measured["seconds"].items()},
        "tensor MB": {name: tensors[name] for name in METHODS},
        "process MB": {name: alone[name][1] / MEGABYTE for name in METHODS},
    }, told)
    print_ratios("one step, MAISI-size", {
        "seconds": {name: alone[f"MAISI, {name}"][0] for name in MAISI_STEPS},
        "tensor MB": {name: tensors[f"MAISI, {name}"] for name in MAISI_STEPS},
        "process MB": {name: alone[f"MAISI, {name}"][1] / MEGABYTE for name in MAISI_STEPS},
    }, {})
    print(f"peak of the process, MAISI-size: {alone['MAISI, default'][2] / 1e9:.2f} GB")
    print(f"peak of the process, wide scan: {in_a_process('wide scan') / 1e9:.2f} GB")
    small, whole = seconds_by_lung()
    growth = (whole[1] / small[1]) / (whole[0] / small[0])
    print(f"search: {small[0]:.2f} l in {small[1]:.1f} s, {whole[0]:.2f} l in {whole[1]:.1f} s: {growth:.2f} x linear")
    print(json.dumps({name: scores.tolist() for name, scores in measured["dice"].items()}))


if __name__ == "__main__":
    main()
