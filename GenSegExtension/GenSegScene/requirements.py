"""The libraries that the engine needs, inside Slicer's own Python. Never called at import."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from GenSegLogic.errors import GenSegError

REQUIREMENTS = Path(__file__).with_name("requirements.txt")


def missing() -> list[str]:
    """Requirements that this Python does not meet, as pip writes them; empty outside Slicer's application."""
    packaging = _packaging()
    if packaging is None:
        return []
    return [str(item) for item in packaging.load_requirements(REQUIREMENTS) if not packaging.pip_check(item)]


def check_torch(lines: Sequence[str]) -> None:
    """Raise GenSegError if torch is among the requirements, and Slicer's extension that installs it is not there."""
    if not any(_is_torch(line) for line in lines):
        return
    try:
        import PyTorchUtils  # noqa: F401
    except ImportError as error:
        raise GenSegError("PyTorch is missing or too old: install Slicer's PyTorch extension (View > Extensions "
                          "Manager), restart Slicer and run this again.") from error


def ensure(show_progress: bool = False) -> None:
    """Install what is missing without asking; under ``--testing`` nothing is installed.

    Args:
        show_progress: show pip's output in a window meanwhile, which lives on.

    Raises:
        GenSegError: torch is missing or too old, and Slicer's PyTorch extension, which installs the right build, is not
            there or could not help; or pip fails.
    """
    wanted = missing()
    if not wanted:
        return
    import slicer

    if not slicer.app.testingEnabled():
        for line in filter(_is_torch, wanted):
            _install_torch(line)
    pip_install([line for line in wanted if not _is_torch(line)], show_progress)


def pip_install(lines: Sequence[str], show_progress: bool = False) -> None:
    """Install requirements, as pip writes them, into Slicer's Python; nothing where there are none.

    Raises:
        GenSegError: pip fails.
    """
    packaging = _packaging()
    if not lines or packaging is None:
        return
    try:
        packaging.pip_ensure(list(lines), prompt_install=False, prompt_restart=False, show_progress=show_progress,
                             requester="GenSeg")
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # the last is what pip's failure comes as
        raise GenSegError(f"The packages could not be installed: check the network and retry. {error}") from error


def _install_torch(line: str) -> None:
    """Install torch as ``line`` asks for it. Unless told the version, the extension is content with any that is there.

    Raises:
        GenSegError: the extension is not there, its installation fails, or torch is missing or too old afterwards.
    """
    check_torch([line])
    import PyTorchUtils
    from packaging.requirements import Requirement

    try:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=False, torchVersionRequirement=str(Requirement(line).specifier))
    # ImportError: what was installed cannot be loaded, as it may be in a Slicer that had loaded the torch before it.
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        raise GenSegError("PyTorch could not be installed: check the network, restart Slicer and run this again. "
                          f"{error}") from error
    if line in missing():
        raise GenSegError(f"PyTorch is still missing or too old, for GenSeg needs {line}: uninstall it in the module "
                          "PyTorch Utils, restart Slicer and run this again.")


def _is_torch(line: str) -> bool:
    return line.startswith("torch")


def _packaging() -> Any:
    """``slicer.packaging``; None outside the application, where nothing is installed into Slicer's Python."""
    try:
        import slicer.packaging
    except ImportError:
        return None
    return slicer.packaging if getattr(slicer, "app", None) is not None else None
