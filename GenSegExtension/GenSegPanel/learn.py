"""The process that learns from a user's own cases; :mod:`GenSegPanel.adaptation` starts it, by path.

    python learn.py ROOT FOLDER PARENT

ROOT is the folder that GenSegLogic lies in, FOLDER holds ``request.json`` and the arrays of the cases that it
names, PARENT is the number of the process with which the learning ends. It also ends when ``request.json`` is gone.
Standard output gets one JSON object a line: ``pid`` first, ``fraction`` and ``message`` while it learns, at the end
``bundle`` and ``messages``, or ``error``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before anything that takes time: where a launcher has started this process, it cannot be ended without its number.
    print(json.dumps({"pid": os.getpid()}), flush=True)
    sys.path[0] = sys.argv[1]  # in place of this folder, whose modules could shadow a library's

import numpy as np

from GenSegLogic.errors import GenSegError
from GenSegLogic.volume import Volume


def say(**words: Any) -> None:
    """One line for the process that waits."""
    print(json.dumps(words), flush=True)


def check_wanted(request: Path) -> None:
    """Raise GenSegError if the request is gone, as it is once nobody waits for the bundle any more."""
    if not request.is_file():
        raise GenSegError(f"{request} was deleted while GenSeg learned, so no model was written: press Adapt again.")


def learn(folder: Path) -> None:
    """Learn as the request says and write the bundle, whole or not at all.

    Raises:
        GenSegError: if the cases or the source bundle cannot be used, or the request is gone.
    """
    from GenSegLogic.bundles import find_bundle
    from GenSegLogic.engine import Engine
    from GenSegLogic.organs.diffusam.adapt import adapt

    path = folder / "request.json"

    def go_on(fraction: float, message: str) -> None:
        check_wanted(path)
        say(fraction=fraction, message=message)

    check_wanted(path)
    request = json.loads(path.read_text(encoding="utf-8"))
    cases = []
    for case in request["cases"]:
        image = Volume(np.load(folder / case["image"]), np.array(case["affine_ijk_to_lps_mm"]), case["name"],
                       case["metadata"])
        labels = image.with_voxels(np.load(folder / case["labels"])) if "labels" in case else None
        cases.append((image, labels))
    adapted = adapt(cases, find_bundle(request["source"]), request["minutes"], request["seed"], go_on,
                    source_free=request["source_free"], device=str(Engine(request["device"]).device))
    check_wanted(path)
    bundle = adapted.write(Path(request["output"]))
    say(bundle=bundle.name, messages=adapted.messages)


def main(folder: Path, parent: int) -> int:
    """Exit code 0: the bundle is there; 1: the last line says why not."""
    from GenSegLogic.service.lifetime import watch_parent

    def orphaned(reason: str) -> None:
        shutil.rmtree(folder, ignore_errors=True)  # it holds patients' scans, and nobody else is left to delete them
        os._exit(1)

    try:
        watch_parent(parent, orphaned)
        learn(folder)
    except GenSegError as error:
        say(error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[2]), int(sys.argv[3])))
