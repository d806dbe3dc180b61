"""``genseg nodules IMAGE -o DIR`` and every other task on one scan."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..results import Results
from ..tasks import load_task
from .console import Console
from .options import (
    add_directory_option,
    add_mask_options,
    add_run_options,
    add_task_options,
    check_inputs,
    checked_directory,
    masks_from,
    task_from,
)


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the task that the parser's ``command`` default names."""
    task = load_task(parser.get_default("task_name"))
    parser.add_argument("image", metavar="IMAGE", type=Path, help=f"{task.inputs['image']}: a file or a DICOM folder")
    add_directory_option(parser)
    add_mask_options(parser, task)
    add_run_options(parser)
    add_task_options(parser, task)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Read, run, save, and say what came out."""
    from ..engine import Engine
    from ..volume import read_volume

    task = task_from(load_task(arguments.task_name), arguments)
    directory = checked_directory(arguments.output)
    masks = masks_from(type(task), arguments)
    check_inputs([arguments.image, *masks.values()], directory, task.name)
    engine = Engine(arguments.device)
    console.progress(0.0, f"Starting on {engine.device}")  # first, so that a missing GPU is said before a long read
    volumes = {"image": read_volume(arguments.image, series=arguments.series)}
    volumes |= {role: read_volume(path) for role, path in masks.items()}
    results = engine.run(task, volumes, console.progress)
    console.progress(1.0, "Saving")
    files = results.save(directory, volumes["image"])
    tell(console, results, files)
    return report(results, directory, files)


def tell(console: Console, results: Results, files: Mapping[str, Path]) -> None:
    """Say the messages, the summary and where the files are."""
    for sentence in (*results.messages, results.summary):
        if sentence:
            console.say(sentence)
    for path in files.values():
        console.say(f"  {path}")


def report(results: Results, directory: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """What ``--json`` prints: paths, summary, messages and the rows of the first table."""
    return {
        "task": results.provenance.get("task"),
        "directory": directory.absolute(),
        "files": files,
        "summary": results.summary,
        "messages": results.messages,
        "rows": next(iter(results.tables.values()), []),
    }
