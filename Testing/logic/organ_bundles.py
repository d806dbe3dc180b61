"""Bundles of the organ method with random weights, for tests of what runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from GenSegLogic.anatomy import ORGANS
from GenSegLogic.bundles import Bundle, write_bundle
from GenSegLogic.networks.memory_prior import MemoryPrior
from GenSegLogic.networks.sam2 import Sam2
from GenSegLogic.organs.diffusam.canonical import CanonicalGrid

KNOWN = tuple(name for name in ORGANS if name != "pancreas")
"""What the random priors know."""
NEVER = "gallbladder"
"""The organ that they see in no scan."""


def write_organ_bundles(folder: Path, known: tuple[str, ...] = KNOWN, names: tuple[str, str, str] = (
        "abdomen-sam2", "abdomen-ct", "abdomen-mr")) -> tuple[Bundle, Bundle, Bundle]:
    """Write a SAM 2 and a prior each for CT and MR, which see all organs but one somewhere in every scan."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = Sam2("abdomen").eval().requires_grad_(False)
        prior = MemoryPrior(feature_channels=network.channels, organs=len(known), width=32, denoiser_width=16)
        bias = torch.full((len(known),), 3.0)
        if NEVER in known:
            bias[known.index(NEVER)] = -9.0
        prior.presence[-1].bias.data.copy_(bias)  # type: ignore[union-attr, operator]
    about: dict[str, Any] = {"task": "test", "description": "Random weights.", "licence": "Apache-2.0",
                             "commercial_use": True, "source": "made by a test"}
    licence = ("# Random\n", "Apache-2.0\n")
    sam2 = write_bundle(folder / names[0], {**about, "kind": "sam2", "image": CanonicalGrid().to_metadata("any")},
                        {"sam2": ("sam2", {"size": "abdomen"}, network)}, *licence)
    arguments = {"feature_channels": network.channels, "organs": len(known), "width": 32, "denoiser_width": 16}
    written = [sam2]
    for name, modality in zip(names[1:], ("CT", "MR"), strict=True):
        window = (-160.0, 240.0) if modality == "CT" else None
        metadata = {**about, "kind": "organs", "organs": list(known),
                    "image": CanonicalGrid(window_hu=window).to_metadata(modality),
                    "sam2": {"name": sam2.name, "digest": sam2.digest}}
        written.append(write_bundle(folder / name, metadata, {"prior": ("memory-prior", arguments, prior)}, *licence))
    return written[0], written[1], written[2]
