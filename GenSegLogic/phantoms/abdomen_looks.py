"""What the tissues of the abdomen phantoms look like: CT in several phases of contrast, MR, and random contrast."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .abdomen_canvas import bspline_field
from .abdomen_tissues import COUNT, Tissue
from .primitives import Scanner

LOOKS = ("ct", "t1", "t2", "t2-spir")

T = Tissue
Ranges = dict[Tissue, tuple[float, float]]

CT: Ranges = {
    T.AIR: (-1000, -1000), T.SKIN: (-10, 50), T.FAT_UNDER_SKIN: (-115, -95), T.MUSCLE: (45, 65), T.FAT: (-112, -88),
    T.CORTICAL_BONE: (350, 900), T.MARROW: (100, 260), T.CANAL: (5, 35), T.DISC: (60, 100), T.LUNG: (-880, -780),
    T.HEART: (35, 50), T.MYOCARDIUM: (38, 55), T.LIVER: (42, 66), T.SPLEEN: (38, 54), T.CORTEX: (28, 40),
    T.MEDULLA: (26, 38), T.URINE: (0, 12), T.BILE: (0, 18), T.OESOPHAGUS: (30, 50), T.STOMACH_WALL: (35, 55),
    T.STOMACH_CONTENT: (0, 60), T.GAS: (-980, -850), T.AORTA: (34, 48), T.VENA_CAVA: (34, 48), T.PORTAL_VEIN: (34, 48),
    T.PANCREAS: (30, 48), T.ADRENAL: (20, 42), T.BOWEL_WALL: (30, 55), T.CONTENT_A: (0, 40), T.CONTENT_B: (5, 60),
    T.CONTENT_C: (10, 45), T.STOOL: (-60, 40), T.CARTILAGE: (80, 130), T.VESSEL_WALL: (36, 60), T.ARTERY: (34, 48),
    T.VEIN: (34, 48), T.LESION: (20, 45), T.CYST: (0, 12), T.CRUS: (42, 60), T.ASCITES: (0, 15), T.TABLE: (-500, -100),
}
"""HU without contrast medium."""

PHASES: dict[str, Ranges] = {
    "arterial": {
        T.AORTA: (220, 350), T.ARTERY: (200, 330), T.VENA_CAVA: (10, 90), T.PORTAL_VEIN: (20, 90), T.VEIN: (5, 60),
        T.CORTEX: (110, 170), T.MEDULLA: (10, 50), T.SPLEEN: (60, 110), T.LIVER: (5, 25), T.PANCREAS: (45, 80),
        T.ADRENAL: (30, 60), T.HEART: (130, 250), T.MYOCARDIUM: (50, 80), T.STOMACH_WALL: (20, 50),
        T.BOWEL_WALL: (20, 55), T.LESION: (0, 70), T.VESSEL_WALL: (0, 20), T.MUSCLE: (3, 8),
    },
    "portal": {
        T.AORTA: (90, 140), T.ARTERY: (85, 130), T.VENA_CAVA: (70, 130), T.PORTAL_VEIN: (100, 150), T.VEIN: (90, 140),
        T.CORTEX: (130, 185), T.MEDULLA: (90, 170), T.SPLEEN: (65, 90), T.LIVER: (45, 65), T.PANCREAS: (45, 70),
        T.ADRENAL: (35, 60), T.HEART: (85, 130), T.MYOCARDIUM: (55, 80), T.STOMACH_WALL: (30, 55),
        T.BOWEL_WALL: (35, 60), T.LESION: (0, 45), T.VESSEL_WALL: (5, 20), T.MUSCLE: (8, 18),
    },
    "delayed": {
        T.AORTA: (55, 90), T.ARTERY: (50, 85), T.VENA_CAVA: (55, 85), T.PORTAL_VEIN: (55, 85), T.VEIN: (55, 85),
        T.CORTEX: (85, 130), T.MEDULLA: (90, 140), T.SPLEEN: (45, 65), T.LIVER: (30, 50), T.PANCREAS: (30, 45),
        T.ADRENAL: (25, 40), T.HEART: (50, 85), T.MYOCARDIUM: (40, 60), T.STOMACH_WALL: (30, 45),
        T.BOWEL_WALL: (30, 45), T.LESION: (5, 45), T.URINE: (0, 500), T.VESSEL_WALL: (5, 20), T.MUSCLE: (8, 16),
    },
}
"""HU that contrast medium adds, after about 30 s, 70 s and 3 to 5 minutes."""

MR: dict[str, Ranges] = {
    "t2-spir": {
        T.SKIN: (0.10, 0.30), T.FAT_UNDER_SKIN: (0.03, 0.14), T.MUSCLE: (0.10, 0.22), T.FAT: (0.06, 0.20),
        T.CORTICAL_BONE: (0.03, 0.10), T.MARROW: (0.12, 0.32), T.CANAL: (0.75, 1.2), T.DISC: (0.2, 0.6),
        T.LUNG: (0.01, 0.06), T.HEART: (0.1, 0.6), T.MYOCARDIUM: (0.15, 0.35), T.LIVER: (0.24, 0.44),
        T.SPLEEN: (0.5, 0.85), T.CORTEX: (0.6, 0.85), T.MEDULLA: (0.65, 1.0), T.URINE: (0.6, 1.2), T.BILE: (0.8, 1.3),
        T.OESOPHAGUS: (0.25, 0.5), T.STOMACH_WALL: (0.3, 0.55), T.STOMACH_CONTENT: (0.1, 1.2), T.GAS: (0.0, 0.05),
        T.AORTA: (0.05, 0.75), T.VENA_CAVA: (0.05, 0.6), T.PORTAL_VEIN: (0.3, 0.75), T.PANCREAS: (0.34, 0.6),
        T.ADRENAL: (0.3, 0.5), T.BOWEL_WALL: (0.3, 0.55), T.CONTENT_A: (0.4, 1.2), T.CONTENT_B: (0.25, 0.7),
        T.CONTENT_C: (0.5, 1.2), T.STOOL: (0.1, 0.5), T.CARTILAGE: (0.15, 0.4), T.VESSEL_WALL: (0.2, 0.7),
        T.ARTERY: (0.1, 0.7), T.VEIN: (0.35, 0.8), T.LESION: (0.4, 0.8), T.CYST: (0.9, 1.3), T.CRUS: (0.1, 0.25),
    },
    "t2": {
        T.SKIN: (0.2, 0.5), T.FAT_UNDER_SKIN: (0.7, 1.1), T.FAT: (0.65, 1.0), T.MUSCLE: (0.08, 0.2),
        T.MARROW: (0.3, 0.55), T.CARTILAGE: (0.2, 0.5), T.AORTA: (0.02, 0.2), T.VENA_CAVA: (0.02, 0.25),
        T.ARTERY: (0.02, 0.2), T.VEIN: (0.05, 0.3), T.PORTAL_VEIN: (0.05, 0.3), T.SPLEEN: (0.4, 0.65),
        T.CORTEX: (0.42, 0.65), T.MEDULLA: (0.5, 0.8), T.PANCREAS: (0.3, 0.5),
    },
    "t1": {
        T.SKIN: (0.3, 0.6), T.FAT_UNDER_SKIN: (0.8, 1.1), T.MUSCLE: (0.3, 0.42), T.FAT: (0.7, 1.0),
        T.CORTICAL_BONE: (0.03, 0.12), T.MARROW: (0.3, 0.55), T.CANAL: (0.1, 0.25), T.DISC: (0.25, 0.4),
        T.LUNG: (0.01, 0.06), T.HEART: (0.1, 0.4), T.MYOCARDIUM: (0.3, 0.42), T.LIVER: (0.42, 0.62),
        T.SPLEEN: (0.24, 0.38), T.CORTEX: (0.34, 0.48), T.MEDULLA: (0.22, 0.36), T.URINE: (0.08, 0.2),
        T.BILE: (0.08, 0.6), T.OESOPHAGUS: (0.25, 0.4), T.STOMACH_WALL: (0.28, 0.42), T.STOMACH_CONTENT: (0.08, 0.5),
        T.GAS: (0.0, 0.05), T.AORTA: (0.05, 0.45), T.VENA_CAVA: (0.05, 0.45), T.PORTAL_VEIN: (0.1, 0.5),
        T.PANCREAS: (0.42, 0.62), T.ADRENAL: (0.28, 0.42), T.BOWEL_WALL: (0.28, 0.42), T.CONTENT_A: (0.08, 0.35),
        T.CONTENT_B: (0.15, 0.6), T.CONTENT_C: (0.1, 0.4), T.STOOL: (0.15, 0.7), T.CARTILAGE: (0.25, 0.45),
        T.VESSEL_WALL: (0.2, 0.4), T.ARTERY: (0.05, 0.45), T.VEIN: (0.08, 0.45), T.LESION: (0.2, 0.4),
        T.CYST: (0.06, 0.2), T.CRUS: (0.28, 0.4),
    },
}
"""Signal relative to bright tissue. What "t2" does not name is as in "t2-spir"."""

TEXTURE: dict[Tissue, float] = {
    T.LUNG: 0.6, T.HEART: 1.6, T.LIVER: 0.25, T.SPLEEN: 0.25, T.CORTEX: 0.5, T.MEDULLA: 0.6, T.STOMACH_CONTENT: 1.8,
    T.CONTENT_A: 1.2, T.CONTENT_B: 1.2, T.CONTENT_C: 1.2, T.STOOL: 2.2, T.PANCREAS: 0.7, T.MARROW: 0.8, T.MUSCLE: 0.4,
    T.FAT: 0.5, T.FAT_UNDER_SKIN: 0.3, T.BOWEL_WALL: 0.6, T.STOMACH_WALL: 0.6, T.LESION: 0.8, T.CANAL: 0.5,
}
"""Strength of each tissue's texture, in units of the look's own."""


def render(
    tissue: np.ndarray, look: str, repeats: int, spacing: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Scan a map of tissues.

    Args:
        tissue: (K * repeats, J, I) uint8 of :class:`~.abdomen_tissues.Tissue`.
        look: one of LOOKS.
        repeats: sub-slices per slice, averaged into one.
        spacing: of the scan along k, j, i in mm.
        rng: of grey values, texture, bias field and noise.

    Returns:
        (K, J, I) float32: HU for "ct", otherwise a signal of arbitrary scale, not negative.
    """
    fine = np.array([spacing[0] / repeats, spacing[1], spacing[2]])
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(tissue.shape, fine, strict=True)]
    values = grey_values(look, rng)
    strength = np.array([TEXTURE.get(Tissue(n), 0.3) for n in range(COUNT)], np.float32)
    strength[Tissue.AIR] = strength[Tissue.GAS] = 0
    strength *= rng.uniform(8, 16) if look == "ct" else rng.uniform(0.01, 0.06)
    image = values[tissue]
    grain = ndimage.gaussian_filter(rng.standard_normal(tissue.shape, dtype=np.float32), 0.8 + 1.5 / fine)
    grain /= max(float(grain.std()), 1e-6)
    grain += 0.8 * bspline_field(axes, 24.0, rng, max(float(axis[-1]) for axis in axes) + 1)
    image += strength[tissue] * grain
    image = _average(image, repeats, spacing, rng, look)
    return _expose_ct(image, spacing, rng) if look == "ct" else _expose_mr(image, spacing, rng, look)


