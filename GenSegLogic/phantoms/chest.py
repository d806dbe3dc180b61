"""Chest phantoms: procedural CT of the thorax with exact truth.

A :class:`Chest` is a geometry, not an image: it can be drawn on any axis-aligned grid, whole or as a small box, through
any :class:`~GenSegLogic.phantoms.primitives.Scanner`. Training draws boxes; tests and the demo draw whole scans.
Coordinates are LPS mm with the origin in the middle of the chest.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from .nodules import NODULE_KINDS, PhantomNodule, random_nodule
from .primitives import Axes, Capsules, Scanner, interpolate, occupancy, smooth_noise
from .vessels import Tree, grow

COARSE_MM = 3.0
FIELDS = ("body", "cage", "right", "left", "heart", "below", "density")


@dataclass(frozen=True)
class ChestOptions:
    """What a phantom may contain; every range is (low, high).

    Attributes:
        nodules: number of nodules.
        diameter_mm: of a nodule, drawn log-uniformly.
        kinds: nodule kinds to choose from.
        clutter: how many scars and bands per lung at most.
        lung_hu: mean density of the lung.
    """

    nodules: tuple[int, int] = (1, 3)
    diameter_mm: tuple[float, float] = (4.0, 30.0)
    kinds: tuple[str, ...] = tuple(NODULE_KINDS)
    clutter: int = 3
    lung_hu: tuple[float, float] = (-890.0, -780.0)


@dataclass
class Chest:
    """One phantom patient: fields on a coarse grid, tubes, nodules.

    Attributes:
        axes: coarse grid (3 mm) in mm.
        fields: (7, K, J, I) float32 signed distances in mm of FIELDS[:-1] (inside: negative), the lung's density in HU.
        vessels, airways, bones: tubes.
        clutter: flat scars as nodule-like blobs that are not nodules.
        nodules: the truth.
        contrast_hu: what contrast medium adds to blood.
    """

    axes: Axes
    fields: np.ndarray
    vessels: Capsules
    airways: Capsules
    bones: Capsules
    fissures: np.ndarray
    clutter: list[PhantomNodule]
    nodules: list[PhantomNodule]
    contrast_hu: float
    tree_points: np.ndarray = field(repr=False)

    def lung_distance(self, points: np.ndarray) -> np.ndarray:
        """Signed distance in mm to the lungs' surface (negative inside) at points (n, 3) in x, y, z."""
        index = [(points[:, 2 - axis] - self.axes[axis][0]) / COARSE_MM for axis in range(3)]
        lungs = np.minimum(self.fields[2], self.fields[3])
        return ndimage.map_coordinates(lungs, index, order=1, mode="nearest")

    def random_lung_points(self, count: int, rng: np.random.Generator, depth_mm: float = 0.0) -> np.ndarray:
        """``count`` points (n, 3) drawn uniformly from the lungs, at least ``depth_mm`` below their surface."""
        lungs = np.minimum(self.fields[2], self.fields[3])
        inside = np.argwhere(lungs < -max(depth_mm, 0.5))
        chosen = inside[rng.integers(len(inside), size=count)] + rng.uniform(-0.5, 0.5, (count, 3))
        return np.stack([self.axes[axis][0] + COARSE_MM * chosen[:, axis] for axis in (2, 1, 0)], axis=1)

    def draw(self, axes: Axes, rng: np.random.Generator, width_mm: float = 0.9) -> np.ndarray:
        """Ideal image in HU on a grid, float32 (K, J, I), before any scanner."""
        body, cage, right, left, heart, below, density = interpolate(self.fields, self.axes, axes)
        lung = occupancy(np.minimum(right, left), width_mm)
        shape = body.shape
        step = float(abs(axes[2][1] - axes[2][0]))

        soft = 45 + 12 * smooth_noise(shape, 6 / step, rng)
        fat = -100 + 10 * smooth_noise(shape, 5 / step, rng)
        wall = occupancy(cage - 7, 3.0)  # 7 mm of muscle around the cage, fat outside
        image = fat + (soft - fat) * wall
        patches = smooth_noise(shape, 14 / step, rng) > 0.2
        mediastinal_fat = occupancy(-heart - 4, 4.0) * occupancy(cage, 2.0) * patches
        image += (fat - image) * mediastinal_fat
        blood = occupancy(heart, 3.0)
        image += (40 + self.contrast_hu - image) * blood
        image += (55 + 0.4 * self.contrast_hu - image) * occupancy(below, 3.0)
        image += (self._bone_hu(axes, width_mm) - image) * self.bones.draw(axes, width_mm)
        image = -1000 + (image + 1000) * occupancy(body, width_mm)

        # The lung: parenchyma with its texture, fissures, airways, vessels, clutter, nodules.
        parenchyma = density + 16 * smooth_noise(shape, 4 / step, rng) + 10 * smooth_noise(shape, 1.6 / step, rng)
        parenchyma = np.clip(parenchyma, -985, None)
        parenchyma += 130 * self._fissure_occupancy(axes, width_mm)
        image += (parenchyma - image) * lung
        image += (35 + self.contrast_hu - image) * self.vessels.draw(axes, width_mm) * lung
        image += (20 - image) * self.airways.widened(1.18, 0.45).draw(axes, width_mm)
        image += (-990 - image) * self.airways.draw(axes, width_mm)
        for blob in [*self.clutter, *self.nodules]:
            blob.paint(image, axes, lung, width_mm)
        return image.astype(np.float32)

    def truth(self, axes: Axes) -> tuple[np.ndarray, np.ndarray]:
        """Lung mask (uint8) and nodule labelmap (uint8, nodule n has value n + 1) on a grid.

        Nodules belong to the lung, as readers count them.
        """
        right, left = interpolate(self.fields[2:4], self.axes, axes)
        lung = np.minimum(right, left) < 0
        labels = np.zeros(lung.shape, np.uint8)
        for number, nodule in enumerate(self.nodules, start=1):
            window, distance = nodule.signed_distance(axes)
            view = labels[window]
            view[(distance < 0) & lung[window]] = number
        return lung.astype(np.uint8), labels

    def _bone_hu(self, axes: Axes, width_mm: float) -> np.ndarray:
        marrow = self.bones.widened(0.6).draw(axes, width_mm)
        return 620 - 400 * marrow

    def _fissure_occupancy(self, axes: Axes, width_mm: float) -> np.ndarray:
        """Thin oblique sheets, one or two per lung; rows of ``fissures`` hold side, height, slope, waves."""
        z, y, x = axes[0][:, None, None], axes[1][None, :, None], axes[2][None, None, :]
        result = np.zeros((len(axes[0]), len(axes[1]), len(axes[2])), np.float32)
        for side, height, slope_y, slope_x, wave, phase in self.fissures:
            surface = height + slope_y * y + slope_x * (x - side * 80) + wave * np.sin(0.05 * y + 0.04 * x + phase)
            distance = (z - surface) / np.sqrt(1 + slope_y**2 + slope_x**2)
            sheet = np.clip(1.0 - np.abs(distance) / max(width_mm, 1.0), 0, 1) * (np.sign(x) == side)
            np.maximum(result, sheet, out=result)
        return result


