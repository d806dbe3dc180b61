"""Bundles of the nodule method with random weights, for tests of what runs on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from GenSegLogic.bundles import write_bundle
from GenSegLogic.networks import build
from GenSegLogic.training.chest_flow import AUTOENCODER, VELOCITY

FLOW = {**VELOCITY, "num_channels": [8, 8, 16], "num_head_channels": [0, 0, 8]}
SLICES = {"embed_dims": [16, 16, 16], "depths": [1, 1, 1], "num_heads": [1, 1, 1]}
NARROW: dict[str, tuple[str, str, dict[str, Any]]] = {
    "autoencoder": ("chest-flow", "folding-autoencoder", {**AUTOENCODER, "channels": 8, "blocks": 1}),
    "velocity": ("chest-flow", "maisi-velocity", FLOW),
    "cnn": ("nodule-cnn", "predictor-cnn", {"channels": [8, 8, 16]}),
    "tinyvit": ("nodule-tinyvit", "predictor-tinyvit", SLICES),
    "segmenter": ("nodule-unet", "segmenter-unet", {"channels": [8, 16, 16]}),
}
KINDS = {"chest-flow": "flow", "nodule-cnn": "predictor", "nodule-tinyvit": "predictor", "nodule-unet": "segmenter"}


def random_network(name: str, seed: int = 0) -> torch.nn.Module:
    """A network of NARROW with weights of its own, frozen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build(NARROW[name][1], NARROW[name][2])
    return network.eval().requires_grad_(False)


def write_random_bundles(folder: Path, field_voxels: int = 24) -> dict[str, Path]:
    """Write all four bundles; name -> folder."""
    for bundle, kind in KINDS.items():
        networks = {}
        for name, (owner, target, arguments) in NARROW.items():
            if owner == bundle:
                role = "predictor" if kind == "predictor" else name
                networks[role] = (target, arguments, random_network(name))
        metadata = {
            "kind": kind,
            "task": "test",
            "description": "Random weights.",
            "image": {
                "modality": "CT", "window_hu": [-1000, 400], "spacing_mm": [0.75] * 3, "spacings_mm": [0.75, 1.5],
                "orientation": "LPS", "field_voxels": field_voxels,
            },
            "latent": {"channels": 4, "downsampling": 2, "scale_factor": 1.0},
            "licence": "Apache-2.0",
            "commercial_use": True,
            "source": "made by a test",
        }
        write_bundle(folder / bundle, metadata, networks, "# Random\n", "Apache-2.0\n")
    return {bundle: folder / bundle for bundle in KINDS}
