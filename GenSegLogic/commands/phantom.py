"""``genseg phantom KIND -o DIR``: a procedural scan with its exact truth, as files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from .. import __version__, provenance
from ..results import Results, Segmentation
from ..tasks import load
from ..volume import Volume
from .console import Console
from .evaluate import add_own_arguments
from .options import add_directory_option, checked_directory, seed
from .run_task import tell

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
    directory = checked_directory(arguments.output)
    options = {name: value for name, value in vars(arguments).items() if name not in _OWN_ARGUMENTS}
    console.progress(0.0, f"Drawing a {arguments.kind} phantom")
    results = make_phantom(arguments.kind, arguments.seed, options)
    files = results.save(directory, next(iter(results.volumes.values())))
    tell(console, results, files)
    return {"phantom": arguments.kind, "directory": directory.absolute(), "files": files, "summary": results.summary}


def make_phantom(kind: str, seed: int, options: Mapping[str, Any] | None = None) -> Results:
    """A phantom as results: its scan, first among the volumes, its truth, and tables where it gives lists of rows.

    Args:
        options: what the kind's own arguments give; None: their defaults.
    """
    from ..phantoms import KINDS

    if options is None:
        parser = argparse.ArgumentParser()
        add_own_arguments(parser, KINDS, [kind])
        options = vars(parser.parse_args([]))
    parts = load(KINDS[kind])(seed, **options)
    volumes = {stem: part for stem, part in parts.items() if isinstance(part, Volume)}
    return Results(
        volumes=volumes,
        segmentations={stem: part for stem, part in parts.items() if isinstance(part, Segmentation)},
        tables={stem: part for stem, part in parts.items() if isinstance(part, list)},
        synthetic=frozenset(volumes),
        summary=f"A procedural {kind} phantom, seed {seed}; no patient.",
        provenance={"genseg": __version__, "notice": provenance.NOTICE, "phantom": kind, "seed": seed,
                    "options": options, "versions": provenance.versions()},
    )