def make_chest(seed: int, options: ChestOptions | None = None) -> Chest:
    """Draw one patient. The same seed gives the same patient."""
    options = options or ChestOptions()
    rng = np.random.default_rng([20261121, seed])
    axes, fields = _anatomy(rng, options)
    chest = Chest(
        axes=axes,
        fields=fields,
        vessels=Capsules.empty(),
        airways=Capsules.empty(),
        bones=_bones(rng),
        fissures=_fissures(rng),
        clutter=[],
        nodules=[],
        contrast_hu=float(rng.choice([0.0, rng.uniform(60, 260)])),
        tree_points=np.zeros((0, 4)),
    )
    _grow_trees(chest, rng)
    for _ in range(2 * options.clutter):
        if rng.random() < 0.5:
            where = chest.random_lung_points(1, rng)[0]
            chest.clutter.append(_band(where, rng))
    for _ in range(int(rng.integers(options.nodules[0], options.nodules[1] + 1))):
        _place_nodule(chest, options, rng)
    return chest


def _anatomy(rng: np.random.Generator, options: ChestOptions) -> tuple[Axes, np.ndarray]:
    size = rng.uniform(0.88, 1.1, 3)
    extent = np.array([205.0, 150.0, 175.0])
    z, y, x = (np.arange(-e, e + 1e-6, COARSE_MM, dtype=np.float32) for e in extent[::-1])
    axes = (z.astype(float), y.astype(float), x.astype(float))
    zz, yy, xx = np.meshgrid(z, y, x, indexing="ij")
    # A smooth random warp makes every surface irregular.
    warp = [rng.uniform(2, 6) * smooth_noise(xx.shape, 14, rng) for _ in range(3)]
    xw, yw, zw = xx / size[0] + warp[0], yy / size[1] + warp[1], zz / size[2] + warp[2]

    def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        scaled = [(c - o) / r for c, o, r in zip((xw, yw, zw), center, radii, strict=True)]
        return (np.sqrt(sum(s**2 for s in scaled)) - 1) * min(radii)

    # The cage narrows towards the apex.
    taper = np.clip(1 - ((zw + 40) / 185).clip(0, None) ** 2.4, 0.05, 1)
    cage = (np.sqrt((xw / 130) ** 2 + (yw / 88) ** 2) - taper**0.7) * 88
    fat = rng.uniform(14, 38)
    body = (np.sqrt((xw / 152) ** 2 + (yw / 104) ** 2) - 1) * 104 - fat + 14
    heart = ellipsoid((22, -22, -48), (58, 44, 62))
    heart = np.minimum(heart, ellipsoid((4, -8, 30), (24, 32, 62)))  # great vessels
    aorta = np.sqrt((xw - 24) ** 2 + (yw - 46) ** 2) - 12
    heart = np.minimum(heart, np.maximum(aorta, np.abs(zw + 60) - 110))
    spine = np.sqrt((xw / 1.15) ** 2 + (yw - 66) ** 2) - 21
    middle = np.abs(xw) - (12 + 9 * np.clip((zw + 20) / 120, -0.4, 1))
    obstacle = np.minimum(np.minimum(heart - 3, spine), middle)

    lungs, organs = [], []
    for side in (-1, 1):
        dome = rng.uniform(24, 44)
        base = rng.uniform(-125, -95) + (8 if side < 0 else 0)
        radial = ((xw - side * 62) / 72) ** 2 + ((yw + 12) / 92) ** 2
        diaphragm = base + dome * (1 - radial) - zw
        above = np.maximum(np.maximum(cage + 6, -obstacle), np.maximum(diaphragm * 0.8, -side * xw))
        apex = zw - rng.uniform(118, 132)
        lungs.append(np.maximum(above, apex))
        organs.append(np.maximum(np.maximum(cage + 5, -(diaphragm - 2) * 0.8), -side * xw))
    below = np.minimum(*organs)

    mean = rng.uniform(*options.lung_hu)
    density = mean + rng.uniform(10, 60) * (yw / 88) + rng.uniform(10, 30) * smooth_noise(xx.shape, 6, rng)
    if rng.random() < 0.3:  # emphysema
        patches = smooth_noise(xx.shape, rng.uniform(3, 7), rng) > rng.uniform(0.6, 1.6)
        density = np.where(patches, np.minimum(density, -940), density)
    if rng.random() < 0.3:  # dependent haze
        density = density + rng.uniform(40, 160) * np.clip((yw - 45) / 30, 0, 1)
    fields = np.stack([body, cage, lungs[0], lungs[1], heart, below, density]).astype(np.float32)
    return axes, fields


