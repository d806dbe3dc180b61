"""What all tests share."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Qt or matplotlib: no window is ever opened.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("MPLBACKEND", "Agg")

# A shell starts what runs in its background with Ctrl-C ignored, and the processes that tests interrupt inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_DATA = Path(__file__).parents[2] / "shared" / "realdata"


@pytest.fixture(autouse=True, scope="session")
def _own_cache_folder() -> Iterator[None]:
    """Keep the tests, and the processes that they start, out of the user's bundles and downloads."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENSEG_HOME", folder)
        yield


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real scans beside the checkout; a test that asks for it is skipped where it is not there."""
    if not REAL_DATA.is_dir():
        pytest.skip(f"no real scans at {REAL_DATA}")
    return REAL_DATA
