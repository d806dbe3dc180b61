"""The widgets' side of ``parameterNode.connectParametersToGui``, for the kinds that the desktop's connectors know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from slicer_stand_in.parameter_node import register_connector

# Class -> property and the signal that says that it changed. What is not here, the desktop's wrapper refuses as well.
_VALUES = {
    "QCheckBox": ("checked", "stateChanged(int)"),
    "QPushButton": ("checked", "toggled(bool)"),
    "QSpinBox": ("value", "valueChanged(int)"),
    "QSlider": ("value", "valueChanged(int)"),
    "QDoubleSpinBox": ("value", "valueChanged(double)"),
    "ctkSliderWidget": ("value", "valueChanged(double)"),
    "QLineEdit": ("text", "textChanged(QString)"),
}


def register() -> None:
    """Teach the parameter node wrapper these widgets."""
    register_connector(_value)
    register_connector(_node)


def _value(widget: Any, changed: Callable[[Any], None]) -> Any:
    if widget.className() not in _VALUES:
        return None
    name, signal = _VALUES[widget.className()]

    def edited(*_values: Any) -> None:
        changed(getattr(widget, name))

    widget.connect(signal, edited)
    return (lambda value: setattr(widget, name, value)), lambda: widget.disconnect(signal, edited)


def _node(widget: Any, changed: Callable[[Any], None]) -> Any:
    if widget.className() != "qMRMLNodeComboBox":
        return None
    signal = "currentNodeChanged(vtkMRMLNode*)"

    def edited(_node: Any) -> None:
        changed(widget.currentNode())  # which another slot of the signal may have changed meanwhile

    widget.connect(signal, edited)
    return widget.setCurrentNode, lambda: widget.disconnect(signal, edited)