def _bones(rng: np.random.Generator) -> Capsules:
    parts = []
    scale = rng.uniform(0.95, 1.05)
    for level in range(11):
        z_back = 120 - level * 25 + rng.uniform(-3, 3)
        taper = max(0.08, 1 - max(0.0, (z_back + 25) / 185) ** 2.4) ** 0.7
        angles = np.linspace(0.12, 2.5, 26)
        for side in (-1, 1):
            x = side * 133 * scale * taper * np.sin(angles)
            y = 92 * scale * taper * np.cos(angles)
            z = z_back - 34 * (angles / 2.5) ** 1.2
            parts.append(Capsules.chain(np.stack([x, y, z], 1), np.full(26, rng.uniform(3.8, 5.2))))
    for height in np.arange(-170, 170, 26.0):
        parts.append(Capsules.chain(np.array([[0, 64, height - 7], [0, 64, height + 7.0]]), np.full(2, 15.0)))
        parts.append(Capsules.chain(np.array([[0, 78, height], [0, 106, height - 6.0]]), np.full(2, 4.5)))
    sternum = np.stack([np.zeros(8), np.linspace(-93, -84, 8), np.linspace(-40, 95, 8)], 1)
    parts.append(Capsules.chain(sternum * [1, scale, 1], np.full(8, 7.0)))
    return Capsules.join(parts)


def _fissures(rng: np.random.Generator) -> np.ndarray:
    rows = [(side, rng.uniform(-30, 10), rng.uniform(0.7, 1.3), rng.uniform(-0.3, 0.3)) for side in (-1, 1)]
    rows.append((-1, rng.uniform(0, 20), rng.uniform(-0.15, 0.15), rng.uniform(-0.2, 0.2)))
    return np.array([(*row, rng.uniform(2, 6), rng.uniform(0, 6.28)) for row in rows])


