"""What reaches the user: the wheel, the Slicer extension, the command, and what the files at the top promise."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = [ROOT / "GenSegLogic", *sorted(path.parent for path in ROOT.glob("GenSegExtension/*/CMakeLists.txt"))]


def files_below(folder: Path) -> set[str]:
    """Paths of all files in a folder that belong to the project, relative to it, with forward slashes."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the project's own back end without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel installed in it, and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
         "--target", str(folder), str(wheel)],
        cwd=folder, check=True, capture_output=True,
    )
    return folder


def run_installed(installed: Path, code: str) -> str:
    """What a fresh interpreter prints that finds GenSegLogic in ``installed`` before anywhere else, and no bundles of
    the user's: the panel's tests leave some in their environment."""
    own = {"PYTHONPATH": str(installed), "GENSEG_HOME": str(installed / "home")}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=installed, env=os.environ | own, check=True, capture_output=True, text=True,
    ).stdout


def test_wheel_holds_the_package_its_bundles_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
        licence = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    package = {f"GenSegLogic/{name}" for name in files_below(ROOT / "GenSegLogic") - {"CMakeLists.txt"}}
    bundles = {f"GenSegLogic/_bundles/{name}" for name in files_below(ROOT / "Resources" / "Bundles")}
    assert shipped == package | bundles
    assert len(licence) == 1


def bundles_in_checkout() -> list[str]:
    """Names of the bundles that ship; there are some."""
    names = sorted(path.parents[1].name for path in (ROOT / "Resources" / "Bundles").glob("*/configs/metadata.json"))
    assert names
    return names


def bundles_found_by(installed: Path) -> tuple[Path, list[str]]:
    """The folder of shipped bundles and their names, as GenSegLogic in ``installed`` finds them."""
    out = run_installed(installed, "from GenSegLogic.bundles import list_bundles, shipped_folder\n"
                                   "print(shipped_folder()); print(*sorted(b.name for b in list_bundles()))")
    folder, names = out.splitlines()
    return Path(folder), names.split()


def test_installed_wheel_finds_its_bundles(installed: Path) -> None:
    assert bundles_found_by(installed) == (installed / "GenSegLogic" / "_bundles", bundles_in_checkout())


def test_installed_command_runs(installed: Path) -> None:
    (command,) = [path for path in (installed / "bin").iterdir() if path.stem == "genseg"]
    help_text = subprocess.run(
        [str(command), "--help"],
        cwd=installed, env=os.environ | {"PYTHONPATH": str(installed)}, check=True, capture_output=True, text=True,
    ).stdout
    assert "nodules" in help_text
    assert "Not for clinical use" in help_text


def test_importing_the_command_line_imports_nothing_heavy(installed: Path) -> None:
    out = run_installed(installed, "import sys, GenSegLogic, GenSegLogic.cli; print(*sys.modules)")
    imported = {name.split(".")[0] for name in out.split()}
    assert "GenSegLogic" in imported
    assert not imported & {"torch", "monai", "matplotlib", "SimpleITK", "scipy", "captum", "fastapi", "ray"}


