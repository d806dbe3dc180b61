"""The stand-in keeps the promises of the application that panels rely on."""

from __future__ import annotations

import enum
from typing import Annotated

import pytest
import slicer
from slicer.parameterNodeWrapper import Choice, Default, WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

import slicer_stand_in
from slicer_stand_in import parameter_node
from slicer_stand_in.application import load_scene, save_scene


class Mode(enum.Enum):
    WHOLE = 1
    POINTS = 2


@parameterNodeWrapper
class ExampleParameterNode:
    volume: slicer.vtkMRMLScalarVolumeNode | None
    threshold: Annotated[float, WithinRange(0, 200), Default(30.0)]
    steps: int = 8
    bundle: Annotated[str, Choice(["a", "b"])] = "a"
    fast: bool = False
    points: list[float]
    mode: Mode = Mode.WHOLE


class ExampleLogic(ScriptedLoadableModuleLogic):
    pass


def parameters():
    return ExampleParameterNode(ExampleLogic().getParameterNode())


def test_parameters_have_defaults_types_and_ranges():
    found = parameters()
    assert (found.volume, found.threshold, found.steps, found.bundle, found.fast) == (None, 30.0, 8, "a", False)
    assert found.points == [] and found.mode is Mode.WHOLE
    for name, value in (("threshold", 201.0), ("bundle", "c")):
        with pytest.raises(ValueError):
            setattr(found, name, value)
    for name, value in (("steps", "8"), ("volume", slicer.vtkMRMLTableNode())):
        with pytest.raises(TypeError):
            setattr(found, name, value)


def test_parameters_survive_saving(tmp_path):
    found = parameters()
    found.volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Chest")
    found.threshold, found.points, found.mode, found.fast = 55.5, [1.0, 2.0], Mode.POINTS, True
    save_scene(tmp_path / "scene.mrb")
    slicer_stand_in.clear_scene()
    assert parameters().threshold == 30.0
    load_scene(tmp_path / "scene.mrb")
    again = parameters()
    assert again.volume.GetName() == "Chest"
    assert (again.threshold, again.points, again.mode, again.fast) == (55.5, [1.0, 2.0], Mode.POINTS, True)


def test_connected_widgets_follow_both_ways(monkeypatch):
    monkeypatch.setattr(parameter_node, "_connectors", [])

    class Slider:
        def __init__(self):
            self.value, self.changed = None, None

        def move(self, value):
            self.value = value
            self.changed(value)

    def connect(widget, changed):
        widget.changed = changed
        return (lambda value: setattr(widget, "value", value)), (lambda: setattr(widget, "changed", None))

    found, slider = parameters(), Slider()
    with pytest.raises(ValueError, match="threshold"):
        found.connectParametersToGui({"threshold": slider})
    parameter_node.register_connector(connect)
    tag = found.connectParametersToGui({"threshold": slider})
    assert slider.value == 30.0
    found.threshold = 40.0
    assert slider.value == 40.0
    slider.move(50.0)
    assert found.threshold == 50.0
    found.disconnectGui(tag)
    found.threshold = 60.0
    assert slider.value == 50.0 and slider.changed is None


def test_parameter_node_is_one_per_module():
    assert ExampleLogic().getParameterNode() is ExampleLogic().getParameterNode()
    assert ExampleLogic().getParameterNode().GetModuleName() == "Example"


def test_startup_callbacks_and_rendering_pauses(monkeypatch):
    monkeypatch.setattr(slicer.app, "_callbacks", {})  # modules that other tests of this run loaded wait as well
    called = []
    slicer.app.connect("startupCompleted()", lambda: called.append(1))
    slicer.app.emit("startupCompleted()")
    assert called == [1]
    with slicer.util.RenderBlocker():
        pass
    assert slicer.app.layoutManager() is None and slicer.app.testingEnabled()


def test_data_nodes_enter_the_subject_hierarchy_at_once():
    for _ in range(2):
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Chest")
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        item = hierarchy.GetItemByDataNode(node)
        assert item != hierarchy.GetInvalidItemID() and hierarchy.GetItemName(item) == "Chest"
        slicer_stand_in.clear_scene()
