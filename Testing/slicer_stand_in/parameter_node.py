# ruff: noqa: N807 - the names are those of Slicer
"""``slicer.parameterNodeWrapper``: typed attributes kept in a real parameter node, so that they survive a saved scene.

As on the desktop, values are text parameters of the node and nodes are node references. The widget side of
``connectParametersToGui`` comes from connectors that the panel tests register, since this package knows no Qt.
"""

from __future__ import annotations

import enum
import json
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Default:
    """``Annotated[T, Default(value)]``."""

    value: Any


@dataclass(frozen=True)
class WithinRange:
    """``Annotated[float, WithinRange(low, high)]``."""

    minimum: float
    maximum: float

    def validate(self, value: Any) -> None:
        """Raise ValueError outside the range."""
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


@dataclass(frozen=True)
class Minimum:
    """``Annotated[float, Minimum(low)]``."""

    minimum: float

    def validate(self, value: Any) -> None:
        """Raise ValueError below the minimum."""
        if value < self.minimum:
            raise ValueError(f"Value must be at least {self.minimum}, is {value}")


@dataclass(frozen=True)
class Maximum:
    """``Annotated[float, Maximum(high)]``."""

    maximum: float

    def validate(self, value: Any) -> None:
        """Raise ValueError above the maximum."""
        if value > self.maximum:
            raise ValueError(f"Value must be at most {self.maximum}, is {value}")


class Choice:
    """``Annotated[str, Choice([...])]``."""

    def __init__(self, choices: list[Any]) -> None:
        self.choices = choices

    def validate(self, value: Any) -> None:
        """Raise ValueError unless the value is one of the choices."""
        if value not in self.choices:
            raise ValueError(f"Value must be one of {self.choices}, is {value!r}")


Connector = Callable[[Any, Callable[[Any], None]], tuple[Callable[[Any], None], Callable[[], None]] | None]
_connectors: list[Connector] = []


def register_connector(connector: Connector) -> None:
    """Teach ``connectParametersToGui`` a kind of widget.

    ``connector(widget, changed)`` returns None for a widget that it does not know; otherwise it connects the widget,
    so that ``changed(value)`` is called when the user edits it, and returns ``(show, disconnect)``: ``show(value)``
    displays a value, ``disconnect()`` ends the connection.
    """
    _connectors.append(connector)


class _Parameter:
    """One typed attribute of a wrapped class."""

    def __init__(self, name: str, annotation: Any, default: Any) -> None:
        self.name = name
        self.validators: list[Any] = []
        arguments = typing.get_args(annotation)
        if typing.get_origin(annotation) is typing.Annotated:
            annotation, extras = arguments[0], arguments[1:]
            for extra in extras:
                if isinstance(extra, Default):
                    default = extra.value
                else:
                    self.validators.append(extra)
        members = [member for member in typing.get_args(annotation) if member is not type(None)]
        self.optional = typing.get_origin(annotation) in (typing.Union, types.UnionType)
        self.type = members[0] if self.optional else annotation
        nodes = members if self.optional else [annotation]  # a union of nodes takes any of them
        self.is_node = all(isinstance(one, type) and hasattr(one, "GetNodeTagName") for one in nodes)
        self.node_types = tuple(nodes) if self.is_node else ()
        self.default = default if default is not None else self._empty()

    def _empty(self) -> Any:
        if self.is_node or self.optional:
            return None
        return next(iter(self.type)) if isinstance(self.type, enum.EnumMeta) else self.type()

    def read(self, node: Any) -> Any:
        if self.is_node:
            return node.GetNodeReference(self.name)
        text = node.GetParameter(self.name)
        if not text:
            return self.default
        if isinstance(self.type, enum.EnumMeta):
            return self.type[text]
        value = json.loads(text)
        if value is None:
            return None
        if typing.get_origin(self.type) is tuple:
            return tuple(value)
        return self.type(value) if self.type in (int, float, str, bool, Path) else value

    def write(self, node: Any, value: Any) -> None:
        if self.is_node:
            if value is not None and not isinstance(value, (*self.node_types, str)):
                raise TypeError(f"{self.name} needs a {self.type.__name__}, is {type(value).__name__}")
            node.SetNodeReferenceID(self.name, value if isinstance(value, str) else value.GetID() if value else None)
            return
        if not (value is None and self.optional):
            if isinstance(self.type, type) and not isinstance(value, (self.type, int) if self.type is float
                                                              else self.type):
                raise TypeError(f"{self.name} needs a {self.type.__name__}, is {type(value).__name__}")
            for validator in self.validators:
                validator.validate(value)
        if isinstance(value, enum.Enum):
            node.SetParameter(self.name, value.name)
        else:
            node.SetParameter(self.name, json.dumps(str(value) if isinstance(value, Path) else value))


