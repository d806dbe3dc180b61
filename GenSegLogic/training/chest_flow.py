"""Recipe of the bundle ``chest-flow``: a factor-2 autoencoder and a rectified flow of its latents.

The flow is MAISI's network in small (MONAI's class); the autoencoder has MAISI's interface, but suits a CPU.
The published weights of both run through the same code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..flow.interpolant import interpolant, velocity_target
from ..networks import build
from ..networks.maisi import MAISI_VELOCITY
from ..nodules.models import CT_CLASS
from ..progress import Progress, part
from .data import Crops, image_batches, normalise
from .loop import read_state, train, write_state

AUTOENCODER: dict[str, Any] = {"latent_channels": 4, "channels": 32, "blocks": 2}
VELOCITY: dict[str, Any] = {
    **MAISI_VELOCITY,
    "num_channels": [32, 64, 96],
    "attention_levels": [False, False, False],
    "num_head_channels": [0, 0, 32],
    "num_res_blocks": 1,
    "norm_num_groups": 8,
    "num_class_embeds": 8,
}
LATENT_WINDOW = 16
ENCODED_TILES = 1600
AUTOENCODER_SHARE = 0.1


def train_autoencoder(crops: Crops, folder: Path, minutes: float, seed: int, progress: Progress) -> nn.Module:
    """Absolute error, and a Kullback-Leibler term small enough to only keep the latents' scale."""
    torch.manual_seed(seed)
    network = build("folding-autoencoder", AUTOENCODER)

    def loss_of(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        corner = [int(n) for n in torch.randint(0, 17, (3,))]
        image = batch["image"][:, :, corner[0] :, corner[1] :, corner[2] :][:, :, :32, :32, :32]
        reconstruction, mean, sigma = network(image)
        kullback_leibler = 0.5 * (mean**2 + sigma**2 - 2 * torch.log(sigma + 1e-6) - 1).mean()
        return (reconstruction.float() - image).abs().mean() + 1e-5 * kullback_leibler

    batches = image_batches(crops, 8, seed, jitter=False)
    return train(network, loss_of, batches, folder, minutes, progress, learning_rate=2e-3, ema_decay=0.99)[0]


def encode_crops(
    autoencoder: nn.Module, crops: Crops, chosen: np.ndarray, progress: Progress
) -> tuple[Tensor, float]:
    """Latents (n, 4, 24, 24, 24) float16 of the chosen tiles, scaled to unit deviation, and that scale factor."""
    latents = []
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for count, index in enumerate(chosen):
            image = torch.from_numpy(normalise(crops.image(int(index))))[None, None]
            latents.append(autoencoder.encode(image)[0][0].half())
            if count % 50 == 0:
                progress(count / len(chosen), f"encoded {count} of {len(chosen)} tiles")
    stacked = torch.stack(latents)
    scale = 1.0 / float(stacked[:: max(1, len(stacked) // 200)].float().std())
    return (stacked.float() * scale).half(), scale


def latent_batches(latents: Tensor, spacings: np.ndarray, size: int, seed: int) -> Iterator[dict[str, Tensor]]:
    """Endless batches of latent windows (B, 4, 16, 16, 16) with their spacing in mm."""
    rng = np.random.default_rng([43, seed])
    room = latents.shape[-1] - LATENT_WINDOW
    while True:
        chosen = rng.integers(len(latents), size=size)
        corners = rng.integers(0, room + 1, (size, 3))
        windows = [
            latents[n, :, k : k + LATENT_WINDOW, j : j + LATENT_WINDOW, i : i + LATENT_WINDOW].float()
            for n, (k, j, i) in zip(chosen, corners, strict=True)
        ]
        yield {"latent": torch.stack(windows), "spacing": torch.from_numpy(spacings[chosen])}


def flow_loss(network: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean squared error of the velocity; t uniform, the class dropped one time in ten."""
    clean = batch["latent"]
    noise = torch.randn_like(clean)
    t = torch.rand(len(clean), device=clean.device) * 0.98 + 0.02
    x = interpolant(clean, noise, t.view(-1, 1, 1, 1, 1))
    classes = (torch.rand(len(clean), device=clean.device) > 0.1).long() * CT_CLASS
    spacing = 100 * batch["spacing"][:, None].expand(-1, 3)
    velocity = network(x, 1000 * t, class_labels=classes, spacing_tensor=spacing)
    return (velocity.float() - velocity_target(clean, noise)).square().mean()


def train_velocity(latents: Tensor, spacings: np.ndarray, folder: Path, minutes: float, seed: int, progress: Progress):
    """The flow's network and its curve; validation is the loss on latents that training never sees."""
    torch.manual_seed(seed + 1)
    network = build("maisi-velocity", VELOCITY)
    kept_back = max(8, len(latents) // 30)
    batches = latent_batches(latents[kept_back:], spacings[kept_back:], 8, seed)
    fixed = next(latent_batches(latents[:kept_back], spacings[:kept_back], 24, seed + 7))

    def validate(network: nn.Module) -> dict[str, float]:
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(5)
            return {"validation_loss": float(flow_loss(network, fixed))}

    return train(network, flow_loss, batches, folder, minutes, progress, 1.5e-3, 0.998, validate)


def fit(crops: Crops, work: Path, minutes: float, seed: int, progress: Progress):
    """Autoencoder, scale factor, velocity network and its curve."""
    share = minutes * AUTOENCODER_SHARE
    autoencoder = train_autoencoder(crops, work / "autoencoder", share, seed, part(progress, 0, 0.1))
    chosen = np.random.default_rng([44, seed]).permutation(len(crops))[:ENCODED_TILES]
    cached = work / "latents.pt"
    state = read_state(cached) if cached.exists() else {}
    if state.get("tiles") != chosen.tolist():  # there are other tiles since
        latents, scale = encode_crops(autoencoder, crops, chosen, part(progress, 0.1, 0.13))
        state = {"latents": latents, "scale": scale, "tiles": chosen.tolist()}
        write_state(state, cached)
    latents, scale = state["latents"], state["scale"]
    velocity, curve = train_velocity(
        latents, crops.spacings[chosen], work / "velocity", minutes - share, seed, part(progress, 0.13, 1)
    )
    return autoencoder, scale, velocity, curve
