"""``genseg``: the command line.

Exit code 0: done. 2: wrong use. 1: failed, with one line on standard error and no traceback (``GENSEG_DEBUG=1`` shows
it).
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from types import FrameType, ModuleType

from . import __version__
from .commands.console import Console
from .commands.options import WrongUse, add_output_options, join_negative_values
from .errors import Cancelled, GenSegError
from .tasks import TASKS

COMMANDS: dict[str, str] = {
    "demo": "make a chest phantom (or take a scan), find its nodules, write a page to look at",
    "adapt": "adapt a bundle to cases of one's own, labelled or not",
    "batch": "run a task on every scan of a folder",
    "bundles": "list, show, fetch, verify, import or remove models",
    "train": "train the weights of a bundle",
    "evaluate": "run a benchmark and print its table",
    "serve": "run the engine behind HTTP, for panels and for this machine only",
    "phantom": "write a procedural scan with its exact truth",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``genseg``; None: those of this process.

    Returns:
        The exit code. Wrong use that argparse finds raises SystemExit(2), ``--help`` SystemExit(0).
    """
    if argv is None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, getattr(signal, "SIGHUP", None)):  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # which nohup asks for
                signal.signal(number, _interrupt)  # like Ctrl-C, so that nothing half-written stays behind
    words = join_negative_values(sys.argv[1:] if argv is None else argv)
    console = Console()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a Windows console that cannot show a letter must not end the command
            stream.reconfigure(errors="replace")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn about their own future, which no user of ours can change
            arguments = _parse(words)
            console = Console(getattr(arguments, "quiet", False), getattr(arguments, "json", False))
            result = _module(arguments.command).run(arguments, console)
    except WrongUse as error:
        console.fail(str(error))
        return 2
    except (KeyboardInterrupt, Cancelled):
        console.fail("Cancelled.")
        return 1
    except GenSegError as error:
        console.fail(str(error))
        return 1
    except OSError as error:
        console.fail(f"{error.filename or 'A file'} cannot be used: {error.strerror or error}.")
        return 1
    # The last resort of the process: a defect of ours also ends in one sentence and not in a traceback.
    except Exception as error:
        if os.environ.get("GENSEG_DEBUG"):
            raise
        console.fail(f"This is a defect in GenSeg ({type(error).__name__}: {error}); "
                     "run again with GENSEG_DEBUG=1 and report what it prints.")
        return 1
    console.result(result)
    return 1 if result.get("failed") else 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _module(command: str) -> ModuleType:
    name = "run_task" if command in TASKS else command
    return importlib.import_module(f".commands.{name}", __package__)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse; only the module of the command that was asked for is imported."""
    parser = argparse.ArgumentParser(
        prog="genseg", description="Generative segmentation of medical volumes. Not for clinical use.",
        allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"genseg {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in words if not word.startswith("-")), None)
    helps = {name: f"run the task {name} on one scan" for name in TASKS} | COMMANDS
    for name, help_text in helps.items():
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        add_output_options(command)
        if name == asked:
            command.set_defaults(task_name=name)
            _module(name).configure(command, words[list(words).index(name) + 1:])
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
