"""Nodules of the chest phantom: what they look like, and how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .primitives import Axes, Capsules


@dataclass(frozen=True)
class NoduleKind:
    """A kind of nodule.

    Attributes:
        density: ``solid``, ``ground-glass`` or ``part-solid``.
        lobulation: depth of the lobes as a fraction of the radius (low, high).
        spicules: number of spicules (low, high).
        surroundings: ``free``, ``pleura`` or ``vessel``.
    """

    density: str
    lobulation: tuple[float, float]
    spicules: tuple[int, int]
    surroundings: str


NODULE_KINDS: dict[str, NoduleKind] = {
    "solid": NoduleKind("solid", (0.02, 0.08), (0, 0), "free"),
    "part-solid": NoduleKind("part-solid", (0.04, 0.12), (0, 0), "free"),
    "ground-glass": NoduleKind("ground-glass", (0.04, 0.14), (0, 0), "free"),
    "spiculated": NoduleKind("solid", (0.06, 0.14), (6, 16), "free"),
    "lobulated": NoduleKind("solid", (0.14, 0.24), (0, 0), "free"),
    "pleural": NoduleKind("solid", (0.02, 0.14), (0, 3), "pleura"),
    "vascular": NoduleKind("solid", (0.02, 0.14), (0, 0), "vessel"),
}


@dataclass
class PhantomNodule:
    """One nodule in x, y, z mm.

    Attributes:
        kind: key of NODULE_KINDS.
        center: (3,) mm.
        radius: mean radius in mm.
        radii: (3,) semi-axes in mm along the columns of ``rotation``.
        rotation: (3, 3) orthonormal.
        waves: (n, 5) wave vector, phase and amplitude of the surface's lobes.
        spicules: thin tapering tubes.
        hu: density of the nodule; of the ground-glass part where it is part-solid.
        core: radius of the solid core as a fraction of the radius, 0 without one.
        softness_mm: width of the edge.
    """

    kind: str
    center: np.ndarray
    radius: float
    radii: np.ndarray
    rotation: np.ndarray
    waves: np.ndarray
    spicules: Capsules
    hu: float
    core: float
    softness_mm: float

    @property
    def diameter_mm(self) -> float:
        """Mean diameter."""
        return 2 * self.radius

    @property
    def reach_mm(self) -> float:
        """Radius of a ball that holds all of the nodule."""
        return float(1.35 * self.radii.max() + (0.8 * self.radius if len(self.spicules.start) else 0) + 2)

    def window(self, axes: Axes) -> tuple[slice, ...]:
        """The part of a grid that the nodule can touch; empty slices where it is outside."""
        return tuple(
            slice(int(np.searchsorted(axis, c - self.reach_mm)), int(np.searchsorted(axis, c + self.reach_mm)))
            for axis, c in zip(axes, self.center[::-1], strict=True)
        )

    def _local(self, axes: Axes, window: tuple[slice, ...]) -> tuple[Axes, np.ndarray]:
        part = tuple(axis[w] for axis, w in zip(axes, window, strict=True))
        z, y, x = np.meshgrid(*part, indexing="ij")
        offset = np.stack([x, y, z], -1) - self.center
        return part, offset @ self.rotation / self.radii

    def signed_distance(self, axes: Axes) -> tuple[tuple[slice, ...], np.ndarray]:
        """Window of the grid and, in it, the signed distance in mm to the nodule's surface (negative inside)."""
        window = self.window(axes)
        part, local = self._local(axes, window)
        rho = np.linalg.norm(local, axis=-1)
        unit = local / np.maximum(rho, 1e-3)[..., None]
        lobes = np.zeros_like(rho)
        for *wave, phase, amplitude in self.waves:
            lobes += amplitude * np.sin(unit @ np.array(wave) + phase)
        distance = (rho - 1 - lobes) * self.radii.min() ** 0.5 * self.radius**0.5
        if distance.size and len(self.spicules.start):
            # Occupancy of a tube turned back into a distance: 0.5 at the surface.
            tubes = self.spicules.draw(part, 0.6)
            distance = np.minimum(distance, np.where(tubes > 0, (0.5 - tubes) * 0.6, np.inf))
        return window, distance

    def paint(self, image: np.ndarray, axes: Axes, lung: np.ndarray, width_mm: float) -> None:
        """Draw into an ideal image in HU, in place, where there is lung (occupancy ``lung``)."""
        window, distance = self.signed_distance(axes)
        if not distance.size:
            return
        view, inside_lung = image[window], lung[window]
        filled = np.clip(0.5 - distance / max(self.softness_mm, width_mm), 0, 1) * inside_lung
        if self.core:
            solid = np.clip(0.5 - (distance + (1 - self.core) * self.radius) / width_mm, 0, 1) * inside_lung
        else:
            solid = np.zeros_like(filled)
        # A nodule never makes denser tissue lighter: vessels stay visible through ground glass.
        view += np.maximum(self.hu - view, 0) * filled
        view += np.maximum(30.0 - view, 0) * solid


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """An orthonormal matrix drawn uniformly, (3, 3): a rotation, or one and a mirror."""
    q, r = np.linalg.qr(rng.standard_normal((3, 3)))
    return q * np.sign(np.diag(r))


def random_nodule(
    kind: str, center: np.ndarray, radius: float, rng: np.random.Generator, radii: np.ndarray | None = None
) -> PhantomNodule:
    """A nodule of a kind, of mean radius ``radius`` mm, with its own shape and density.

    ``radii`` fixes the semi-axes in mm instead of drawing them.
    """
    spec = NODULE_KINDS[kind]
    if radii is None:
        radii = np.exp(rng.normal(0, 0.13, 3))
        radii = radius * radii / radii.prod() ** (1 / 3)
    else:
        radius = float(np.prod(radii) ** (1 / 3))
    lobulation = rng.uniform(*spec.lobulation)
    count = 6
    waves = np.column_stack(
        [
            rng.normal(0, 2.4, (count, 3)),
            rng.uniform(0, 2 * np.pi, count),
            np.full(count, lobulation / np.sqrt(count) * 1.4),
        ]
    )
    rotation = random_rotation(rng)
    spicules = []
    for _ in range(int(rng.integers(spec.spicules[0], spec.spicules[1] + 1))):
        direction = rng.standard_normal(3)
        direction /= np.linalg.norm(direction)
        start = center + direction * radius * 0.8
        end = center + direction * radius * rng.uniform(1.25, 1.75)
        thickness = np.array([rng.uniform(0.5, 0.5 + 0.09 * radius), 0.3])
        spicules.append(Capsules.chain(np.array([start, end]), thickness))
    if spec.density == "solid":
        hu, core, softness = float(rng.uniform(-60, 90)), 0.0, float(rng.uniform(0.6, 1.2))
        if rng.random() < 0.06:
            hu = float(rng.uniform(180, 500))  # calcified
    else:
        hu = float(rng.uniform(-680, -450))
        core = float(rng.uniform(0.35, 0.65)) if spec.density == "part-solid" else 0.0
        softness = float(rng.uniform(0.8, 2.0))
    return PhantomNodule(
        kind=kind,
        center=np.asarray(center, float),
        radius=radius,
        radii=np.asarray(radii, float),
        rotation=rotation,
        waves=waves,
        spicules=Capsules.join(spicules) if spicules else Capsules.empty(),
        hu=hu,
        core=core,
        softness_mm=softness,
    )
