"""What a command says, and where: sentences and the JSON line on standard output, progress on a terminal."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from ..provenance import plain


class Console:
    """Standard output and error of one command.

    Standard output holds the sentences (none with ``quiet``) and, with ``as_json``, one JSON object as its last line.
    Standard error holds progress while it is a terminal, and the one line of a failure. Where nobody reads any more
    what is printed, as behind ``| head``, the work goes on in silence.
    """

    def __init__(self, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet
        self.as_json = as_json
        self._shows_progress = not quiet and sys.stderr.isatty()
        self._line_open = False

    def say(self, sentence: str) -> None:
        """Print a line for people."""
        if not self.quiet:
            self.clear()
            _print(sentence, sys.stdout)

    def progress(self, fraction: float, message: str) -> None:
        """A :data:`GenSegLogic.progress.Progress`: one line that is written over, on terminals only."""
        if self._shows_progress:
            self._line_open = True
            _print(f"\r\x1b[2K{100 * fraction:3.0f} %  {message}"[:110], sys.stderr, end="")

    def clear(self) -> None:
        """Wipe the progress line."""
        if self._line_open:
            _print("\r\x1b[2K", sys.stderr, end="")
            self._line_open = False

    def result(self, result: Mapping[str, Any]) -> None:
        """Print the JSON line, if it was asked for."""
        self.clear()
        if self.as_json:
            _print(json.dumps(plain(result), allow_nan=False), sys.stdout)

    def fail(self, message: str) -> None:
        """Print the one line of a failure on standard error."""
        self.clear()
        _print(f"genseg: {' '.join(message.split())}", sys.stderr)


def _print(text: str, stream: TextIO, end: str = "\n") -> None:
    try:
        print(text, end=end, file=stream, flush=True)
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the terminal was closed
            raise
        # Python itself would complain of it again when it ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
