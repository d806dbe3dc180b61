"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Qt or matplotlib: no window is ever opened.
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("MPLBACKEND", "Agg")

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
