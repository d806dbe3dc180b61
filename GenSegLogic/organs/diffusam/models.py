"""The networks of DiffuSAM as the method sees them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ...errors import GenSegError
from ...networks.memory_prior import MemoryPrior
from ...networks.sam2 import Features, Sam2
from .canonical import CanonicalGrid

if TYPE_CHECKING:
    from ...bundles.weights import LoadedBundle


class MemorySource(Protocol):
    """Where the memory of a slice comes from: the prior, or a control (mean memory, regressor, true memory)."""

    def __call__(self, features: Features, slices: Sequence[int], organs: Tensor, previous: Tensor | None,
                 generator: torch.Generator) -> Tensor:
        """Memories (n, 64, h, w), one for each of the n pairs of a slice and an organ.

        Args:
            features: of the n slices (repeated where several organs share one).
            slices: index k of each.
            organs: (n,) index of each organ in ``OrganModels.organs``.
            previous: (n, 64, h, w) memories of the slices before, None where there are none yet.
            generator: of noise.
        """


@dataclass(frozen=True)
class OrganModels:
    """A prior and the SAM2 that it was trained for.

    Attributes:
        sam2: frozen.
        prior: draws memories.
        organs: names, in the order of the prior's organ embedding.
        grid: the canonical grid.
    """

    sam2: Sam2
    prior: MemoryPrior
    organs: tuple[str, ...]
    grid: CanonicalGrid


def organ_models(organs: LoadedBundle, sam2: LoadedBundle) -> OrganModels:
    """Join a bundle of kind ``organs`` with the one of kind ``sam2`` that its metadata names in ``sam2``.

    Raises:
        GenSegError: if the prior was trained for another SAM2.
    """
    metadata = organs.bundle.metadata
    if sam2.bundle.kind != "sam2" or sam2.bundle.digest != metadata["sam2"]["digest"]:
        raise GenSegError(f"{organs.bundle.name} was trained for {metadata['sam2']['name']} with the digest "
                          f"{metadata['sam2']['digest'][:12]}, not for {sam2.bundle.name}; fetch or train it again.")
    network, prior = sam2.networks["sam2"], organs.networks["prior"]
    if not isinstance(network, Sam2) or not isinstance(prior, MemoryPrior):
        raise GenSegError(f"{organs.bundle.name} or {sam2.bundle.name} holds another network than its kind says.")
    return OrganModels(network, prior, tuple(metadata["organs"]),
                       CanonicalGrid.from_metadata(metadata["image"]))
