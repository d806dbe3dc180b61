"""The logic class from the Python console, the service that panels share, and installation."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import panel_stand_in
import psutil
import pytest
import slicer

from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.volume import Volume

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "GenSegExtension" / "GenSegNodules" / "GenSegNodules.py"
SERVICE = Path(__file__).with_name("nodule_service.py")


@pytest.fixture
def logic(service, bundles):
    """The logic class on the shared service."""
    panel_stand_in.add_module(MODULE)
    from GenSegNodules import GenSegNodulesLogic

    return GenSegNodulesLogic()


def test_run_blocks_and_returns_the_nodes(logic, chest):
    seen = []
    nodes = logic.run(chest, steps=2, threshold=200.0, onProgress=lambda fraction, message: seen.append(fraction))
    assert set(nodes) == {"nodules_segmentation", "nodules_table", "counterfactual", "residual"}
    assert nodes["nodules_segmentation"].GetSegmentation().GetNumberOfSegments() == 2
    assert seen == sorted(seen) and len(seen) > 3 and all(0 <= fraction <= 1 for fraction in seen)


def test_run_stops_when_progress_says_so(logic, chest):
    def stop(fraction, message):
        if "Painting" in message:
            raise Cancelled

    with pytest.raises(Cancelled):
        logic.run(chest, steps=50, onProgress=stop)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_run_fails_in_one_sentence(logic, chest):
    with pytest.raises(GenSegError, match="Chest has no lung: choose a chest CT"):
        logic.run(chest, steps=1, seed=13)
    with pytest.raises(GenSegError, match="steps is 0, but must be between 1 and 100"):
        logic.run(chest, steps=0)
    with pytest.raises(GenSegError, match="nodules has no such parameter"):
        logic.run(chest, speed=3)
    with pytest.raises(GenSegError, match="No volume is selected"):
        logic.run(None)


def test_start_returns_at_once_and_calls_back(logic, chest):
    finished, failed = [], []
    job = logic.start(chest, steps=1, onFinished=finished.append, onFailed=failed.append)
    assert not job.finished and finished == []
    assert panel_stand_in.process_events(60, lambda: job.finished)
    assert finished == [job.nodes] and failed == []
    job = logic.start(chest, steps=1, seed=13, onFinished=finished.append, onFailed=failed.append)
    assert panel_stand_in.process_events(60, lambda: job.finished)
    assert len(finished) == 1 and failed == ["Chest has no lung: choose a chest CT."]


def test_a_killed_service_is_replaced(logic, chest, service):
    def kill(fraction, message):
        if fraction > 0.05:
            os.kill(service.pid, signal.SIGKILL)

    with pytest.raises(GenSegError, match="service was ended by signal 9"):
        logic.run(chest, steps=4, onProgress=kill)
    assert logic.run(chest, steps=1)
    os.kill(service.pid, signal.SIGKILL)
    time.sleep(0.5)  # idle meanwhile
    assert logic.run(chest, steps=1)


def test_the_window_answers_while_a_job_computes(logic, chest):
    """A median is asserted, not the worst case: the machine may be busy."""
    import statistics
    import time

    logic.run(chest, steps=1)
    job, pauses = logic.start(chest, steps=10), []
    while not job.finished:
        started = time.monotonic()
        panel_stand_in.process_events()
        pauses.append(time.monotonic() - started)
    assert len(pauses) > 10 and statistics.median(pauses) < 0.05


def test_the_service_gets_slicers_python_and_the_environment_of_the_start(monkeypatch, tmp_path):
    from GenSegPanel import service

    launcher = tmp_path / "bin" / ("PythonSlicer.exe" if os.name == "nt" else "PythonSlicer")
    launcher.parent.mkdir()
    launcher.touch()
    monkeypatch.setattr(slicer.app, "slicerHome", str(tmp_path))
    assert service.python_executable() == str(launcher)
    launcher.unlink()
    monkeypatch.setenv("PATH", "")
    assert service.python_executable() == sys.executable
    monkeypatch.setattr(sys, "executable", "/opt/Slicer/SlicerApp-real")
    with pytest.raises(GenSegError, match="PythonSlicer is not where it belongs"):
        service.python_executable()


def test_a_service_that_cannot_start_says_why(tmp_path):
    from GenSegPanel.service import PanelService

    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit('The service needs fastapi: install it with pip install fastapi uvicorn.')")
    service = PanelService(program=program)
    with pytest.raises(GenSegError, match="did not start: The service needs fastapi"):
        while service.poll("cpu") is None:
            pass
    source = SERVICE.read_text(encoding="utf-8")
    program.write_text(source.replace("Path(__file__).resolve().parents[2]", repr(str(ROOT))))
    while service.poll("cpu") is None:  # the next attempt starts another process
        pass
    service.stop()
    assert not service.running


def test_a_service_that_does_not_hear_its_end_is_killed_soon(launcher):
    """A job is inside a long step, and the launcher hands no standard input on, as on Windows."""
    from GenSegPanel.service import PanelService

    service = PanelService(program=ROOT / "Testing" / "service" / "tiny_service.py")
    while (client := service.poll("cpu")) is None:
        time.sleep(0.02)
    job = client.submit("steps", {"seconds": 10.0}, {"image": Volume(np.zeros((2, 3, 4), np.int16), np.eye(4))})
    while not job.poll().message.startswith("Step"):
        time.sleep(0.02)
    python = psutil.Process(service.pid)
    assert python.parent().cmdline()[1] == str(launcher / "PythonSlicer") and client.folder.exists()
    started = time.monotonic()
    service.stop()
    assert time.monotonic() - started < 3.0  # seconds for which the window stands still
    assert not python.is_running() and not client.folder.exists() and not service.running


def test_a_service_that_is_stopped_before_it_was_asked_for_leaves_no_process(launcher):
    from GenSegPanel.service import PanelService

    service = PanelService(program=SERVICE)
    assert service.poll("cpu") is None
    process = service._process
    while not (process._private / "ready.json").exists():  # it answers, but nobody has asked
        time.sleep(0.02)
    (python,) = psutil.Process(process._process.pid).children()
    service.stop()
    assert not python.is_running()


def test_importing_the_module_imports_nothing_heavy(bundles):
    """In a fresh process; the stand-ins themselves import PySide6 and vtk."""
    folders = [str(ROOT / "Testing" / "panel"), str(ROOT / "Testing"), str(ROOT / "GenSegExtension")]
    code = (f"import sys; sys.path[:0] = {folders!r}; import panel_stand_in; panel_stand_in.install();"
            f"before = set(sys.modules); from pathlib import Path; panel_stand_in.add_module(Path({str(MODULE)!r}));"
            "print(*{name.split('.')[0] for name in set(sys.modules) - before})")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300).stdout
    imported = set(out.split())
    assert "GenSegPanel" in imported
    assert not imported & {"torch", "monai", "matplotlib", "fastapi", "transformers", "safetensors", "captum"}


class Packaging:
    """A ``slicer.packaging`` in whose environment some packages are missing until they are installed."""

    def __init__(self, missing):
        from slicer_stand_in import packaging

        self.missing, self.installed, self.load_requirements = set(missing), [], packaging.load_requirements

    def pip_check(self, requirement):
        return str(requirement).split(">=")[0] not in self.missing

    def pip_ensure(self, requirements, **options):
        self.installed += requirements
        self.missing -= {line.split(">=")[0] for line in requirements}


@pytest.fixture
def fresh(monkeypatch):
    """A Slicer without fastapi and monai that may ask and install."""
    packaging, questions = Packaging({"fastapi", "monai"}), []
    monkeypatch.setattr(slicer, "packaging", packaging)
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setattr(slicer.app, "testingEnabled", lambda: False)
    monkeypatch.setattr(slicer.util, "mainWindow", lambda: object())
    return types.SimpleNamespace(packaging=packaging, questions=questions)


@pytest.mark.parametrize("answer", [True, False])
def test_what_is_missing_is_installed_after_one_question(fresh, monkeypatch, answer):
    from GenSegPanel import install

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay",
                        lambda text, **options: fresh.questions.append(text) or answer)
    assert install.ensure() is answer
    assert len(fresh.questions) == 1
    assert "monai, fastapi" in fresh.questions[0] and "About 3 MB are downloaded" in fresh.questions[0]
    assert (sorted(fresh.packaging.installed) == ["fastapi>=0.115", "monai>=1.5"]) is answer
    if answer:
        assert install.ensure() and len(fresh.questions) == 1


def test_without_the_pytorch_extension_it_says_what_to_install(fresh, monkeypatch):
    from GenSegPanel import install

    fresh.packaging.missing.add("torch")
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay",
                        lambda text, **options: fresh.questions.append(text) or True)
    with pytest.raises(GenSegError, match="install Slicer's PyTorch extension"):
        install.ensure()
    assert fresh.questions == [] and fresh.packaging.installed == []  # nothing is asked that yes would not help
    assert "NVIDIA GPU" in install.question(install.missing())


def test_in_the_console_it_says_what_is_missing(fresh, service, chest):
    panel_stand_in.add_module(MODULE)
    from GenSegNodules import GenSegNodulesLogic

    logic = GenSegNodulesLogic(service)
    with pytest.raises(GenSegError, match=r"monai, fastapi\. Press Apply in its panel"):
        logic.run(chest)
    assert fresh.questions == [] and not service.jobs


def test_nothing_is_installed_under_testing(fresh, monkeypatch):
    from GenSegPanel import install

    monkeypatch.setattr(slicer.app, "testingEnabled", lambda: True)
    assert install.ensure() and fresh.questions == [] and fresh.packaging.installed == []


def test_service_requirements_are_the_projects():
    import tomllib

    from GenSegPanel import install

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = {str(item) for item in slicer.packaging.load_requirements(install.SERVICE_REQUIREMENTS)}
    assert lines == set(project["optional-dependencies"]["service"])


def test_the_self_test_passes(logic, caplog):
    from GenSegNodules import GenSegNodulesTest

    with caplog.at_level(logging.WARNING):
        GenSegNodulesTest().runTest()
    assert caplog.records == []


def test_an_installation_that_fails_ends_as_one_sentence(monkeypatch):
    from GenSegPanel import install

    def pip_install(requirements, **options):
        """What ``slicer.packaging`` does to install, with the real pip and no index to look in."""
        subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", *map(str, requirements)], check=True,
                       capture_output=True)

    monkeypatch.setattr(install, "_missing_for_service", lambda: ["genseg-package-that-is-nowhere"])
    monkeypatch.setattr(slicer.app, "testingEnabled", lambda: False)
    monkeypatch.setattr(slicer.packaging, "pip_ensure", pip_install)
    with pytest.raises(GenSegError, match="The packages could not be installed"):
        install.ensure()


def test_the_walkthrough_is_through(bundles, tmp_path):
    """The same script that plays a user in the desktop, with a service whose task needs no model."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "Testing" / "desktop" / "walkthrough.py"), "--service", str(SERVICE), "--small"],
        capture_output=True, text=True, timeout=600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("The walkthrough is through.")
    assert "Traceback" not in done.stderr


def test_the_walkthrough_fails_at_once_where_a_package_is_missing(panel, tmp_path, monkeypatch):
    """In the desktop, Apply would ask whether to install it and wait for an answer for ever."""
    from GenSegPanel import install

    spec = importlib.util.spec_from_file_location("walkthrough", ROOT / "Testing" / "desktop" / "walkthrough.py")
    walkthrough = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walkthrough)
    (tmp_path / "requirements.txt").write_text("genseg-package-that-is-nowhere\n")
    monkeypatch.setattr(install, "SERVICE_REQUIREMENTS", tmp_path / "requirements.txt")
    with pytest.raises(walkthrough.Failed, match=r"Install what GenSeg needs first.*genseg-package-that-is-nowhere"):
        walkthrough.NoduleWalkthrough(tmp_path, True, None).play()
