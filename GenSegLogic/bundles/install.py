"""Bringing bundles into the cache folder and out of it: from bundle folders, zip files and published checkpoints."""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
import uuid
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import GenSegError
from ..progress import Progress, part, silent
from .bundle import METADATA_PATH, Bundle, is_inside, read_bundle
from .fetch import DOWNLOADED, check_file, fetch, published_folder
from .folders import (
    AUTO,
    cache_folder,
    cached_bundles_folder,
    fetched_folder,
    is_shipped,
    list_bundles,
    replace_bundle,
)
from .registry import Published, find_published, read_registry

MAXIMUM_METADATA_BYTES = 10 << 20
MAXIMUM_BUNDLE_BYTES = 16 << 30
_CHUNK_BYTES = 1 << 20
_LEFTOVER = re.compile(r"\.(.+\.)?[0-9a-f]{8}(\.old)?")  # a folder that was being written or replaced


def import_bundle(source: Path, progress: Progress = silent) -> Bundle:
    """Copy a bundle into the cache folder, from its folder or a zip file of it, after checking every file.

    Only the files that its metadata lists are taken. A bundle of the same name in the cache is replaced.

    Raises:
        GenSegError: if ``source`` is no bundle, is damaged or unsafe, or has the name of a bundle that ships.
    """
    with _staging() as staging:
        try:
            if source.is_dir():
                _copy_folder(source, staging, progress)
            else:
                _extract(source, staging, progress)
            bundle = read_bundle(staging)
            bundle.verify(f"get the bundle {bundle.name} again from where it came from")
        except GenSegError as error:  # the user knows the source, not our temporary folder
            raise GenSegError(str(error).replace(str(staging), str(source))) from error
        folder = _place(bundle.name)
        replace_bundle(staging, folder)
    return read_bundle(folder)


def import_published(
    paths: Sequence[Path], kind: str | None = None, progress: Progress = silent
) -> tuple[Bundle, list[str]]:
    """Convert checkpoints, as their publishers offer them, into a bundle in the cache folder.

    Args:
        paths: the files, or folders that hold them.
        kind: a name of the registry; None tells it from the file names.
        progress: called between the steps.

    Returns:
        The bundle, and sentences that say how the files were checked.

    Raises:
        GenSegError: if a file is missing or not the published one, or the kind cannot be told.
    """
    found = {path.name: path for path in _expand(paths)}
    published = find_published(kind) if kind else _recognise(found)
    if kind and len(published.needed) == len(found) == 1:  # one file for one role: its name does not matter
        found = {published.needed[0].name: next(iter(found.values()))}
    missing = [file.name for file in published.needed if file.name not in found]
    if missing:
        raise GenSegError(f"{published.name} lacks {', '.join(missing)} among the files given; "
                          f"{published.by_hand}.")
    messages = []
    for file in published.needed:
        checked = check_file(found[file.name], file)
        how = "has the registry's SHA-256" if checked else "was not checked, for the registry has no SHA-256 of it"
        messages.append(f"{found[file.name]} {how}.")
    files = {file.role: found[file.name] for file in published.needed}
    return _convert(published, files, progress), messages


def fetch_published(name: str, progress: Progress = silent) -> tuple[Bundle | None, Path, list[str]]:
    """Fetch published weights and convert them into a bundle in the cache folder.

    Returns:
        The bundle (None for weights that are used as they are), the folder to look into, and sentences for the user.

    Raises:
        GenSegError: see :func:`.fetch.fetch`.
    """
    published = find_published(name)
    fetched = fetch(published, part(progress, 0.0, 0.9))
    messages = [published.licence_sentence, *fetched.messages]
    if fetched.revision:
        messages.append(f"The hub named revision {fetched.revision}.")
    if published.importer is None:
        return None, published_folder(published), messages
    bundle = _convert(published, fetched.files, part(progress, 0.9, 1.0))
    messages += _tidy(published_folder(published))
    return bundle, bundle.folder, messages


def _tidy(folder: Path) -> list[str]:
    """Remove what was downloaded, for the bundle holds the same weights; what somebody put there stays, and is told."""
    with contextlib.suppress(OSError):  # one that a virus scanner still reads costs space, no result
        for name in (folder / DOWNLOADED).read_text(encoding="utf-8").splitlines():
            (folder / name).unlink(missing_ok=True)
        (folder / DOWNLOADED).unlink()
    with contextlib.suppress(OSError):  # not empty
        folder.rmdir()
    left = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [f"{folder} still holds {', '.join(left)}; the bundle does not need it any more."] if left else []


def remove(name: str) -> list[tuple[Path, int]]:
    """Remove a bundle and its fetched files from the cache folder; nothing outside it is ever touched.

    Returns:
        Every folder removed, with its size in bytes.

    Raises:
        GenSegError: if the bundle ships with GenSeg, or nothing of that name is in the cache.
    """
    folders = [folder for folder in cached_folders() if folder.name == name]
    if not folders and any(bundle.name == name and is_shipped(bundle) for bundle in list_bundles()):
        raise GenSegError(f"The bundle {name} ships with GenSeg and cannot be removed.")
    if not folders:
        raise GenSegError(f"Nothing called {name!r} is in the cache folder {cache_folder()}.")
    return remove_folders(folders)


def remove_folders(folders: Sequence[Path]) -> list[tuple[Path, int]]:
    """Remove folders that :func:`cached_folders` names; returns each with its size in bytes."""
    removed = [(folder, folder_bytes(folder)) for folder in folders]
    for folder in folders:
        try:
            shutil.rmtree(folder)
        except OSError as error:
            raise GenSegError(f"{folder} cannot be removed: {error.strerror}; close what uses it.") from error
    return removed


