"""The tasks that exist, readable without importing any of them."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import GenSegError
from .task import Task

TASKS: dict[str, str] = {
    "nodules": "GenSegLogic.nodules.task:NoduleTask",
    "organs": "GenSegLogic.organs.diffusam.task:OrgansTask",
}
"""Word on the command line and in the service -> ``module:class``."""


def load_task(name: str) -> type[Task]:
    """The class of a task.

    Raises:
        GenSegError: if there is no such task, or a library that it needs is missing.
    """
    if name not in TASKS:
        raise GenSegError(f"There is no task {name!r}; the tasks are {', '.join(TASKS)}.")
    return load(TASKS[name])


def load(target: str) -> Any:
    """What ``module:name`` stands for. Targets come from this package's own tables, never from files.

    Raises:
        GenSegError: if a third-party library that the module needs is not installed.
    """
    module, name = target.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "GenSegLogic"):
            raise
        raise GenSegError(f"The library {missing} is not installed: install it with pip install {missing}.") from error
