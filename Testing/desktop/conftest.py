"""Outside of Slicer, the desktop's own tests run on the stand-ins of the panel tests."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(ROOT / "GenSegExtension"), str(ROOT)]

try:
    import panel_stand_in

    panel_stand_in.install()
    for module in ("GenSegNodules", "GenSegOrgans"):
        panel_stand_in.add_module(ROOT / "GenSegExtension" / module / f"{module}.py")
except ImportError:  # there is no slicer-core or no PySide6 for this Python or this system
    collect_ignore_glob = ["test_*.py"]
