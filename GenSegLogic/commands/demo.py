"""``genseg demo [SCAN]``: find nodules in a chest phantom, or in a scan, and write a page to look at."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tasks import load_task
from .console import Console
from .options import add_directory_option, add_run_options, checked_directory, seed
from .phantom import make_phantom
from .run_task import report, tell


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the arguments."""
    parser.add_argument("scan", metavar="SCAN", type=Path, nargs="?",
                        help="a chest CT: a file or a DICOM folder (default: a phantom is made)")
    add_directory_option(parser, default="demo")
    add_run_options(parser)
    parser.add_argument("--seed", type=seed, default=0, help="another seed, another phantom (default 0)")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Make or read the scan, find nodules, save everything, write ``demo.html``."""
    from ..engine import Engine
    from ..volume import read_volume
    from .demo_page import write_page

    directory = checked_directory(arguments.output)
    engine = Engine(arguments.device)
    console.progress(0.0, f"Starting on {engine.device}")
    truth = None
    if arguments.scan is None:
        console.say("Drawing a chest phantom: a procedural CT with known nodules.")
        console.progress(0.0, "Drawing a chest phantom")
        phantom = make_phantom("chest", arguments.seed)
        image = next(iter(phantom.volumes.values()))
        truth = phantom.segmentations.get("nodules")
    else:
        image = read_volume(arguments.scan, series=arguments.series)
    console.say("Looking for nodules.")
    results = engine.run(load_task("nodules")(seed=arguments.seed), image, console.progress)
    console.progress(1.0, "Saving")
    files = results.save(directory, image)
    if arguments.scan is None:
        phantom.save(directory / "phantom", image)
    page = directory / "demo.html"
    write_page(page, results, image, truth)
    tell(console, results, files)
    if arguments.scan is None:
        console.say(f"  {directory / 'phantom'}: the phantom and its truth")
    console.say(f"Open {page.absolute()} in a browser.")
    return report(results, directory, files | {page.name: page})
