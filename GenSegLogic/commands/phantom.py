"""``genseg phantom KIND -o DIR``: a procedural scan with its exact truth, as files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from .. import __version__, provenance
from ..results import Results, Segmentation
from ..tasks import load
from .console import Console
from .evaluate import add_own_arguments
from .options import add_directory_option, checked_directory, seed

_OWN_ARGUMENTS = ("command", "task_name", "quiet", "json", "kind", "output", "seed")


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Kinds are named in :data:`GenSegLogic.phantoms.KINDS`; each may add arguments of its own."""
    from ..phantoms import KINDS

    parser.add_argument("kind", metavar="KIND", choices=list(KINDS), help=f"one of {', '.join(KINDS)}")
    add_directory_option(parser)
    parser.add_argument("--seed", type=seed, default=0, help="another seed, another patient (default 0)")
    add_own_arguments(parser, KINDS, words)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Draw the phantom and save it like any result, marked as synthetic."""
    from ..phantoms import KINDS

    directory = checked_directory(arguments.output)
    options = {name: value for name, value in vars(arguments).items() if name not in _OWN_ARGUMENTS}
    console.progress(0.0, f"Drawing a {arguments.kind} phantom")
    parts = load(KINDS[arguments.kind])(arguments.seed, **options)
    volumes = {stem: part for stem, part in parts.items() if not isinstance(part, Segmentation)}
    results = Results(
        volumes=volumes,
        segmentations={stem: part for stem, part in parts.items() if isinstance(part, Segmentation)},
        synthetic=frozenset(volumes),
        summary=f"A procedural {arguments.kind} phantom, seed {arguments.seed}; no patient.",
        provenance={"genseg": __version__, "notice": provenance.NOTICE, "phantom": arguments.kind,
                    "seed": arguments.seed, "options": options, "versions": provenance.versions()},
    )
    files = results.save(directory, next(iter(volumes.values()), None))
    console.say(results.summary)
    for path in files.values():
        console.say(f"  {path}")
    return {"phantom": arguments.kind, "directory": directory.absolute(), "files": files, "summary": results.summary}
