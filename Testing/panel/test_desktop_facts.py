"""Panels may use only what the classes of a running Slicer desktop have: the ``.ui`` files, the code, the stand-ins."""

from __future__ import annotations

import ast
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import pytest
from panel_stand_in import facts, pythonqt, widgets
from PySide6 import QtCore, QtWidgets

ROOT = Path(__file__).parents[2]
UI_FILES = sorted((ROOT / "GenSegExtension").glob("*/Resources/UI/*.ui"))
CODE = sorted([*(ROOT / "GenSegExtension").glob("GenSeg[!S]*/*.py"), *(ROOT / "Testing" / "desktop").glob("*.py")])


def names_and_classes() -> dict[str, str]:
    """Widget name -> class, over all panels; one name has one class everywhere, since panels share code."""
    found: dict[str, str] = {}
    for path in UI_FILES:
        for widget in ElementTree.parse(path).iter("widget"):
            name, kind = widget.attrib["name"], widget.attrib["class"]
            assert found.setdefault(name, kind) == kind, f"{name} is a {found[name]} and a {kind}"
    return found


def uses(path: Path) -> Iterator[tuple[int, str, str, ast.AST | None]]:
    """Line, widget, attribute and the call around it, of every ``ui.widget.attribute`` in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute):
            owner = node.value.value
            if getattr(owner, "attr", getattr(owner, "id", "")) == "ui":
                yield node.lineno, node.value.attr, node.attr, calls.get(id(node))


def is_known(class_name: str) -> bool:
    return class_name in facts.desktop_classes() or facts.qt_class(class_name) is not None


@pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.stem)
def test_ui_names_only_classes_properties_signals_and_slots_of_the_desktop(path):
    tree = ElementTree.parse(path)
    classes = {widget.attrib["name"]: widget.attrib["class"] for widget in tree.iter("widget")}
    assert len(classes) == sum(1 for _ in tree.iter("widget")), "two widgets share a name"
    wrong = [f"{name}: no class {kind}" for name, kind in classes.items() if not is_known(kind)]
    for widget in tree.iter("widget"):
        for entry in widget.findall("property"):
            dynamic = entry.attrib.get("stdset") == "0"
            if not dynamic and entry.attrib["name"] not in facts.properties(widget.attrib["class"]):
                wrong.append(f"{widget.attrib['name']}: {widget.attrib['class']} has no {entry.attrib['name']}")
    for connection in tree.iter("connection"):
        sender, signal, receiver, slot = map(connection.findtext, ("sender", "signal", "receiver", "slot"))
        if signal not in facts.signals(classes[sender]):
            wrong.append(f"{sender} has no signal {signal}")
        if slot not in facts.desktop_classes()[classes[receiver]]["slots"]:
            wrong.append(f"{receiver} has no slot {slot}")
    assert wrong == []


@pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.stem)
def test_every_node_selector_is_given_the_scene(path):
    tree = ElementTree.parse(path)
    receivers = {connection.findtext("receiver") for connection in tree.iter("connection")}
    wanting = [widget.attrib["name"] for widget in tree.iter("widget")
               if "setMRMLScene" in facts.methods(widget.attrib["class"])
               and widget.attrib["class"] != "qMRMLWidget" and widget.attrib["name"] not in receivers]
    assert wanting == []


@pytest.mark.parametrize("path", UI_FILES, ids=lambda path: path.stem)
def test_every_control_has_a_tool_tip_or_gets_one_in_code(path):
    given = {name for code in CODE for _, name, attribute, _ in uses(code) if attribute == "toolTip"}
    described = {"bundleCombo", "predictorCombo", "stepsSpinBox", "guidanceSlider", "startSlider", "probabilitySlider",
                 "evidenceSlider", "mostSpinBox", "seedSpinBox", "thresholdSlider", "samplesSpinBox",
                 "organsList"}  # parameters.describe_widgets; the panels' tests look
    containers = {"QLabel", "qMRMLWidget", "ctkCollapsibleButton"}
    bare = [widget.attrib["name"] for widget in ElementTree.parse(path).iter("widget")
            if widget.attrib["class"] not in containers and widget.attrib["name"] not in given | described
            and not any(entry.attrib["name"] == "toolTip" for entry in widget.findall("property"))]
    assert bare == []


def test_code_uses_only_what_the_desktop_has():
    classes, wrong, count = names_and_classes(), [], 0
    for path in CODE:
        for line, name, attribute, call in uses(path):
            count += 1
            where = f"{path.name}:{line}"
            if name not in classes:
                wrong.append(f"{where}: no widget {name}")
                continue
            kind = classes[name]
            if not facts.has_member(kind, attribute):
                wrong.append(f"{where}: {kind} {name} has no {attribute}")
            if attribute in facts.properties(kind) and call is not None:
                wrong.append(f"{where}: {name}.{attribute} is a property, which cannot be called in PythonQt")
            if attribute == "connect" and call.args[0].value not in facts.signals(kind):
                wrong.append(f"{where}: {kind} {name} has no signal {call.args[0].value}")
    assert wrong == []
    assert count > 60


def test_segment_editor_has_the_slots_that_are_called():
    slots = {slot.split("(")[0] for slot in facts.desktop_classes()["qMRMLSegmentEditorWidget"]["slots"]}
    assert {"setSegmentationNode", "setSourceVolumeNode", "setCurrentSegmentID"} <= slots


@pytest.mark.parametrize("cls", [cls for cls in widgets.CUSTOM if cls.__name__ in facts.desktop_classes()],
                         ids=lambda cls: cls.__name__)
def test_stand_ins_have_nothing_that_the_desktop_lacks(cls):
    """Otherwise code could pass here and fail there; ``drag`` and ``choose`` are what a test does with the mouse."""
    own = {name for name in vars(cls) if not name.startswith("_")} - {"staticMetaObject", "drag", "choose"}
    assert [name for name in sorted(own) if not facts.has_member(cls.__name__, name)] == []


def test_objects_behave_as_pythonqt_shows_them():
    button = pythonqt.PythonQtObject(QtWidgets.QPushButton("Apply"))
    assert button.text == "Apply"
    button.enabled = False
    assert button.enabled is False
    with pytest.raises(TypeError):
        button.text()
    with pytest.raises(AttributeError):
        button.texts = "no such property"
    seen = []
    button.connect("clicked()", lambda: seen.append("clicked"))
    button.enabled = True
    button.click()
    with pytest.raises(ValueError, match="no signal clicked"):
        button.connect("clicked(int)", seen.append)
    button.disconnect("clicked()")
    button.click()
    assert seen == ["clicked"]


def test_what_only_pyside_has_is_refused():
    slider = pythonqt.PythonQtObject(widgets.ctkSliderWidget())
    with pytest.raises(AttributeError, match="On the desktop, ctkSliderWidget has no drag"):
        slider.drag(1.0)
    timer = pythonqt.PythonQtObject(QtCore.QTimer())
    timer.interval = 40
    assert timer.interval == 40 and timer.active is False
