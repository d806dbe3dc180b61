"""The recipes ``genseg train organs-sam2``, ``organs-ct`` and ``organs-mr``: from nothing to bundles with their cards.

All work in ``<output>.work`` beside their bundles, where an interrupted run goes on, and share the phantoms in
``abdomen-phantoms`` beside it.
"""

from __future__ import annotations

import copy
import shutil
import time
from pathlib import Path
from typing import Any

from ..anatomy import ORGANS
from ..bundles import Bundle, find_bundle, load_bundle
from ..errors import GenSegError
from ..networks.sam2 import Sam2
from ..phantoms.abdomen_looks import LOOKS
from ..phantoms.splits import first_phantom
from ..progress import Progress, part
from .organs_data import GRIDS, WITHOUT_ORGANS, draw_cases, load_scans
from .recipes import Networks, work_folder, write_trained

PHANTOMS, WITHOUT, HELD_OUT = 120, 100, 6
"""Phantoms to learn from, more of them of which more than usual have lost an organ, and phantoms to measure on."""
WITHOUT_FROM = 5000
"""Where their numbers begin: the two populations share a folder and no number."""
DRAWING_SHARE = 0.12
"""Part of the time that drawing phantoms may take."""
SAM2_BUNDLE = "abdomen-sam2"
SOURCE = "trained by this project on procedural phantoms; no published weights and no patient were used"


def sam2(output: Path, minutes: float, seed: int, progress: Progress) -> None:
    """The small SAM 2."""
    from . import organs_sam2 as recipe

    train, held_out, left = _phantoms(output, minutes, seed, progress)
    network, curve = recipe.fit(load_scans(train, LOOKS), load_scans(held_out, LOOKS), work_folder(output, seed), left,
                                seed, part(progress, DRAWING_SHARE, 1))
    write_sam2(output, network, curve, seed, left, len(train))
    shutil.rmtree(work_folder(output, seed).parent, ignore_errors=True)


def prior_ct(output: Path, minutes: float, seed: int, progress: Progress, device: str = "cpu",
             sam2: str | None = None) -> None:
    """The prior of CT."""
    _prior("CT", output, minutes, seed, progress, device, sam2)


def prior_mr(output: Path, minutes: float, seed: int, progress: Progress, device: str = "cpu",
             sam2: str | None = None) -> None:
    """The prior of MR."""
    _prior("MR", output, minutes, seed, progress, device, sam2)


def _prior(modality: str, output: Path, minutes: float, seed: int, progress: Progress, device: str,
           sam2: str | None) -> None:
    """The prior of one modality, as the bundle ``output``, for the bundle ``sam2`` (None: ``abdomen-sam2``).

    Raises:
        GenSegError: if there is no bundle ``sam2``.
    """
    from . import organs_prior as recipe

    sam2_bundle = find_bundle(sam2 or SAM2_BUNDLE)
    if sam2_bundle.kind != "sam2":
        raise GenSegError(f"{sam2_bundle.folder} is a bundle of kind {sam2_bundle.kind}, but the priors need one of "
                          "kind sam2.")
    network = load_bundle(sam2_bundle).networks["sam2"]
    assert isinstance(network, Sam2)  # a bundle of kind sam2 holds one
    train, held_out, left = _phantoms(output, minutes, seed, progress)
    looks = recipe.LOOKS[modality]
    # A prior for another SAM 2 begins anew: the weights fit, but what they have learned does not.
    trained, arguments, curve = recipe.fit(network, modality, load_scans(train, looks), load_scans(held_out, looks),
                                           work_folder(output, seed) / sam2_bundle.digest[:12], left, seed,
                                           part(progress, DRAWING_SHARE, 1), device)
    write_prior(output, modality, trained, arguments, sam2_bundle, curve, seed, left, len(train))
    shutil.rmtree(work_folder(output, seed).parent, ignore_errors=True)


