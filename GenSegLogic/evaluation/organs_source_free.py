"""``genseg evaluate organs-source-free``: a bundle of one modality adapted to the other from unlabelled phantoms.

CT to MR and MR to CT. Controls: no adaptation, grey values aligned alone, and the same adaptation with labels. In all
of them the scans are windowed as their own modality wants it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..bundles import find_bundle
from ..organs.diffusam.models import OrganModels
from ..organs.diffusam.task import BUNDLES, load_models
from ..progress import Progress, part
from .jobs import Cache
from .nodules import count
from .organs import FOUR, mean_rows, organ_rows
from .organs_few_shot import add_learning_arguments
from .organs_methods import Segmenter, Setting, adapted, aligned, by_models
from .organs_phantom import LEARN, LOOKS, phantom

METHODS = ("no-adaptation", "intensity-alignment", "diffusam", "trained-on-labels")
DIRECTIONS = ("ct-to-mr", "mr-to-ct")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`organs_source_free`."""
    add_learning_arguments(parser, METHODS)
    parser.add_argument("--directions", nargs="+", default=list(DIRECTIONS), choices=DIRECTIONS, metavar="NAME",
                        help="ct-to-mr, mr-to-ct (default both)")
    parser.add_argument("--look", choices=LOOKS[1:], default="t2-spir", help="of the MR phantoms (default t2-spir)")
    parser.add_argument("--cases", type=count, default=6, metavar="N", help="test patients (default 6)")
    parser.add_argument("--unlabelled", type=count, default=4, metavar="N", help="patients to adapt to (default 4)")
    parser.add_argument("--ct-bundle", default=BUNDLES["CT"], metavar="NAME", help="bundle of CT (default abdomen-ct)")
    parser.add_argument("--mr-bundle", default=BUNDLES["MR"], metavar="NAME", help="bundle of MR (default abdomen-mr)")


def organs_source_free(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; the arguments are those of :func:`add_arguments`.

    Returns:
        ``benchmark``, ``rows`` (one per direction, method, case, seed and organ) and ``means``. Of the methods,
        ``diffusam`` is the source-free adaptation.

    Raises:
        GenSegError: if a bundle cannot be used.
    """
    from ..engine import Engine

    engine, cache, rows = Engine(arguments["device"]), Cache(arguments["cache"], "organs-source-free"), []
    units = [(direction, method, seed) for direction in arguments["directions"]
             for seed in range(arguments["seeds"]) for method in arguments["methods"]]
    for number, (direction, method, seed) in enumerate(units):
        told = part(progress, number / len(units), (number + 1) / len(units))
        names, looks = (arguments["ct_bundle"], arguments["mr_bundle"]), ("ct", arguments["look"])
        turn = 1 if direction == "ct-to-mr" else -1
        (source, _), (source_look, look) = names[::turn], looks[::turn]
        setting = Setting(engine, source, FOUR, arguments["minutes"], 0.0, seed)
        segmenter: Segmenter | None = None
        for patient in range(arguments["cases"]):
            told(0.9 + 0.1 * patient / arguments["cases"], f"{direction}, {method}: patient {patient + 1}")
            job = {"direction": direction, "method": method, "seed": seed, "patient": patient, "look": look,
                   "minutes": arguments["minutes"], "unlabelled": arguments["unlabelled"],
                   "digests": [find_bundle(name).digest[:16] for name in names]}
            record = cache.get(job)
            if record is None:
                if segmenter is None:
                    segmenter = _learn(method, setting, source_look, look, arguments["unlabelled"],
                                       part(told, 0, 0.9))
                case = phantom(patient, look, "test")
                found = segmenter(case)
                record = {"rows": organ_rows(found.labels, case.labels, FOUR, direction=direction, method=method,
                                             case=case.case_id, seed=seed)}
                cache.put(job, record)
            rows += record["rows"]
    return {"benchmark": "organs-source-free", "rows": rows, "means": mean_rows(rows, ("direction", "method"))}


def _learn(method: str, setting: Setting, source_look: str, look: str, unlabelled: int,
           progress: Progress) -> Segmenter:
    """The segmenter of a method, from the source bundle to scans of the other look."""
    own = load_models(setting.source, setting.engine)
    grid = own.grid.for_modality("CT" if look == "ct" else "MR")
    learn = [phantom(number, look, "validation") for number in range(unlabelled)]
    makers: dict[str, Callable[[], OrganModels]] = {
        "no-adaptation": lambda: replace(own, grid=grid),
        "intensity-alignment": lambda: aligned(
            own, [phantom(number, source_look, "train").image for number in range(LEARN)], grid),
        "diffusam": lambda: adapted(learn, setting, progress, source_free=True),
        "trained-on-labels": lambda: adapted(learn, setting, progress),
    }
    return by_models(makers[method](), setting.organs, setting.seed)
