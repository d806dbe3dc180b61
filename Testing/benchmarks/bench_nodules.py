"""Nodules in ratios: plain training-free guidance against what ships, lung volume against time, peaks of memory.

Every peak is that of a process of its own; those of painting count from what it held when the models were loaded. All
methods paint the same nodules of the phantoms' test split from the same noise.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

MEGABYTE = 1e6
PLAIN = {"iterations": 1, "recurrences": 1, "samples": 1, "through_network": True, "only_darker": False}
METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "plain": {**PLAIN, "whole_field": True},
    "plain, same window": {**PLAIN, "whole_field": False},
}
WIDE_SCAN = (400, 512, 512)


def peak_bytes() -> int:
    """The most memory that this process has held; Linux only, for `resource` counts the parent's in after a fork."""
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM"))) * 1024


def shipped():
    """The shipped models and the precision that they run in."""
    from GenSegLogic.evaluation.jobs import ModelNames, autocast, load_models

    names = ModelNames("chest-flow", "nodule-cnn", None, "cpu")
    return load_models(names), autocast(names)


def paint_case(method: str, number: int) -> dict[str, float]:
    """Paint one nodule at the default's spacing; seconds of the guided pass, and Dice after the second one."""
    import torch

    from GenSegLogic.evaluation.cases import nodule_case
    from GenSegLogic.evaluation.methods import TASK, Situation, as_the_task
    from GenSegLogic.evaluation.metrics import dice
    from GenSegLogic.evaluation.nodules import FIELD_MARGIN_MM
    from GenSegLogic.nodules.region import paint, paint_anew
    from GenSegLogic.nodules.residual import combine

    models, autocast = shipped()
    half = models.flow.spacings_mm[-1] * models.flow.field_voxels / 2 + FIELD_MARGIN_MM
    case = nodule_case("test", number, half)
    setting = replace(TASK.guidance_settings(), **METHODS[method])
    with autocast:
        spacing = float(Situation(case, models).region.residual.spacing[0])
        started = time.perf_counter()
        generator = torch.Generator().manual_seed(case.seed)
        region, _ = paint(case.image, case.seed_point, spacing, models.flow, models.predictor, setting, generator)
        seconds = time.perf_counter() - started
        region = paint_anew(case.image, region, models.flow, generator, TASK.threshold)
    situation = Situation(case, models, painted={TASK.guidance: region})
    found = as_the_task(combine(case.image, [region]), situation, TASK.threshold)
    return {"seconds": seconds, "dice": dice(found, case.truth)}


def peak_of_painting(method: str) -> int:
    """Bytes that painting one field takes above the loaded models; for a process of its own."""
    import torch

    from GenSegLogic import Volume
    from GenSegLogic.evaluation.methods import TASK
    from GenSegLogic.nodules.region import paint

    models, autocast = shipped()
    image = Volume(np.full((64, 64, 64), -850, np.int16), np.diag([1.5, 1.5, 1.5, 1]), "lung", {})
    setting = replace(TASK.guidance_settings(), **METHODS[method], steps=1)
    before = peak_bytes()
    with autocast:
        paint(image, np.full(3, 48.0), 1.5, models.flow, models.predictor, setting, torch.Generator())
    return peak_bytes() - before


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


def peak_of_maisi() -> int:
    """Bytes that a process takes for one guided step of MAISI's own networks, random weights, on 64^3 voxels."""
    import torch

    from GenSegLogic.networks import build
    from GenSegLogic.networks.maisi import MAISI_AUTOENCODER, MAISI_VELOCITY
    from GenSegLogic.nodules.counterfactual import Guidance, ball, counterfactual
    from GenSegLogic.nodules.models import LatentFlow

    networks = [build("maisi-autoencoder", MAISI_AUTOENCODER), build("maisi-velocity", MAISI_VELOCITY)]
    for network in networks:
        network.eval().requires_grad_(False)
    flow = LatentFlow(networks[0], networks[1], 1.0, 4, (-1000.0, 1000.0), "RAS", field_voxels=64)
    predictor = build("predictor-cnn", {}).eval().requires_grad_(False)
    counterfactual(flow, predictor, torch.rand(1, 1, 64, 64, 64), ball((16,) * 3, (7.5,) * 3, 4.0, 2.0), 1.0,
                   Guidance(steps=1), torch.Generator())
    return peak_bytes()


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
        started = time.perf_counter()
        with autocast:
            find_candidates(scan, kept, models.predictor, models.flow.window_hu)
        litres = float(kept.voxels.sum() * np.prod(kept.spacing)) / 1e6
        result.append((litres, time.perf_counter() - started))
    return result[1:]


def in_a_process(*words: str) -> int:
    """What this script prints as its last line when it is run with ``words``, as a number of bytes."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodules", type=int, default=60, help="nodules of the test split (default 60)")
    parser.add_argument("--peak", choices=[*METHODS, "wide scan", "maisi"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        special = {"wide scan": peak_of_wide_scan, "maisi": peak_of_maisi}
        print(special[arguments.peak]() if arguments.peak in special else peak_of_painting(arguments.peak))
        return
    from GenSegLogic.evaluation.metrics import bootstrap_interval

    measured: dict[str, list[dict[str, float]]] = {name: [] for name in METHODS}
    for number in range(arguments.nodules):
        for name in METHODS:
            measured[name].append(paint_case(name, number))
    default = {key: np.array([one[key] for one in measured["default"]]) for key in ("seconds", "dice")}
    peaks = {name: in_a_process("--peak", name) for name in METHODS}
    print("guidance             seconds  x time  peak MB  x peak   Dice  default - this, 95 %")
    for name, rows in measured.items():
        seconds = np.array([row["seconds"] for row in rows]).mean()
        scores = np.array([row["dice"] for row in rows])
        low, high = bootstrap_interval(default["dice"] - scores)
        times, peak = seconds / default["seconds"].mean(), peaks[name] / peaks["default"]
        print(f"{name:20s} {seconds:7.2f} {times:7.2f} {peaks[name] / MEGABYTE:8.0f} {peak:7.2f} {scores.mean():6.3f}  "
              f"[{low:.3f}, {high:.3f}]")
    small, whole = seconds_by_lung()
    growth = (whole[1] / small[1]) / (whole[0] / small[0])
    print(f"search: {small[0]:.2f} l in {small[1]:.1f} s, {whole[0]:.2f} l in {whole[1]:.1f} s: {growth:.2f} x linear")
    for name in ("wide scan", "maisi"):
        print(f"peak of the process, {name}: {in_a_process('--peak', name) / 1e9:.2f} GB")
    print(json.dumps({name: [row["dice"] for row in rows] for name, rows in measured.items()}))


if __name__ == "__main__":
    main()
