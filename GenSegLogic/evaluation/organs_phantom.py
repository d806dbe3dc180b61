"""``genseg evaluate organs-phantom``: organs without prompts on phantoms of kept-back seeds and wider ranges."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..anatomy import ORGANS
from ..bundles import find_bundle
from ..datasets.organ_cases import OrganCase
from ..organs.diffusam.task import BUNDLES, load_models
from ..phantoms.abdomen_looks import LOOKS
from ..progress import Progress
from .jobs import Cache
from .nodules import count
from .organs import FOUR, confidence_row, flicker_row, mean_rows, means_of, organ_rows
from .organs_methods import Segmenter, by_models, mean_memory, regressor, true_memory

METHODS = ("diffusam", "mean-memory", "regressor", "true-memory")
LEARN = 3
"""Training phantoms over which the memory of ``mean-memory`` is averaged."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`organs_phantom`."""
    parser.add_argument("--cases", type=count, default=6, metavar="N", help="test patients, in every look (default 6)")
    parser.add_argument("--looks", nargs="+", default=list(LOOKS), choices=LOOKS, metavar="LOOK",
                        help=f"which looks (default all: {', '.join(LOOKS)})")
    parser.add_argument("--all-organs", action="store_true", help="all 13 organs instead of liver, spleen and kidneys")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS, metavar="NAME",
                        help=f"what to compare (default all: {', '.join(METHODS)})")
    parser.add_argument("--split", choices=("test", "validation"), default="test",
                        help="which patients (default test, never trained on)")
    parser.add_argument("--ct-bundle", default=BUNDLES["CT"], metavar="NAME", help="bundle for CT (default abdomen-ct)")
    parser.add_argument("--mr-bundle", default=BUNDLES["MR"], metavar="NAME", help="bundle for MR (default abdomen-mr)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="where to compute (default auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep finished cases here, so that a run can go on")


def organs_phantom(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; the arguments are those of :func:`add_arguments`.

    Returns:
        ``benchmark``, ``rows`` (one per method, look, case and organ), ``means``, ``flicker`` and ``confidence`` (means
        over the cases of a look).

    Raises:
        GenSegError: if a bundle cannot be used.
    """
    from ..engine import Engine

    engine, cache = Engine(arguments["device"]), Cache(arguments["cache"], "organs-phantom")
    organs = tuple(ORGANS) if arguments["all_organs"] else FOUR
    records = []
    units = [(look, method) for look in arguments["looks"] for method in arguments["methods"]]
    for number, (look, method) in enumerate(units):
        bundle = find_bundle(arguments["ct_bundle"] if look == "ct" else arguments["mr_bundle"])
        learned: list[Segmenter] = []

        def segmenter(name: str = str(bundle.folder), method: str = method, look: str = look) -> Segmenter:
            models = load_models(name, engine)
            makers: dict[str, Callable[[], Segmenter]] = {
                "diffusam": lambda: by_models(models, organs),
                "mean-memory": lambda: mean_memory(models, organs, [phantom(n, look, "train") for n in range(LEARN)]),
                "regressor": lambda: regressor(models, organs),
                "true-memory": lambda: true_memory(models, organs),
            }
            return makers[method]()

        for seed in range(arguments["cases"]):
            progress((number + seed / arguments["cases"]) / len(units), f"{method}, {look}, patient {seed + 1}")
            job = {"digest": bundle.digest[:16], "look": look, "method": method, "seed": seed,
                   "split": arguments["split"], "organs": organs}
            record = cache.get(job)
            if record is None:
                learned = learned or [segmenter()]
                record = _measure(phantom(seed, look, arguments["split"]), learned[0], organs, method, look)
                cache.put(job, record)
            records.append(record)
    rows = [row for record in records for row in record["rows"]]
    return {
        "benchmark": "organs-phantom",
        "rows": rows,
        "means": mean_rows(rows, ("method", "look")),
        "flicker": means_of([record["flicker"] for record in records],
                            ("neighbour_dice", "neighbour_dice_truth", "difference"), ("method", "look")),
        "confidence": means_of([record["confidence"] for record in records if record["confidence"] is not None],
                               ("auroc_confidence", "auroc_distance", "difference", "wrong_percent"),
                               ("method", "look")),
    }


def phantom(seed: int, look: str, split: str) -> OrganCase:
    """A phantom as a labelled case."""
    from ..phantoms.abdomen import abdomen_phantom

    made = abdomen_phantom(seed, look, split)
    return OrganCase(made.image.name, made.image, made.labels, tuple(ORGANS))


def _measure(case: OrganCase, segment: Segmenter, organs: tuple[str, ...], method: str, look: str) -> dict[str, Any]:
    found = segment(case)
    about = {"method": method, "look": look, "case": case.case_id}
    confidence = None
    if method == "diffusam":  # the controls have no ensemble
        confidence = confidence_row(found.labels, case.labels, found.confidence, organs, **about)
    return {"rows": organ_rows(found.labels, case.labels, organs, **about),
            "flicker": flicker_row(found.labels, case.labels, organs, **about), "confidence": confidence}
