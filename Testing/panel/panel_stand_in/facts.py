"""What the classes of a running Slicer 5.12 desktop have, read off it into ``data/desktop-widgets.json``."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

DATA = Path(__file__).parents[1] / "data" / "desktop-widgets.json"


@functools.cache
def desktop_classes() -> dict[str, dict[str, Any]]:
    """Class name -> ``properties``, ``signals``, ``slots`` and ``other_methods``."""
    return json.loads(DATA.read_text(encoding="utf-8"))


@functools.cache
def qt_class(name: str) -> type | None:
    """The class of that name in Qt itself."""
    for module in (QtWidgets, QtGui, QtCore):
        if hasattr(module, name):
            return getattr(module, name)
    return None


@functools.cache
def properties(class_name: str) -> frozenset[str]:
    """Names of all properties of a desktop class, those of QWidget included; ``name`` is PythonQt's objectName."""
    own = desktop_classes().get(class_name)
    base = (QtWidgets.QWidget if own is not None else qt_class(class_name)).staticMetaObject
    inherited = {base.property(index).name() for index in range(base.propertyCount())}
    return frozenset(inherited | {"name"} | set(own["properties"] if own else ()))


@functools.cache
def signals(class_name: str) -> frozenset[str]:
    """Signatures of all signals of a desktop class, as ``connect`` takes them."""
    own = desktop_classes().get(class_name)
    base = (QtWidgets.QWidget if own is not None else qt_class(class_name)).staticMetaObject
    methods = [base.method(index) for index in range(base.methodCount())]
    inherited = {bytes(method.methodSignature()).decode() for method in methods
                 if method.methodType() == QtCore.QMetaMethod.MethodType.Signal}
    return frozenset(inherited | set(own["signals"] if own else ()))


@functools.cache
def methods(class_name: str) -> frozenset[str]:
    """Names of everything that can be called on a desktop class: slots and methods, not the getters of properties."""
    own = desktop_classes().get(class_name)
    base = QtWidgets.QWidget if own is not None else qt_class(class_name)
    names = {name for name in dir(base) if not name.startswith("_")} - properties(class_name)
    if own:
        names |= {signature.split("(")[0] for signature in own["slots"]} | set(own["other_methods"])
    return frozenset(names | {"connect", "disconnect", "children", "className"})


def has_member(class_name: str, name: str) -> bool:
    """Whether a desktop object of that class has such an attribute."""
    return (name in properties(class_name) or name in methods(class_name)
            or name in {signature.split("(")[0] for signature in signals(class_name)})