def _grow_trees(chest: Chest, rng: np.random.Generator) -> None:
    vessels, airways, points = [], [], []
    for side in (-1, 1):
        targets = chest.random_lung_points(5200, rng, depth_mm=2.0)
        targets = targets[np.sign(targets[:, 0]) == side]
        hilum = np.array([side * 26.0, 2.0, rng.uniform(-15, 5)])
        order = np.argsort(np.linalg.norm(targets - hilum, axis=1) * rng.uniform(0.3, 1.7, len(targets)))
        trees: list[Tree] = []
        for number in range(2):
            chosen = targets[order][number::2][: int(rng.integers(750, 1200))]
            root = hilum + np.array([0, -8.0, 0]) * number
            trees.append(grow(root, chosen, rng))
        leaf = rng.uniform(0.42, 0.62)
        for tree in trees:
            vessels.append(tree.capsules(leaf))
            points.append(np.column_stack([tree.points, tree.radii(leaf)]))
        # Airways run beside the larger arteries.
        artery = trees[0]
        radii = artery.radii(leaf)
        shift = np.array([0.0, 1.0, 0.35]) * (2.1 * radii)[:, None]
        airway = Tree(artery.points + shift, artery.parent, artery.leaves)
        airways.append(airway.capsules(leaf * 0.82, minimum_leaves=12))
        main = np.stack([np.linspace(0, airway.points[0, 0], 5), np.full(5, 8.0), np.linspace(25, hilum[2], 5)], 1)
        airways.append(Capsules.chain(main, np.full(5, 5.5)))
        vessels.append(Capsules.chain(np.array([hilum + np.array([-side * 18, -8, 0]), hilum]), np.array([8.0, 6.0])))
    airways.append(Capsules.chain(np.array([[0, 8, 25], [0, 4, 170.0]]), np.full(2, 8.5)))
    chest.vessels, chest.airways = Capsules.join(vessels), Capsules.join(airways)
    chest.tree_points = np.concatenate(points)


def _band(where: np.ndarray, rng: np.random.Generator) -> PhantomNodule:
    """A scar: flat, much longer than thick, so that no reader takes it for a nodule."""
    radii = np.array([rng.uniform(0.6, 1.2), rng.uniform(3, 9), rng.uniform(5, 14)])
    return random_nodule("solid", where, 1.0, rng, radii=radii)


def _place_nodule(chest: Chest, options: ChestOptions, rng: np.random.Generator) -> None:
    kind = str(rng.choice(options.kinds))
    low, high = options.diameter_mm
    for _ in range(60):
        diameter = float(low * (high / low) ** rng.random())
        radius = diameter / 2
        surroundings = NODULE_KINDS[kind].surroundings
        if surroundings == "pleura":
            center = chest.random_lung_points(1, rng)[0]
            distance = float(chest.lung_distance(center[None])[0])
            if not -0.95 * radius < distance < -0.2 * radius:
                continue
        elif surroundings == "vessel":
            near = chest.tree_points[(chest.tree_points[:, 3] > 0.7) & (chest.tree_points[:, 3] < 0.6 * radius + 0.5)]
            point = near[rng.integers(len(near))]
            direction = rng.standard_normal(3)
            center = point[:3] + direction / np.linalg.norm(direction) * radius * rng.uniform(0.2, 0.9)
        else:
            center = chest.random_lung_points(1, rng)[0]
        distance = float(chest.lung_distance(center[None])[0])
        limit = -0.2 * radius if surroundings == "pleura" else -(radius + 1.0)
        apart = all(np.linalg.norm(center - other.center) > radius + other.radius + 6 for other in chest.nodules)
        if distance < limit and apart:
            chest.nodules.append(random_nodule(kind, center, radius, rng))
            return


def make_scan(
    chest: Chest, seed: int, scanner: Scanner | None = None, box: tuple[np.ndarray, np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Axes]:
    """Scan a phantom.

    Args:
        chest: the patient.
        seed: of texture, noise and protocol.
        scanner: protocol; drawn at random without one.
        box: (low, high) corners in x, y, z mm; the whole thorax without one.

    Returns:
        image (float32 HU), lung mask (uint8), nodule labelmap (uint8), each (K, J, I), and the axes of that grid.
    """
    rng = np.random.default_rng([777, seed])
    scanner = scanner or Scanner.random(rng)
    if box is None:
        lungs = np.argwhere(np.minimum(chest.fields[2], chest.fields[3]) < 0)
        low, high = lungs.min(0) * COARSE_MM, lungs.max(0) * COARSE_MM
        start = np.array([axis[0] for axis in chest.axes])
        low, high = (start + low - [6, 25, 25])[::-1], (start + high + [6, 25, 25])[::-1]
    else:
        low, high = box
    steps = (scanner.spacing_mm, scanner.spacing_mm, scanner.thickness_mm)
    x, y, z = (
        np.arange(first, last + step, step) for first, last, step in zip(low, high, steps, strict=True)
    )
    axes = (z, y, x)
    image = scanner.expose(chest.draw(scanner.fine_axes(axes), rng, width_mm=max(0.8, scanner.spacing_mm)), rng)
    lung, labels = chest.truth(axes)
    return np.clip(image, -1024, 3071), lung, labels, axes
