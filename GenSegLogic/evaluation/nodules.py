"""``genseg evaluate nodules-phantom``: the nodule method against its control and its rivals on phantoms.

Thresholds, layers and baseline images of all methods are chosen on the validation split, the figures are those of the
test split: other patients, and ranges of the generator's parameters beyond those of training (see
:mod:`GenSegLogic.phantoms.splits`). Nodules under two slices across count for detection only.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..nodules.lungs import lung_mask, with_margin
from ..nodules.search import find_candidates
from ..progress import Progress, part
from ..volume import Volume
from . import cases, table
from .jobs import Cache, Job, ModelNames, Record, autocast, digests, load_models, run_jobs, threads_of
from .methods import TASK, Choice, Models, Situation, choose, false_voxels, measure, methods, search_settings

PREDICTORS = ("nodule-cnn", "nodule-tinyvit")
PARTS = ("segmentation", "clean", "detection")
NODULES_PER_SCAN = (2, 4)
FIELD_MARGIN_MM = 8.0
"""Room round a field for the click's jitter and for resampling."""


def count(text: str) -> int:
    """An argparse type: a whole number from 1 up."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 up")
    return int(text)


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Options on bundles, device and cache, shared by the nodule benchmarks."""
    parser.add_argument("--predictor", nargs="+", default=["both"], metavar="NAME",
                        help="predictor bundles; both (default) are nodule-cnn and nodule-tinyvit")
    parser.add_argument("--bundle", default=TASK.bundle, metavar="NAME",
                        help=f"bundle of the generative model (default {TASK.bundle})")
    parser.add_argument("--segmenter", default="nodule-unet", metavar="NAME",
                        help="bundle of the supervised upper bound (default nodule-unet); none leaves it out")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="where to compute (default auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep finished cases here, so that a run can go on")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`nodules_phantom`."""
    add_model_arguments(parser)
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all", help="what to measure (default all)")
    parser.add_argument("--nodules", type=count, default=70, metavar="N", help="test nodules (default 70)")
    parser.add_argument("--validation", type=count, default=35, metavar="N",
                        help="validation nodules, on which thresholds are chosen (default 35)")
    parser.add_argument("--clean", type=count, default=30, metavar="N",
                        help="scans without nodules, to count false voxels in and to search (default 30)")
    parser.add_argument("--scans", type=count, default=45, metavar="N",
                        help="scans with two to four nodules to search (default 45)")
    parser.add_argument("--workers", type=count, default=1, metavar="N", help="processes (default 1)")


def nodules_phantom(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; the arguments are those of :func:`add_arguments`.

    Returns:
        ``benchmark``, ``rows``, ``paired``, ``clean``, ``chosen``, ``detection`` (of the first predictor) and
        ``detection_by_predictor``; the parts that were not asked for are left out.

    Raises:
        GenSegError: if a bundle or the cache cannot be used.
    """
    parts = PARTS if arguments["part"] == "all" else (arguments["part"],)
    cache = Cache(arguments["cache"], "nodules-phantom")
    result: dict[str, Any] = {"benchmark": "nodules-phantom", "rows": []}
    names = model_names(arguments, arguments["workers"])
    for number, predictor in enumerate(names):
        told = part(progress, 0.7 * number / len(names), 0.7 * (number + 1) / len(names))
        label = predictor_label(predictor)
        base = job_base(predictor)
        chosen: dict[str, Any] | None = None
        if "segmentation" in parts or "clean" in parts:
            chosen = _choose(arguments, base, cache, part(told, 0, 0.4))
            result.setdefault("chosen", []).extend(table.chosen_rows(label, chosen))
        if "segmentation" in parts:
            jobs = _jobs(base, "test nodule", arguments["nodules"], chosen=chosen)
            records = _run(arguments, jobs, cache, part(told, 0.4, 0.8), "Test nodules")
            result["rows"] += table.segmentation_rows(label, records)
            result.setdefault("paired", []).extend(table.paired_rows(label, records))
        if "clean" in parts:
            jobs = _jobs(base, "clean", arguments["clean"], chosen=chosen)
            records = _run(arguments, jobs, cache, part(told, 0.8, 1), "Scans without nodules")
            result.setdefault("clean", []).extend(table.clean_rows(label, records))
    if "detection" in parts:
        # One job for all predictors: drawing a whole scan takes as long as searching it.
        base = {"models": [asdict(n) for n in names], "digests": [digests(n) for n in names], "task": TASK.describe()}
        jobs = _jobs(base, "scan", arguments["scans"], nodules=NODULES_PER_SCAN)
        jobs += _jobs(base, "scan", arguments["clean"], first=arguments["scans"], nodules=(0, 0))
        records = _run(arguments, jobs, cache, part(progress, 0.7, 1), "Searched scans")
        rows = [table.detection(predictor_label(predictor), records) for predictor in names]
        result |= {"detection": rows[0], "detection_by_predictor": rows}
    return result


