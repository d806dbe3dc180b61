"""Solid organs and great vessels of the abdomen phantoms, painted over the frame and the bowel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .abdomen_canvas import Canvas, Window, along, bent, rotation, smooth_maximum
from .abdomen_tissues import LABEL, Tissue
from .abdomen_wall import Frame, allowed_in
from .vessels import grow


@dataclass(frozen=True)
class Variation:
    """How far patients differ.

    Attributes:
        shift_mm: standard deviation of an organ's place along each axis.
        size: standard deviation of the logarithm of an organ's linear size.
        no_gallbladder, no_kidney, no_spleen: probabilities that the organ has been removed.
        lesions: probability of lesions of the liver, and of cysts of a kidney.
    """

    shift_mm: float = 5.0
    size: float = 0.08
    no_gallbladder: float = 0.15
    no_kidney: float = 0.03
    no_spleen: float = 0.03
    lesions: float = 0.3


def paint_organs(canvas: Canvas, frame: Frame, vary: Variation, rng: np.random.Generator) -> None:
    """Paint all organs, from the deepest in the pile to the one that presses on all others."""
    _great_vessels(canvas, frame, rng)
    _pancreas(canvas, vary, rng)
    liver = _liver(canvas, frame, vary, rng)
    _spleen(canvas, frame, vary, rng)
    _portal_system(canvas, frame, rng)
    for side in (-1, 1):
        _kidney(canvas, frame, side, vary, rng)
    _vena_cava(canvas, frame, rng)
    _liver_vessels(canvas, frame, liver, vary, rng)
    _gallbladder(canvas, frame, vary, rng)


def _place(vary: Variation, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    return rng.normal(0, vary.shift_mm, 3), float(np.exp(rng.normal(0, vary.size)))


def _great_vessels(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    radius = rng.uniform(7.5, 12.5)
    bow = rng.normal(0, 4)
    points = np.array([(2, 14, -95), (6 + bow, 8, -40), (8 + bow, 6, 20), (10, 10, 80), (16, 20, 140), (22, 26, 260)])
    window, distance = canvas.tube(bent(points, 14), along([0.85, 0.9, 1, 1.05, 1.15, 1.2], 14) * radius)
    # The crura of the diaphragm flank the aorta in front of the spine.
    for side in (-1, 1):
        crus = bent([(8 + side * 12, 26, 0), (10 + side * 16, 20, 50), (10 + side * 18, 12, frame.dome - 50)], 6)
        part, gap = canvas.tube(crus, along([3, 6, 5], 6))
        canvas.paint(part, (gap < 0) & (frame.below[part] < 0), Tissue.CRUS)
    canvas.paint(window, distance < 0, Tissue.VESSEL_WALL, LABEL["aorta"])
    canvas.paint(window, distance < -1.2, Tissue.AORTA, LABEL["aorta"])
    for side in (-1, 1):  # iliac arteries and veins
        for tissue, x, y, size in ((Tissue.ARTERY, 2, 12, 5.0), (Tissue.VEIN, -16, 18, 6.5)):
            line = bent([(x, y, -98), (x + side * 20, y + 6, -130), (side * 48, y + 14, -170)], 5)
            part, gap = canvas.tube(line, np.full(6, size))
            canvas.paint(part, gap < 0, tissue)
    mesenteric = bent([(8, -6, 30), (8, -20, 0), (4, -30, -60), (-10, -34, -100)], 8)
    for offset, tissue, size in ((0, Tissue.ARTERY, 3.4), (-12, Tissue.VEIN, 5.0)):
        part, gap = canvas.tube(mesenteric + np.array([offset, 0, 0]), along([1, 1, 0.7], 8) * size)
        canvas.paint(part, gap < 0, tissue)
    # Oesophagus, from behind the heart to the stomach.
    entry = frame.dome - rng.uniform(44, 58)
    line = bent([(8, 16, frame.dome + 110), (10, 12, frame.dome + 20), (18, 6, entry + 22), (38, 4, entry)], 10)
    size = rng.uniform(6.5, 9.5)
    part, gap = canvas.tube(line, np.full(11, size), flat=rng.uniform(0.7, 1.0))
    canvas.paint(part, (gap < 0) & (canvas.label[part] != LABEL["stomach"]), Tissue.OESOPHAGUS, LABEL["esophagus"])
    if rng.random() < 0.4:
        canvas.paint(part, (gap < -0.6 * size) & (canvas.label[part] == LABEL["esophagus"]), Tissue.GAS,
                     LABEL["esophagus"])


def _vena_cava(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    radius, bow = rng.uniform(8, 13), rng.normal(0, 3)
    points = np.array([(-16, 16, -95), (-20 + bow, 10, -30), (-22 + bow, 6, 30), (-24, 2, frame.dome - 70),
                       (-20, -6, frame.dome - 25), (-12, -18, frame.dome + 25)])
    window, distance = canvas.tube(bent(points, 12), along([0.9, 1, 1, 1.1, 1.2, 1.2], 12) * radius,
                                      flat=rng.uniform(0.6, 1.0))
    canvas.paint(window, (distance < 0) & (canvas.label[window] != LABEL["aorta"]), Tissue.VENA_CAVA,
                 LABEL["inferior_vena_cava"])


def _pancreas(canvas: Canvas, vary: Variation, rng: np.random.Generator) -> None:
    shift, size = _place(vary, rng)
    rise = rng.uniform(10, 45)
    points = np.array([(-32, -14, 4), (-28, -22, 20), (-6, -34, 26), (20, -28, 28 + 0.5 * rise), (48, -6, 30 + rise),
                       (76, 16, 34 + rise)]) + shift
    radii = along(np.array([10, 14, 9, 9, 10, 8]) * size * rng.uniform(0.8, 1.15), 14)
    window, distance = canvas.tube(bent(points, 14), radii, 4)
    distance = distance + 2.2 * canvas.lumps[4][window]
    canvas.paint(window, distance < 0, Tissue.PANCREAS, LABEL["pancreas"])


def _portal_system(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    radius = rng.uniform(5.5, 8)
    hilum = np.array([-42, -18, frame.dome - rng.uniform(76, 92)])
    join = np.array([-4, -20, min(34 + rng.normal(0, 5), hilum[2] - 10)])
    lines = [(bent([join, (join + hilum) / 2 + np.array([0, -3, 4]), hilum], 6), along([1, 1, 1.05], 6) * radius)]
    splenic = [join, join + np.array([26, -4, 10]), (52, 6, 56 + rng.normal(0, 6)), (78, 22, 66 + rng.normal(0, 6))]
    lines.append((bent(splenic, 10), along([0.8, 0.7, 0.62, 0.5], 10) * radius))
    for line, radii in lines:
        window, distance = canvas.tube(line, radii)
        canvas.paint(window, distance < 0, Tissue.PORTAL_VEIN, LABEL["portal_vein"])


def _liver(canvas: Canvas, frame: Frame, vary: Variation, rng: np.random.Generator) -> tuple[Window, np.ndarray]:
    """Under the right dome, down along the right wall, with a left lobe that thins out in front of the stomach."""
    window = canvas.window((-175, -130, -90), (115, 110, frame.dome + 20))
    x, y, z = canvas.x[window], canvas.y[window], canvas.z[window]
    _, size = _place(vary, rng)
    depth = rng.uniform(128, 170) * size
    slope, tip = rng.uniform(0.32, 0.55), rng.uniform(45, 110)
    behind = rng.uniform(0.0, 0.38)
    floor = frame.dome - depth + slope * np.maximum(x + 130, 0) + behind * y + 7 * canvas.lumps[1][window]
    floor = floor + 2.0 * np.maximum(x - tip, 0)
    distance = smooth_maximum((floor - z) * 0.7, frame.below[window] + 0.8, 4)
    distance = smooth_maximum(distance, frame.cavity[window] + rng.uniform(0, 1) + frame.fatness, 4)
    # From the vena cava on, the left lobe lies in front of spine, stomach and spleen: its back runs to the front left.
    angle = np.deg2rad(rng.uniform(20, 48))
    back = np.sin(angle) * (x + 20) + np.cos(angle) * (y - rng.uniform(2, 14)) + 5 * canvas.lumps[2][window]
    behind_left = -smooth_maximum(-back, -(x + rng.uniform(22, 32)), 16)
    distance = smooth_maximum(distance, behind_left, 10)
    if rng.random() < 0.8:  # the fissure of the falciform ligament
        cleft = np.maximum(np.abs(x - rng.uniform(-12, 10) + 0.15 * y) - rng.uniform(1.0, 3.5), y + rng.uniform(28, 50))
        distance = np.maximum(distance, -cleft - np.maximum(z - (frame.dome - 95), 0) * 0.1)
    inside = distance < 0
    inside &= ~allowed_in(canvas, window, Tissue.AORTA, Tissue.VESSEL_WALL, Tissue.OESOPHAGUS, Tissue.CRUS)
    canvas.paint(window, inside, Tissue.LIVER, LABEL["liver"])
    return window, distance


def _spleen(canvas: Canvas, frame: Frame, vary: Variation, rng: np.random.Generator) -> None:
    """Under the left dome against the wall, hollowed by stomach and kidney."""
    shift, size = _place(vary, rng)
    if rng.random() < vary.no_spleen:
        return
    center = np.array([rng.uniform(88, 104), rng.uniform(36, 60), frame.dome - rng.uniform(64, 90)]) + shift
    radii = np.array([rng.uniform(36, 48), rng.uniform(44, 60), rng.uniform(42, 58)]) * size
    window, distance, _ = canvas.ellipsoid(center, radii, (rng.uniform(-35, 0), rng.uniform(-15, 15), 15), 5)
    hollow_center = center + np.array([-rng.uniform(34, 46), -rng.uniform(4, 30), rng.uniform(-15, 15)])
    offsets = [a[window] - np.float32(c) for a, c in zip((canvas.x, canvas.y, canvas.z), hollow_center, strict=True)]
    hollow = np.sqrt(offsets[0] ** 2 + offsets[1] ** 2 + (0.6 * offsets[2]) ** 2) - rng.uniform(26, 36) * size
    distance = smooth_maximum(distance + 2 * canvas.lumps[2][window], -hollow, 6)
    distance = smooth_maximum(distance, frame.cavity[window] + rng.uniform(0, 1) + frame.fatness, 4)
    distance = smooth_maximum(distance, frame.below[window] + 0.8, 4)
    inside = (distance < 0) & (canvas.label[window] != LABEL["liver"])
    canvas.paint(window, inside, Tissue.SPLEEN, LABEL["spleen"])


def _kidney(canvas: Canvas, frame: Frame, side: int, vary: Variation, rng: np.random.Generator) -> None:
    """A bean of cortex, pyramids and sinus; its adrenal sits above and in front of the upper pole."""
    name = "right" if side < 0 else "left"
    shift, size = _place(vary, rng)
    absent = rng.random() < vary.no_kidney
    height = rng.uniform(-22, 18) + (-10 if side < 0 else 4)
    center = np.array([side * rng.uniform(60, 74), rng.uniform(34, 50), height]) + shift * [0.6, 0.6, 1]
    radii = np.array([rng.uniform(26, 32), rng.uniform(25, 31), rng.uniform(47, 60)]) * size
    tilt = (rng.uniform(-18, 4), side * rng.uniform(4, 20), side * rng.uniform(15, 50))
    shell = rng.uniform(1, 4) + 8 * frame.fatness
    window, distance, local = canvas.ellipsoid(center, radii, tilt, shell + 4)
    distance = smooth_maximum(distance + 1.2 * canvas.lumps[3][window], frame.cavity[window] + 1.5, 14)
    allowed = ~allowed_in(canvas, window, Tissue.CORTICAL_BONE, Tissue.MARROW, Tissue.CANAL, Tissue.DISC,
                          Tissue.AORTA, Tissue.VESSEL_WALL, Tissue.LUNG, Tissue.CRUS)
    allowed &= frame.cavity[window] < -1.5
    # Fat around the kidney gives way where the liver or the spleen press on it.
    fat = (distance < shell + 2 * canvas.lumps[5][window]) & allowed & (canvas.tissue[window] != Tissue.MUSCLE)
    canvas.paint(window, fat, Tissue.FAT)
    if not absent:
        axis = rotation(tilt)
        inward = -side * local[0]  # 1 at the hilum
        sinus = np.sqrt((inward - 0.7) ** 2 + local[1] ** 2 * 2.2 + local[2] ** 2 * 1.6) - rng.uniform(0.4, 0.72)
        parenchyma = (distance < 0) & (sinus > 0) & allowed
        canvas.paint(window, parenchyma, Tissue.CORTEX, LABEL[f"{name}_kidney"])
        angle = np.arctan2(local[1], -side * local[0])
        phase = rng.uniform(0, 6.28, 2)
        rows = np.cos(rng.uniform(5, 8) * local[2] + phase[1])
        pyramids = np.cos(5 * angle + phase[0]) + rows > rng.uniform(-0.7, 0.4)
        deep = distance < -rng.uniform(5, 8)
        canvas.paint(window, parenchyma & deep & pyramids, Tissue.MEDULLA, LABEL[f"{name}_kidney"])
        pelvis = sinus < -rng.uniform(0.2, 0.45)
        canvas.paint(window, pelvis & (distance < 0), Tissue.URINE)
        hilum = center + axis @ (np.array([-side * 0.8, 0, 0]) * radii)
        for tissue, target, width in ((Tissue.VEIN, (-20, 6), 4.5), (Tissue.ARTERY, (6, 8), 2.8)):
            end = np.array([*target, hilum[2] + 6])
            halfway = (hilum + end) / 2 - np.array([0, 6, 0])
            part, gap = canvas.tube(bent([hilum, halfway, end], 5), np.full(6, width))
            canvas.paint(part, (gap < 0) & allowed_in(canvas, part, Tissue.FAT), tissue)
        for _ in range(int(rng.integers(1, 4)) if rng.random() < vary.lesions else 0):
            direction = rng.standard_normal(3)
            place = center + axis @ (direction / np.linalg.norm(direction) * radii)
            part, gap, _ = canvas.ellipsoid(place, np.full(3, rng.uniform(4, 13)))
            canvas.paint(part, (gap < 0) & (canvas.label[part] != LABEL["liver"]), Tissue.CYST)
        ureter = bent([hilum + np.array([-side * 4, 2, -12]), (side * 34, 16, -60), (side * 36, 4, -110)], 5)
        part, gap = canvas.tube(ureter, np.full(6, 2.2))
        canvas.paint(part, (gap < 0) & allowed_in(canvas, part, Tissue.FAT), Tissue.URINE)
    _adrenal(canvas, frame, side, center, radii, name, rng)


def _adrenal(
    canvas: Canvas, frame: Frame, side: int, center: np.ndarray, radii: np.ndarray, name: str, rng: np.random.Generator
) -> None:
    place = center + np.array([-side * 24, -14, radii[2] * 0.85]) + rng.normal(0, 2.5, 3)
    place[0] = side * max(abs(place[0]), 28)
    window, distance, _ = canvas.ellipsoid(place, (14, 17, 17))
    canvas.paint(window, (distance < 0) & allowed_in(canvas, window, Tissue.LIVER, Tissue.CRUS), Tissue.FAT)
    thickness = rng.uniform(2.2, 3.6)
    for turn in (side * rng.uniform(-8, 12), side * rng.uniform(28, 55)):
        axis = rotation((0, 0, turn))
        limb = place + axis @ np.array([0, rng.uniform(4, 8), 0])
        window, distance, _ = canvas.ellipsoid(limb, (thickness, *rng.uniform((11, 12), (15, 18))), (8, 0, turn))
        # It yields to the great vessels, the kidney and bone only: an adrenal is never squeezed to nothing.
        free = allowed_in(canvas, window, Tissue.FAT, Tissue.ADRENAL, Tissue.VEIN, Tissue.ARTERY, Tissue.CRUS,
                          Tissue.MUSCLE, Tissue.LIVER, Tissue.SPLEEN, Tissue.PANCREAS, Tissue.STOMACH_WALL,
                          Tissue.STOMACH_CONTENT, Tissue.BOWEL_WALL)
        canvas.paint(window, (distance < 0) & free, Tissue.ADRENAL, LABEL[f"{name}_adrenal"])


def _liver_vessels(
    canvas: Canvas, frame: Frame, liver: tuple[Window, np.ndarray], vary: Variation, rng: np.random.Generator
) -> None:
    """Two trees, portal from the hilum and hepatic from the vena cava, and at times lesions and cysts."""
    window, distance = liver
    inside = np.argwhere((distance < -4) & (canvas.label[window] == LABEL["liver"]))
    if len(inside) < 100:
        return
    points = [a[window][tuple(inside[rng.integers(len(inside), size=300)].T)] for a in (canvas.x, canvas.y, canvas.z)]
    targets = np.stack(points, 1).astype(float)
    hilum = np.array([-42, -18, frame.dome - 82.0])
    outlet = np.array([-20, -4, frame.dome - 28.0])
    for root, tissue, chosen in ((hilum, Tissue.PORTAL_VEIN, targets[:180]), (outlet, Tissue.VEIN, targets[180:])):
        chosen = chosen[np.argsort(np.linalg.norm(chosen - root, axis=1) * rng.uniform(0.5, 1.5, len(chosen)))]
        tree = grow(root, chosen, rng, piece_mm=22.0)
        tubes = tree.capsules(rng.uniform(0.85, 1.25), minimum_leaves=2)
        for a, b, first, last in zip(tubes.start, tubes.end, tubes.radius_start, tubes.radius_end, strict=True):
            part, gap = canvas.tube(np.stack([a, b]), np.array([first, last]))
            canvas.paint(part, (gap < 0) & (canvas.label[part] == LABEL["liver"]), tissue, LABEL["liver"])
    for place in targets[: int(rng.integers(1, 7)) if rng.random() < vary.lesions else 0]:
        tissue = Tissue.LESION if rng.random() < 0.6 else Tissue.CYST
        part, gap, _ = canvas.ellipsoid(place, rng.uniform(3, 16) * rng.uniform(0.8, 1.2, 3))
        gap = gap + canvas.lumps[4][part]
        canvas.paint(part, (gap < 0) & (canvas.label[part] == LABEL["liver"]), tissue, LABEL["liver"])


def _gallbladder(canvas: Canvas, frame: Frame, vary: Variation, rng: np.random.Generator) -> None:
    shift, size = _place(vary, rng)
    if rng.random() < vary.no_gallbladder:
        return
    base = np.array([-52, -46, frame.dome - rng.uniform(110, 128)]) + shift * 1.5
    neck = np.array([-38, -22, frame.dome - 92.0]) + shift
    radius = rng.uniform(9, 18) * size
    window, distance = canvas.tube(bent([base, base * 0.6 + neck * 0.4, neck], 5), along([0.95, 1, 0.3], 5) * radius)
    inside = (distance < 0) & (frame.cavity[window] < -2)
    inside &= ~allowed_in(canvas, window, Tissue.PORTAL_VEIN, Tissue.CORTEX, Tissue.MEDULLA)
    canvas.paint(window, inside, Tissue.BILE, LABEL["gallbladder"])