def grey_values(look: str, rng: np.random.Generator) -> np.ndarray:
    """One value per tissue, (COUNT,) float32, drawn for one scan."""
    values = np.zeros(COUNT, np.float32)
    if look == "ct":
        phase = rng.choice(["none", "arterial", "portal", "delayed"], p=[0.2, 0.2, 0.45, 0.15])
        dose = rng.uniform(0.75, 1.15)
        for tissue, span in CT.items():
            values[tissue] = rng.uniform(*span)
            if phase != "none" and tissue in PHASES[phase]:
                values[tissue] += dose * rng.uniform(*PHASES[phase][tissue])
        if rng.random() < 0.15:  # fatty liver
            values[T.LIVER] -= rng.uniform(15, 45)
        if rng.random() < 0.3:  # contrast medium that was drunk
            for tissue in rng.choice([T.STOMACH_CONTENT, T.CONTENT_A, T.CONTENT_B, T.CONTENT_C, T.STOOL], 2):
                values[tissue] += rng.uniform(80, 350)
        return values
    table = {**MR["t2-spir"], **MR[look]}
    for tissue, span in table.items():
        values[tissue] = rng.uniform(*span)
    if look != "t1":  # cortex and pyramids differ little
        values[T.MEDULLA] = values[T.CORTEX] * rng.uniform(0.9, 1.25)
    if look == "t1" and rng.random() < 0.4:  # fat signal suppressed or out of phase
        values[[T.FAT, T.FAT_UNDER_SKIN]] *= rng.uniform(0.1, 0.8)
    return values


