"""The nodules task: from a chest CT to a segment, a counterfactual and a row for every nodule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ..bundles import find_bundle
from ..errors import GenSegError
from ..progress import Progress, part
from ..results import Results
from ..task import Task, parameter
from ..volume import Volume, resample_like

if TYPE_CHECKING:
    import torch

    from ..bundles import Bundle
    from ..engine import Engine
    from ..networks.predictors import NodulePredictor
    from .counterfactual import Guidance
    from .models import LatentFlow
    from .region import Region
    from .segments import Finding

LUNG_HU = (-1000.0, -600.0)
MOST_MASK_VALUES = 10
"""A lung mask may tell lobes and windpipe apart; what holds more values than this is something else, a scan mostly."""


@dataclass(frozen=True)
class NoduleTask(Task):
    """Weakly supervised lung nodules [Petersen et al. 2026, arXiv 2604.08313]."""

    name: ClassVar[str] = "nodules"
    title: ClassVar[str] = "Lung nodules"
    inputs: ClassVar[Mapping[str, str]] = {
        "image": "the chest CT, in HU",
        "lungs": "a mask of the lungs, where to search; found by threshold without one",
    }

    bundle: str = parameter("chest-flow", "Bundle of the generative model that paints the scan without the nodule.")
    predictor: str = parameter("nodule-cnn", "Bundle of the predictor that guides it and searches the lungs.")
    seed_points: tuple[tuple[float, float, float], ...] = parameter(
        (), "A suspicious spot, LPS mm; the whole lung is searched without one.", unit="mm"
    )
    steps: int = parameter(4, "Steps of the flow, each way; every one of them guides.", minimum=1, maximum=100)
    guidance: float = parameter(0.6, "How hard the predictor guides; 0 is the unguided control.", minimum=0, maximum=10)
    start: float = parameter(
        0.7,
        "How far towards noise the scan is taken; more removes more, also of what is healthy.",
        minimum=0.05,
        maximum=0.95,
    )
    threshold: float = parameter(
        125.0,
        "A voxel belongs to a nodule where it is this much denser than without.",
        minimum=10,
        maximum=1000,
        unit="HU",
    )
    probability: float = parameter(
        0.1, "Candidates of the search below this probability are dropped.", minimum=0, maximum=1
    )
    evidence: float = parameter(
        0.5,
        "Where the predictor sees a nodule with less than this probability, a seed point finds nothing; 0 outlines "
        "whatever is there.",
        minimum=0,
        maximum=1,
    )
    most: int = parameter(10, "At most this many findings are kept in a search.", minimum=1, maximum=50)

    def bundles(self, volumes: Mapping[str, Volume]) -> tuple[Bundle, ...]:
        """The generative model and the predictor."""
        return find_bundle(self.bundle), find_bundle(self.predictor)

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """The search's largest tile, the networks with their activations, and on the CPU the copies of the scan.

        A guided step of MAISI's own networks holds four times their weights (measured by Testing/benchmarks).
        """
        copies = 12 * int(np.prod(volumes["image"].shape)) if engine.computes_on_host else 0
        weights = sum(bundle.size_bytes for bundle in self.bundles(volumes))
        return copies + 4 * weights + 700_000_000

    def preflight(self, volumes: Mapping[str, Volume]) -> list[str]:
        """Doubts about modality, range, slice thickness and grid of the scan."""
        image = volumes["image"]
        doubts = []
        modality = str(image.metadata.get("modality", "CT")).upper()
        if modality not in ("CT", ""):
            doubts.append(f"{image.name} is {modality}, but nodules are searched in CT.")
        sample = image.voxels[:: max(1, image.shape[0] // 24), ::4, ::4]
        if not ((sample > LUNG_HU[0] - 200) & (sample < LUNG_HU[1])).mean() > 0.01:
            doubts.append(f"{image.name} has hardly any voxel with the density of lung; is it a chest CT in HU?")
        if image.spacing.max() > 3.5:
            doubts.append(
                f"{image.name} has slices of {image.spacing.max():.1f} mm; nodules below "
                f"{2 * image.spacing.max():.0f} mm are found, but their outlines are rough."
            )
        return doubts

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Results: segmentation and table ``nodules``, volumes ``counterfactual`` and ``residual``.

        Raises:
            GenSegError: if there is no lung, the lung mask is none of this scan, or a seed point lies outside the scan.
            Cancelled: within one step of the flow.
        """
        import torch

        from .lungs import lung_mask, with_margin
        from .models import grid_doubts, latent_flow, nodule_predictor
        from .search import find_candidates

        image = volumes["image"]
        points = [np.asarray(point, float) for point in self.seed_points]
        for point in points:
            check_inside(image, point)
        if "lungs" in volumes:
            check_lungs(volumes["lungs"], image)
        generative = engine.networks(self.bundle)
        flow = latent_flow(generative)
        predictor = nodule_predictor(engine.networks(self.predictor))

        progress(0.01, "Finding the lungs")
        lungs = volumes.get("lungs")
        if lungs is not None:
            lungs = lungs.with_voxels((lungs.voxels > 0).astype(np.uint8))
        elif points:
            lungs = _lungs_or_none(image)
        else:
            lungs = lung_mask(image)
        # A mask that the user gave is taken at its word; our own is grown to hold what lies against the pleura.
        within = lungs if lungs is None or "lungs" in volumes else with_margin(lungs)

        messages = grid_doubts(generative, flow)
        candidates: list[tuple[np.ndarray, float | None]]
        if points:
            candidates = [(point, None) for point in points]
        else:
            assert within is not None  # without seed points the lungs were found or given
            searching = part(progress, 0.03, 0.3)
            found = find_candidates(
                image, within, predictor, flow.window_hu, lambda fraction: searching(fraction, "Searching the lungs")
            )
            kept = [candidate for candidate in found if candidate.probability >= self.probability]
            if len(kept) > self.most:
                messages.append(
                    f"The search found {len(kept)} places; the {self.most} most probable were looked at (most)."
                )
            candidates = [(candidate.center, candidate.probability) for candidate in kept[: self.most]]

        regions: list[Region] = []
        findings: list[Finding] = []
        missed: dict[int, str] = {}  # what to say of a seed point if nothing comes to be outlined there
        painting = part(progress, 0.3, 0.95)
        for number, (center, probability) in enumerate(candidates, start=1):
            # Every region draws its own noise, so that a finding does not depend on those before it.
            generator = torch.Generator().manual_seed(self.seed + 7919 * number)
            told = part(painting, (number - 1) / len(candidates), number / len(candidates))
            region = self._paint(image, center, probability is None, flow, predictor, generator, told, number)
            if region.evidence is not None:
                missed[number] = self._why_nothing(center, region.evidence, within)
            certain = region.evidence if probability is None else probability
            assert certain is not None  # a click has evidence
            regions.append(region)
            findings.append(region.finding(certain))
        progress(0.95, "Measuring")
        results = self._results(image, within, regions, findings, messages)
        outlined = {segment.label for segment in results.segmentations["nodules"].segments}
        results.messages.extend(sentence for number, sentence in missed.items() if number not in outlined)
        return results

    def guidance_settings(self) -> Guidance:
        """The settings of the guided flow that the parameters stand for."""
        from .counterfactual import Guidance

        return replace(Guidance(), start=self.start, steps=self.steps, strength=self.guidance)

    def _paint(
        self, image: Volume, center: np.ndarray, clicked: bool, flow: LatentFlow, predictor: NodulePredictor,
        generator: torch.Generator, progress: Progress, number: int,
    ) -> Region:
        from .region import paint_adaptively, paint_at_click

        def told(step: int, steps: int) -> None:
            progress(step / steps, f"Painting region {number} without a nodule")

        settings = (flow, predictor, self.guidance_settings(), generator, self.threshold)
        if clicked:
            return paint_at_click(image, center, *settings, self.evidence, told)
        return paint_adaptively(image, center, *settings, told)

    def _why_nothing(self, click: np.ndarray, evidence: float, within: Volume | None) -> str:
        """What to say where nothing is outlined at a seed point."""
        if within is not None and not holds(within, click):
            return (
                f"The seed point {_place(click)} (LPS mm) lies outside the lungs, and nothing is outlined there; "
                "to have it outlined, give a lung mask that includes it (--lungs)."
            )
        if evidence < self.evidence:
            return (
                f"{self.predictor} sees no nodule at {_place(click)} (LPS mm): its probability there is "
                f"{evidence:.2f}, and {self.evidence:g} is asked for (evidence); set it to 0 to outline what is there "
                "all the same."
            )
        return (
            f"Nothing is outlined at the seed point {_place(click)} (LPS mm): what is there is fainter than "
            f"{self.threshold:g} HU (threshold), too small, or part of what another seed point points at."
        )

    def _results(
        self,
        image: Volume,
        within: Volume | None,
        regions: list[Region],
        findings: list,
        messages: list[str],
    ) -> Results:
        from .measure import COLUMNS, measure
        from .residual import combine, without
        from .segments import nodules_from_residual

        residual = combine(image, regions)
        if within is not None:  # so that the residual alone suffices to move the threshold later
            residual.voxels[resample_like(within, image, "nearest", 0).voxels == 0] = 0
        segmentation = nodules_from_residual(residual, None, findings, self.threshold)
        rows = measure(image, segmentation, findings)
        longest = max((row["long_axis_mm"] for row in rows), default=0.0)
        summary = (
            f"{len(rows)} nodule{'s' if len(rows) != 1 else ''}; the largest measures {longest:.0f} mm."
            if rows
            else "No nodule was found."
        )
        return Results(
            volumes={"counterfactual": without(image, residual), "residual": residual},
            segmentations={"nodules": segmentation},
            tables={"nodules": rows},
            columns={"nodules": COLUMNS},
            messages=messages,
            synthetic=frozenset({"counterfactual"}),
            summary=summary,
            provenance={"findings": [asdict(finding) for finding in findings], "threshold_hu": self.threshold},
        )


