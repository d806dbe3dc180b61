"""BTCV: 30 abdominal CTs of the portal venous phase with 13 organs ("Beyond the Cranial Vault", MICCAI 2015).

Data: Synapse syn3193805, after registration. The folder, as the download unpacks it::

    img/img0001.nii.gz ...   label/label0001.nii.gz ...      (in RawData/Training)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .labels import NUMBERS
from .organ_cases import OrganCase, pairs_in, read_pair


def read_btcv(root: Path) -> Iterator[OrganCase]:
    """Read BTCV case by case, in order of number; one scan is in memory at a time.

    Args:
        root: the folder with ``img`` and ``label``, or one that holds ``RawData/Training``.

    Raises:
        GenSegError: at the call, if the folder is not BTCV's; while iterating, if a case cannot be read.
    """
    root = Path(root)
    inner = next((root / part for part in ("RawData/Training", "Training") if (root / part).is_dir()), root)
    pairs = pairs_in(inner / "img", inner / "label", "img{}.nii.gz", "label{}.nii.gz")
    return (read_pair(f"btcv-{number}", image, labels, NUMBERS["btcv"], "CT") for number, image, labels in pairs)