def _average(
    image: np.ndarray, repeats: int, spacing: np.ndarray, rng: np.random.Generator, look: str
) -> np.ndarray:
    """Slices as means of their sub-slices, and the in-plane point spread of the scanner."""
    # Slice profiles overlap a little beyond the nominal thickness.
    profile = rng.uniform(0.25, 0.5) * repeats if repeats > 1 else rng.uniform(0.2, 0.6)
    image = ndimage.gaussian_filter1d(image, profile, axis=0)
    if repeats > 1:
        image = image.reshape(-1, repeats, *image.shape[1:]).mean(axis=1)
    width = rng.uniform(0.6, 1.1) if look == "ct" else rng.uniform(0.5, 1.5)
    for axis in (1, 2):
        image = ndimage.gaussian_filter1d(image, max(width / spacing[axis], 0.45), axis=axis)
    return image


def _expose_ct(image: np.ndarray, spacing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    scanner = Scanner(float(spacing[1]), float(spacing[0]), noise_hu=float(rng.uniform(5, 22)),
                      sharpness=float(rng.random() * 0.7))
    return np.clip(image + scanner.noise(image.shape, rng), -1024, 3071).astype(np.float32)


def _expose_mr(image: np.ndarray, spacing: np.ndarray, rng: np.random.Generator, look: str) -> np.ndarray:
    """Coil sensitivity, uneven slices, ghosts of breathing, Rician noise."""
    axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(image.shape, spacing, strict=True)]
    extent = max(float(axis[-1]) for axis in axes) + 1
    bias = rng.uniform(0.05, 0.35) * bspline_field(axes, 160.0, rng, extent)
    height = axes[0] / extent
    # The signal fades towards the lungs, where the field is uneven and everything moves, and at the coil's end.
    fading = rng.uniform(0, 0.9) * np.maximum(height - rng.uniform(0, 0.5), 0)
    fading += rng.uniform(0, 0.4) * np.maximum(-height - 0.3, 0)
    image = image * np.exp(bias - fading[:, None, None].astype(np.float32))
    image *= (1 + rng.normal(0, rng.uniform(0, 0.06), len(image))).astype(np.float32)[:, None, None]
    if rng.random() < 0.4:
        shift = int(rng.integers(8, max(9, image.shape[1] // 3)))
        ghost = np.roll(image, shift, axis=1) + np.roll(image, -shift, axis=1)
        image = image + rng.uniform(0.005, 0.04) * ghost
    noise = 0.002 + 0.03 * rng.random() ** 2
    real = image + noise * rng.standard_normal(image.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(image.shape, dtype=np.float32)
    image = np.sqrt(real**2 + imaginary**2)
    if rng.random() < 0.5:  # scanners may cut the background off
        image = np.maximum(image - rng.uniform(1, 3) * noise, 0)
    return (image * rng.uniform(300, 1200)).astype(np.float32)
