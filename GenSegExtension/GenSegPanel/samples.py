"""Sample data that needs no download: a procedural phantom, drawn when somebody asks for it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

import GenSegLogic
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.volume import Volume
from GenSegScene.volumes import volume_to_node

from .service import python_executable

SAMPLE_NAME = "GenSegChestPhantom"
POLL_SECONDS = 0.02

# Needs nothing that Slicer's Python does not bring, so that the sample is there before anything is installed.
_DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy
from GenSegLogic.phantoms.kinds import chest
scan = chest(int(sys.argv[2]))["chest"]
numpy.savez(sys.argv[3], voxels=scan.voxels, affine=scan.affine)
"""


def register(thumbnail: str) -> None:
    """Offer the chest phantom in the Sample Data module, category GenSeg. Nothing is made before a user asks."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="GenSeg",
        sampleName=SAMPLE_NAME,
        uris="genseg:chest-phantom",  # asked for by Slicer, though nothing is downloaded
        fileNames=SAMPLE_NAME,
        nodeNames=SAMPLE_NAME,
        thumbnailFileName=thumbnail,
        customDownloader=add_chest_sample,
    )


def add_chest_sample(source: Any = None) -> list[Any]:
    """What the Sample Data module calls: the nodes that it then lists; none if the user cancels."""
    with slicer.util.tryWithErrorDisplay(_("The phantom could not be made.")):
        try:
            return [add_chest_phantom()]
        except Cancelled:
            return []


def add_chest_phantom(seed: int = 0) -> Any:
    """Draw a chest phantom and add it to the scene as a CT volume with a lung window.

    Another process draws it, some 15 s long; the window lives on and shows that it works.

    Args:
        seed: another seed, another patient.

    Returns:
        vtkMRMLScalarVolumeNode, shown in the slice views.

    Raises:
        Cancelled: if the user cancels.
        GenSegError: if the process fails, with what it said last.
    """
    node = volume_to_node(_draw(seed), slicer.mrmlScene.GenerateUniqueName(SAMPLE_NAME))
    node.SetAttribute("DICOM.Modality", "CT")
    node.SetDescription(_("Procedural phantom, seed {seed}; no patient.").format(seed=seed))
    display = node.GetDisplayNode()
    display.AutoWindowLevelOff()
    display.SetWindowLevel(1400, -500)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def _draw(seed: int) -> Volume:
    """The phantom's scan, int16 HU, from a process of its own."""
    with tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath, ignore_cleanup_errors=True) as folder:
        path, log_path = Path(folder, "chest.npz"), Path(folder, "log.txt")
        command = [python_executable(), "-c", _DRAW, str(Path(GenSegLogic.__file__).parents[1]), str(seed), str(path)]
        with open(log_path, "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=slicer.util.startupEnvironment(),
                                       creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        try:
            _wait(process)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            said = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise GenSegError(_("The phantom could not be drawn: {reason}").format(
                reason=said[-1] if said else f"exit code {process.returncode}"))
        with np.load(path) as parts:
            return Volume(parts["voxels"], parts["affine"], SAMPLE_NAME, {"modality": "CT"})


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Let the window live until the process ends; raises Cancelled when the user wants no more."""
    with _busy_dialog(_("Drawing a chest phantom. This takes about 15 seconds.")) as dialog:
        while process.poll() is None:
            slicer.app.processEvents()
            if dialog is not None and dialog.wasCanceled:
                raise Cancelled
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def _busy_dialog(text: str) -> Iterator[Any]:
    """A dialog with a bar that moves and a button to cancel; None where there is no window."""
    if slicer.util.mainWindow() is None:
        yield None
        return
    dialog = slicer.util.createProgressDialog(labelText=text, windowTitle=_("GenSeg"))
    dialog.maximum = 0  # a bar without an end, since nobody knows how far the drawing is; earlier it hides the dialog
    dialog.show()
    try:
        yield dialog
    finally:
        dialog.close()
        dialog.deleteLater()
