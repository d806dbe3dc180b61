"""``genseg`` as a process, for tests of interrupts and of what reaches the terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from Testing.logic.threshold_task import TARGET

ROOT = Path(__file__).parents[2]


def start(*words: object, **options: Any) -> subprocess.Popen[str]:
    """``genseg`` as a process that knows the threshold task."""
    code = f"from GenSegLogic.tasks import TASKS; TASKS['threshold'] = {TARGET!r}\n" + textwrap.dedent("""
        import sys
        from GenSegLogic.cli import main
        sys.exit(main())
    """)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], text=True, env=environment, **options)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a process has made a file."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
