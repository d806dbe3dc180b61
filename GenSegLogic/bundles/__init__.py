"""Bundles: one model in one folder, found by one look-up, checked before every use.

Nothing here imports torch before networks are written or loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .bundle import Bundle, read_bundle, seal_bundle
from .folders import AUTO, cache_folder, find_bundle, is_shipped, list_bundles, shipped_folder

if TYPE_CHECKING:
    import torch

    from .weights import LoadedBundle

__all__ = ["AUTO", "Bundle", "cache_folder", "find_bundle", "is_shipped", "list_bundles", "load_bundle", "read_bundle",
           "seal_bundle", "shipped_folder", "write_bundle"]


def load_bundle(bundle: Bundle, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> LoadedBundle:
    """See :func:`.weights.load_bundle`; ``dtype`` None is float32."""
    import torch

    from . import weights

    return weights.load_bundle(bundle, device, dtype or torch.float32)


def write_bundle(
    folder: Path,
    metadata: Mapping[str, Any],
    networks: Mapping[str, tuple[str, Mapping[str, Any], torch.nn.Module]],
    readme: str,
    licence: str,
) -> Bundle:
    """See :func:`.weights.write_bundle`."""
    from . import weights

    return weights.write_bundle(folder, metadata, networks, readme, licence)
