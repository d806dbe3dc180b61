"""``genseg evaluate chaos --root DIR``: few-shot on one kind of CHAOS scan, all but the first cases tested."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..datasets.chaos import SEQUENCES, read_chaos
from ..progress import Progress
from .btcv import add_root_arguments, first_cases
from .organs_few_shot import run_few_shot


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`chaos`."""
    add_root_arguments(parser, "CHAOS")
    parser.add_argument("--sequence", choices=list(SEQUENCES), default="t2-spir", help="which scans (default t2-spir)")


def chaos(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; returns ``benchmark``, ``sequence``, ``rows`` and ``means``.

    Raises:
        GenSegError: if the folder is not CHAOS's, or a bundle cannot be used.
    """
    split = first_cases(lambda: read_chaos(arguments["root"], arguments["sequence"]), arguments)
    return {"benchmark": "chaos", "sequence": arguments["sequence"],
            **run_few_shot("chaos", split, arguments, progress)}
