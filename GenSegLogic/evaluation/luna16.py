"""``genseg evaluate luna16``: the table of ``nodules-phantom`` on LUNA16, with LIDC's reader contours as truth.

One subset chooses thresholds, layers and baseline images, the others report. Scans are read one after another.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets.luna16 import Luna16Case, read_luna16
from ..errors import GenSegError
from ..nodules.lungs import lung_mask, with_margin
from ..progress import Progress
from ..volume import Volume, crop, paste, resample_like
from . import cases, table
from .jobs import Cache, Job, ModelNames, Record, autocast, load_models
from .methods import Models, choose, methods
from .nodules import FIELD_MARGIN_MM, add_model_arguments, job_base, marks, measure_case, model_names, predictor_label

NOTE = (
    "LIDC-IDRI, the source of LUNA16, is in the training data of the published MAISI weights: "
    "with them, these figures are not those of unseen scans."
)
SEED = 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of :func:`luna16`."""
    parser.add_argument("--root", type=Path, required=True, metavar="DIR", help="folder into which LUNA16 was unpacked")
    parser.add_argument("--validation-subset", type=int, choices=range(10), default=0, metavar="N",
                        help="subset on which thresholds are chosen (default 0); the others are the test")
    add_model_arguments(parser)


def luna16(arguments: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Run the benchmark; the arguments are those of :func:`add_arguments`.

    Returns:
        ``benchmark``, ``note``, ``rows``, ``paired``, ``chosen``, ``detection`` and ``detection_by_predictor``.

    Raises:
        GenSegError: if the folder is not LUNA16's, has no nodule to choose on or to report, or a bundle cannot be used.
    """
    root, held = Path(arguments["root"]), arguments["validation_subset"]
    if not root.is_dir():
        raise GenSegError(f"{root} is not a folder; give the one into which LUNA16 was unpacked.")
    others = [n for n in range(10) if n != held and (root / f"subset{n}").is_dir()]
    if not others:
        raise GenSegError(f"{root} has no subset besides subset{held}, on which thresholds are chosen: unpack another.")
    cache = Cache(arguments["cache"], "luna16")
    names = model_names(arguments, workers=1)
    tried = _records(root, [held], names, [None] * len(names), cache, progress)
    if not tried[0]:
        raise GenSegError(f"{root / f'subset{held}'} has no nodule of a size to choose thresholds on; choose another.")
    choices = []
    for models, records in zip(names, tried, strict=True):
        picked = choose(methods(models.segmenter is not None), [record["dice"] for record in records])
        choices.append({name: asdict(choice) for name, choice in picked.items()})
    tested = _records(root, others, names, choices, cache, progress)

    result: dict[str, Any] = {"benchmark": "luna16", "note": NOTE, "rows": [], "paired": [], "chosen": []}
    for models, chosen, records in zip(names, choices, tested, strict=True):
        label = predictor_label(models)
        nodules = [record for record in records if "methods" in record]
        if not nodules:
            raise GenSegError(f"{root} has no nodule of a size to report outside subset{held}: unpack another subset.")
        result["rows"] += table.segmentation_rows(label, nodules)
        result["paired"] += table.paired_rows(label, nodules)
        result["chosen"] += table.chosen_rows(label, chosen)
        found = table.detection(label, [record for record in records if "marks" in record])
        result.setdefault("detection", found)
        result.setdefault("detection_by_predictor", []).append(found)
    return result


def _records(
    root: Path,
    subsets: Sequence[int],
    names: Sequence[ModelNames],
    choices: Sequence[Mapping[str, Any] | None],
    cache: Cache,
    progress: Progress,
) -> list[list[Record]]:
    """Records of all nodules of the subsets, per predictor; with choices, of the search of every scan as well."""
    total = sum(len(list((root / f"subset{subset}").glob("*.mhd"))) for subset in subsets)
    found: list[list[Record]] = [[] for _ in names]
    for number, scan in enumerate(read_luna16(root, subsets)):
        progress(number / max(total, 1), f"Scan {number + 1} of {total}")
        lungs = _lungs(scan)
        for records, predictor, chosen in zip(found, names, choices, strict=True):
            models = load_models(predictor)
            base = {**job_base(predictor), "scan": scan.case_id}
            half = models.flow.spacings_mm[-1] * models.flow.field_voxels / 2 + FIELD_MARGIN_MM
            for index, case in _nodule_cases(scan, lungs, half):
                job = {**base, "nodule": index, "chosen": chosen}
                with autocast(predictor.device):
                    records.append(_kept(cache, job, lambda c=case, m=models, k=chosen: measure_case(c, m, k)))
            if chosen is not None:
                job = {**base, "search": True}
                label = predictor_label(predictor)
                with autocast(predictor.device):
                    records.append(_kept(cache, job, lambda s=scan, g=lungs, m=models, n=label: _search(s, g, m, n)))
    return found


def _kept(cache: Cache, job: Job, make) -> Record:
    record = cache.get(job)
    if record is None:
        record = make()
        cache.put(job, record)
    return record


def _lungs(scan: Luna16Case) -> Volume:
    """LUNA16's own lungs where they are there, else ours as the task finds them, on the scan's grid."""
    given = scan.lungs()
    lungs = with_margin(lung_mask(scan.image)) if given is None else given.with_voxels(given.voxels.astype(np.uint8))
    return resample_like(lungs, scan.image, "nearest", 0)


def _nodule_cases(scan: Luna16Case, lungs: Volume, half_mm: float) -> Iterator[tuple[int, cases.Case]]:
    """Boxes round the nodules that count for segmentation, clicked on at the annotations' centre, 3 mm off at most.

    Left out: those under two slices across, and those of which no voxel has half of the readers inside.
    """
    for index, nodule in enumerate(scan.nodules):
        low, high = cases.DIAMETERS_MM
        thickness = float(scan.image.spacing[2])
        sized = low <= nodule.diameter_mm <= high and nodule.diameter_mm >= cases.SLICES_ACROSS * thickness
        if not sized or not nodule.mask.voxels.any():
            continue
        rng = np.random.default_rng([SEED, index, *scan.case_id.encode()])
        middle = np.round(scan.image.to_indices(nodule.centre_lps)).astype(int)
        reach = np.ceil(half_mm / scan.image.spacing).astype(int)
        start, size = (middle - reach).tolist(), (2 * reach + 1).tolist()
        image = crop(scan.image, start, size, -1024)
        truth = np.zeros(image.shape, bool)
        paste(nodule.mask.voxels, truth, (np.array(nodule.start_ijk) - start).tolist())
        click = nodule.centre_lps + cases.SEED_JITTER_MM * cases.in_unit_ball(rng)
        inside = crop(lungs, start, size, 0)
        yield index, cases.Case(image, inside, truth, click, SEED + index, "", nodule.diameter_mm)


def _search(scan: Luna16Case, lungs: Volume, models: Models, label: str) -> Record:
    """By LUNA16's rules: a finding on what fewer than three readers marked counts neither way."""
    labels = np.zeros(scan.image.shape, np.int16)
    origin = scan.image
    for box in scan.unconfirmed:
        start = np.round(origin.to_indices(box.affine[:3, 3])).astype(int).tolist()
        whole = np.zeros(origin.shape, bool)
        paste(box.voxels, whole, start)
        labels[whole] = -1
    for number, nodule in enumerate(scan.nodules, start=1):
        labels[nodule.mask_like(scan.image)] = number
    return {
        "diameters_mm": [nodule.diameter_mm for nodule in scan.nodules],
        "marks": {label: marks(scan.image, lungs, labels, models)},
    }
