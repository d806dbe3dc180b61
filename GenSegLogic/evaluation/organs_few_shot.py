"""``genseg evaluate organs-few-shot``, ``btcv`` and ``chaos``: learn from a few labelled scans, segment the others.

DiffuSAM with its controls against a 2D U-Net on the same cases, alone and pretrained on phantoms. No setting is chosen
on the cases that are tested.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..bundles import AUTO, find_bundle
from ..datasets.labels import numbers_from
from ..datasets.organ_cases import OrganCase, read_numbered
from ..errors import GenSegError
from ..progress import Progress, part
from .jobs import Cache
from .nodules import count
from .organs import FOUR, mean_rows, organ_rows
from .organs_methods import Setting, few_shot_segmenters, pretrained_unet

METHODS = ("diffusam", "unet", "unet-phantom-pretrained", "mean-memory", "regressor", "true-memory")


def add_learning_arguments(parser: argparse.ArgumentParser, methods: Sequence[str], minutes: float = 5.0) -> None:
    """Options that the organ benchmarks share."""
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=methods, metavar="NAME",
                        help=f"what to compare (default all: {', '.join(methods)})")
    parser.add_argument("--minutes", type=float, default=minutes, metavar="N",
                        help=f"minutes of an adaptation at most (default {minutes:g})")
    parser.add_argument("--seeds", type=count, default=1, metavar="N", help="repetitions with other seeds (default 1)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda[:n]", help="where to compute (default auto)")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="keep finished cases here, so that a run can go on")


def add_few_shot_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of learning from a few cases, whatever the data set."""
    add_learning_arguments(parser, METHODS)
    parser.add_argument("--unet-minutes", type=float, default=10.0, metavar="N",
                        help="minutes of training a U-Net at most, and of pretraining it (default 10)")
    parser.add_argument("--bundle", default=AUTO, metavar="NAME",
                        help="bundle to start from (default auto: abdomen-ct or abdomen-mr)")
    parser.add_argument("--learn", nargs="+", metavar="CASE", help="names of the cases to learn from")
    parser.add_argument("--test", nargs="+", metavar="CASE", help="names of the cases to test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`organs_few_shot`."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR",
                        help="folder below which every image_N.nii.gz has its label_N.nii.gz")
    parser.add_argument("--numbers", default="chaos-1234", metavar="TEXT",
                        help="what label values stand for: chaos-1234 (default), btcv, chaos, amos, or pairs such as "
                             "1=liver,2=spleen")
    add_few_shot_arguments(parser)


def organs_few_shot(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Each case in turn is tested, the others are learned from; ``learn`` and ``test`` name cases instead.

    Returns:
        ``benchmark``, ``rows`` (one per method, case, seed and organ) and ``means``.

    Raises:
        GenSegError: if there are too few cases, or a bundle cannot be used.
    """
    cases = list(read_numbered(arguments["data"], numbers_from(arguments["numbers"])))
    if arguments["learn"] is None and arguments["test"] is None and len(cases) < 2:
        raise GenSegError(f"{arguments['data']} has a single case, but one is tested and others are learned from.")
    return {"benchmark": "organs-few-shot", **run_few_shot("organs-few-shot", splits(cases, arguments), arguments,
                                                           progress)}


def splits(cases: Sequence[OrganCase], arguments: Mapping[str, Any]) -> list[tuple[list[OrganCase], list[OrganCase]]]:
    """(learned from, tested): as named, else each case in turn.

    Raises:
        GenSegError: if a name is no case's, or is in both lists.
    """
    learn, test = arguments["learn"], arguments["test"]
    if learn is None and test is None:
        return [([other for other in cases if other is not case], [case]) for case in cases]
    names = {case.case_id: case for case in cases}
    for name in (*(learn or ()), *(test or ())):
        if name not in names:
            raise GenSegError(f"There is no case {name!r}; the cases are {', '.join(names)}.")
    learn = learn or [name for name in names if name not in test]
    test = test or [name for name in names if name not in learn]
    if set(learn) & set(test) or not learn or not test:
        raise GenSegError(f"Cases to learn from ({', '.join(learn)}) and to test ({', '.join(test)}) must differ.")
    return [([names[name] for name in learn], [names[name] for name in test])]


def run_few_shot(
    benchmark: str,
    split: Iterable[tuple[list[OrganCase], Iterable[OrganCase]]],
    arguments: Mapping[str, Any],
    progress: Progress,
) -> dict[str, Any]:
    """``rows`` and ``means`` of all splits, methods and seeds.

    Args:
        split: (learned from, tested); the tested are read one after another.
    """
    from ..engine import Engine
    from ..organs.diffusam.task import bundle_for, modality_of

    engine, cache, rows = Engine(arguments["device"]), Cache(arguments["cache"], benchmark), []
    pretrained: dict[tuple, Any] = {}
    every = list(split)
    units = [(learn, tests, seed) for learn, tests in every for seed in range(arguments["seeds"])]
    for number, (learn, tests, seed) in enumerate(units):
        told = part(progress, number / len(units), (number + 1) / len(units))
        modality = modality_of(learn[0].image)
        source = bundle_for(learn[0].image, arguments["bundle"])
        labelled = [name for name in FOUR if name in learn[0].organs]
        organs = tuple(labelled or learn[0].organs)
        setting = Setting(engine, source, organs, arguments["minutes"], arguments["unet_minutes"], seed)

        def start(setting: Setting = setting, modality: str = modality, told: Progress = told) -> Any:
            key = (setting.source, setting.organs)
            if key not in pretrained:  # once for all cases, with the seed of the first
                grid = _grid_of(setting)
                pretrained[key] = pretrained_unet("ct" if modality == "CT" else "t2-spir", grid, setting, told)
            return pretrained[key]

        base = {"learn": [fingerprint(case) for case in learn], "seed": seed, "organs": organs,
                "minutes": [setting.minutes, setting.unet_minutes], "digest": find_bundle(source).digest[:16]}
        segmenters = few_shot_segmenters(learn, arguments["methods"], setting, told, start)
        for method, learned in segmenters.items():
            learned = functools.cache(learned)
            for case in tests:
                job = {**base, "method": method, "case": fingerprint(case)}
                record = cache.get(job)
                if record is None:
                    found = learned()(case)
                    record = {"rows": organ_rows(found.labels, case.labels, organs, method=method, case=case.case_id,
                                                 seed=seed)}
                    cache.put(job, record)
                rows += record["rows"]
    return {"rows": rows, "means": mean_rows(rows)}


def fingerprint(case: OrganCase) -> str:
    """Name and content of a case: other data sets have cases of the same name."""
    content = hashlib.sha256(case.image.voxels.tobytes())
    content.update(case.labels.voxels.tobytes())
    content.update(case.image.affine.tobytes())
    return f"{case.case_id} {content.hexdigest()[:16]}"


def _grid_of(setting: Setting) -> Any:
    from ..organs.diffusam.task import load_models

    return load_models(setting.source, setting.engine).grid
