"""``genseg batch TASK INPUT_DIR -o OUT_DIR``: one folder per case, one table of all findings and one of all cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__, provenance
from ..errors import GenSegError
from ..results import Results
from ..tasks import TASKS, load_task
from .console import Console
from .options import (
    add_directory_option,
    add_mask_options,
    add_run_options,
    add_task_options,
    asked_for,
    checked_directory,
    masks_from,
    task_from,
)

if TYPE_CHECKING:
    from ..cohort import Case


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
    asked = asked_for(words, TASKS)
    if asked is not None:
        task = load_task(asked)
        add_mask_options(parser, task, folders=True)
        add_task_options(parser, task)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run every case; say one line for each; write the table of findings and ``cases.csv`` with one line for each."""
    from .. import cohort

    task = task_from(load_task(arguments.task), arguments)
    output = checked_directory(arguments.output).absolute()
    cases = cohort.find_cases(arguments.input.absolute(), masks_from(type(task), arguments), output)
    _check_names(cases, task.name)
    if loose := cohort.loose_dicom(arguments.input):
        rest = f" and {len(loose) - 1} more" if len(loose) > 1 else ""
        console.say(f"Left out: {loose[0]}{rest}, for the DICOM files of every case must lie in a sub-folder.")
    work = cohort.Cohort(task, output, arguments.device, arguments.series, arguments.resume)
    outcomes: list[cohort.Outcome] = []
    for outcome in cohort.run_cohort(work, cases, arguments.workers, arguments.ray, console.progress):
        outcomes.append(outcome)
        said = f"failed: {outcome.error}" if outcome.error else outcome.summary
        note = "done before" if outcome.resumed else f"{outcome.seconds:.1f} s"
        console.say(f"[{len(outcomes)}/{len(cases)}] {outcome.case}: {said} ({note})")
        for sentence in outcome.kept:
            console.say(sentence)
    order = {case.name: number for number, case in enumerate(cases)}
    outcomes.sort(key=lambda outcome: order[outcome.case])

    rows, columns = cohort.table(outcomes)
    tables = Results(
        tables={task.name: rows,
                "cases": [{"case": outcome.case, "error": outcome.error, "summary": outcome.summary,
                           "rows": len(outcome.rows)} for outcome in outcomes]},
        columns={task.name: columns},
        provenance={"genseg": __version__, "notice": provenance.NOTICE, "command": f"batch {task.name}",
                    "parameters": task.describe(), "versions": provenance.versions()},
    )
    files = tables.save(output)
    path = files[f"{task.name}.csv"]
    for sentence in tables.messages:
        console.say(sentence)
    failed = [outcome.case for outcome in outcomes if outcome.error]
    summary = f"{len(cases) - len(failed)} of {len(cases)} cases done."
    console.say(f"{summary} All rows: {path}. {provenance.NOTICE}")
    if failed:
        console.fail(f"{len(failed)} of {len(cases)} cases failed ({', '.join(failed)}); {path} says why.")
    return {
        "task": task.name,
        "directory": output,
        "files": files,
        "summary": summary,
        "cases": [{"case": outcome.case, "error": outcome.error, "summary": outcome.summary,
                   "resumed": outcome.resumed, "seconds": round(outcome.seconds, 3)} for outcome in outcomes],
        "rows": rows,
        "failed": failed,
    }


def _check_names(cases: Sequence[Case], task: str) -> None:
    """Raise GenSegError if a case has the name of a file that will lie beside its folder."""
    for case in cases:
        if case.name.casefold() in (f"{task}.csv", "cases.csv", provenance.FILE_NAME):
            raise GenSegError(f"{case.image} makes a case called {case.name}, which is the name of a table of all "
                              "cases: rename it.")


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 up")
    return int(text)
