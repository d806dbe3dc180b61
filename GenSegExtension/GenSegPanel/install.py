"""First-run installation: what is missing is named with its size and installed after one question."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from GenSegLogic.errors import GenSegError
from GenSegScene import requirements

SERVICE_REQUIREMENTS = Path(__file__).with_name("service-requirements.txt")

# Megabytes to download, of wheels for 64-bit Linux and Windows at the time of writing; the rest is below 2 MB each.
_MEGABYTES = {"torch": 250, "monai": 2, "scipy": 35, "matplotlib": 9, "numpy": 17, "pydantic": 3,
              "transformers": 20}  # with its tokenizers, hf-xet and huggingface-hub
_TORCH_CUDA_MEGABYTES = 2500


def missing() -> list[str]:
    """Requirements of the engine and its service that Slicer's Python does not meet, as pip writes them."""
    return requirements.missing() + _missing_for_service()


def question(lines: list[str]) -> str:
    """The one question: what will be installed, how much is downloaded, and that nothing else leaves the machine."""
    names = [_name(line) for line in lines]
    size = sum(_MEGABYTES.get(name, 1) for name in names)
    text = _("GenSeg needs these Python packages, which are not installed yet: {names}.").format(names=", ".join(names))
    text += "\n\n" + _("About {size} MB are downloaded.").format(size=size)
    if "torch" in names:
        text += " " + _("With an NVIDIA GPU, PyTorch takes about {size} MB more.").format(size=_TORCH_CUDA_MEGABYTES)
    return text + "\n\n" + _("Your scans stay on this computer. Install them now?")


def ensure() -> bool:
    """Make sure that the engine can start; asks once. Call it at the point of use, never at import.

    Under ``--testing`` nothing is asked or installed.

    Returns:
        False if the user said no.

    Raises:
        GenSegError: what is missing cannot be installed.
    """
    lines = missing()
    if not lines or slicer.app.testingEnabled():
        return True
    requirements.check_torch(lines)  # before the question, for it cannot be answered with yes
    window = slicer.util.mainWindow() is not None
    if window and not slicer.util.confirmOkCancelDisplay(
            question(lines), windowTitle=_("Install what GenSeg needs")):
        return False
    requirements.ensure(show_progress=window)
    requirements.pip_install(_missing_for_service(), show_progress=window)
    return True


def check() -> None:
    """Raise GenSegError if something is missing, where nobody can be asked: the Python console and scripts.

    Under ``--testing`` nothing is checked, as nothing is installed.
    """
    lines = missing()
    if lines and not slicer.app.testingEnabled():
        raise GenSegError(_("GenSeg needs these Python packages, which are not installed yet: {names}. Press Apply in "
                            "its panel, or run GenSegPanel.install.ensure().").format(
            names=", ".join(_name(line) for line in lines)))


def _missing_for_service() -> list[str]:
    packaging = slicer.packaging
    wanted = packaging.load_requirements(SERVICE_REQUIREMENTS)
    return [str(item) for item in wanted if not packaging.pip_check(item)]


def _name(line: str) -> str:
    for index, letter in enumerate(line):
        if not (letter.isalnum() or letter in "-_."):
            return line[:index]
    return line
