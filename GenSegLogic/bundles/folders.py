"""Where bundles lie, and the one look-up that finds them.

Bundles that ship are found beside the package, however GenSeg was installed:

- a source checkout and a Slicer install have ``Resources/Bundles`` beside the folder ``GenSegLogic``
  (in Slicer both lie in ``qt-scripted-modules``);
- a wheel carries them inside the package, as ``GenSegLogic/_bundles``.

Bundles that were fetched or imported lie in the cache folder.
"""

from __future__ import annotations

import difflib
import os
import shutil
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from ..errors import GenSegError
from .bundle import METADATA_PATH, Bundle, read_bundle
from .registry import read_registry

AUTO = "auto"
"""By this word tasks are left to choose a bundle themselves; no bundle may bear it."""
_PACKAGE = Path(__file__).absolute().parents[1]


def shipped_folder() -> Path:
    """The folder that holds the bundles which ship with this installation."""
    packaged = _PACKAGE / "_bundles"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "Resources" / "Bundles"


def cache_folder() -> Path:
    """The folder for everything that was fetched or imported: ``$GENSEG_HOME``, or the platform's cache.

    It may be emptied at any time. The folder need not exist.

    Raises:
        GenSegError: if ``$GENSEG_HOME`` starts with ``~`` and there is no such user.
    """
    chosen = os.environ.get("GENSEG_HOME")
    if chosen:
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError as error:
            raise GenSegError(f"GENSEG_HOME is {chosen!r}, which is no folder ({error}): set it to one.") from error
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "GenSeg"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "GenSeg"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genseg"


def cached_bundles_folder() -> Path:
    """The part of the cache folder that holds bundles."""
    return cache_folder() / "bundles"


def fetched_folder() -> Path:
    """The part of the cache folder that holds files as their publishers offer them, a folder for each name."""
    return cache_folder() / "fetched"


def scan_bundles(parents: Sequence[Path] = ()) -> tuple[list[Bundle], dict[Path, str]]:
    """All bundles in some folders, and folder -> one sentence for each that cannot be read.

    Args:
        parents: the folders that hold them; without any, those that ship come first, then those in the cache.
    """
    bundles: dict[str, Bundle] = {}
    problems = {}
    for parent in parents or (shipped_folder(), cached_bundles_folder()):
        for metadata in sorted(parent.glob(f"*/{METADATA_PATH}")):
            folder = metadata.parents[1]
            if folder.name.startswith("."):  # a bundle that is just being written, or was left so by a crash
                continue
            try:
                bundle = read_bundle(folder)
            except GenSegError as error:
                problems[folder] = str(error)
            else:
                bundles.setdefault(bundle.name, bundle)
    return list(bundles.values()), problems


def list_bundles() -> list[Bundle]:
    """All bundles that can be used, those that ship first; unreadable ones are left out."""
    return scan_bundles()[0]


def find_bundle(name_or_folder: str | Path) -> Bundle:
    """The bundle of that name, or the one in that folder.

    Raises:
        GenSegError: if there is none, saying which there are or how to fetch it.
    """
    bundles, problems = scan_bundles()
    wanted = str(name_or_folder)
    for bundle in bundles:
        if bundle.name == wanted:
            return bundle
    if Path(name_or_folder).is_dir():
        return read_bundle(Path(name_or_folder))
    for folder, problem in problems.items():
        if folder.name == wanted:
            raise GenSegError(problem)
    raise GenSegError(_not_found(wanted, [bundle.name for bundle in bundles]))


def _not_found(wanted: str, names: list[str]) -> str:
    if wanted in read_registry():
        return f"The bundle {wanted} is not here; 'genseg bundles show {wanted}' says how to get it."
    close = difflib.get_close_matches(wanted, names, n=1)
    if close:
        return f"There is no bundle {wanted!r}; did you mean {close[0]!r}?"
    known = ", ".join(names) if names else f"none, neither in {shipped_folder()} nor in {cached_bundles_folder()}"
    return f"There is no bundle {wanted!r}; there are {known}."


def is_taken(name: str, folder: Path | None = None) -> bool:
    """Whether a new bundle of that name would hide another one or be hidden by it: a bundle that is here, published
    weights, or :data:`AUTO`.

    Args:
        folder: where the new bundle goes; one that lies there already is replaced and hides nothing.
    """
    others = {bundle.name for bundle in list_bundles() if folder is None or bundle.folder.resolve() != folder.resolve()}
    return name == AUTO or name in read_registry() or name in others


def is_shipped(bundle: Bundle) -> bool:
    """Whether the bundle came with GenSeg."""
    return bundle.folder.resolve().parent == shipped_folder().resolve()


def can_be_replaced(folder: Path) -> bool:
    """Whether nothing is lost with a folder but a bundle: it is empty, or holds the files that a bundle lists, no more.

    In the cache folder, which is GenSeg's own, a bundle may be damaged.
    """
    if folder.parent == cached_bundles_folder() and (folder / METADATA_PATH).is_file():
        return True
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*")
               if path.is_symlink() or not path.is_dir()}
    try:
        return folder.is_dir() and (not present or present <= {METADATA_PATH, *read_bundle(folder).metadata["files"]})
    except GenSegError:
        return False


def replace_bundle(new: Path, folder: Path) -> None:
    """Move the finished folder ``new`` to ``folder`` on the same disk; a bundle that lies there is replaced.

    Raises:
        GenSegError: if something other than a bundle lies there.
    """
    old = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.old")
    if folder.exists() and not can_be_replaced(folder):
        raise GenSegError(f"{folder} holds something other than a bundle; choose another folder.")
    try:
        if folder.exists():
            os.replace(folder, old)
        os.replace(new, folder)
    except OSError as error:
        if old.exists():
            os.replace(old, folder)
        raise GenSegError(f"{folder} cannot be written: {error.strerror}; close what uses it.") from error
    shutil.rmtree(old, ignore_errors=True)