def model_names(arguments: Mapping[str, Any], workers: int) -> list[ModelNames]:
    """The models that the arguments ask for, one entry a predictor."""
    asked = [name for word in arguments["predictor"] for name in (PREDICTORS if word == "both" else (word,))]
    segmenter = None if arguments["segmenter"] == "none" else arguments["segmenter"]
    threads = threads_of(workers)
    return [
        ModelNames(arguments["bundle"], name, segmenter, arguments["device"], threads) for name in dict.fromkeys(asked)
    ]


def predictor_label(names: ModelNames) -> str:
    """The predictor's name in tables, also where a folder was given."""
    from ..bundles import find_bundle

    return find_bundle(names.predictor).name


def job_base(names: ModelNames) -> Job:
    """What every job on these models starts from; results of other weights or settings are never taken for its own."""
    return {"models": asdict(names), "digests": digests(names), "task": TASK.describe()}


def _jobs(base: Job, what: str, number: int, first: int = 0, **more: Any) -> list[Job]:
    return [{**base, "what": what, "number": n, **more} for n in range(first, first + number)]


def _run(arguments: Mapping[str, Any], jobs: list[Job], cache: Cache, progress: Progress, message: str) -> list[Record]:
    return run_jobs(do, jobs, cache, arguments["workers"], progress, message)


def _choose(arguments: Mapping[str, Any], base: Job, cache: Cache, progress: Progress) -> dict[str, Any]:
    """What the validation split chooses, as plain JSON: method -> setting and threshold."""
    jobs = _jobs(base, "validation nodule", arguments["validation"])
    tried = _run(arguments, jobs, cache, progress, "Validation nodules")
    rows = methods(base["models"]["segmenter"] is not None)
    return {name: asdict(choice) for name, choice in choose(rows, [record["dice"] for record in tried]).items()}


def do(job: Job) -> Record:
    """Do one job, in whichever process: load the models, draw the case, measure."""
    if job["what"] == "scan":
        searched = [ModelNames(**names) for names in job["models"]]
        scan = cases.whole_scan("test", job["number"], tuple(job["nodules"]))
        with autocast(searched[0].device):
            return search_scan(scan, {predictor_label(names): load_models(names) for names in searched})
    names = ModelNames(**job["models"])
    models = load_models(names)
    half = models.flow.spacings_mm[-1] * models.flow.field_voxels / 2 + FIELD_MARGIN_MM
    with autocast(names.device):
        if job["what"] == "clean":
            return _false_voxels(job, models, half)
        split = "validation" if job["what"] == "validation nodule" else "test"
        case = cases.nodule_case(split, job["number"], half)
        return measure_case(case, models, job.get("chosen"))


def measure_case(case: cases.Case, models: Models, chosen: Mapping[str, Any] | None) -> Record:
    """Without ``chosen`` the Dice of all settings (``dice``), with it the figures of what was chosen (``methods``)."""
    rows = methods(models.segmenter is not None)
    situation = Situation(case, models)
    if chosen is None:
        return {"dice": search_settings(situation, rows)}
    choices = {name: Choice(choice["setting"], choice["threshold"]) for name, choice in chosen.items()}
    return {
        "kind": case.kind,
        "diameter_mm": case.diameter_mm,
        "spacing_mm": situation.region.spacing_mm,
        "probability": [situation.region.probability_before, situation.region.probability_after],
        "methods": measure(situation, rows, choices),
    }


def _false_voxels(job: Job, models: Models, half_mm: float) -> Record:
    threshold = job["chosen"]["guided"]["threshold"]
    found = cases.clean_cases("test", job["number"], half_mm)
    return {"places": {place: false_voxels(Situation(case, models), threshold) for place, case in found}}


def search_scan(scan: cases.Scan, models: Mapping[str, Models]) -> Record:
    """Search a whole scan as the task does, with each predictor, and say which nodule holds each candidate's centre."""
    lungs = with_margin(lung_mask(scan.image))
    return {
        "diameters_mm": list(scan.diameters_mm),
        "kinds": list(scan.kinds),
        "marks": {label: marks(scan.image, lungs, scan.labels, own) for label, own in models.items()},
    }


def marks(image: Volume, lungs: Volume, labels: np.ndarray, models: Models) -> list[tuple[float, int]]:
    """Probability of every candidate and the label at its centre (0 outside the scan)."""
    found = []
    for candidate in find_candidates(image, lungs, models.predictor, models.flow.window_hu):
        index = np.round(image.to_indices(candidate.center)[::-1]).astype(int)
        inside = np.all((index >= 0) & (index < image.shape))
        found.append((candidate.probability, int(labels[tuple(index)]) if inside else 0))
    return found
