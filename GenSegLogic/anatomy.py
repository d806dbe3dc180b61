"""The organs that GenSeg knows: their names, numbers, colours and SNOMED codes. Needs no torch.

Order and numbers are those of the BTCV challenge (Synapse syn3193805), which most abdominal data sets follow.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import GenSegError
from .results import Code, Segment

CATEGORY = Code("SCT", "123037004", "Anatomical Structure")
RIGHT = Code("SCT", "24028007", "Right")
LEFT = Code("SCT", "7771000", "Left")


@dataclass(frozen=True)
class Organ:
    """One organ.

    Attributes:
        name: the word in options, tables and bundles (``right_kidney``).
        label: its voxel value in label volumes, 1..13.
        title: what people read (``Right kidney``).
        color: red, green, blue in [0, 1].
        least_ml: hardly any adult's whole organ is smaller; what is, has to be certain to be taken for one.
        type: the SNOMED concept.
        modifier: the side of a paired organ, the patient's.
    """

    name: str
    label: int
    title: str
    color: tuple[float, float, float]
    least_ml: float
    type: Code
    modifier: Code | None = None

    def segment(self) -> Segment:
        """The segment that holds this organ in a :class:`~GenSegLogic.results.Segmentation`."""
        return Segment(self.label, self.title, self.color, CATEGORY, self.type, modifier=self.modifier)


_KIDNEY = Code("SCT", "64033007", "Kidney")
_ADRENAL = Code("SCT", "23451007", "Adrenal gland")

ORGANS: dict[str, Organ] = {
    organ.name: organ
    for organ in (
        Organ("spleen", 1, "Spleen", (0.62, 0.43, 0.64), 50, Code("SCT", "78961009", "Spleen")),
        Organ("right_kidney", 2, "Right kidney", (0.73, 0.40, 0.32), 40, _KIDNEY, RIGHT),
        Organ("left_kidney", 3, "Left kidney", (0.83, 0.54, 0.42), 40, _KIDNEY, LEFT),
        Organ("gallbladder", 4, "Gallbladder", (0.55, 0.68, 0.32), 2, Code("SCT", "28231008", "Gallbladder")),
        Organ("esophagus", 5, "Esophagus", (0.83, 0.75, 0.57), 3, Code("SCT", "32849002", "Esophagus")),
        Organ("liver", 6, "Liver", (0.87, 0.51, 0.40), 400, Code("SCT", "10200004", "Liver")),
        Organ("stomach", 7, "Stomach", (0.85, 0.52, 0.57), 20, Code("SCT", "69695003", "Stomach")),
        Organ("aorta", 8, "Aorta", (0.88, 0.38, 0.30), 15, Code("SCT", "15825003", "Aorta")),
        Organ("inferior_vena_cava", 9, "Inferior vena cava", (0.20, 0.50, 0.75), 10,
              Code("SCT", "64131007", "Inferior vena cava")),
        Organ("portal_vein", 10, "Portal and splenic vein", (0.25, 0.65, 0.80), 4,
              Code("SCT", "32764006", "Portal vein")),
        Organ("pancreas", 11, "Pancreas", (0.98, 0.71, 0.38), 12, Code("SCT", "15776009", "Pancreas")),
        Organ("right_adrenal", 12, "Right adrenal gland", (0.96, 0.84, 0.24), 0.7, _ADRENAL, RIGHT),
        Organ("left_adrenal", 13, "Left adrenal gland", (0.96, 0.74, 0.14), 0.7, _ADRENAL, LEFT),
    )
}
"""Name -> organ, in the order of their labels."""


def check_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names in the order of ORGANS, each once.

    Raises:
        GenSegError: if one is no organ of ORGANS.
    """
    wanted = list(names)
    for name in wanted:
        if name not in ORGANS:
            raise GenSegError(f"There is no organ {name!r}; the organs are {', '.join(ORGANS)}.")
    return tuple(name for name in ORGANS if name in wanted)