def parameterNodeWrapper(cls: type) -> type:
    """Turn a class of annotations into a typed view of a parameter node: ``Cls(node).attribute``."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parameters = {name: _Parameter(name, hint, getattr(cls, name, None)) for name, hint in hints.items()}
    for parameter in parameters.values():
        setattr(cls, parameter.name, property(lambda self, p=parameter: p.read(self.parameterNode),
                                              lambda self, value, p=parameter: p.write(self.parameterNode, value)))

    def __init__(self: Any, parameterNode: Any, prefix: str | None = None) -> None:
        self.parameterNode = parameterNode
        self._connections = {}
        self._next_tag = 0
        self._updating_gui = False
        for parameter in parameters.values():
            if parameter.default is not None and not parameterNode.GetParameter(parameter.name):
                parameter.write(parameterNode, parameter.default)

    def connectParametersToGui(self: Any, mapping: dict[str, Any]) -> int:
        """Parameter -> widget. As on the desktop, a widget that shows a value does not write it back."""
        shows: dict[str, Callable[[Any], None]] = {}
        disconnects: list[Callable[[], None]] = []

        def writer(parameter: _Parameter) -> Callable[[Any], None]:
            def changed(value: Any) -> None:
                if not self._updating_gui:
                    modified = self.parameterNode.StartModify()
                    try:
                        parameter.write(self.parameterNode, value)
                    finally:
                        self.parameterNode.EndModify(modified)

            return changed

        def update(caller: Any = None, event: Any = None) -> None:
            if self._updating_gui:
                return
            self._updating_gui = True
            modified = self.parameterNode.StartModify()
            try:
                for name, show in shows.items():
                    show(parameters[name].read(self.parameterNode))
            finally:
                self.parameterNode.EndModify(modified)
                self._updating_gui = False

        for name, widget in mapping.items():
            if name not in parameters:
                raise ValueError(f"the panel names a parameter {name!r} that {cls.__name__} does not have")
            for connector in _connectors:
                connection = connector(widget, writer(parameters[name]))
                if connection is not None:
                    shows[name] = connection[0]
                    disconnects.append(connection[1])
                    break
            else:
                raise ValueError(f"no connector knows the widget of parameter {name!r} ({type(widget).__name__})")
        update()
        observer = self.parameterNode.AddObserver("ModifiedEvent", update)
        disconnects.append(lambda: self.parameterNode.RemoveObserver(observer))
        self._next_tag += 1
        self._connections[self._next_tag] = disconnects
        return self._next_tag

    def disconnectGui(self: Any, tag: int) -> None:
        for disconnect in self._connections.pop(tag, ()):
            disconnect()

    def __getattr__(self: Any, name: str) -> Any:  # the desktop's wrapper also passes AddObserver and the like on
        if name == "parameterNode":
            raise AttributeError(name)
        return getattr(self.parameterNode, name)

    for method in (__init__, connectParametersToGui, disconnectGui, __getattr__):
        setattr(cls, method.__name__, method)
    return cls


PUBLIC = {
    "parameterNodeWrapper": parameterNodeWrapper,
    "Choice": Choice,
    "Default": Default,
    "Maximum": Maximum,
    "Minimum": Minimum,
    "WithinRange": WithinRange,
}
