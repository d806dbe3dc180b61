"""Network builders, and the allow-list of those that a bundle may ask for."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import GenSegError

if TYPE_CHECKING:
    import torch

TARGETS: dict[str, str] = {
    "maisi-autoencoder": "GenSegLogic.networks.maisi:autoencoder",
    "maisi-velocity": "GenSegLogic.networks.maisi:velocity",
    "tinyvit": "GenSegLogic.networks.tinyvit:tinyvit",
    "resnet": "GenSegLogic.networks.resnet:resnet",
    "folding-autoencoder": "GenSegLogic.networks.autoencoder:folding",
    "predictor-cnn": "GenSegLogic.networks.predictors:cnn",
    "predictor-tinyvit": "GenSegLogic.networks.predictors:tinyvit",
    "segmenter-unet": "GenSegLogic.networks.segmenters:unet",
    "sam2": "GenSegLogic.networks.sam2:sam2",
    "memory-prior": "GenSegLogic.networks.memory_prior:memory_prior",
}
"""Short name -> ``module:function`` of a builder. A bundle's ``_target_`` is one of these; nothing else is imported."""


def dotted_target(target: str) -> str:
    """The dotted path of a builder, as MONAI's config parser expects it in ``_target_``.

    Args:
        target: a short name of :data:`TARGETS`, or the dotted path of one of its builders.

    Raises:
        GenSegError: if the target is not on the allow-list.
    """
    for short, path in TARGETS.items():
        dotted = path.replace(":", ".")
        if target in (short, dotted):
            return dotted
    raise GenSegError(f"The network {target!r} is not one that GenSeg builds; known are {', '.join(sorted(TARGETS))}.")


def build(target: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    """Build a network with fresh weights.

    Args:
        target: a short name of :data:`TARGETS`, or the dotted path of one of its builders.
        arguments: keyword arguments of the builder, plain JSON values.

    Raises:
        GenSegError: if the target is not on the allow-list, or the arguments do not fit it.
    """
    module, _, function = dotted_target(target).rpartition(".")
    builder = getattr(importlib.import_module(module), function)
    try:
        return builder(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise GenSegError(f"The network {target!r} cannot be built from the arguments given: {error}.") from error
