"""``slicer.packaging`` that looks and never installs: tests run in an environment that is complete or not."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any


def pip_check(requirements: Any) -> bool:
    """Whether every requirement (string, ``packaging`` object or a list of them) is met in this environment."""
    from packaging.requirements import Requirement

    if isinstance(requirements, (str, Requirement)):
        requirements = [requirements]
    for item in requirements:
        requirement = Requirement(str(item))
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            return False
        if not requirement.specifier.contains(version, prereleases=True):
            return False
    return True


def pip_ensure(requirements: Any, constraints: Any = None, skip_packages: Any = None, prompt_install: bool = True,
               prompt_restart: bool = True, requester: str | None = None, skip_in_testing: bool = True,
               show_progress: bool = True) -> list[str]:
    """As under ``--testing``: installs nothing. Raises RuntimeError if asked to install after all."""
    if not skip_in_testing and not pip_check(requirements):
        raise RuntimeError(f"the stand-in does not install {requirements}")
    return []


def load_requirements(path: str | Path) -> list[Any]:
    """The requirements of a ``requirements.txt``, as ``packaging`` objects."""
    from packaging.requirements import Requirement

    lines = (line.split("#")[0].strip() for line in Path(path).read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def load_pyproject_dependencies(path: str | Path) -> list[Any]:
    """The ``[project] dependencies`` of a ``pyproject.toml``, as ``packaging`` objects."""
    import tomllib

    from packaging.requirements import Requirement

    data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    return [Requirement(line) for line in data["project"].get("dependencies", [])]


PUBLIC = {
    "pip_check": pip_check,
    "pip_ensure": pip_ensure,
    "load_requirements": load_requirements,
    "load_pyproject_dependencies": load_pyproject_dependencies,
}
