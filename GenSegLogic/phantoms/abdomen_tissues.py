"""Tissues of the abdomen phantoms: what a voxel is made of, whatever the scanner makes of it."""

from __future__ import annotations

from enum import IntEnum

from ..anatomy import ORGANS

LABEL: dict[str, int] = {name: organ.label for name, organ in ORGANS.items()}
"""Organ -> its number in label volumes."""


class Tissue(IntEnum):
    """One grey value each in a look. Contents of the bowel come in kinds, since loops differ from each other."""

    AIR = 0
    SKIN = 1
    FAT_UNDER_SKIN = 2
    MUSCLE = 3
    FAT = 4
    CORTICAL_BONE = 5
    MARROW = 6
    CANAL = 7
    DISC = 8
    LUNG = 9
    HEART = 10
    MYOCARDIUM = 11
    LIVER = 12
    SPLEEN = 13
    CORTEX = 14
    MEDULLA = 15
    URINE = 16
    BILE = 17
    OESOPHAGUS = 18
    STOMACH_WALL = 19
    STOMACH_CONTENT = 20
    GAS = 21
    AORTA = 22
    VENA_CAVA = 23
    PORTAL_VEIN = 24
    PANCREAS = 25
    ADRENAL = 26
    BOWEL_WALL = 27
    CONTENT_A = 28
    CONTENT_B = 29
    CONTENT_C = 30
    STOOL = 31
    CARTILAGE = 32
    VESSEL_WALL = 33
    ARTERY = 34
    VEIN = 35
    LESION = 36
    CYST = 37
    CRUS = 38
    ASCITES = 39
    TABLE = 40


COUNT = len(Tissue)
