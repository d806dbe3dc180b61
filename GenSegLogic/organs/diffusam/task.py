"""The organs task: from a CT or MR in any orientation to a segment and a row for every organ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...anatomy import ORGANS, check_names
from ...bundles import AUTO, find_bundle, list_bundles
from ...bundles.folders import scan_bundles
from ...errors import GenSegError
from ...progress import Progress, part
from ...results import Results, Segmentation
from ...task import Task, parameter
from ...volume import Volume, resample_like

if TYPE_CHECKING:
    from ...bundles import Bundle
    from ...engine import Engine
    from .models import MemorySource, OrganModels

BUNDLES = {"CT": "abdomen-ct", "MR": "abdomen-mr"}
"""The bundle that AUTO takes, by modality."""
FAT_MARGIN = 1.1
"""A body so much wider than what is looked at has only fat and muscle outside of it."""
FAT_HU = -60.0
"""Fat and air make up more than 2 % of any CT of the trunk and lie below; MR has no such negative values."""


@dataclass(frozen=True)
class Found:
    """What :func:`find_organs` found, on the scan's own grid.

    Attributes:
        labels: uint8 with the numbers of ORGANS.
        confidence: float32 in [0, 1]; 0 where nothing was looked at.
    """

    labels: Volume
    confidence: Volume


@dataclass(frozen=True)
class OrgansTask(Task):
    """Organs without prompts by DiffuSAM [Grossman et al. 2026, arXiv 2604.24719]."""

    name: ClassVar[str] = "organs"
    title: ClassVar[str] = "Organs"
    inputs: ClassVar[Mapping[str, str]] = {"image": "the CT or MR of the abdomen"}

    bundle: str = parameter(AUTO, "Bundle of the diffusion prior; auto takes abdomen-ct or abdomen-mr, as the scan is.")
    organs: tuple[str, ...] = parameter((), "Organs to segment; all that the bundle knows without any.")
    steps: int = parameter(2, "Sampling steps of the prior; more cost time.", minimum=1, maximum=50)
    samples: int = parameter(
        2, "Members of the ensemble, each with its own random numbers, whose mean decides the masks and enters the "
        "confidence; more cost time.", minimum=1, maximum=16
    )

    def __post_init__(self) -> None:
        """Check the ranges, and that the organs exist."""
        super().__post_init__()
        check_names(self.organs)

    def bundles(self, volumes: Mapping[str, Volume]) -> tuple[Bundle, ...]:
        """The prior, and the SAM 2 that it was trained for."""
        prior = prior_bundle(bundle_for(volumes["image"], self.bundle))
        return prior, sam2_bundle(prior)

    def memory_bytes(self, volumes: Mapping[str, Volume], engine: Engine) -> int:
        """What the networks make of the scan's slices, the networks, and on the CPU the copies of the scan."""
        from ...networks.sam2_sizes import ENCODER_BATCH, encoding_bytes, slice_bytes
        from .canonical import CanonicalGrid

        image = volumes["image"]
        prior, sam2 = self.bundles(volumes)
        grid = CanonicalGrid.from_metadata(prior.metadata["image"])
        size, organs = sam2.inference["networks"]["sam2"]["size"], len(ORGANS)
        # Features are held twice while they are joined; then the masks of every member come beside them.
        features = max(2 * slice_bytes(size, organs), slice_bytes(size, organs * (1 + self.samples)))
        need = grid.slices(image) * features + ENCODER_BATCH * encoding_bytes(size)
        need += 2 * (prior.size_bytes + sam2.size_bytes) + 700_000_000
        if engine.computes_on_host:
            need += 20 * int(np.prod(image.shape)) + grid.slices(image) * 16 * organs * grid.size**2
        return int(need)

    def preflight(self, volumes: Mapping[str, Volume]) -> list[str]:
        """Doubts about modality, slice thickness and extent of the scan."""
        image = volumes["image"]
        doubts = []
        stated = str(image.metadata.get("modality", "")).upper()
        if stated not in ("CT", "MR", ""):
            doubts.append(f"{image.name} is {stated}, but organs are learned from CT and MR.")
        if image.spacing.max() > 10:
            doubts.append(f"{image.name} has slices of {image.spacing.max():.0f} mm; small organs fall between them.")
        extent = np.array(image.shape[::-1]) * image.spacing
        size = " x ".join(f"{length:.0f}" for length in extent)
        if np.sort(extent)[1] < 150:
            doubts.append(f"{image.name} covers {size} mm; the whole width of the abdomen is needed.")
        elif extent.min() < 40:
            doubts.append(f"{image.name} covers {size} mm; organs that are only partly in it may be missed.")
        else:
            from .canonical import CanonicalGrid, body_size_mm

            field_mm = CanonicalGrid().size * CanonicalGrid().spacing_mm
            body_mm = max(body_size_mm(image))
            if body_mm > FAT_MARGIN * field_mm:
                doubts.append(f"The body in {image.name} is about {body_mm:.0f} mm wide, but only its inner "
                              f"{field_mm:.0f} mm are looked at: what lies further out is left empty.")
        return doubts

    def run(self, volumes: Mapping[str, Volume], engine: Engine, progress: Progress) -> Results:
        """Results: segmentation and table ``organs``, volume ``confidence``.

        Raises:
            GenSegError: if the bundle cannot be used, or the scan shows nothing.
            Cancelled: within one slice.
        """
        image = volumes["image"]
        modality = modality_of(image)
        name = bundle_for(image, self.bundle)
        models = load_models(name, engine)
        messages = []
        learned = engine.networks(name).bundle.metadata["image"]["modality"]
        if learned in BUNDLES and learned != modality:
            messages.append(f"{image.name} is {modality}, but the bundle {name} was learned from {learned}.")
            models = replace(models, grid=models.grid.for_modality(modality))
        if self.bundle == AUTO and "modality" not in image.metadata:
            messages.append(f"{image.name} does not say what it is; by its grey values it was taken for {modality}.")
        wanted = check_names(self.organs) or check_names(models.organs)
        known = tuple(name for name in wanted if name in models.organs)
        found = find_organs(image, models, known, self.steps, self.samples, self.seed, progress)

        from ..measure import COLUMNS, measure

        rows = measure(image, found.labels, found.confidence, wanted)
        missing = [row["organ"] for row in rows if not row["volume_ml"] and row["organ"] in known]
        if unknown := [name for name in wanted if name not in known]:
            messages.append(f"The bundle has not learned {titles(unknown)}: left empty.")
        if missing:
            messages.append(f"{image.name} shows no {titles(missing)} that could be found: left empty.")
        there = len(rows) - len(missing) - len(unknown)
        return Results(
            volumes={"confidence": found.confidence},
            segmentations={"organs": Segmentation(found.labels, tuple(ORGANS[name].segment() for name in wanted))},
            tables={"organs": rows},
            columns={"organs": COLUMNS},
            messages=messages,
            summary=f"{there} of {len(rows)} organ{'s' if len(rows) != 1 else ''} found.",
            provenance={"modality": modality, "organs_known": list(known), "organs_not_found": missing},
        )


