"""AMOS22: 300 abdominal CT and 60 MR with 15 organs. Ji et al., arXiv 2206.08023; data: Zenodo 7155725 (CC BY).

The folder, as the download unpacks it::

    imagesTr/amos_0001.nii.gz ...   labelsTr/amos_0001.nii.gz ...   imagesVa, labelsVa

Numbers up to 500 are CT, those above MR. Of its organs, duodenum, bladder and prostate or uterus are none of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..errors import GenSegError
from .labels import NUMBERS
from .organ_cases import OrganCase, pairs_in, read_pair

LAST_CT = 500


def read_amos(root: Path, part: str = "Tr", modality: str | None = None) -> Iterator[OrganCase]:
    """Read AMOS case by case, in order of number; one scan is in memory at a time.

    Args:
        root: the folder with ``imagesTr`` and ``labelsTr``, or ``amos22`` with it inside.
        part: ``Tr`` or ``Va``.
        modality: ``CT`` or ``MR`` alone; None: both.

    Raises:
        GenSegError: at the call, if the folder is not AMOS's or has no such case; while iterating, if a case cannot be
            read.
    """
    root = Path(root)
    root = root / "amos22" if (root / "amos22").is_dir() else root
    pairs = pairs_in(root / f"images{part}", root / f"labels{part}", "amos_{}.nii.gz", "amos_{}.nii.gz")
    chosen = [(number, image, labels, "CT" if int(number) <= LAST_CT else "MR") for number, image, labels in pairs]
    chosen = [case for case in chosen if modality in (None, case[3])]
    if not chosen:
        raise GenSegError(f"{root} has no {modality} among its cases; choose another modality.")
    return (read_pair(f"amos-{number}", image, labels, NUMBERS["amos"], kind) for number, image, labels, kind in chosen)
