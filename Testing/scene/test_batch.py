"""The headless run, as processes: from the checkout, from an installed place, as a module and as a script."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import slicer

from GenSegLogic import Volume, write_volume
from GenSegLogic.errors import GenSegError
from GenSegScene import requirements

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "GenSegExtension" / "GenSegScene" / "batch.py"

# A small real task takes the place of the model; everything round it is what ships. With "slicer" the real
# slicer-core is completed first, as it is inside the application, where sys.executable is a launcher.
RUN = """
import runpy, sys
sys.path.insert(0, {root!r})
if {home!r}:
    sys.executable = {home!r} + "/bin/PythonSlicer"
if {inside_slicer}:
    sys.path.insert(0, {root!r} + "/Testing")
    import slicer_stand_in
    slicer_stand_in.install().app.slicerHome = {home!r}
from GenSegLogic import tasks
tasks.TASKS["threshold"] = "Testing.logic.threshold_task:ThresholdTask"
sys.argv = ["batch.py", *{words!r}]
runpy.run_path({script!r}, run_name="__main__")
print("the script ended without sys.exit")
"""


def run(words: list[str], inside_slicer: bool = False, cwd: Path | None = None,
        home: Path | None = None) -> subprocess.CompletedProcess:
    code = RUN.format(root=str(ROOT), script=str(SCRIPT), words=[str(word) for word in words],
                      inside_slicer=inside_slicer, home=str(home or ""))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=300,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two scans with a bright block each, and one that the task refuses."""
    scans = tmp_path / "scans"
    scans.mkdir()
    for name in ("a", "b", "empty"):
        voxels = np.full((10, 12, 14), -800, np.int16)
        voxels[3:6, 4:7, 5:8] = 300
        write_volume(Volume(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), scans / f"{name}.nrrd")
    return scans


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_one_line_per_case_and_exit_code_1_after_the_rest(folder, tmp_path):
    out = tmp_path / "out"
    done = run(["threshold", folder, "-o", out, "--device", "cpu"], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "without sys.exit" not in done.stdout
    rows = table(out / "cases.csv")
    assert [row["case"] for row in rows] == ["a", "b", "empty"]
    assert [bool(row["error"]) for row in rows] == [False, False, True]
    assert "shows no body" in rows[2]["error"]
    assert [row["case"] for row in table(out / "threshold.csv")] == ["a", "b", "empty"]
    (folder / "empty.nrrd").unlink()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("[ab]/*")}
    assert stamps
    again = run(["threshold", folder, "-o", out, "--device", "cpu", "--resume"], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("done before") == 2
    assert {path: path.stat().st_mtime_ns for path in out.glob("[ab]/*")} == stamps
    assert len(table(out / "cases.csv")) == 2


def test_inside_slicer_json_goes_to_a_file(folder, tmp_path):
    (folder / "empty.nrrd").unlink()
    out = tmp_path / "out"
    done = run(["--", "threshold", folder, "-o", out, "--device", "cpu", "--json"], inside_slicer=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((out / "batch.json").read_text(encoding="utf-8"))
    assert [case["case"] for case in found["cases"]] == ["a", "b"]
    assert json.loads(done.stdout.strip().splitlines()[-1]) == found


@pytest.fixture
def home(tmp_path) -> Path:
    """A Slicer whose PythonSlicer lets no worker come up, and whose real Python, beside it, writes down each start."""
    if os.name != "posix":
        pytest.skip("shell scripts stand in for Slicer's programs")
    folder = tmp_path / "Slicer" / "bin"
    folder.mkdir(parents=True)
    for name, line in {"PythonSlicer": "exit 1",
                       "python-real": f'echo "$@" >> "{folder}/started"; exec "{sys.executable}" "$@"'}.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return folder.parent


def test_inside_slicer_workers_are_started_with_the_real_python(folder, tmp_path, home):
    (folder / "empty.nrrd").unlink()
    out = tmp_path / "out"
    done = run(["threshold", folder, "-o", out, "--device", "cpu", "--workers", "2"], inside_slicer=True, home=home)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["error"] for row in table(out / "cases.csv")] == ["", ""]
    assert (home / "bin" / "started").read_text().count("--multiprocessing-fork") == 2


@pytest.mark.parametrize(("workers", "code", "said"), [
    (["--workers=2"], 1, "genseg: Workers need Slicer's own Python, which is not at {python}: leave --workers out.\n"),
    (["--workers", "1"], 0, ""),
    (["--workers"], 2, "argument --workers: expected one argument\n"),
])
def test_inside_slicer_without_the_real_python_there_is_one_worker(folder, tmp_path, home, workers, code, said):
    (folder / "empty.nrrd").unlink()
    python = home / "bin" / "python-real"
    python.unlink()
    words = ["threshold", folder, "-o", tmp_path / "out", "--device", "cpu", *workers]
    done = run(words, inside_slicer=True, home=home)
    assert done.returncode == code, done.stderr
    assert done.stderr.endswith(said.format(python=python)) and "Traceback" not in done.stderr
    assert (tmp_path / "out").exists() is (code == 0)


@pytest.mark.parametrize(("words", "code", "said"), [
    (["threshold"], 2, "usage"),
    (["no-such-task", "in", "-o", "out"], 2, "no-such-task"),
    (["threshold", "nowhere", "-o", "out"], 1, "nowhere is not a folder"),
    (["threshold", "--help"], 0, ""),
])
def test_every_path_ends_in_an_exit_code(tmp_path, words, code, said):
    done = run(words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert "without sys.exit" not in done.stdout


def test_runs_from_the_installed_place_with_its_own_logic(tmp_path):
    """Packages lie side by side in qt-scripted-modules; another GenSegLogic, found first, must not win."""
    installed, other = tmp_path / "qt-scripted-modules", tmp_path / "site-packages"
    shutil.copytree(ROOT / "GenSegLogic", installed / "GenSegLogic", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SCRIPT.parent, installed / "GenSegScene", ignore=shutil.ignore_patterns("__pycache__"))
    (other / "GenSegLogic").mkdir(parents=True)
    (other / "GenSegLogic" / "__init__.py").write_text("raise SystemExit('the wrong copy was imported')")
    environment = os.environ | {"PYTHONPATH": str(other)}
    script = [sys.executable, str(installed / "GenSegScene" / "batch.py")]
    module = [sys.executable, "-m", "GenSegScene.batch"]
    for command, cwd in ((script, tmp_path), (module, installed)):
        done = subprocess.run([*command, "--", "no-such-task", "in", "-o", "out"], capture_output=True, text=True,
                              cwd=cwd, env=environment, timeout=120)
        assert done.returncode == 2, done.stderr
        assert "no-such-task" in done.stderr


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = sorted(line.split("#")[0].strip() for line in project["dependencies"])
    wanted = [line for line in wanted if not line.startswith("SimpleITK")]  # Slicer brings its own
    assert sorted(str(item) for item in slicer.packaging.load_requirements(requirements.REQUIREMENTS)) == wanted
    assert requirements.missing() == []


def test_missing_requirements_are_installed_without_a_question(monkeypatch, tmp_path):
    listed = tmp_path / "requirements.txt"
    listed.write_text("numpy>=1\nno-such-library>=7\n")
    monkeypatch.setattr(requirements, "REQUIREMENTS", listed)
    calls = []
    monkeypatch.setattr(slicer.packaging, "pip_ensure", lambda *given, **options: calls.append((given, options)))
    requirements.ensure()
    ((given, options),) = calls
    assert given == (["no-such-library>=7"],)
    assert not (options["prompt_install"] or options["prompt_restart"] or options["show_progress"])


@pytest.fixture
def extension(monkeypatch, tmp_path) -> SimpleNamespace:
    """Slicer's PyTorch extension beside a torch that is too old: what it was asked for, and how it installs."""
    found = SimpleNamespace(asked=[], install=lambda: None)

    class PyTorchUtilsLogic:
        def installTorch(self, askConfirmation=False, forceComputationBackend=None, torchVersionRequirement=None):
            found.asked.append((askConfirmation, forceComputationBackend, torchVersionRequirement))
            found.install()
            return sys.modules[__name__]  # the torch that was loaded before, whatever was installed

    (tmp_path / "requirements.txt").write_text("torch>=99.1\n")
    monkeypatch.setattr(requirements, "REQUIREMENTS", tmp_path / "requirements.txt")
    monkeypatch.setattr(slicer.app, "testingEnabled", lambda: False)
    monkeypatch.setitem(sys.modules, "PyTorchUtils", SimpleNamespace(PyTorchUtilsLogic=PyTorchUtilsLogic))
    return found


def test_an_older_torch_is_replaced_by_one_that_is_new_enough(extension, monkeypatch, tmp_path):
    def install() -> None:
        """What pip leaves behind, before the torch of these tests on the path."""
        information = tmp_path / "site-packages" / "torch-99.2+cpu.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 99.2+cpu\n")

    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    extension.install = install
    requirements.ensure()
    assert extension.asked == [(False, None, ">=99.1")] and requirements.missing() == []


def test_a_torch_that_stays_too_old_is_said_with_what_to_do(extension):
    with pytest.raises(GenSegError, match=r"too old, for GenSeg needs torch>=99\.1: uninstall it in the module PyTorch "
                                          r"Utils, restart Slicer and run this again\.$"):
        requirements.ensure()
    assert len(extension.asked) == 1


def test_a_torch_that_cannot_be_installed_is_one_sentence(extension):
    extension.install = lambda: subprocess.run([sys.executable, "-m", "pip", "install", "--no-index", "torch>=99.1"],
                                               check=True, capture_output=True)
    with pytest.raises(GenSegError, match="PyTorch could not be installed: check the network, restart Slicer") as said:
        requirements.ensure()
    assert "\n" not in str(said.value)
