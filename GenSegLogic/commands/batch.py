"""``genseg batch TASK INPUT_DIR -o OUT_DIR``: one folder per case, one table of all findings and one of all cases."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..tasks import TASKS, load_task
from .console import Console
from .options import (
    add_directory_option,
    add_mask_options,
    add_run_options,
    add_task_options,
    checked_directory,
    masks_from,
    task_from,
)


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments of the task that ``words`` name first."""
    parser.add_argument("task", metavar="TASK", choices=list(TASKS), help=f"one of {', '.join(TASKS)}")
    parser.add_argument("input", metavar="INPUT_DIR", type=Path,
                        help="folder with an image file, or a sub-folder with DICOM or one image, for every case")
    add_directory_option(parser)
    parser.add_argument("--workers", type=_count, default=1, metavar="N", help="processes on this machine (default 1)")
    parser.add_argument("--resume", action="store_true",
                        help="leave out cases that were done before with the same parameters")
    parser.add_argument("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, or auto")
    add_run_options(parser)
    asked = next((word for word in words if word in TASKS), None)
    if asked is not None:
        task = load_task(asked)
        add_mask_options(parser, task, folders=True)
        add_task_options(parser, task)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run every case; say one line for each; write the table of findings and ``cases.csv`` with one line for each."""
    from .. import cohort
    from ..provenance import NOTICE

    task = task_from(load_task(arguments.task), arguments)
    output = checked_directory(arguments.output).absolute()
    cases = cohort.find_cases(arguments.input.absolute(), masks_from(type(task), arguments), output)
    work = cohort.Cohort(task, output, arguments.device, arguments.series, arguments.resume)
    outcomes: list[cohort.Outcome] = []
    for outcome in cohort.run_cohort(work, cases, arguments.workers, arguments.ray, console.progress):
        outcomes.append(outcome)
        said = f"failed: {outcome.error}" if outcome.error else outcome.summary
        note = "done before" if outcome.resumed else f"{outcome.seconds:.1f} s"
        console.say(f"[{len(outcomes)}/{len(cases)}] {outcome.case}: {said} ({note})")
    order = {case.name: number for number, case in enumerate(cases)}
    outcomes.sort(key=lambda outcome: order[outcome.case])

    rows, columns = cohort.table(outcomes)
    output.mkdir(parents=True, exist_ok=True)
    path = output / f"{task.name}.csv"
    _write(path, rows, columns)
    cases_path = output / "cases.csv"
    _write(cases_path, [{"case": outcome.case, "error": outcome.error, "summary": outcome.summary,
                         "rows": len(outcome.rows)} for outcome in outcomes], ("case", "error", "summary", "rows"))
    failed = [outcome.case for outcome in outcomes if outcome.error]
    summary = f"{len(cases) - len(failed)} of {len(cases)} cases done."
    console.say(f"{summary} All rows: {path}. {NOTICE}")
    if failed:
        console.fail(f"{len(failed)} of {len(cases)} cases failed ({', '.join(failed)}); {path} says why.")
    return {
        "task": task.name,
        "directory": output,
        "files": {path.name: path, cases_path.name: cases_path},
        "summary": summary,
        "cases": [{"case": outcome.case, "error": outcome.error, "summary": outcome.summary,
                   "resumed": outcome.resumed, "seconds": round(outcome.seconds, 3)} for outcome in outcomes],
        "rows": rows,
        "failed": failed,
    }


def _write(path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Write a table whole or not at all."""
    from ..saving import write_table

    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        write_table(partial, rows, columns)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)
