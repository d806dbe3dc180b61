"""``genseg train RECIPE``: make the weights of a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..engine import choose_device
from ..tasks import load
from .console import Console
from .options import add_device_option, asked_for, checked_bundle_folder, positive, seed

PRIORS = ("organs-ct", "organs-mr")
"""Recipes that train on any device, and for any SAM 2."""


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Recipes are named in :data:`GenSegLogic.training.recipes.RECIPES`."""
    from ..training.recipes import RECIPES

    parser.add_argument("recipe", metavar="RECIPE", choices=list(RECIPES), help=f"one of {', '.join(RECIPES)}")
    parser.add_argument("-o", "--output", metavar="DIR", type=Path,
                        help="folder of the bundle (default: the recipe's name in the folder bundles); training that "
                             "was interrupted goes on from what lies beside it")
    parser.add_argument("--minutes", type=positive, default=90.0,
                        help="about how long it takes; validating and calibrating come on top (default 90)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random numbers (default 0)")
    if asked_for(words, RECIPES) in PRIORS:
        add_device_option(parser)
        parser.add_argument("--sam2", metavar="NAME",
                            help="bundle of SAM 2 that the prior is trained for, or its folder (default abdomen-sam2, "
                                 "the one that ships)")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train, and say where the bundle is."""
    from ..training.recipes import RECIPES

    output = checked_bundle_folder(arguments.output or Path("bundles") / arguments.recipe)
    more = {}
    if arguments.recipe in PRIORS:
        more = {"device": str(choose_device(arguments.device)), "sam2": arguments.sam2}
    load(RECIPES[arguments.recipe])(output, arguments.minutes, arguments.seed, console.progress, **more)
    console.say(f"The bundle {output.name} is in {output}: give this folder where a bundle's name is asked for.")
    return {"recipe": arguments.recipe, "directory": output}