def _phantoms(output: Path, minutes: float, seed: int, progress: Progress) -> tuple[list[Path], list[Path], float]:
    """Files of the phantoms to learn from and of those held out, and the minutes that are left."""
    began = time.monotonic()
    folder = output.with_name("abdomen-phantoms")
    first = first_phantom(seed)
    held_out = draw_cases(folder / "held-out", HELD_OUT, first, "held-out", 0.2 * DRAWING_SHARE * minutes,
                          part(progress, 0, 0.2 * DRAWING_SHARE))
    train = draw_cases(folder / "train", PHANTOMS, first, "train", 0.45 * DRAWING_SHARE * minutes,
                       part(progress, 0.2 * DRAWING_SHARE, 0.65 * DRAWING_SHARE))
    train += draw_cases(folder / "train", WITHOUT, first + WITHOUT_FROM, WITHOUT_ORGANS,
                        0.35 * DRAWING_SHARE * minutes, part(progress, 0.65 * DRAWING_SHARE, DRAWING_SHARE))
    return train, held_out, max(minutes - (time.monotonic() - began) / 60, 0.2 * minutes)


def write_sam2(folder: Path, network: Any, curve: list[dict[str, float]], seed: int, minutes: float,
               phantoms: int) -> Bundle:
    """Write the bundle of kind ``sam2``."""
    from .organs_sam2 import SIZE

    image = {"modality": "any", "window_hu": None, "spacing_mm": None, "orientation": "LPS"}
    description = ("A small SAM 2 for slices of the abdomen: 160 pixels, memory at stride 8; encode, remember, decode, "
                   "and clicks and boxes. Trained on phantoms in CT, MR and random contrasts.")
    metadata = _metadata("sam2", description, image, "organs-sam2", curve, seed, minutes, phantoms, LOOKS)
    return _write(folder, metadata, {"sam2": ("sam2", {"size": SIZE}, network)})


def write_prior(folder: Path, modality: str, network: Any, arguments: dict[str, int], sam2_bundle: Bundle,
                curve: list[dict[str, float]], seed: int, minutes: float, phantoms: int) -> Bundle:
    """Write a bundle of kind ``organs``."""
    from .organs_prior import LOOKS as MODALITY_LOOKS

    looks = MODALITY_LOOKS[modality]
    image = GRIDS[looks[0]].to_metadata(modality)
    description = (f"DiffuSAM's diffusion prior for {modality} of the abdomen: thirteen organs without a prompt, "
                   f"through the frozen {sam2_bundle.name}.")
    recipe = f"organs-{modality.lower()}"
    if sam2_bundle.name != SAM2_BUNDLE:
        recipe += f" --sam2 {sam2_bundle.name}"
    metadata = _metadata("organs", description, image, recipe, curve, seed, minutes, phantoms, looks)
    metadata |= {"organs": list(ORGANS), "looks": list(looks),
                 "sam2": {"name": sam2_bundle.name, "digest": sam2_bundle.digest},
                 "source": f"trained on procedural phantoms for {sam2_bundle.name}; no patient was used"}
    # Half precision in the file is enough for weights that are float32 again once loaded, and keeps what ships small.
    return _write(folder, metadata, {"prior": ("memory-prior", arguments, copy.deepcopy(network).half())})


def _metadata(kind: str, description: str, image: dict[str, Any], recipe: str, curve: list[dict[str, float]],
              seed: int, minutes: float, phantoms: int, looks: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": kind, "task": "segmentation", "description": description, "image": image,
        "training": {
            "recipe": f"genseg train {recipe}", "seed": seed, "minutes": round(minutes, 1), "curve": curve,
            "data": {"phantoms": f"{phantoms} procedural abdomens of GenSegLogic.phantoms, split 'train', no patient",
                     "looks": list(looks)},
        },
        "source": SOURCE,
    }


def _write(folder: Path, metadata: dict[str, Any], networks: Networks) -> Bundle:
    data = metadata["training"]["data"]
    return write_trained(folder, metadata, networks, [f"- Data: {data['phantoms']}; looks: {', '.join(data['looks'])}"])
