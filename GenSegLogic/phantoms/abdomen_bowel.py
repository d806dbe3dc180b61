"""Stomach, duodenum, colon and small bowel of the abdomen phantoms: the great distractors, and one organ."""

from __future__ import annotations

import numpy as np

from .abdomen_canvas import Canvas, along, bent
from .abdomen_tissues import LABEL, Tissue
from .abdomen_wall import Frame, allowed_in

CONTENTS = (Tissue.CONTENT_A, Tissue.CONTENT_B, Tissue.CONTENT_C)


def paint_bowel(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Small bowel first, then the colon and the duodenum over it."""
    _small_bowel(canvas, frame, rng)
    _colon(canvas, frame, rng)
    shift = rng.normal(0, 5, 3)
    points = np.array([(-22, -34, 32), (-44, -32, 24), (-50, -8, 8), (-46, -2, -20), (-22, -6, -32), (12, -12, -28),
                       (34, -18, -8)]) + shift
    _gut(canvas, frame, bent(points, 18), rng.uniform(8, 14) * _pulse(19, rng), 2.2, CONTENTS[rng.integers(3)],
         rng.uniform(-1.3, -0.2), Tissue.BOWEL_WALL)


def paint_stomach(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """A bag from the left dome of the diaphragm to the pylorus, full, half full or collapsed."""
    top = frame.dome - rng.uniform(40, 62)
    fullness = rng.uniform(0.55, 1.2)
    sag = rng.uniform(0, 55)
    points = np.array([
        (50, 22, top), (60, 0, top - 22), (66, -26, top - 50 - 0.4 * sag), (44, -50, 38 - sag),
        (10, -48, 34 - 0.8 * sag), (-20, -36, 34 - 0.1 * sag),
    ]) + rng.normal(0, 5, (6, 3))
    radii = along(np.array([32, 38, 35, 26, 18, 9]) * fullness, 18) * _pulse(19, rng, 0.06)
    flat = rng.uniform(0.7, 1.0)
    wall = rng.uniform(2.5, 5) + 4 * max(0.0, 0.8 - fullness)
    content = Tissue.STOMACH_CONTENT
    _gut(canvas, frame, bent(points, 18), radii, wall, content, rng.uniform(-1.2, 0.4), Tissue.STOMACH_WALL,
         LABEL["stomach"], flat)


def _gut(
    canvas: Canvas, frame: Frame, points: np.ndarray, radii: np.ndarray, wall: float, content: Tissue, gas: float,
    wall_tissue: Tissue, label: int = 0, flat: float = 1.0,
) -> None:
    """A hollow tube; gas gathers in front: down to the level ``gas``, -1 at its front (none), 1 at its back (all)."""
    window, distance = canvas.tube(points, radii, 4.0, flat)
    distance = distance + 1.6 * canvas.lumps[3][window]
    inside = (distance < 0) & (frame.cavity[window] < -1.5) & (frame.below[window] < -1.2)
    if not label:
        inside &= allowed_in(canvas, window, Tissue.FAT, Tissue.BOWEL_WALL, Tissue.STOOL, Tissue.GAS, *CONTENTS)
    canvas.paint(window, inside, wall_tissue, label)
    hollow = inside & (distance < -wall)
    canvas.paint(window, hollow, content, label)
    front, back = float((points[:, 1] - radii).min()), float((points[:, 1] + radii).max())
    if gas > -1:
        level = front + 0.5 * (gas + 1) * (back - front)
        canvas.paint(window, hollow & (canvas.y[window] < level), Tissue.GAS, label)


def _pulse(count: int, rng: np.random.Generator, depth: float = 0.15) -> np.ndarray:
    """Factors on the radii of a gut: slow swelling and haustra."""
    return np.clip(1 + depth * rng.standard_normal(count), 0.6, 1.4)


def _colon(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    sag, size, flexure = rng.uniform(-20, 60), rng.uniform(15, 24), rng.uniform(40, 95)
    front = -62 - 10 * frame.fatness
    points = np.array([
        (-92, 16, -140), (-98, 16, -70), (-96, 6, -22), (-84, -34, -8), (-52, front, -24 - 0.6 * sag),
        (0, front - 6, -28 - sag), (52, front, 2 - 0.5 * sag), (88, -26, 0.7 * flexure), (100, 20, flexure),
        (104, 38, 0), (102, 34, -70), (92, 20, -140),
    ]) + rng.normal(0, 5, (12, 3))
    line, radii = bent(points, 66), along(size * np.array([1.25, 1.3, 1.2, 1, 1, 1, 1, 1, 0.9, 0.75, 0.7, 0.75]), 66)
    radii = radii * _pulse(67, rng, 0.16)
    for start in range(0, 66, 11):
        piece = slice(start, start + 12)
        kind = rng.random()
        content = Tissue.STOOL if kind < 0.55 else CONTENTS[rng.integers(3)]
        gas = rng.uniform(-0.4, 1.2) if rng.random() < (0.65 if 22 <= start <= 44 else 0.3) else -2.0
        collapsed = 0.55 if rng.random() < 0.25 else 1.0
        _gut(canvas, frame, line[piece], radii[piece] * collapsed, rng.uniform(1.8, 3.0), content, gas,
             Tissue.BOWEL_WALL)


def _small_bowel(canvas: Canvas, frame: Frame, rng: np.random.Generator) -> None:
    """Loops that wander through the middle and lower abdomen, each with its own content and calibre."""
    usual = CONTENTS[rng.integers(3)]
    # In lean patients loops fill what room the organs leave; fat patients have fewer and more fat between them.
    middle = (np.array([-80.0, -72.0, -150.0]), np.array([98.0, 8.0, rng.uniform(20, 60)]))
    upper_left = (np.array([0.0, -78.0, 10.0]), np.array([112.0, 30.0, frame.dome - 35]))
    loops = int(rng.integers(28, 46) - 14 * frame.fatness)
    for number in range(loops + int(rng.integers(6, 16) * (1.2 - frame.fatness))):
        low, high = middle if number < loops else upper_left
        count = int(rng.integers(5, 9))
        points = [rng.uniform(low, high)]
        heading = rng.standard_normal(3)
        for _ in range(count):
            heading = 0.6 * heading / np.linalg.norm(heading) + 0.75 * rng.standard_normal(3)
            points.append(np.clip(points[-1] + 24 * heading / np.linalg.norm(heading), low, high))
        pieces = 2 * count
        radii = rng.uniform(7, 14) * _pulse(pieces + 1, rng, 0.12)
        content = usual if rng.random() < 0.6 else CONTENTS[rng.integers(3)]
        gas = rng.uniform(-0.5, 1.0) if rng.random() < 0.12 else -2.0
        _gut(canvas, frame, bent(points, pieces), radii, rng.uniform(1.5, 2.8), content, gas, Tissue.BOWEL_WALL)