def find_organs(
    image: Volume,
    models: OrganModels,
    organs: Sequence[str],
    steps: int,
    samples: int,
    seed: int,
    progress: Progress,
    memory_source: MemorySource | None = None,
) -> Found:
    """Segment organs in a scan of any grid and put them back on it.

    Args:
        organs: names among the models'; without any, nothing is found.
        memory_source: see :func:`~GenSegLogic.organs.diffusam.propagate.segment`.

    Raises:
        GenSegError: if the scan shows nothing but one grey value.
    """
    import torch

    from ..regions import label_scan, plausible, without_doubtful
    from .propagate import segment

    progress(0.01, "Preparing the scan")
    grid = models.grid.apply(image)
    if not organs:
        return Found(image.with_voxels(np.zeros(image.shape, np.uint8)),
                     image.with_voxels(np.zeros(image.shape, np.float32)))
    sliding = part(progress, 0.03, 0.9)
    found = segment(grid, models, organs, steps, samples, torch.Generator().manual_seed(seed),
                    lambda fraction: sliding(fraction, "Segmenting slice by slice"), memory_source)
    progress(0.9, "Putting the organs together")
    there = without_doubtful(plausible(found.probabilities, grid), found.confidence, grid)
    labels = label_scan(there, grid, image)
    progress(0.97, "Measuring")
    confidence = resample_like(Volume(found.confidence, grid.affine, image.name), image, fill=0)
    return Found(labels, confidence)


def load_models(bundle: str, engine: Engine) -> OrganModels:
    """The prior of a bundle and the SAM2 that it names.

    Raises:
        GenSegError: if one of them is not there or of another kind.
    """
    from .models import organ_models

    prior = prior_bundle(bundle)
    return organ_models(engine.networks(str(prior.folder)), engine.networks(str(sam2_bundle(prior).folder)))


def prior_bundle(name_or_folder: str) -> Bundle:
    """A bundle of kind ``organs``.

    Raises:
        GenSegError: if there is none, or it is of another kind.
    """
    bundle = find_bundle(name_or_folder)
    if bundle.kind != "organs":
        raise GenSegError(f"{bundle.name} is a bundle of kind {bundle.kind}, but organs needs one of kind organs: "
                          "choose another.")
    return bundle


def sam2_bundle(prior: Bundle) -> Bundle:
    """The SAM 2 that a prior was trained for: by its digest, beside the prior or among the bundles that are here.

    Raises:
        GenSegError: if it is not there.
    """
    named = prior.metadata["sam2"]
    for bundle in (*scan_bundles([prior.folder.parent])[0], *list_bundles()):
        if bundle.digest == named["digest"]:
            return bundle
    other = find_bundle(named["name"])
    raise GenSegError(f"{prior.name} was trained for {named['name']} with the digest {named['digest'][:12]}, but "
                      f"{other.folder} holds another one: put the one it was trained for beside {prior.folder}.")


def modality_of(image: Volume) -> str:
    """``CT`` or ``MR``, as the scan says, or by its grey values where it does not."""
    stated = str(image.metadata.get("modality", "")).upper()
    if stated in BUNDLES:
        return stated
    sample = image.voxels[:: max(1, image.shape[0] // 24), ::4, ::4]
    return "CT" if (sample < FAT_HU).mean() > 0.02 else "MR"


def bundle_for(image: Volume, name: str = AUTO) -> str:
    """``name``, or for AUTO the bundle of the scan's modality."""
    return BUNDLES[modality_of(image)] if name == AUTO else name


def titles(names: Sequence[str]) -> str:
    """Organs in a sentence: ``spleen, left kidney``."""
    return ", ".join(ORGANS[name].title.lower() for name in names)
