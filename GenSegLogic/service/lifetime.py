"""A process ends when the one that started it does, on every platform and however that one ended: the service, and a
panel's learning."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

import psutil

from ..errors import GenSegError

logger = logging.getLogger(__name__)

GREETING = b"genseg\n"
"""What the starting process writes to the other's standard input, and then keeps it open, if it uses this at all.

A launcher between the two (PythonSlicer is one) may not hand standard input on. Then it ends at once, without the
greeting, and means nothing; the process number is watched besides.
"""
POLL_SECONDS = 0.5


def watch_parent(pid: int, ended: Callable[[str], None]) -> None:
    """Call ``ended(reason)`` once, from a thread, when the process ``pid`` is gone or standard input closes.

    Raises:
        GenSegError: if there is no such process.
    """
    try:
        parent = psutil.Process(pid)
    except psutil.Error as error:
        raise GenSegError(f"There is no process {pid} to live with.") from error
    threading.Thread(target=_watch_process, args=(parent, ended), name="genseg-parent", daemon=True).start()
    threading.Thread(target=_watch_input, args=(ended,), name="genseg-input", daemon=True).start()


def _watch_process(parent: psutil.Process, ended: Callable[[str], None]) -> None:
    # is_running compares the creation time as well, so a new process of the same number is not mistaken for the parent.
    while parent.is_running():
        try:
            if parent.status() == psutil.STATUS_ZOMBIE:
                break
        except psutil.NoSuchProcess:
            break
        except psutil.AccessDenied:
            logger.debug("the state of process %d cannot be read", parent.pid)
        time.sleep(POLL_SECONDS)
    ended(f"process {parent.pid} has ended")


def _watch_input(ended: Callable[[str], None]) -> None:
    received = b""
    try:
        while chunk := os.read(0, 1024):
            received = (received + chunk)[:len(GREETING)]
    except OSError as error:
        logger.debug("standard input cannot be read: %s", error)
    if received == GREETING:
        ended("standard input was closed")
