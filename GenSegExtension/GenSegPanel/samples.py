"""Sample data that needs no download: procedural phantoms, each drawn when somebody asks for it."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

import GenSegLogic
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.volume import Volume
from GenSegScene import display
from GenSegScene.volumes import volume_to_node

from .service import python_executable

POLL_SECONDS = 0.02

# Needs nothing that Slicer's Python does not bring, so that the sample is there before anything is installed.
_DRAW = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy
from GenSegLogic.phantoms import KINDS
from GenSegLogic.tasks import load
scan = next(iter(load(KINDS[sys.argv[2]])(int(sys.argv[3])).values()))
numpy.savez(sys.argv[4], voxels=numpy.round(scan.voxels).astype(numpy.int16), affine=scan.affine)
"""


@dataclass(frozen=True)
class Sample:
    """A phantom as the Sample Data module offers it.

    Attributes:
        name: of the sample and of its node.
        modality: ``CT`` or ``MR``.
        window: grey values that are shown black and white; None: 0 and the 99th percentile, for MR has no scale.
        seconds: how long the drawing takes, about.
    """

    name: str
    modality: str
    window: tuple[float, float] | None
    seconds: int


SAMPLES = {
    "chest": Sample("GenSegChestPhantom", "CT", (-1200, 200), 15),
    "abdomen-ct": Sample("GenSegAbdomenCT", "CT", (-150, 250), 5),
    "abdomen-mr": Sample("GenSegAbdomenMR", "MR", None, 5),
}
"""Kind of :data:`GenSegLogic.phantoms.KINDS` -> sample."""


def register(kind: str, thumbnail: str) -> None:
    """Offer a phantom in the Sample Data module, category GenSeg. Nothing is made before a user asks.

    Args:
        kind: one of SAMPLES.
        thumbnail: path of a picture.
    """
    import SampleData

    name = SAMPLES[kind].name
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="GenSeg",
        sampleName=name,
        uris=f"genseg:{kind}-phantom",  # asked for by Slicer, though nothing is downloaded
        fileNames=name,
        nodeNames=name,
        thumbnailFileName=thumbnail,
        customDownloader=partial(add_sample, kind),
    )


def add_sample(kind: str, source: Any = None) -> list[Any]:
    """What the Sample Data module calls: the nodes that it then lists; none if the user cancels."""
    with slicer.util.tryWithErrorDisplay(_("The phantom could not be made.")):
        try:
            return [add_phantom(kind)]
        except Cancelled:
            pass
    return []


def add_phantom(kind: str, seed: int = 0) -> Any:
    """Draw a phantom and add it to the scene as a volume with a window that fits.

    Another process draws it; the window lives on and shows that it works. Scripts call this, since
    ``SampleData.downloadSample`` knows files only::

        from GenSegPanel.samples import add_phantom
        chest = add_phantom("chest")

    Args:
        kind: one of SAMPLES.
        seed: another seed, another patient.

    Returns:
        vtkMRMLScalarVolumeNode, shown in the slice views.

    Raises:
        Cancelled: if the user cancels.
        GenSegError: if the process fails, with what it said last.
    """
    sample = SAMPLES[kind]
    scan = _draw(kind, seed)
    node = volume_to_node(scan, slicer.mrmlScene.GenerateUniqueName(sample.name))
    node.SetAttribute("DICOM.Modality", sample.modality)
    node.SetDescription(_("Procedural phantom, seed {seed}; no patient.").format(seed=seed))
    node.GetDisplayNode().AutoWindowLevelOff()
    node.GetDisplayNode().SetWindowLevelMinMax(*(sample.window or (0.0, float(np.percentile(scan.voxels, 99)))))
    display.show_in_views(node)
    slicer.util.setSliceViewerLayers(foreground=None, label=None, fit=True)  # what was shown lies on another scan
    return node


def _draw(kind: str, seed: int) -> Volume:
    """The phantom's scan, int16, from a process of its own."""
    sample = SAMPLES[kind]
    with tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath, ignore_cleanup_errors=True) as folder:
        path, log_path = Path(folder, "scan.npz"), Path(folder, "log.txt")
        command = [python_executable(), "-c", _DRAW, str(Path(GenSegLogic.__file__).parents[1]), kind, str(seed),
                   str(path)]
        with open(log_path, "wb") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       env=slicer.util.startupEnvironment(),
                                       creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        try:
            _wait(process, _("Drawing {name}. This takes about {seconds} seconds.").format(
                name=sample.name, seconds=sample.seconds))
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            said = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise GenSegError(_("The phantom could not be drawn: {reason}").format(
                reason=said[-1] if said else f"exit code {process.returncode}"))
        with np.load(path) as parts:
            return Volume(parts["voxels"], parts["affine"], sample.name, {"modality": sample.modality})


def _wait(process: subprocess.Popen[bytes], text: str) -> None:
    """Let the window live until the process ends; raises Cancelled when the user wants no more."""
    with _busy_dialog(text) as dialog:
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
    import qt

    dialog.windowModality = qt.Qt.ApplicationModal  # else a second click draws a second phantom inside this wait
    dialog.show()
    try:
        yield dialog
    finally:
        dialog.close()
        dialog.deleteLater()
