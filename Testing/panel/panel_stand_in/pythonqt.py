"""PySide6 objects with PythonQt's manners, as Slicer's Python sees Qt.

A Qt property is an attribute (``button.enabled = True``, ``label.text``), so that ``label.text()`` fails as it does on
the desktop; signals connect by their C++ signature; enums are ints; and what the desktop's class does not have raises
AttributeError, even where PySide6 has it.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import shiboken6
from PySide6 import QtCore

from . import facts


class PythonQtObject:
    """A QObject as PythonQt shows it."""

    __slots__ = ("_connections", "_object", "_properties")

    def __init__(self, qobject: QtCore.QObject) -> None:
        object.__setattr__(self, "_object", qobject)

    def __getattr__(self, name: str) -> Any:
        qobject = self._object
        _check(qobject, name)
        name = "objectName" if name == "name" else name
        if qobject.metaObject().indexOfProperty(name) >= 0:
            return wrap(qobject.property(name))
        value = getattr(qobject, name)
        if isinstance(value, QtCore.SignalInstance):
            return _Signal(self, name)
        return _method(value) if callable(value) else wrap(value)

    def __setattr__(self, name: str, value: Any) -> None:
        qobject = self._object
        _check(qobject, name)
        name = "objectName" if name == "name" else name
        index = qobject.metaObject().indexOfProperty(name)
        if index < 0 or not qobject.metaObject().property(index).isWritable():
            raise AttributeError(f"{_class_name(qobject)} has no property {name} that can be written")
        if not qobject.setProperty(name, unwrap(value)):
            raise ValueError(f"{_class_name(qobject)}.{name} does not take {value!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PythonQtObject) and self._object is other._object

    def __hash__(self) -> int:
        return id(self._object)

    def __bool__(self) -> bool:
        return shiboken6.isValid(self._object)

    def className(self) -> str:
        """Name of the C++ class."""
        return _class_name(self._object)

    def children(self) -> list[Any]:
        """Child objects."""
        return [wrap(child) for child in self._object.children()]

    def connect(self, signature: str, callback: Callable) -> bool:
        """``connect("clicked(bool)", f)``; the desktop's class must have a signal of exactly that signature."""
        class_name = _class_name(self._object)
        if signature not in facts.signals(class_name):
            raise ValueError(f"{class_name} has no signal {signature}; it has {sorted(facts.signals(class_name))}")
        name, arguments = signature.rstrip(")").split("(")
        count = len([one for one in arguments.split(",") if one])

        def call(*values: Any) -> None:
            _fitting(callback)(*(wrap(value) for value in values[:count]))

        signal = getattr(self._object, name)
        # Where a signal has several signatures in PySide6, the one that carries as many values is meant.
        signal.connect(call)
        _connections(self._object).append((signature, callback, signal, call))
        return True

    def disconnect(self, signature: str, callback: Callable | None = None) -> bool:
        """Undo :meth:`connect`."""
        kept = []
        for entry in _connections(self._object):
            if entry[0] == signature and (callback is None or entry[1] == callback):
                entry[2].disconnect(entry[3])
            else:
                kept.append(entry)
        _connections(self._object)[:] = kept
        return True


class _Signal:
    """``button.clicked``: callable as PythonQt's signals are, and with ``connect``."""

    def __init__(self, owner: PythonQtObject, name: str) -> None:
        self._owner, self._name = owner, name

    def connect(self, callback: Callable) -> bool:
        signatures = [signature for signature in facts.signals(_class_name(self._owner._object))
                      if signature.startswith(self._name + "(")]
        return self._owner.connect(max(signatures, key=len), callback)

    def __call__(self, *values: Any) -> None:
        getattr(self._owner._object, self._name).emit(*(unwrap(value) for value in values))


_kept: dict[int, list] = {}


def _connections(qobject: QtCore.QObject) -> list:
    return _kept.setdefault(id(qobject), [])


def _fitting(callback: Callable) -> Callable:
    """PythonQt passes as many values as the function takes."""
    try:
        parameters = inspect.signature(callback).parameters.values()
    except (TypeError, ValueError):
        return callback
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return callback
    most = sum(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    return lambda *values: callback(*values[:most])


def _class_name(qobject: QtCore.QObject) -> str:
    return qobject.metaObject().className()


def _check(qobject: QtCore.QObject, name: str) -> None:
    class_name = _class_name(qobject)
    if class_name in facts.desktop_classes() and not facts.has_member(class_name, name):
        raise AttributeError(f"On the desktop, {class_name} has no {name}")


def wrap(value: Any) -> Any:
    """What PythonQt hands to Python for a value of Qt's."""
    if isinstance(value, QtCore.QObject):
        return PythonQtObject(value)
    if isinstance(value, enum.Enum) and isinstance(value.value, int):
        return value.value
    if isinstance(value, list):
        return [wrap(item) for item in value]
    return value


def unwrap(value: Any) -> Any:
    """The PySide6 value of what Python holds."""
    if isinstance(value, PythonQtObject):
        return value._object
    if isinstance(value, (list, tuple)):
        return type(value)(unwrap(item) for item in value)
    return value


def _method(function: Callable) -> Callable:
    def call(*values: Any) -> Any:
        return wrap(function(*(unwrap(value) for value in values)))

    return call


class QtClass:
    """A class of Qt as a module's ``qt`` shows it: called for an object, asked for enums and static functions."""

    def __init__(self, cls: type) -> None:
        self._class = cls

    def __call__(self, *values: Any) -> Any:
        return wrap(self._class(*(unwrap(value) for value in values)))

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._class, name)
        return _method(value) if callable(value) and not isinstance(value, type) else value