def cached_folders() -> list[Path]:
    """Every folder that GenSeg has put into the cache folder, unreadable bundles and leftovers of a crash included.

    ``$GENSEG_HOME`` may point to a folder with other things in it, so only what is recognised as ours is named.
    """
    bundles = [folder for folder in _folders_in(cached_bundles_folder())
               if (folder / METADATA_PATH).is_file() or _LEFTOVER.fullmatch(folder.name)]
    fetched = [folder for folder in _folders_in(fetched_folder()) if folder.name in read_registry()]
    return bundles + fetched


def _folders_in(parent: Path) -> list[Path]:
    if not parent.is_dir():
        return []
    return sorted(folder for folder in parent.iterdir() if folder.is_dir() and not folder.is_symlink())


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextlib.contextmanager
def _staging() -> Iterator[Path]:
    """An empty folder beside the cached bundles, on the same disk; removed unless it was moved away."""
    folder = cached_bundles_folder() / f".{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise GenSegError(f"{folder.parent} cannot be written: {error.strerror}; set GENSEG_HOME to a folder that "
                          "can.") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _place(name: str) -> Path:
    """The cache's folder for a bundle of that name, which must not hide one that ships."""
    if name == AUTO:
        raise GenSegError(f"No bundle can be called {AUTO}, by which GenSeg chooses one itself; give it another name.")
    if any(bundle.name == name and is_shipped(bundle) for bundle in list_bundles()):
        raise GenSegError(f"A bundle called {name} ships with GenSeg; give the other one another name.")
    return cached_bundles_folder() / name


def _copy_folder(source: Path, target: Path, progress: Progress) -> None:
    bundle = read_bundle(source)
    paths = [METADATA_PATH, *bundle.metadata["files"]]
    for index, path in enumerate(paths):
        progress(index / len(paths), f"Copying {path}")
        if not (source / path).is_file():
            raise GenSegError(f"{source / path} is missing, so the bundle is not complete.")
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / path, target / path)
        except OSError as error:
            raise GenSegError(f"{source / path} cannot be copied to {target.parent}: {error.strerror}.") from error


def _extract(source: Path, target: Path, progress: Progress) -> None:
    """Extract a zip file that holds one bundle, at its top or in one folder."""
    try:
        with zipfile.ZipFile(source) as archive:
            root = _bundle_root(source, archive)
            _extract_entry(archive, root + METADATA_PATH, target / METADATA_PATH, MAXIMUM_METADATA_BYTES)
            budget = MAXIMUM_BUNDLE_BYTES
            paths = list(read_bundle(target).metadata["files"])
            for index, path in enumerate(paths):
                progress(index / len(paths), f"Extracting {path}")
                budget -= _extract_entry(archive, root + path, target / path, budget)
    except OSError as error:
        raise GenSegError(f"{source} cannot be unpacked: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:  # damaged or encrypted
        raise GenSegError(f"{source} is no zip file that can be read: {error}.") from error


def _bundle_root(source: Path, archive: zipfile.ZipFile) -> str:
    """The folder inside the archive, ending in a slash or empty, that holds the bundle; refuses unsafe archives."""
    for entry in archive.infolist():
        if not is_inside(entry.filename) or stat.S_ISLNK(entry.external_attr >> 16):
            raise GenSegError(f"{source} holds {entry.filename!r}, which points outside; nothing was imported.")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise GenSegError(f"{source} is not compressed as usual zip files are; pack it again.")
    roots = [name.removesuffix(METADATA_PATH) for name in archive.namelist()
             if re.fullmatch(rf"([^/]+/)?{re.escape(METADATA_PATH)}", name)]
    if len(roots) != 1:
        raise GenSegError(f"{source} must hold one bundle, but has {len(roots)} files {METADATA_PATH}.")
    return roots[0]


def _extract_entry(archive: zipfile.ZipFile, name: str, target: Path, limit: int) -> int:
    """Extract one entry and return its size; counts what comes out, for an archive may lie about its sizes."""
    try:
        entry = archive.getinfo(name)
    except KeyError as error:
        raise GenSegError(f"{archive.filename} lacks {name}, so the bundle is not complete.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(entry) as packed, open(target, "wb") as stream:
        while chunk := packed.read(_CHUNK_BYTES):
            size += len(chunk)
            if size > limit:
                raise GenSegError(f"{name} in {archive.filename} is larger than a bundle may be; nothing was imported.")
            stream.write(chunk)
    return size


def _expand(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
        else:
            raise GenSegError(f"{path} does not exist.")


def _recognise(found: dict[str, Path]) -> Published:
    """The published weights whose files are all there.

    Raises:
        GenSegError: if none or several match.
    """
    importable = [published for published in read_registry().values() if published.importer]
    matches = [published for published in importable if all(file.name in found for file in published.needed)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise GenSegError(f"The files fit {' and '.join(published.name for published in matches)}; "
                          "say which with --kind.")
    known = "; ".join(f"{published.name}: {', '.join(file.name for file in published.needed)}"
                      for published in importable)
    raise GenSegError(f"These are neither a bundle nor published weights that GenSeg knows ({known}); "
                      "for other file names give --kind.")


def _convert(published: Published, files: dict[str, Path], progress: Progress) -> Bundle:
    if published.importer is None:
        raise GenSegError(f"{published.name} is used as it is published; put its files into "
                          f"{published_folder(published)}.")
    from .importers import import_checkpoint  # needs torch

    progress(0.0, f"Converting {published.name}")
    bundle = import_checkpoint(published.importer, files, _place(published.name))
    progress(1.0, f"{published.name} is ready")
    return bundle
