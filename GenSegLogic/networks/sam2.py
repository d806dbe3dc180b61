"""SAM 2 (Ravi et al. 2024, arXiv 2408.00714) through transformers' ``Sam2VideoModel``: encode, remember, decode.

The image processor of transformers needs torchvision; slices are prepared here instead. The published sizes keep their
weights' names; a small one of ours (``abdomen``) has a memory at stride 8 instead of 16, for organs of few pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ..errors import GenSegError
from .sam2_sizes import SIZES

MEMORY_CHANNELS = 64
"""Width of a memory in every size: it is fixed in transformers."""
MASK_SCALE = 4
"""Masks are so much finer than a memory."""


@dataclass(frozen=True)
class Windows:
    """A square part of each of B slices, in cells of the memory's grid.

    Attributes:
        corners: (y, x) of the first cell of each.
        edge: cells along an edge, the same in all.
    """

    corners: tuple[tuple[int, int], ...]
    edge: int

    def cut(self, maps: Tensor, scale: int = 1) -> Tensor:
        """Maps (B or 1, C, scale h, scale w) of whole slices -> (B, C, scale edge, scale edge)."""
        size = scale * self.edge
        parts = [maps[min(row, len(maps) - 1), :, scale * y : scale * y + size, scale * x : scale * x + size]
                 for row, (y, x) in enumerate(self.corners)]
        return torch.stack(parts)


@dataclass(frozen=True)
class Features:
    """What the image encoder makes of slices, as the mask decoder takes it.

    Attributes:
        high: (B, C/8, 4h, 4w).
        middle: (B, C/4, 2h, 2w).
        low: (B, C, h, w): the grid of the memory.
        windows: what part of the slices these are of; None: the whole.
    """

    high: Tensor
    middle: Tensor
    low: Tensor
    windows: Windows | None = None

    def __len__(self) -> int:
        return len(self.low)

    def select(self, indices: Tensor | slice) -> Features:
        """Features of some of the whole slices, in any order, repeated at will."""
        return Features(self.high[indices], self.middle[indices], self.low[indices])

    def expand(self, count: int) -> Features:
        """The features of one slice for ``count`` organs, without copying; others must have this length already."""
        if len(self) == count:
            return self
        high, middle, low = (level.expand(count, -1, -1, -1) for level in (self.high, self.middle, self.low))
        return Features(high, middle, low)

    def cut(self, windows: Windows) -> Features:
        """The features in a window of each of the whole slices."""
        return Features(windows.cut(self.high, 4), windows.cut(self.middle, 2), windows.cut(self.low), windows)

    def cut_alike(self, maps: Tensor, scale: int = 1) -> Tensor:
        """The part of maps of whole slices (B or 1, C, scale h, scale w) that these features are of."""
        return maps if self.windows is None else self.windows.cut(maps, scale)


@dataclass(frozen=True)
class Decoded:
    """What the mask decoder makes of a memory.

    Attributes:
        mask_logits: (B, 1, 4h, 4w).
        object_logits: (B,): whether the object is in the slice at all.
    """

    mask_logits: Tensor
    object_logits: Tensor


class Sam2(nn.Module):
    """SAM 2 reduced to what DiffuSAM needs; one memory stands for all that SAM 2 knows of an object."""

    def __init__(self, size: str) -> None:
        super().__init__()
        from transformers import Sam2VideoModel

        entry = SIZES[size]
        self.model = Sam2VideoModel(_configuration(entry["model"]))
        mean, std = (torch.tensor(entry["normalisation"][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        self.mean = nn.Buffer(mean, persistent=False)
        self.std = nn.Buffer(std, persistent=False)

    @property
    def image_size(self) -> int:
        """Pixels along an edge of the slices that the encoder sees."""
        size = self.model.config.image_size
        assert isinstance(size, int)  # slices are square
        return size

    @property
    def memory_size(self) -> int:
        """Cells along an edge of a memory."""
        return int(self.model.backbone_feature_sizes[-1][0])

    @property
    def channels(self) -> int:
        """C of :class:`Features`."""
        return int(self.model.hidden_dim)

    def encode(self, images: Tensor) -> Features:
        """Slices (B, 1, S, S) in [0, 1] -> features; other sizes than :attr:`image_size` are resized."""
        if images.shape[-1] != self.image_size:
            images = F.interpolate(images, (self.image_size, self.image_size), mode="bilinear", antialias=True)
        pixels = (images - self.mean) / self.std
        levels = self.model.get_image_features(pixels, return_dict=True).fpn_hidden_states
        sizes = self.model.backbone_feature_sizes
        return Features(*(level.permute(1, 2, 0).unflatten(2, tuple(size)) for level, size in
                          zip(levels, sizes, strict=True)))

    def remember(self, features: Features, mask_logits: Tensor) -> Tensor:
        """Memory (B, 64, h, w) of masks given as logits (B, 1, H, W) at any resolution."""
        edge = 16 * features.low.shape[-1]
        return self.remember_mask(features, F.interpolate(mask_logits.float(), (edge, edge), mode="bilinear").sigmoid())

    def remember_mask(self, features: Features, masks: Tensor) -> Tensor:
        """Memory (B, 64, h, w) of masks given as probabilities or truth (B, 1, H, W) in [0, 1]."""
        edge = 16 * features.low.shape[-1]
        if masks.shape[-1] != edge:
            masks = F.interpolate(masks.float(), (edge, edge), mode="bilinear", antialias=True)
        config = self.model.config
        scaled = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        return self.model.memory_encoder(features.expand(len(masks)).low, scaled)[0]

    def decode(self, features: Features, memory: Tensor) -> Decoded:
        """Masks from memories (B, 64, h, w) alone: no prompt. Features of one slice serve all B memories."""
        features = features.expand(len(memory))
        count = len(memory)
        points = torch.zeros(count, 1, 2, device=memory.device)
        kinds = torch.full((count, 1), -1, dtype=torch.int32, device=memory.device)
        return self._decode(features, self._condition(features, memory), points, kinds)

    def decode_prompt(self, features: Features, points: Tensor, kinds: Tensor) -> Decoded:
        """Masks from prompts, without a memory.

        Args:
            features: of B slices.
            points: (B, N, 2) x, y in pixels of the encoder's slices.
            kinds: (B, N): 1 inside, 0 outside, 2 and 3 the two corners of a box, -1 nothing.
        """
        empty = self.model.no_memory_embedding.view(1, -1, 1, 1)
        return self._decode(features, features.low + empty, points, kinds)

    def _decode(self, features: Features, low: Tensor, points: Tensor, kinds: Tensor) -> Decoded:
        model = self.model
        sparse, dense = model.prompt_encoder(points[:, None].to(low.dtype), kinds[:, None], None, None)
        position = features.cut_alike(model.get_image_wide_positional_embeddings()).expand(len(low), -1, -1, -1)
        masks, _, _, scores = model.mask_decoder(
            image_embeddings=low, image_positional_embeddings=position, sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=features.cut_alike(dense), multimask_output=False,
            high_resolution_features=[features.high, features.middle],
        )
        return Decoded(masks[:, 0].float(), scores.flatten().float())

    def _condition(self, features: Features, memory: Tensor) -> Tensor:
        """Image features (B, C, h, w) that know the memory, as those of the frame on which the object was marked."""
        model, whole = self.model, (self.memory_size,) * 2
        low = features.low
        vision_position = model.vision_encoder.neck.position_encoding((1, self.channels, *whole), low.device, low.dtype)
        memory_position = model.memory_encoder.position_encoding((1, MEMORY_CHANNELS, *whole), low.device, memory.dtype)
        memory_position = memory_position + model.memory_temporal_positional_encoding[-1].view(1, -1, 1, 1)
        # transformers' own forward takes whole slices only. Rotary positions tell how far apart two cells are, wherever
        # the window lies.
        attention = model.memory_attention
        rotary = attention.rotary_emb(low, _positions(low.shape[-1], low.device))
        conditioned = _sequence(low) + 0.1 * _sequence(features.cut_alike(vision_position))
        for layer in attention.layers:
            conditioned = layer(conditioned, _sequence(memory), _sequence(features.cut_alike(memory_position)), rotary)
        return attention.layer_norm(conditioned)[:, 0].transpose(1, 2).unflatten(2, tuple(low.shape[2:]))


def _positions(edge: int, device: torch.device) -> Tensor:
    """x and y (h*w, 2) of the cells of a square, row after row."""
    y, x = torch.meshgrid(torch.arange(edge, device=device), torch.arange(edge, device=device), indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], -1)


def _sequence(x: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, 1, h*w, C), as the layers of transformers' memory attention take it."""
    return x.flatten(2).transpose(1, 2)[:, None]


def _configuration(changes: Mapping[str, Any]) -> Any:
    from transformers import Sam2VideoConfig

    own = copy.deepcopy(dict(changes))  # transformers keeps and changes what it is given
    vision = {"model_type": "sam2_vision_model", **own.pop("vision_config")}
    vision["backbone_config"] = {"model_type": "sam2_hiera_det_model", **vision["backbone_config"]}
    return Sam2VideoConfig(vision_config=vision, **own)


def sam2(size: str) -> Sam2:
    """Build a :class:`Sam2` of one of :data:`SIZES`.

    Raises:
        GenSegError: if there is no such size, or transformers is not installed.
    """
    if size not in SIZES:
        raise GenSegError(f"There is no SAM 2 of the size {size!r}; there are {', '.join(SIZES)}.")
    try:
        return Sam2(size)
    except ImportError as error:
        raise GenSegError("SAM 2 needs the package transformers: pip install transformers.") from error
