"""``genseg adapt organs``: a bundle of one's own from a handful of cases."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundles.folders import AUTO, is_taken
from ..errors import GenSegError
from .console import Console
from .options import WrongUse, add_device_option, checked_bundle_folder, positive, seed


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments."""
    parser.add_argument("method", metavar="TASK", choices=["organs"], help="organs")
    parser.add_argument("-o", "--output", metavar="BUNDLE_DIR", type=Path, required=True,
                        help="folder of the new bundle; its last part is the bundle's name")
    parser.add_argument("--image", metavar="IMAGE", type=Path, action="append", required=True,
                        help="a scan to learn from: a file or a DICOM folder; give it again for further cases")
    parser.add_argument("--series", metavar="TEXT",
                        help="which series of a DICOM folder: its UID or number (default: the largest scan)")
    parser.add_argument("--labels", metavar="FILE", type=Path, action="append", default=[],
                        help="its labels, one for each --image in the same order: a .seg.nrrd or a label volume")
    parser.add_argument("--numbers", metavar="TEXT",
                        help="what the values of label volumes stand for: btcv (default), chaos, chaos-1234, amos, or "
                             "pairs such as 1=liver,2=right_kidney")
    parser.add_argument("--source-free", action="store_true", help="learn from the scans alone, without their labels")
    parser.add_argument("--bundle", metavar="NAME", default=AUTO,
                        help="bundle of kind organs to start from (default auto: abdomen-ct or abdomen-mr)")
    parser.add_argument("--minutes", type=positive, default=5.0, help="how long to learn at most (default 5)")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all random numbers (default 0)")
    add_device_option(parser)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Learn, write the bundle, and say where it is and how good it is on the case that was held out."""
    output = _checked_output(arguments.output)
    if arguments.source_free:
        if arguments.labels:
            console.say("Learning without labels (--source-free): those that were given are not read.")
    elif len(arguments.labels) != len(arguments.image):
        raise WrongUse(f"There are {len(arguments.image)} --image and {len(arguments.labels)} --labels: give one "
                       "of each for every case, or --source-free to learn without labels.")

    from ..bundles import find_bundle
    from ..datasets.labels import numbers_from, read_labels
    from ..engine import Engine
    from ..organs.diffusam.task import bundle_for
    from ..volume import read_volume

    try:
        numbers = None if arguments.numbers is None else numbers_from(arguments.numbers)
    except GenSegError as error:
        raise WrongUse(str(error)) from error
    device = Engine(arguments.device).device
    images = [read_volume(path, arguments.series) for path in arguments.image]
    labels = [None] * len(images) if arguments.source_free else [
        read_labels(path, numbers, image) for path, image in zip(arguments.labels, images, strict=True)]
    source = find_bundle(bundle_for(images[0], arguments.bundle))

    from ..organs.diffusam.adapt import adapt  # late, for it loads torch: what is wrong was said before

    adapted = adapt(list(zip(images, labels, strict=True)), source, arguments.minutes, arguments.seed,
                    console.progress, source_free=arguments.source_free, device=str(device))
    bundle = adapted.write(output)
    for sentence in adapted.messages:
        console.say(sentence)
    summary = f"The bundle {bundle.name} is in {bundle.folder}; use it with --bundle {bundle.folder}."
    console.say(summary)
    return {"bundle": bundle.name, "directory": bundle.folder, "source": source.name,
            "source_free": arguments.source_free, "cases": [str(path) for path in arguments.image],
            "curve": adapted.curve, "messages": adapted.messages, "organs": list(bundle.metadata["organs"]),
            "summary": summary}


def _checked_output(path: Path) -> Path:
    """``path``, absolute, if a new bundle can go there.

    Raises:
        GenSegError: if no bundle can go there, or its name is taken.
    """
    path = checked_bundle_folder(path)
    if is_taken(path.name, path):
        raise GenSegError(f"The name {path.name} is taken, and --bundle {path.name} would find the other one: choose "
                          "a folder of another name.")
    return path