def check_lungs(lungs: Volume, image: Volume) -> None:
    """Raise GenSegError if a volume is no mask (what is above 0 counts as lung), or has no lung inside the scan."""
    if not (lungs.voxels > 0).any():
        raise GenSegError(f"{lungs.name}: the lung mask is empty; leave it out to have the lungs found.")
    values: set[float] = set()
    for voxels in lungs.voxels:
        found = np.unique(voxels).astype(float)
        values.update(found.tolist())
        fractions = bool((found != np.rint(found)).any())
        if fractions or len(values) > MOST_MASK_VALUES:
            raise GenSegError(
                f"{lungs.name} is no lung mask, since it holds "
                f"{'fractions' if fractions else f'more than {MOST_MASK_VALUES} values'}; give a volume that is 0 "
                "outside the lungs and a whole number inside."
            )
    if not (resample_like(lungs, image, "nearest", 0).voxels > 0).any():
        raise GenSegError(
            f"{lungs.name}: no voxel of the lung mask lies inside {image.name}; give the mask of this scan, or leave "
            "it out to have the lungs found."
        )


def holds(mask: Volume, point: np.ndarray) -> bool:
    """Whether the voxel of ``mask`` at a point in LPS mm is above 0; outside of its grid there is none."""
    index = np.rint(mask.to_indices(point)).astype(int)[::-1]
    return bool(((index >= 0) & (index < mask.shape)).all() and mask.voxels[tuple(index)] > 0)


def _place(center: np.ndarray) -> str:
    return ", ".join(f"{c:.0f}" for c in center)


def check_inside(image: Volume, point: np.ndarray) -> None:
    """Raise GenSegError if a point in LPS mm lies outside the scan."""
    index = image.to_indices(point)
    size = np.array(image.shape[::-1])
    if not np.all((index >= -0.5) & (index <= size - 0.5)):
        place = ", ".join(f"{c:g}" for c in point)
        raise GenSegError(
            f"The seed point {place} (LPS mm) lies outside {image.name}: give it in LPS, or use --ras for RAS."
        )


def _lungs_or_none(image: Volume) -> Volume | None:
    """The lungs, or None in a patch that is too small to find any: a seed point needs none."""
    from .lungs import lung_mask

    try:
        return lung_mask(image)
    except GenSegError:
        return None
