"""``genseg demo [SCAN]``: find nodules in a chest phantom, or in a scan, and write a page to look at."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..tasks import load_task
from .console import Console
from .options import add_directory_option, add_run_options, check_inputs, checked_directory, seed
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
    from ..saving import save_results
    from ..volume import read_volume
    from .demo_page import write_page

    directory = checked_directory(arguments.output)
    if arguments.scan is not None:
        check_inputs([arguments.scan], directory, "nodules")
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
    files = save_results(results, directory, image,
                         {"demo.html": lambda path: write_page(path, results, image, truth)})
    if arguments.scan is None:
        known = len(phantom.messages)
        phantom.save(directory / "phantom", image)
        results.messages += phantom.messages[known:]  # what of the user's was in its way
    tell(console, results, files)
    if arguments.scan is None:
        console.say(f"  {directory / 'phantom'}: the phantom and its truth")
    console.say(f"Open {files['demo.html']} in a browser.")
    return report(results, directory, files)
