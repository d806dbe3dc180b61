"""A small bundle with a real network, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from GenSegLogic import networks
from GenSegLogic.bundles import Bundle, write_bundle

ARGUMENTS = {"in_channels": 1, "depths": (1, 1), "width": 4}


def sample_network(seed: int = 0) -> torch.nn.Module:
    """A ResNet of a few thousand random weights, its batch statistics away from their defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = networks.build("resnet", ARGUMENTS)
        network(torch.randn(2, 1, 32, 32))
    return network


def sample_metadata(**changes: Any) -> dict[str, Any]:
    """What a training recipe hands to write_bundle."""
    return {
        "kind": "predictor",
        "task": "classification",
        "description": "A network for tests.",
        "image": {"modality": "CT", "window_hu": (-1000, 400), "spacing_mm": (1.5, 1.5, 1.5), "orientation": "LPS"},
        "training": {"recipe": "none", "seed": 0},
        "licence": "Apache-2.0",
        "commercial_use": True,
        "source": "made by a test",
        **changes,
    }


def write_sample(folder: Path, seed: int = 0, **changes: Any) -> Bundle:
    """Write the sample bundle to ``folder``."""
    network = ("resnet", ARGUMENTS, sample_network(seed))
    return write_bundle(folder, sample_metadata(**changes), {"predictor": network}, "# Sample\n", "Apache-2.0\n")
