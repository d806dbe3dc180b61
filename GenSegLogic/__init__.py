"""GenSegLogic: generative segmentation of medical volumes, without Slicer and without Qt.

    from GenSegLogic import Engine, NoduleTask, read_volume
    results = Engine().run(NoduleTask(most=5), read_volume("chest.nrrd"))
    results.save("out")

Names are imported on first use, so that ``import GenSegLogic`` stays instant and works before torch is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Engine
    from .errors import Cancelled, GenSegError
    from .nodules.task import NoduleTask
    from .organs.diffusam.task import OrgansTask
    from .results import Code, Results, Segment, Segmentation
    from .task import Task
    from .volume import Volume, read_volume, write_volume

__version__ = "0.1.0"

_HOMES = {
    "Cancelled": "errors",
    "Code": "results",
    "Engine": "engine",
    "GenSegError": "errors",
    "NoduleTask": "nodules.task",
    "OrgansTask": "organs.diffusam.task",
    "Results": "results",
    "Segment": "results",
    "Segmentation": "results",
    "Task": "task",
    "Volume": "volume",
    "read_volume": "volume",
    "write_volume": "volume",
}

__all__ = ["Cancelled", "Code", "Engine", "GenSegError", "NoduleTask", "OrgansTask", "Results", "Segment",
           "Segmentation", "Task", "Volume", "__version__", "read_volume", "write_volume"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
