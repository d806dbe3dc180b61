"""A task's parameters as a panel shows them: the task is the only source of ranges, defaults and tool tips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from slicer.parameterNodeWrapper import Default, Minimum, WithinRange

from GenSegLogic.bundles import list_bundles
from GenSegLogic.task import Task, parameter_type


def annotation(task: type[Task], name: str) -> Any:
    """The type of a parameter node's attribute that holds a parameter, with the task's range and default.

        steps: annotation(NoduleTask, "steps")     # as Annotated[int, WithinRange(1, 100), Default(8)]
    """
    field = task.parameters()[name]
    kind = parameter_type(task, name)
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    default = Default(kind(field.default))
    if low is not None and high is not None:
        return Annotated[kind, WithinRange(kind(low), kind(high)), default]
    if low is not None:
        return Annotated[kind, Minimum(kind(low)), default]
    return Annotated[kind, default]


def describe_widgets(task: type[Task], widgets: Mapping[str, Any]) -> None:
    """Give every widget the tool tip, range and unit of the parameter that it is named for.

    Args:
        task: whose parameters these are.
        widgets: parameter name -> widget.
    """
    for name, widget in widgets.items():
        metadata = task.parameters()[name].metadata
        widget.toolTip = metadata["help"]
        if isinstance(task.parameters()[name].default, (str, tuple)):
            continue
        if metadata["minimum"] is not None:
            widget.minimum = metadata["minimum"]
        if metadata["maximum"] is not None:
            widget.maximum = metadata["maximum"]
        if metadata["unit"]:
            widget.suffix = f" {metadata['unit']}"


def connect(parameterNode: Any, ui: Any) -> Any:
    """Tie the widgets that have a ``SlicerParameterName`` to the parameters of that name, both ways.

    Returns:
        What ``disconnectGui`` takes; Slicer's own ``connectGui`` forgets to return it (Slicer issue 7547).
    """
    named = {widget.property("SlicerParameterName"): widget for widget in vars(ui).values()}
    return parameterNode.connectParametersToGui({name: widget for name, widget in named.items() if name})


def bundle_names(kind: str) -> list[str]:
    """Names of the bundles of a kind (``flow``, ``predictor``) that can be used, those that ship first."""
    return [bundle.name for bundle in list_bundles() if bundle.kind == kind]


def fill_choices(combo: Any, names: list[str], current: str) -> None:
    """Offer ``names`` in a combo box with ``current`` chosen, which is offered even if it is not there.

    A bundle that a saved scene names and that this computer lacks stays visible, so that the user sees what is missing.
    """
    offered = names if current in names or not current else [*names, current]
    blocked = combo.blockSignals(True)
    combo.clear()
    combo.addItems(offered)
    combo.currentIndex = offered.index(current) if current in offered else -1
    combo.blockSignals(blocked)
