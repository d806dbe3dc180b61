"""``genseg serve``: the engine behind HTTP, on this machine only."""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import GenSegError
from ..service.wire import LOOPBACK, TOKEN_VARIABLE
from .options import positive


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments. The token has none, for everybody on the machine can read a process's command line."""
    parser.add_argument("--device", action="append", help="auto, cpu, cuda or cuda:N; given again, one queue each")
    parser.add_argument("--host", default=LOOPBACK, help=f"a loopback address of this machine (default {LOOPBACK})")
    parser.add_argument("--port", type=int, default=0, help="0 lets the system choose (default)")
    parser.add_argument("--token-file", type=Path,
                        help=f"file that holds the bearer token; else it is taken from ${TOKEN_VARIABLE}")
    parser.add_argument("--ready-file", type=Path, help="written when the service answers: port, pid, version as JSON")
    parser.add_argument("--log-file", type=Path, help="where the log goes, instead of standard error")
    parser.add_argument("--parent", type=int, metavar="PID", help="end when this process ends")
    parser.add_argument("--time-to-live", type=positive, default=3600.0, metavar="SECONDS",
                        help="delete what nobody asks for after so long (default 3600)")


def run(arguments: argparse.Namespace, console: Any) -> dict[str, Any]:
    """Serve until a signal comes or the parent ends.

    Raises:
        GenSegError: if the token is missing, the host is not this machine, or FastAPI or uvicorn is not installed.
    """
    token = _token(arguments.token_file)
    _log_to(arguments.log_file)
    try:
        from ..service.running import run_service
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("GenSegLogic"):
            raise
        raise GenSegError(f"The service needs {error.name}: install it with pip install fastapi uvicorn.") from error
    run_service(token, arguments.device or ["auto"], arguments.host, arguments.port, arguments.ready_file,
                arguments.parent, arguments.time_to_live, console.say)
    return {"served": True}


def _token(file: Path | None) -> str:
    inherited = os.environ.pop(TOKEN_VARIABLE, "")  # popped, so that no process that a library starts inherits it
    if file is None:
        if not inherited:
            raise GenSegError(f"The service needs a token: set {TOKEN_VARIABLE} to a long random text, or name a file "
                              "that holds it with --token-file.")
        return inherited
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise GenSegError(f"The token file {file} cannot be read: {error}.") from error


def _log_to(file: Path | None) -> None:
    try:
        logging.basicConfig(filename=file, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s",
                            force=True)
    except OSError as error:
        raise GenSegError(f"The log file {file} cannot be written: {error.strerror}.") from error
    if file is None:
        faulthandler.enable()
    else:
        faulthandler.enable(logging.root.handlers[0].stream)  # type: ignore[attr-defined]
