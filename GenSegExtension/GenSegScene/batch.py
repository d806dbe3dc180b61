"""A task on every scan of a folder, without a window.

    Slicer --no-main-window --python-script GenSegExtension/GenSegScene/batch.py -- nodules INPUT_DIR -o OUT_DIR
    python -m GenSegScene.batch nodules INPUT_DIR -o OUT_DIR

The arguments are those of ``genseg batch`` and the work is done by the same code: one folder per case, one table for
all, ``--resume``. Exit code 0: done; 2: wrong use; 1: a case failed, after the others were finished. Inside Slicer,
which prints lines of its own, ``--json`` also writes the JSON object to ``OUT_DIR/batch.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

# A script run by its path has its own folder in front, where a module of ours could shadow a library's.
_FOLDER = Path(__file__).resolve().parent
sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != _FOLDER]
if str(_FOLDER.parent) not in sys.path:
    sys.path.insert(0, str(_FOLDER.parent))

import GenSegScene  # noqa: E402, F401 - makes GenSegLogic importable


def main(argv: Sequence[str]) -> int:
    """Run ``genseg batch`` with these words.

    Args:
        argv: what follows ``--`` on the command line.

    Returns:
        The exit code.
    """
    from GenSegLogic import cli
    from GenSegLogic.errors import GenSegError
    from GenSegScene import requirements

    words = list(argv[1:] if argv[:1] == ["--"] else argv)
    try:
        if _inside_slicer() and _wants_workers(words):
            _prepare_workers()
        requirements.ensure()
    except GenSegError as error:
        print(f"genseg: {error}", file=sys.stderr, flush=True)
        return 1
    if not ("--json" in words and _inside_slicer()):
        return cli.main(["batch", *words])
    with _copied_output() as lines:
        code = cli.main(["batch", *words])
    _write_json(lines.getvalue())
    return code


def _inside_slicer() -> bool:
    return "slicer" in sys.modules and hasattr(sys.modules["slicer"], "app")


def _wants_workers(words: Sequence[str]) -> bool:
    """Whether ``--workers`` asks for more than one; what is no number is left for the command to refuse."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--workers", nargs="?")
    asked = parser.parse_known_args(words)[0].workers or ""
    return asked.isdecimal() and int(asked) > 1


def _prepare_workers() -> None:
    """Let worker processes start with the real Python, which PythonSlicer starts in its turn.

    Inside Slicer ``sys.executable`` is PythonSlicer, through which no worker comes up and multiprocessing waits for
    ever (Slicer issue 7445). The real Python lies beside it, and not in the folder that ``sys.base_exec_prefix`` names.

    Raises:
        GenSegError: if it is not there.
    """
    import slicer

    from GenSegLogic.errors import GenSegError

    python = Path(slicer.app.slicerHome) / "bin" / ("python-real.exe" if os.name == "nt" else "python-real")
    if not python.is_file():
        raise GenSegError(f"Workers need Slicer's own Python, which is not at {python}: leave --workers out.")
    multiprocessing.set_executable(str(python))


@contextlib.contextmanager
def _copied_output() -> Iterator[io.StringIO]:
    """Keep a copy of what is printed meanwhile."""
    copy, output = io.StringIO(), sys.stdout

    class Both(io.TextIOBase):
        def write(self, text: str) -> int:
            output.write(text)
            return copy.write(text)

        def flush(self) -> None:
            output.flush()

    both: TextIO | Any = Both()
    with contextlib.redirect_stdout(both):
        yield copy


def _write_json(printed: str) -> None:
    """Write the JSON object that ends ``printed`` to its own ``directory``; nothing when there is none."""
    lines = printed.strip().splitlines()
    if not lines or not lines[-1].startswith("{"):
        return
    path = Path(json.loads(lines[-1])["directory"]) / "batch.json"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(lines[-1] + "\n", encoding="utf-8")
    os.replace(partial, path)


def _exit_code() -> int:
    try:
        return main(sys.argv[1:])
    except SystemExit as error:  # argparse ends like this
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except BaseException:  # whatever it is: Slicer goes on running unless the script exits with a code
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    code = _exit_code()
    sys.stdout.flush()
    sys.exit(code)
