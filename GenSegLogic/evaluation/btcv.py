"""``genseg evaluate btcv --root DIR``: few-shot on BTCV's CT, all but the first cases tested."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ..datasets.btcv import read_btcv
from ..datasets.organ_cases import OrganCase
from ..errors import GenSegError
from ..progress import Progress
from .nodules import count
from .organs_few_shot import add_few_shot_arguments, run_few_shot, splits


def add_root_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Options on a data set's folder and on how many of its cases are learned from."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR",
                        help=f"folder into which {name} was unpacked")
    parser.add_argument("--shots", type=count, default=5, metavar="N",
                        help="the first N cases are learned from, the others tested (default 5)")
    add_few_shot_arguments(parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`btcv`."""
    add_root_arguments(parser, "BTCV")


def btcv(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; returns ``benchmark``, ``rows`` and ``means``.

    Raises:
        GenSegError: if the folder is not BTCV's, or a bundle cannot be used.
    """
    split = first_cases(lambda: read_btcv(arguments["root"]), arguments)
    return {"benchmark": "btcv", **run_few_shot("btcv", split, arguments, progress)}


class Later:
    """Cases that are read anew each time they are gone through, one in memory at a time."""

    def __init__(self, read: Any, skip: int) -> None:
        self._read, self._skip = read, skip

    def __iter__(self) -> Iterator[OrganCase]:
        return islice(self._read(), self._skip, None)


def first_cases(read: Any, arguments: Mapping[str, Any]) -> list[tuple[list[OrganCase], Iterable[OrganCase]]]:
    """(learned from, tested): as the options name them, else the first cases and all others.

    Args:
        read: function that starts reading the data set.

    Raises:
        GenSegError: if there is no case left to test.
    """
    if arguments["learn"] is not None or arguments["test"] is not None:
        return [(learn, test) for learn, test in splits(list(read()), arguments)]
    shots = arguments["shots"]
    learn = list(islice(read(), shots))
    later = Later(read, shots)
    if next(iter(later), None) is None:
        raise GenSegError(f"{arguments['root']} has {len(learn)} cases, so none is left to test; give fewer --shots.")
    return [(learn, later)]
