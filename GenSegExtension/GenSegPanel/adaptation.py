"""Adapting a bundle to cases of the scene: they are handed to a process that learns while the window lives on."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
from slicer.i18n import tr as _

import GenSegLogic
from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import find_bundle
from GenSegLogic.bundles.bundle import is_name
from GenSegLogic.bundles.folders import cached_bundles_folder
from GenSegLogic.datasets.labels import organ_named
from GenSegLogic.errors import GenSegError
from GenSegLogic.organs.diffusam.task import AUTO, BUNDLES, modality_of
from GenSegLogic.volume import Volume
from GenSegScene.segmentations import mask_from_segment
from GenSegScene.volumes import volume_from_node

from .parameters import bundle_names
from .service import python_executable

INTERVAL_MILLISECONDS = 500


def case_from_nodes(image: Any, segmentation: Any) -> tuple[Volume, Volume]:
    """A scan and its labels, numbers of ORGANS, from the segments that are named after organs.

    Raises:
        GenSegError: if no segment is named after an organ, or the scan cannot be used.
    """
    scan = volume_from_node(image)
    labels = np.zeros(scan.shape, np.uint8)
    for segment_id in segmentation.GetSegmentation().GetSegmentIDs():
        organ = organ_named(segmentation.GetSegmentation().GetSegment(segment_id).GetName())
        if organ is not None:
            labels[mask_from_segment(segmentation, segment_id, image).voxels > 0] = ORGANS[organ].label
    if not labels.any():
        raise GenSegError(_("{name} marks no organ on {scan}: name its segments {organs}.").format(
            name=segmentation.GetName(), scan=image.GetName(),
            organs=", ".join(organ.title for organ in ORGANS.values())))
    return scan, scan.with_voxels(labels)


class Adaptation:
    """Learning in hand. A timer of the event loop follows it; the bundle appears when it has ended well.

    Attributes:
        state: ``running``, ``done``, ``failed`` or ``cancelled``.
    """

    def __init__(self, name: str, cases: Sequence[tuple[Volume, Volume]], source: str, minutes: float, seed: int,
                 device: str, onProgress: Callable[[float, str], None], onFinished: Callable[[str, list[str]], None],
                 onFailed: Callable[[str, str], None]) -> None:
        """Start learning and return at once.

        Args:
            name: of the new bundle.
            cases: scans and their labels, as :func:`case_from_nodes` gives them.
            source: bundle of kind organs to start from, or ``auto``.
            minutes: how long to learn at most.
            seed, device: as everywhere.
            onProgress: called with the fraction and a message.
            onFinished: called with the bundle's name and sentences for the user.
            onFailed: called with one sentence and the details.

        Raises:
            GenSegError: if the name is no bundle's or taken, there is no case, or the process cannot be started.
        """
        if not is_name(name) or name in bundle_names("organs"):
            raise GenSegError(_("Choose a new name of lower-case letters, digits and dashes for the adapted model."))
        if not cases:
            raise GenSegError(_("Add at least one case: a scan and a segmentation of its organs."))
        self.state = "running"
        self._onProgress, self._onFinished, self._onFailed = onProgress, onFinished, onFailed
        self._folder = tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath, ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        request = {"source": find_bundle(BUNDLES[modality_of(cases[0][0])] if source == AUTO else source).name,
                   "minutes": minutes, "seed": seed, "device": device, "output": str(cached_bundles_folder() / name),
                   "cases": [{"file": f"case_{index}.npz", "name": scan.name, "metadata": dict(scan.metadata)}
                             for index, (scan, _labels) in enumerate(cases)]}
        for case, (scan, labels) in zip(request["cases"], cases, strict=True):
            np.savez(folder / case["file"], image=scan.voxels, affine=scan.affine, labels=labels.voxels)
        (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
        self._said, self._log = folder / "said.txt", folder / "log.txt"
        command = [python_executable(), str(Path(__file__).with_name("learn.py")),
                   str(Path(GenSegLogic.__file__).parents[1]), str(folder)]
        with open(self._said, "wb") as said, open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=log,
                                             env=slicer.util.startupEnvironment(),
                                             creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        self._timer = self._start_timer()

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state != "running"

    def cancel(self) -> None:
        """Stop at once; no bundle is written and nobody is called."""
        if not self.finished:
            self._end("cancelled")

    def poll(self) -> None:
        """Look how far it is; called by the timer."""
        code = self._process.poll()
        word = self._last_word()
        if code is None:
            if "fraction" in word:
                self._onProgress(word["fraction"], word["message"])
        elif code == 0 and "bundle" in word:
            self._end("done")
            self._onFinished(word["bundle"], word["messages"])
        else:
            details = self._log.read_text(encoding="utf-8", errors="replace")
            self._end("failed")
            self._onFailed(word.get("error") or _("Learning ended unexpectedly (exit code {code}); no model was "
                                                  "written.").format(code=code), details)

    def _start_timer(self) -> Any:
        import qt

        timer = qt.QTimer()
        timer.interval = INTERVAL_MILLISECONDS
        timer.connect("timeout()", self.poll)
        timer.start()
        return timer

    def _last_word(self) -> dict[str, Any]:
        lines = self._said.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # the last may be unfinished
        return json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}

    def _end(self, state: str) -> None:
        self.state = state
        self._timer.stop()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()
