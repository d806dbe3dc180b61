"""Progress is one call with a fraction and a message; cancelling is one exception out of that call."""

from collections.abc import Callable

Progress = Callable[[float, str], None]
"""``progress(fraction, message)``: fraction in [0, 1]; raises :class:`GenSegLogic.errors.Cancelled` to stop work."""


def silent(fraction: float, message: str) -> None:
    """Ignore progress."""


def part(progress: Progress, start: float, end: float) -> Progress:
    """Map a sub-task's own fraction [0, 1] onto [start, end] of ``progress``."""
    return lambda fraction, message: progress(start + (end - start) * fraction, message)
