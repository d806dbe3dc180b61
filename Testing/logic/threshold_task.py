"""A small real task for tests of what surrounds tasks: voxels above a threshold, one segment per component."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from scipy import ndimage

from GenSegLogic import Code, Engine, GenSegError, Results, Segment, Segmentation, Task, Volume
from GenSegLogic.bundles import Bundle, find_bundle
from GenSegLogic.progress import Progress
from GenSegLogic.task import parameter

TARGET = "Testing.logic.threshold_task:ThresholdTask"
MORPHOLOGIC = Code("SCT", "49755003", "Morphologically Altered Structure")
NODULE = Code("SCT", "27925004", "Nodule")
LUNG = Code("SCT", "39607008", "Lung")
COLORS = ((0.9, 0.2, 0.1), (0.1, 0.7, 0.3), (0.2, 0.4, 1.0))


@dataclasses.dataclass(frozen=True)
class ThresholdTask(Task):
    """Segments what is brighter than ``threshold``; ``noise`` makes it random, ``window`` sets its memory."""

    name: ClassVar[str] = "threshold"
    title: ClassVar[str] = "Threshold"
    inputs: ClassVar[Mapping[str, str]] = {"image": "the scan", "mask": "where to look"}

    threshold: float = parameter(100.0, "Voxels above it are found; 50 % of the contrast works.", minimum=-1000,
                                 maximum=3000, unit="HU")
    noise: float = parameter(0.0, "Standard deviation of noise that is added first.", minimum=0, unit="HU")
    window: int = parameter(64, "Edge of the window.", minimum=16, maximum=128)
    mode: str = parameter("above", "Which side of the threshold.", choices=("above", "below"))
    names: tuple[str, ...] = parameter((), "Names of the segments.")
    seed_points: tuple[tuple[float, float, float], ...] = parameter((), "Keep what lies at these points.", unit="mm")
    bundle: str = parameter("", "A bundle to load.")
    smooth: bool = parameter(False, "Smooth first.")
    started: str = parameter("", "File that is made when the work starts.")
    pause: float = parameter(0.0, "How long every step takes.", minimum=0, unit="s")

    def bundles(self, volumes: Mapping[str, Volume]) -> tuple[Bundle, ...]:
        return (find_bundle(self.bundle),) if self.bundle else ()

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        return self.window**3 * 1000 * (4 if str(engine.dtype) == "torch.float32" else 2)

    def lighter(self) -> ThresholdTask | None:
        return dataclasses.replace(self, window=self.window // 2) if self.window >= 32 else None

    def preflight(self, volumes: Mapping[str, Volume]) -> list[str]:
        return ["The slices are thick."] if volumes["image"].spacing.max() > 4 else []

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        import torch

        image = volumes["image"]
        if "crash" in image.name:
            raise ZeroDivisionError("a defect")
        if "killed" in image.name:
            os.kill(os.getpid(), signal.SIGTERM if os.name == "nt" else signal.SIGKILL)
        if "empty" in image.name:
            raise GenSegError(f"{image.name} shows no body; choose another scan.")
        if self.bundle:
            engine.networks(self.bundle)
        if self.started:
            Path(self.started).touch()
        voxels = torch.from_numpy(image.voxels.astype(np.float32)).to(engine.device)
        generator = torch.Generator().manual_seed(self.seed)
        voxels = voxels + self.noise * torch.randn(voxels.shape, generator=generator).to(engine.device)
        for step in range(4):
            progress(step / 4, f"Step {step + 1} of 4")
            _work(self.pause)
        mask = (voxels > self.threshold if self.mode == "above" else voxels < self.threshold).cpu().numpy()
        if "mask" in volumes:
            mask &= volumes["mask"].voxels > 0
        components, count = ndimage.label(mask)
        kept = self._at_seed_points(components, image) or range(1, count + 1)
        labels = np.zeros(mask.shape, np.int32)
        segments, rows = [], []
        for label, component in enumerate(kept, start=1):
            found = components == component
            labels[found] = label
            name = self.names[label - 1] if label <= len(self.names) else f"Bright {label}"
            segments.append(Segment(label, name, COLORS[(label - 1) % 3], MORPHOLOGIC, NODULE, LUNG))
            rows.append(_measure(name, found, image))
        filtered = image.with_voxels(voxels.cpu().numpy(), "filtered")
        return Results(
            volumes={"filtered": filtered},
            segmentations={"bright": Segmentation(image.with_voxels(labels, "bright"), tuple(segments))},
            tables={"bright": rows},
            columns={"bright": ("name", "center_l_mm", "center_p_mm", "center_s_mm", "volume_mm3")},
            synthetic=frozenset({"filtered"}),
            summary=f"{len(rows)} bright spots.",
        )

    def _at_seed_points(self, components: np.ndarray, image: Volume) -> list[int]:
        indices = [np.rint(image.to_indices(np.array(point))).astype(int)[::-1] for point in self.seed_points]
        return [int(components[tuple(index)]) for index in indices]


def _work(seconds: float) -> None:
    """Pass the time as real work does, in short calls: a signal that comes just before a call waits for its end."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def _measure(name: str, found: np.ndarray, image: Volume) -> dict[str, Any]:
    left, posterior, superior = image.to_lps(np.argwhere(found)[:, ::-1]).mean(axis=0)
    volume = float(found.sum() * np.prod(image.spacing))
    return {"name": name, "center_l_mm": left, "center_p_mm": posterior, "center_s_mm": superior, "volume_mm3": volume}


def bright_scan(name: str = "scan.nrrd") -> Volume:
    """Two bright boxes in a dark, oblique, left-handed, anisotropic grid of 12 x 20 x 24 voxels (k, j, i)."""
    voxels = np.full((12, 20, 24), -800, np.int16)
    voxels[2:5, 3:8, 4:9] = 300
    voxels[7:10, 12:15, 15:20] = 400
    angle = np.deg2rad(10)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, -1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation * [1.5, 1.5, 2.5]
    affine[:3, 3] = (-40, 12, 150)
    return Volume(voxels, affine, name, {"modality": "CT"})


def save_scan(folder: Path, name: str = "scan.nrrd") -> Path:
    """:func:`bright_scan` as a file."""
    from GenSegLogic import write_volume

    folder.mkdir(parents=True, exist_ok=True)
    write_volume(bright_scan(name), folder / name)
    return folder / name
