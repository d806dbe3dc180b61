"""Adapting a bundle to cases of the scene: they are handed to a process that learns while the window lives on."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

import GenSegLogic
from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import find_bundle
from GenSegLogic.bundles.bundle import is_name
from GenSegLogic.bundles.folders import cached_bundles_folder, is_taken
from GenSegLogic.datasets.labels import organ_coded, organ_named
from GenSegLogic.errors import GenSegError
from GenSegLogic.organs.diffusam.task import bundle_for
from GenSegLogic.service.process import kill_launched
from GenSegLogic.volume import Volume
from GenSegScene.segmentations import mask_from_segment
from GenSegScene.volumes import volume_from_node

from .service import python_executable

PREPARING_MILLISECONDS, LEARNING_MILLISECONDS = 10, 500  # between two looks at how far it is


def marked_organs(image: Any, segmentation: Any) -> dict[str, int]:
    """Segment -> number of ORGANS, of the segments that are organs by their terminology or their name.

    Raises:
        GenSegError: if there is none.
    """
    segments = segmentation.GetSegmentation()
    organs = {segment_id: organ_of_segment(segments.GetSegment(segment_id)) for segment_id in segments.GetSegmentIDs()}
    found = {segment_id: ORGANS[organ].label for segment_id, organ in organs.items() if organ is not None}
    if not found:
        raise GenSegError(_("{name} marks no organ on {scan}: name its segments {organs}.").format(
            name=segmentation.GetName(), scan=image.GetName(),
            organs=", ".join(organ.title for organ in ORGANS.values())))
    return found


def organ_of_segment(segment: Any) -> str | None:
    """The organ that a segment is, by its terminology, else by its name."""
    tag = vtk.reference("")
    segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), tag)
    return organ_coded(str(tag)) or organ_named(segment.GetName())


def filling(labels: np.ndarray, image: Any, segmentation: Any) -> Iterator[None]:
    """Write the organs of a segmentation into ``labels`` (k, j, i) of a scan's grid, one segment at every step.

    A segment of 512 x 512 x 300 voxels takes Slicer half a second; in between, the window lives on.

    Raises:
        GenSegError: if none of the segments that are named after organs holds a voxel of the scan.
    """
    for segment_id, label in marked_organs(image, segmentation).items():
        np.copyto(labels, label, where=mask_from_segment(segmentation, segment_id, image).voxels.view(bool))
        yield
    if not labels.any():
        raise GenSegError(_("{name} marks no voxel of {scan}: choose the segmentation that belongs to it.").format(
            name=segmentation.GetName(), scan=image.GetName()))


def nodes_of(cases: Sequence[tuple[Any, Any | None]], sourceFree: bool) -> list[Any]:
    """The nodes that the cases take their voxels and their place from: what is used of each, and its transforms."""
    found = []
    for image, segmentation in cases:
        for used in (image,) if sourceFree else (image, segmentation):
            node = used
            while node is not None:
                found.append(node)
                node = node.GetParentTransformNode()
    return found


def check_name(name: str) -> None:
    """Raise GenSegError unless a new bundle may be called so: neither a bundle nor published weights, nor ``auto``."""
    if not is_name(name):
        raise GenSegError(_("Choose a new name of lower-case letters, digits and dashes for the adapted model."))
    if is_taken(name):
        raise GenSegError(_("The name {name} is taken: choose another one for the adapted model.").format(name=name))


class Adaptation:
    """Learning in hand. A timer of the event loop follows it; the bundle appears when it has ended well.

    The timer also writes the cases out, a piece at a time, before the process starts that learns from them.

    Attributes:
        state: ``preparing``, ``running``, ``done``, ``failed`` or ``cancelled``.
    """

    def __init__(self, name: str, cases: Sequence[tuple[Any, Any | None]], sourceFree: bool, source: str,
                 minutes: float, seed: int, device: str, onProgress: Callable[[float, str], None],
                 onFinished: Callable[[str, list[str]], None], onFailed: Callable[[str, str], None]) -> None:
        """Start learning and return at once.

        Args:
            name: of the new bundle.
            cases: volume nodes and the segmentation nodes that mark their organs; None: nobody has marked them.
            sourceFree: learn from the scans alone; segmentations are not looked at.
            source: bundle of kind organs to start from, or ``auto``.
            minutes: about how long to learn; less when nothing improves.
            seed, device: as everywhere.
            onProgress: called with the fraction and a message.
            onFinished: called with the bundle's name and sentences for the user.
            onFailed: called with one sentence and the details.

        Raises:
            GenSegError: if the name is no bundle's or taken, there is no case, a scan cannot be used, or, unless
                ``sourceFree``, a case has no segmentation, or one without a segment that is named after an organ.
        """
        check_name(name)
        if not cases:
            raise GenSegError(_("Add at least one case."))
        scans = [volume_from_node(image) for image, _segmentation in cases]
        if not sourceFree:
            for image, segmentation in cases:
                if segmentation is None:
                    raise GenSegError(_("{scan} has no segmentation: add it again with one, or tick learning without "
                                        "labels.").format(scan=image.GetName()))
                marked_organs(image, segmentation)
        request = {"source": find_bundle(bundle_for(scans[0], source)).name,
                   "minutes": minutes, "seed": seed, "device": device, "source_free": sourceFree,
                   "output": str(cached_bundles_folder() / name)}
        self.state, self._output = "preparing", Path(request["output"])
        self._onProgress, self._onFinished, self._onFailed = onProgress, onFinished, onFailed
        self._folder = tempfile.TemporaryDirectory(dir=slicer.app.temporaryPath, ignore_cleanup_errors=True)
        self._said, self._log = Path(self._folder.name, "said.txt"), Path(self._folder.name, "log.txt")
        self._process: subprocess.Popen[bytes] | None = None
        self._nodes = [(node, node.GetName()) for node in nodes_of(cases, sourceFree)]
        self._preparing = self._prepare(request, cases, scans)
        self._timer = self._start_timer()

    @property
    def finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in ("done", "failed", "cancelled")

    def cancel(self) -> None:
        """Stop at once; no bundle is written and nobody is called."""
        if not self.finished:
            self._end("cancelled")
            # The name was free, so all that is there of it is what the process had begun to write, or had just written.
            shutil.rmtree(self._output, ignore_errors=True)
            for partial in self._output.parent.glob(f".{self._output.name}.*"):
                shutil.rmtree(partial, ignore_errors=True)

    def poll(self) -> None:
        """Go on writing the cases, or look how far the learning is; called by the timer."""
        if self.state == "preparing":
            self._prepare_more()
            return
        assert self._process is not None
        code = self._process.poll()
        word = self._word(-1)
        if code is None:
            if "fraction" in word:
                self._onProgress(word["fraction"], word["message"])
        elif code == 0 and "bundle" in word:
            self._end("done")
            self._onFinished(word["bundle"], word["messages"])
        else:
            details = _text(self._log)
            self._end("failed")
            self._onFailed(word.get("error") or _("Learning ended unexpectedly (exit code {code}); no model was "
                                                  "written.").format(code=code), details)

    def _prepare(self, request: dict[str, Any], cases: Sequence[tuple[Any, Any | None]],
                 scans: Sequence[Volume]) -> Generator[None, None, None]:
        """Write the cases, then start the process."""
        folder, described = Path(self._folder.name), []
        for number, ((image, segmentation), scan) in enumerate(zip(cases, scans, strict=True)):
            self._onProgress(0.0, _("Handing over {scan}").format(scan=scan.name))
            yield
            case = {"image": f"image_{number}.npy", "name": scan.name, "metadata": dict(scan.metadata),
                    "affine_ijk_to_lps_mm": scan.affine.tolist()}
            np.save(folder / case["image"], scan.voxels)
            yield
            if not request["source_free"]:
                case["labels"] = f"labels_{number}.npy"
                labels = np.zeros(scan.shape, np.uint8)
                yield from filling(labels, image, segmentation)
                np.save(folder / case["labels"], labels)
            described.append(case)
        (folder / "request.json").write_text(json.dumps({**request, "cases": described}), encoding="utf-8")
        command = [python_executable(), str(Path(__file__).with_name("learn.py")),
                   str(Path(GenSegLogic.__file__).parents[1]), str(folder), str(os.getpid())]
        with open(self._said, "wb") as said, open(self._log, "wb") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=log,
                                             env=slicer.util.startupEnvironment(),
                                             creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0))
        self.state, self._timer.interval = "running", LEARNING_MILLISECONDS

    def _prepare_more(self) -> None:
        sentence = details = ""
        try:
            for node, name in self._nodes:
                if node.GetScene() is None:  # without a transform, for one, labels would land in another place
                    raise GenSegError(_("{name} was removed from the scene before it could be handed over; no model "
                                        "was written.").format(name=name))
            next(self._preparing, None)
        except GenSegError as error:
            sentence = str(error)
        except Exception as error:  # a mistake of ours: the user gets one sentence, the log the rest
            logging.exception("GenSeg: the cases could not be written")
            sentence = _("The cases could not be handed over ({reason}); no model was written.").format(
                reason=f"{type(error).__name__}: {error}")
            details = traceback.format_exc()
        if sentence:
            self._end("failed")
            self._onFailed(sentence, details)

    def _start_timer(self) -> Any:
        import qt

        timer = qt.QTimer()
        timer.interval = PREPARING_MILLISECONDS
        timer.connect("timeout()", self.poll)
        timer.start()
        return timer

    def _word(self, index: int) -> dict[str, Any]:
        """What the process has said, 0 first and -1 last; empty where it has said nothing or its file is gone."""
        lines = _text(self._said).split("\n")[:-1]  # the last may be cut
        words = [line for line in lines if line.startswith("{")]  # a library may print, too
        return json.loads(words[index]) if words else {}

    def _end(self, state: str) -> None:
        self.state = state
        self._timer.stop()
        self._timer.disconnect("timeout()", self.poll)  # else it would keep this, and the nodes, for ever
        self._timer.deleteLater()
        self._nodes = []
        self._preparing.close()
        if self._process is not None:
            kill_launched(self._process, self._word(0).get("pid"))
        self._folder.cleanup()  # without its request, a process that had not said its number yet ends, too


def _text(path: Path) -> str:
    """What a file of the process says; nothing where somebody has tidied it away."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
