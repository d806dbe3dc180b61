"""The frame of the abdomen phantoms: skin, fat, wall, bones, lungs and heart; the cavity is left for the organs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .abdomen_canvas import Canvas, along, bent, expand, smooth_maximum
from .abdomen_tissues import Tissue


@dataclass
class Frame:
    """What the organs need to know of the body that holds them.

    Attributes:
        cavity: (K, J, I) signed distance in mm to the inner surface of the abdominal and chest wall, inside negative.
        below: (K, J, I) signed distance in mm to the diaphragm, negative below it.
        dome: height in mm of the right dome of the diaphragm.
        fatness: 0 (lean) to 1 (obese).
    """

    cavity: np.ndarray
    below: np.ndarray
    dome: float
    fatness: float


def paint_frame(canvas: Canvas, fatness: float, rng: np.random.Generator) -> Frame:
    """Paint everything that is no organ of the abdomen, from the skin inwards."""
    # These surfaces are smooth: every other voxel is enough.
    x, y, z, lump = (field[:, ::2, ::2] for field in (canvas.x, canvas.y, canvas.z, canvas.lumps[0]))
    half_width, front, back = rng.uniform(136, 148), rng.uniform(84, 98), rng.uniform(98, 110)
    belly = rng.uniform(-0.28, 0.02) + 0.3 * fatness
    waist = rng.uniform(-0.1, 0.04) + 0.06 * fatness
    power = rng.uniform(2.1, 2.6)
    low = 1 / (1 + np.exp((z - 10) / 35))
    u = np.abs(x) / (half_width * (1 + waist * low))
    v = np.abs(y) / np.where(y < 0, front * (1 + belly * low), back)
    wall = ((u**power + v**power) ** (1 / power) - 1) * np.float32(0.5 * (half_width + back))
    wall *= 0.82 + 0.3 * np.clip(2 * (u - v) + 0.5, 0, 1)  # roughly a distance at the sides and in front
    wall += np.exp(-((x / rng.uniform(14, 22)) ** 2)) * (y > 0) * rng.uniform(2, 12)  # the furrow of the back
    side = rng.uniform(0.5, 1.2) + rng.uniform(-0.5, 0.5) * np.clip(y / 80 + 0.5, 0, 1)
    fat = (3 + rng.uniform(20, 34) * fatness) * (0.55 + 0.5 * side + rng.uniform(0, 0.5) * low)
    behind = np.clip(y / back, 0, 1) ** 2
    thickness = rng.uniform(8, 13) + rng.uniform(0, 4) * low + rng.uniform(9, 16) * behind
    shape = canvas.x.shape
    dome = rng.uniform(128, 168)
    below = expand(_diaphragm(x, y, z, lump, dome, rng), shape)
    body, cavity = expand(wall - fat, shape), expand(wall + thickness, shape)
    layers = expand(np.where((u > 0.5) & (z < 40) & (y < 60), np.abs(wall + 0.5 * thickness), 9.0), shape)
    wall = expand(wall, shape)
    canvas.paint(canvas.whole, body < 0, Tissue.SKIN)
    canvas.paint(canvas.whole, body < -rng.uniform(1.5, 2.5), Tissue.FAT_UNDER_SKIN)
    canvas.paint(canvas.whole, wall < 0, Tissue.MUSCLE)
    if fatness > 0.3:  # fat between the layers of the wall
        canvas.paint(canvas.whole, layers < 1.2, Tissue.FAT)
    canvas.paint(canvas.whole, cavity < 0, Tissue.FAT)
    _chest(canvas, cavity, below, dome, rng)
    _muscles(canvas, rng)
    _spine(canvas, rng)
    _ribs(canvas, half_width, front, back, power, dome, rng)
    _pelvis(canvas, rng)
    return Frame(cavity, below, dome, fatness)


def _diaphragm(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, lump: np.ndarray, dome: float, rng: np.random.Generator
) -> np.ndarray:
    """Signed distance to the diaphragm: two domes joined by a lower bridge, steep behind and at the sides."""
    sheets = []
    for center, top in ((-62, dome), (64, dome - rng.uniform(6, 24))):
        radial = ((x - center) / rng.uniform(76, 88)) ** 2 + ((y + rng.uniform(4, 20)) / rng.uniform(92, 112)) ** 2
        sheets.append(top - rng.uniform(58, 84) * radial)
    return (z - smooth_maximum(sheets[0], sheets[1], 30) - 3 * lump) * np.float32(0.7)


def _chest(canvas: Canvas, cavity: np.ndarray, below: np.ndarray, dome: float, rng: np.random.Generator) -> None:
    x = canvas.x
    above = (cavity < 0) & (below > 0)
    middle = np.abs(x - 6) < 26 + 6 * canvas.lumps[1]
    canvas.paint(canvas.whole, above & ~middle, Tissue.LUNG)
    canvas.paint(canvas.whole, (np.abs(below) < 1.5) & (cavity < 0), Tissue.CRUS)
    center = (rng.uniform(18, 32), rng.uniform(-42, -28), dome + rng.uniform(22, 38))
    window, distance, _ = canvas.ellipsoid(center, (62, 44, 50), (0, -20, -25))
    allowed = above[window] & (below[window] > 2)
    canvas.paint(window, (distance < 0) & allowed, Tissue.MYOCARDIUM)
    canvas.paint(window, (distance < -9 + 4 * canvas.lumps[2][window]) & allowed, Tissue.HEART)
    window, distance, _ = canvas.ellipsoid((center[0] + 20, center[1] + 4, center[2] + 4), (30, 20, 34), (0, -20, -25))
    shell = np.abs(distance) < 5
    canvas.paint(window, shell & allowed_in(canvas, window, Tissue.HEART), Tissue.MYOCARDIUM)


def allowed_in(canvas: Canvas, window: tuple[slice, slice, slice], *tissues: Tissue) -> np.ndarray:
    """Where the voxels of ``window`` are still of one of these tissues."""
    current = canvas.tissue[window]
    result = current == tissues[0]
    for tissue in tissues[1:]:
        result |= current == tissue
    return result


def _muscles(canvas: Canvas, rng: np.random.Generator) -> None:
    bulk = rng.uniform(0.8, 1.2)
    for side in (-1, 1):
        psoas = bent([(side * 22, 36, 40), (side * 34, 36, -10), (side * 44, 28, -70), (side * 56, 8, -150)], 8)
        window, distance = canvas.tube(psoas, along([6, 15 * bulk, 22 * bulk, 23 * bulk], 8))
        canvas.paint(window, distance < 0, Tissue.MUSCLE)
        quadratus = bent([(side * 60, 68, 30), (side * 68, 68, -40), (side * 78, 64, -120)], 6)
        window, distance = canvas.tube(quadratus, along([9, 18 * bulk, 16 * bulk], 6), flat=0.55)
        canvas.paint(window, distance < 0, Tissue.MUSCLE)
        back = bent([(side * 28, 80, 240), (side * 36, 82, 20), (side * 34, 82, -160)], 6)
        window, distance = canvas.tube(back, along([25, 35 * bulk, 33 * bulk], 6), flat=0.72)
        canvas.paint(window, (distance < 0) & (canvas.tissue[window] != Tissue.AIR), Tissue.MUSCLE)
        cleft = bent([(side * 28, 84, 240), (side * 36, 84, 0), (side * 34, 86, -160)], 4)
        window, distance = canvas.tube(cleft, np.full(5, rng.uniform(1.0, 2.2)), flat=rng.uniform(2, 4))
        if rng.random() < 0.5:
            canvas.paint(window, distance < 0, Tissue.FAT)


def _spine(canvas: Canvas, rng: np.random.Generator) -> None:
    bend = rng.uniform(-6, 10)
    height, disc = rng.uniform(31, 37), rng.uniform(6, 11)
    phase = rng.uniform(0, height)
    width, depth = rng.uniform(19, 24), rng.uniform(15, 19)
    window = canvas.window((-75, 5, -400), (75, 110, 400))
    x, z = canvas.x[window], canvas.z[window]
    y = canvas.y[window] - bend * np.cos(z / 70)
    level = np.mod(z + phase, height)
    pinch = 1 + 0.10 * np.cos(2 * np.pi * (level - disc / 2) / height)
    body = (np.sqrt((x / width) ** 2 + ((y - 36) / depth) ** 2) - pinch) * depth
    canvas.paint(window, body < 0, Tissue.CORTICAL_BONE)
    canvas.paint(window, body < -2.0, Tissue.MARROW)
    between = level < disc
    canvas.paint(window, (body < 0) & between, Tissue.DISC)
    canvas.paint(window, (body < -1) & ((np.abs(level - disc) < 1.5) | (level > height - 1.5)), Tissue.CORTICAL_BONE)
    # The arch: pedicles, laminae, spinous and transverse processes around the canal.
    arch = np.abs(np.sqrt((x / 1.15) ** 2 + (y - 60) ** 2) - 12.5) - 3.2
    solid = (level > disc + 4) & (level < height - 6)
    canvas.paint(window, (arch < 0) & (y > 46) & (solid | (y > 58)), Tissue.CORTICAL_BONE)
    spinous = np.maximum(np.abs(x) - 3.2, np.abs(y - 84) - rng.uniform(12, 16))
    canvas.paint(window, (spinous < 0) & (level > disc) & (level < height - 8), Tissue.CORTICAL_BONE)
    canvas.paint(window, (spinous < -1.5) & (level > disc) & (level < height - 8), Tissue.MARROW)
    slope = y - (60 + 0.12 * np.abs(x))
    transverse = np.maximum(np.abs(slope) - 4, np.abs(x) - rng.uniform(32, 44))
    canvas.paint(window, (transverse < 0) & (np.abs(x) > 13) & (np.abs(level - height * 0.62) < 5),
                 Tissue.CORTICAL_BONE)
    canal = np.sqrt((x / 1.4) ** 2 + (y - 60) ** 2) - rng.uniform(5.5, 8)
    canvas.paint(window, canal < 0, Tissue.CANAL)


def _ribs(
    canvas: Canvas, half_width: float, front: float, back: float, power: float, dome: float, rng: np.random.Generator
) -> None:
    depth = rng.uniform(5, 8)
    drop, size = rng.uniform(100, 150), rng.uniform(4.0, 5.4)
    step = rng.uniform(25, 31)
    lowest = dome - rng.uniform(95, 115)
    for level in range(10):
        z_back = lowest + level * step
        last = (1.1, 1.6, 2.0, 2.2, 2.35, 2.45, 2.5, 2.5, 2.5, 2.5)[level]
        angles = np.linspace(0.28, last, 16)
        sine, cosine = np.sin(angles), np.cos(angles)
        unit = (np.abs(sine) ** power + np.abs(cosine) ** power) ** (-1 / power)
        for side in (-1, 1):
            x = side * (half_width - depth) * sine * unit
            y = np.where(cosine > 0, back - depth - 8, front - depth) * cosine * unit
            z = z_back - drop * angles / 2.5 + rng.uniform(-3, 3)
            points = np.stack([x, y, z], 1)
            window, distance = canvas.tube(points, np.full(16, size), flat=0.85)
            canvas.paint(window, distance < 0, Tissue.CORTICAL_BONE)
            canvas.paint(window, distance < -1.8, Tissue.MARROW)
            if level > 2:  # the rib's cartilage rises to the breastbone
                end = points[-1] + np.array([-side * rng.uniform(35, 60), -rng.uniform(2, 8), rng.uniform(10, 30)])
                window, distance = canvas.tube(np.stack([points[-1], end]), np.array([size, size]))
                canvas.paint(window, (distance < 0) & (canvas.tissue[window] != Tissue.AIR), Tissue.CARTILAGE)
    window, distance, _ = canvas.ellipsoid((0, -front + depth, dome + 70), (18, 6, 75))
    canvas.paint(window, distance < 0, Tissue.CORTICAL_BONE)
    canvas.paint(window, distance < -2, Tissue.MARROW)


def _pelvis(canvas: Canvas, rng: np.random.Generator) -> None:
    top = rng.uniform(-115, -88)
    for side in (-1, 1):
        window, distance, local = canvas.ellipsoid((side * 62, 38, top - 75), (64, 66, 82), (0, side * 6, 0))
        blade = (np.abs(distance + 3) < 5) & (local[0] * side > 0.25) & (canvas.tissue[window] != Tissue.AIR)
        canvas.paint(window, blade, Tissue.CORTICAL_BONE)
        canvas.paint(window, blade & (np.abs(distance + 3) < 3), Tissue.MARROW)
        muscle = (distance > 2) & (distance < 22) & (local[0] * side > 0.1) & (local[1] > -0.6)
        canvas.paint(window, muscle & allowed_in(canvas, window, Tissue.FAT_UNDER_SKIN, Tissue.FAT), Tissue.MUSCLE)
        iliacus = (distance < -8) & (distance > -18) & (local[0] * side > 0.35)
        canvas.paint(window, iliacus & allowed_in(canvas, window, Tissue.FAT), Tissue.MUSCLE)