def test_version_is_the_same_everywhere(wheel: Path, installed: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        (version,) = re.findall(r"^Version: (.+)$", archive.read(metadata).decode(), re.MULTILINE)
    assert run_installed(installed, "import GenSegLogic; print(GenSegLogic.__version__)").strip() == version
    out = run_installed(installed, "from GenSegLogic.cli import main; main(['--version'])")
    assert out.strip() == f"genseg {version}"


def requirements() -> dict[str, Requirement]:
    """Every package that the project asks for, by its canonical name."""
    extras = PROJECT["optional-dependencies"].values()
    lines = PROJECT["dependencies"] + [line for extra in extras for line in extra]
    found = {str(canonicalize_name(requirement.name)): requirement for requirement in map(Requirement, lines)}
    del found["genseglogic"]
    return found


def test_every_requirement_is_pinned_for_tests_within_its_range() -> None:
    pins = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[str(canonicalize_name(name))] = version
    wrong = [f"{requirement} is pinned to {pins.get(name)}" for name, requirement in requirements().items()
             if name not in pins or pins[name] not in requirement.specifier]
    assert not wrong


def imported_packages() -> set[str]:
    """Top-level names, in small letters, that any module of the package imports."""
    imported = set()
    for path in (ROOT / "GenSegLogic").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            imported |= {name.split(".")[0].lower() for name in names}
    return imported


def test_the_package_requires_what_it_imports_and_nothing_else() -> None:
    by_others = {"einops"}  # MONAI's attention imports it
    brought_along = {"starlette"}  # by FastAPI, whose application it is
    tools = {canonicalize_name(Requirement(line).name) for line in PROJECT["optional-dependencies"]["test"]}
    required = set(requirements()) - tools
    imported = imported_packages() - sys.stdlib_module_names - {"genseglogic"}
    assert sorted(imported - required - brought_along) == []
    assert sorted(required - by_others - imported) == []


def test_all_installs_every_optional_part() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == set(extras) - {"all", "test"}


def files_in_cmake(package: Path) -> set[str]:
    """The files that a package's CMakeLists.txt names, relative to the package."""
    text = re.sub(r"#.*", "", (package / "CMakeLists.txt").read_text(encoding="utf-8"))
    words = re.findall(r"[^\s()\"]+", text.replace("${MODULE_NAME}", package.name))
    return {word for word in words if Path(word).suffix and "$" not in word}


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_cmake_ships_every_file(package: Path) -> None:
    there = {name for name in files_below(package) if not name.startswith("Testing/")} - {"CMakeLists.txt"}
    listed = {name for name in files_in_cmake(package) if not name.startswith("Testing/")}
    assert sorted(there - listed) == [], "not listed in SCRIPTS or RESOURCES, so they would not ship"
    assert sorted(listed - there) == [], "listed, but not there"


def test_every_part_of_the_extension_is_built() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    built = set(re.findall(r"add_subdirectory\(([\w/]+)", text))
    assert built == {path.relative_to(ROOT).as_posix() for path in PACKAGES}


def test_installed_in_slicer_it_finds_its_bundles(tmp_path: Path) -> None:
    """Slicer's macro lays the package into qt-scripted-modules; the top-level CMakeLists.txt puts Resources beside."""
    for name in files_in_cmake(ROOT / "GenSegLogic"):
        target = tmp_path / "GenSegLogic" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / "GenSegLogic" / name, target)
    shutil.copytree(ROOT / "Resources" / "Bundles", tmp_path / "Resources" / "Bundles")
    assert bundles_found_by(tmp_path) == (tmp_path / "Resources" / "Bundles", bundles_in_checkout())


def test_resources_of_modules_have_unique_names() -> None:
    """Slicer merges the Resources folders of all modules without WITH_SUBDIR into one."""
    names = [name for package in ROOT.glob("GenSegExtension/*/Resources") for name in files_below(package)]
    assert len(names) == len(set(names))


def test_extension_imports_only_what_slicer_brings() -> None:
    allowed = {"slicer", "vtk", "qt", "ctk", "SimpleITK", "numpy", "scipy", "GenSegLogic", "GenSegScene", "GenSegPanel",
               "GenSegNodules", "vtkSegmentationCorePython", *sys.stdlib_module_names}
    foreign = []
    for path in (ROOT / "GenSegExtension").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            foreign += [f"{path.name}: {name}" for name in names if name.split(".")[0] not in allowed]
    assert not foreign


def test_extension_description_and_index_entry_agree() -> None:
    cmake = dict(re.findall(r'set\(EXTENSION_(\w+) "([^"]*)"\)', (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")))
    entry = json.loads((ROOT / "GenSeg.json").read_text(encoding="utf-8"))
    assert entry["build_dependencies"] == cmake["DEPENDS"].split()
    assert entry["scm_url"] == cmake["HOMEPAGE"] + ".git"
    for url in (cmake["ICONURL"], *cmake["SCREENSHOTURLS"].split()):
        assert (ROOT / url.split(f"/{entry['scm_revision']}/", 1)[1]).is_file()


def test_readme_names_only_what_exists() -> None:
    from GenSegLogic.cli import COMMANDS
    from GenSegLogic.tasks import TASKS

    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"\bmake ([a-z]+)\b", README)) <= targets
    assert {"demo", "nodules"} <= set(re.findall(r"^genseg ([a-z]+)\b", README, re.MULTILINE)) <= {*COMMANDS, *TASKS}
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    assert README.lower().count("clinical use") == 1


def test_checkout_stays_small_enough_for_the_extension_index() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    sizes = {name: (ROOT / name).stat().st_size for name in listing.split("\0") if name and (ROOT / name).is_file()}
    assert sum(sizes.values()) < 90 * 2**20
    assert max(sizes.values()) < 20 * 2**20
