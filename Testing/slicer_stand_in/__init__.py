"""What the Slicer application adds to the ``slicer-core`` wheel, as far as GenSeg's code touches it.

``slicer-core`` is the real, Qt-free Slicer: MRML, module logics, ``slicer.util``. This package adds ``slicer.app``,
``slicer.mrmlScene``, ``slicer.modules``, ``slicer.i18n``, ``slicer.packaging``, ``slicer.parameterNodeWrapper``,
``slicer.ScriptedLoadableModule`` and ``slicer.testing``. All MRML below it is real. It knows nothing of Qt: the panel
tests add their widgets through :func:`slicer_stand_in.parameter_node.register_connector`.

    import slicer_stand_in
    slicer = slicer_stand_in.install()      # once per process; a new, empty scene
    slicer_stand_in.clear_scene()           # what File > Close scene does
"""

from __future__ import annotations

import sys
import types
from typing import Any

from . import packaging as packaging_stand_in
from . import parameter_node, scripted_module
from .application import Application

__all__ = ["clear_scene", "install", "new_scene", "update_views"]


def install() -> Any:
    """Complete the ``slicer`` package in this process and return it. A second call returns it unchanged."""
    import slicer
    import slicer.util

    if isinstance(getattr(slicer, "app", None), Application):
        return slicer
    _alias_modules(slicer)
    slicer.modules = types.SimpleNamespace()
    slicer.app = Application()
    slicer.app.set_scene(slicer)
    _add_module(slicer, "i18n", tr=scripted_module.tr, translate=scripted_module.translate,
                getContext=scripted_module.getContext)
    _add_module(slicer, "packaging", **packaging_stand_in.PUBLIC)
    _add_module(slicer, "parameterNodeWrapper", **parameter_node.PUBLIC)
    _add_module(slicer, "ScriptedLoadableModule", **scripted_module.PUBLIC)
    _add_module(slicer, "testing", runUnitTest=scripted_module.runUnitTest)
    return slicer


def new_scene() -> Any:
    """Put a fresh, empty scene with its own logics in place of the current one; returns the scene."""
    import slicer

    slicer.app.set_scene(slicer)
    return slicer.mrmlScene


def clear_scene() -> None:
    """Close the scene as *File > Close scene* does: singletons stay, everything else goes."""
    import slicer

    slicer.mrmlScene.Clear(False)


def update_views() -> None:
    """Give new slice nodes their composite nodes, as the slice widgets of a window do when a layout changes."""
    import slicer

    slicer.app.update_views()


def _alias_modules(slicer: Any) -> None:
    """Make the names under which the desktop holds its wrapped libraries importable."""
    for alias in ("MRMLCorePython", "MRMLLogicPython", "vtkSegmentationCorePython", "vtkAddon", "vtkITK",
                  "vtkSlicerSegmentationsModuleLogicPython", "vtkSlicerSegmentationsModuleMRMLPython"):
        if alias not in sys.modules:
            sys.modules[alias] = slicer
        setattr(slicer, alias, slicer)


def _add_module(slicer: Any, name: str, **members: Any) -> None:
    module = types.ModuleType(f"slicer.{name}")
    module.__dict__.update(members)
    sys.modules[f"slicer.{name}"] = module
    setattr(slicer, name, module)
