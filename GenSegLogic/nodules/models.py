"""The frozen models of the nodule method behind one small interface: image [0, 1] <-> latent, velocity, probability."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..bundles.weights import LoadedBundle
from ..errors import GenSegError
from ..networks.frozen import FrozenConvolutions
from ..networks.predictors import NodulePredictor

CT_CLASS = 1
"""MAISI's class of CT; 0 is no class."""


@dataclass(frozen=True)
class LatentFlow:
    """A frozen rectified flow in the latents of a frozen autoencoder (MAISI's two networks, of any size).

    Attributes:
        autoencoder, velocity_network: frozen networks of a bundle of kind ``flow``.
        scale: latents are multiplied by it, so that they have unit deviation.
        downsampling: voxels per latent along every axis.
        window_hu: HU that [0, 1] stands for.
        orientation: of the grid that the networks know, ``LPS`` or ``RAS``.
        spacings_mm: isotropic spacings to work at, fine first.
        field_voxels: edge of the cube that is painted at once.
    """

    autoencoder: nn.Module
    velocity_network: nn.Module
    scale: float
    downsampling: int
    window_hu: tuple[float, float]
    orientation: str = "LPS"
    spacings_mm: tuple[float, ...] = (0.75, 1.5)
    field_voxels: int = 40

    @property
    def hu_per_unit(self) -> float:
        """HU that one unit of the normalised image stands for."""
        return self.window_hu[1] - self.window_hu[0]

    def encode(self, image: Tensor) -> Tensor:
        """(1, 1, K, J, I) in [0, 1] -> scaled latent mean (1, C, K/d, J/d, I/d); the mean, not a sample."""
        return self._own_axes(self.autoencoder.encode(self._own_axes(image))[0].float()) * self.scale

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent -> image (1, 1, K, J, I)."""
        return self._own_axes(self.autoencoder.decode(self._own_axes(latent / self.scale)).float())

    def decode_for_gradient(self, latent: Tensor) -> Tensor:
        """:meth:`decode`, which holds less until the gradient is taken: the activations are the memory's peak."""
        with FrozenConvolutions():
            return self.decode(latent)

    def _own_axes(self, x: Tensor) -> Tensor:
        """MAISI's published networks take their tensors along i, j, k; ours along k, j, i. Its own inverse."""
        return x.transpose(2, 4) if self.orientation == "RAS" else x

    def velocity(self, spacing_mm: float):
        """The velocity v(x, t) at an isotropic spacing, for the samplers of :mod:`GenSegLogic.flow`."""

        def evaluate(x: Tensor, t: float) -> Tensor:
            timesteps = torch.full((len(x),), 1000 * t, device=x.device)
            classes = torch.full((len(x),), CT_CLASS, device=x.device)
            spacing = torch.full((len(x), 3), 100 * spacing_mm, device=x.device)
            own = self.velocity_network(self._own_axes(x), timesteps, class_labels=classes, spacing_tensor=spacing)
            return self._own_axes(own.float())

        return evaluate


def latent_flow(loaded: LoadedBundle) -> LatentFlow:
    """The flow of a loaded bundle of kind ``flow``.

    Raises:
        GenSegError: if the bundle is of another kind, or of another modality than CT.
    """
    metadata = loaded.bundle.metadata
    if loaded.bundle.kind != "flow":
        raise GenSegError(
            f"{loaded.bundle.name} is a bundle of kind {loaded.bundle.kind}, but nodules needs one of kind flow."
        )
    image, latent = metadata["image"], metadata["latent"]
    spacing = image["spacing_mm"]
    if image["modality"] != "CT" or image["window_hu"] is None:
        raise GenSegError(
            f"{loaded.bundle.name} is a flow of {image['modality']}, but nodules needs one of CT with a window in HU."
        )
    return LatentFlow(
        autoencoder=loaded.networks["autoencoder"],
        velocity_network=loaded.networks["velocity"],
        scale=float(latent["scale_factor"]),
        downsampling=int(latent["downsampling"]),
        window_hu=tuple(image["window_hu"]),
        orientation=image["orientation"],
        spacings_mm=tuple(image.get("spacings_mm") or (spacing[:1] if spacing else LatentFlow.spacings_mm)),
        field_voxels=int(image.get("field_voxels", 64)),
    )


def grid_doubts(loaded: LoadedBundle, flow: LatentFlow) -> list[str]:
    """One sentence where the published MAISI weights do not know the cubes that nodules are painted in, else none.

    They run there all the same, and whether what they paint is of use nobody has published.
    """
    grid = str(loaded.bundle.metadata["image"].get("grid", ""))
    if not grid.startswith("maisi-"):
        return []
    from ..networks.maisi import check_maisi_grid

    try:
        check_maisi_grid((flow.field_voxels,) * 3, (flow.spacings_mm[0],) * 3, "mr" if grid == "maisi-mr" else "ct")
    except GenSegError as error:
        return [f"{str(error).removesuffix('.')}; what {loaded.bundle.name} paints there may be of no use."]
    return []


def nodule_predictor(loaded: LoadedBundle) -> NodulePredictor:
    """The predictor of a loaded bundle.

    Raises:
        GenSegError: if the bundle holds none; a published encoder has to be fine-tuned first.
    """
    predictor = loaded.networks.get("predictor")
    if not isinstance(predictor, NodulePredictor):
        raise GenSegError(
            f"{loaded.bundle.name} is a bundle of kind {loaded.bundle.kind}, but nodules needs a predictor of nodules."
        )
    return predictor


def normalise(hu: Tensor, window_hu: tuple[float, float]) -> Tensor:
    """HU -> [0, 1], clipped to the window; padding such as -3024 becomes air."""
    low, high = window_hu
    return ((hu.float() - low) / (high - low)).clamp(0, 1)
