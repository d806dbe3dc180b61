"""``genseg bundles``: see, fetch, check, import and remove models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bundles import Bundle, cache_folder, find_bundle, is_shipped
from ..bundles.bundle import METADATA_PATH
from ..bundles.folders import scan_bundles, shipped_folder
from ..bundles.install import (
    cached_folders,
    fetch_published,
    folder_bytes,
    import_bundle,
    import_published,
    remove,
    remove_folders,
)
from ..bundles.registry import Published, PublishedFile, find_published, read_registry
from ..errors import GenSegError
from .console import Console
from .options import WrongUse, add_output_options


def configure(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the six sub-commands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def add(name: str, help_text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        add_output_options(action)
        return action

    add("list", "list the bundles that are here, and the published weights that can be fetched")
    add("show", "show everything that is known of a bundle").add_argument("name", help="its name or folder")
    add("fetch", "fetch published weights from the hub and make a bundle of them").add_argument(
        "name", help="a name that 'list' shows")
    add("verify", "compare every file of bundles with its SHA-256").add_argument(
        "names", nargs="*", metavar="NAME", help="names or folders; default all")
    importing = add("import", "import a bundle (folder or zip) or published checkpoints, without a network")
    importing.add_argument("paths", nargs="+", type=Path, metavar="PATH",
                           help="a bundle's folder or zip file, or checkpoint files or a folder that holds them")
    importing.add_argument("--kind", metavar="NAME",
                           help="which published weights the files are, where their names do not tell")
    removing = add("remove", "remove bundles and their downloads from the cache folder")
    removing.add_argument("names", nargs="*", metavar="NAME")
    removing.add_argument("--all", action="store_true", help="empty the cache folder")


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run one sub-command; see :mod:`GenSegLogic.commands`."""
    actions = {"list": _list, "show": _show, "fetch": _fetch, "verify": _verify, "import": _import, "remove": _remove}
    return actions[arguments.action](arguments, console)


def _list(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    bundles, problems = scan_bundles()
    here = {bundle.name for bundle in bundles}
    published = [entry for entry in read_registry().values() if entry.name not in here]
    console.say("Here:")
    for bundle in bundles:
        place = "ships" if is_shipped(bundle) else "cache"
        console.say(f"  {bundle.name:24}{bundle.kind:12}{place:8}{_size(bundle.size_bytes):>10}  "
                    f"{bundle.metadata['licence']}")
    if not bundles:
        console.say("  none")
    for problem in problems.values():
        console.say(f"  unreadable: {problem}")
    console.say("Published, not here (fetch or import):")
    for entry in published:
        console.say(f"  {entry.name:24}{_published_size(entry.needed):>10}  {entry.licence} ({_commercial(entry)})")
    cached = sum(folder_bytes(folder) for folder in cached_folders())
    console.say(f"Bundles that ship: {shipped_folder()}")
    console.say(f"Cache folder: {cache_folder()} ({_size(cached)}); 'genseg bundles remove --all' empties it.")
    return {
        "bundles": [_summary(bundle) for bundle in bundles],
        "published": [_published_summary(entry) for entry in published],
        "problems": list(problems.values()),
        "shipped_folder": str(shipped_folder()),
        "cache_folder": str(cache_folder()),
        "cache_bytes": cached,
    }


def _show(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    if arguments.name in read_registry() and not _is_here(arguments.name):
        return _show_published(find_published(arguments.name), console)
    bundle = find_bundle(arguments.name)
    metadata = bundle.metadata
    console.say(f"{bundle.name}: {metadata['description']}")
    console.say(f"folder      {bundle.folder} ({_size(bundle.size_bytes)})")
    console.say(f"digest      {bundle.digest}")
    console.say(f"licence     {metadata['licence']}, commercial use {_yes(metadata['commercial_use'])}")
    console.say(f"source      {metadata['source']}")
    for key in ("image", "latent", "training", "metrics"):
        for name, value in metadata.get(key, {}).items():
            console.say(f"{key:12}{name}: {value}")
    for path, digest in metadata["files"].items():
        console.say(f"file        {path}  {digest}")
    return _summary(bundle) | {"metadata": dict(metadata)}


def _show_published(published: Published, console: Console) -> dict[str, Any]:
    console.say(f"{published.name}: {published.title}. Not here.")
    console.say(published.licence_sentence)
    console.say(published.remarks)
    for file in published.files:
        size = _published_size([file]) or "size not known"
        note = ", not needed" if file.optional else ""
        console.say(f"file        {file.path} ({size}, SHA-256 {file.sha256 or 'not known'}{note})")
    if published.hub:
        console.say(f"Fetch it with 'genseg bundles fetch {published.name}',")
        console.say(f"or {published.by_hand} and use 'genseg bundles import FILE...'.")
    else:
        console.say(f"To get it, {published.by_hand} and use 'genseg bundles import FILE'.")
    return _published_summary(published)


def _fetch(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    if _is_here(arguments.name):
        bundle = find_bundle(arguments.name)
        if _problem(bundle) is None:
            console.say(f"{bundle.name} is here already, in {bundle.folder}, and intact.")
            return _summary(bundle) | {"messages": []}
    fetched, folder, messages = fetch_published(arguments.name, console.progress)
    for message in messages:
        console.say(message)
    console.say(f"{arguments.name} is in {folder}.")
    summary = _summary(fetched) if fetched else {"name": arguments.name, "folder": str(folder)}
    return summary | {"messages": messages}


def _verify(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    bundles, unreadable = scan_bundles()
    problems = list(unreadable.values())
    if arguments.names:
        bundles, problems = [find_bundle(name) for name in arguments.names], []
    rows = []
    for bundle in bundles:
        problem = _problem(bundle)
        rows.append({"name": bundle.name, "folder": str(bundle.folder), "intact": problem is None, "problem": problem})
        console.say(problem or f"{bundle.name}: all {len(bundle.metadata['files']) + 1} files are intact.")
    for problem in problems:
        console.say(problem)
    failed = bool(problems) or not all(row["intact"] for row in rows)
    return {"bundles": rows, "problems": problems, "failed": failed}


def _problem(bundle: Bundle) -> str | None:
    """What :meth:`Bundle.verify` finds, None if all is well."""
    try:
        bundle.verify()
    except GenSegError as error:
        return str(error)
    return None


def _import(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    paths: list[Path] = arguments.paths
    for path in paths:
        if not path.exists():
            raise GenSegError(f"{path} does not exist; give a bundle or checkpoint files.")
    if len(paths) == 1 and arguments.kind is None and _looks_like_bundle(paths[0]):
        messages: list[str] = []
        bundle = import_bundle(paths[0], console.progress)
    else:
        bundle, messages = import_published(paths, arguments.kind, console.progress)
    for message in messages:
        console.say(message)
    console.say(f"The bundle {bundle.name} is in {bundle.folder}.")
    return _summary(bundle) | {"messages": messages}


def _remove(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    if bool(arguments.names) == arguments.all:
        raise WrongUse("Give the names of the bundles to remove, or --all.")
    if arguments.all:
        removed = remove_folders(cached_folders())
    else:
        removed = [entry for name in arguments.names for entry in remove(name)]
    for folder, size in removed:
        console.say(f"Removed {folder} ({_size(size)}).")
    if not removed:
        console.say(f"The cache folder {cache_folder()} holds nothing to remove.")
    return {"removed": [str(folder) for folder, _ in removed], "bytes": sum(size for _, size in removed)}


def _looks_like_bundle(path: Path) -> bool:
    # A PyTorch checkpoint is a zip file too, so the name has to decide.
    return (path / METADATA_PATH).is_file() or path.suffix.lower() == ".zip"


def _is_here(name: str) -> bool:
    return any(bundle.name == name for bundle in scan_bundles()[0])


def _summary(bundle: Bundle) -> dict[str, Any]:
    return {"name": bundle.name, "kind": bundle.kind, "folder": str(bundle.folder), "ships": is_shipped(bundle),
            "bytes": bundle.size_bytes, "digest": bundle.digest, "licence": bundle.metadata["licence"],
            "commercial_use": bundle.metadata["commercial_use"]}


def _published_summary(published: Published) -> dict[str, Any]:
    files = [{"path": file.path, "bytes": file.size_bytes, "about_megabytes": file.about_megabytes,
              "sha256": file.sha256, "optional": file.optional}
             for file in published.files]
    return {"name": published.name, "title": published.title, "hub": published.hub, "revision": published.revision,
            "files": files, "licence": published.licence, "licence_url": published.licence_url,
            "commercial_use": published.commercial_use, "by_hand": published.by_hand}


def _published_size(files: Sequence[PublishedFile]) -> str:
    """Of all files; about, where the publisher's is not known, and empty where nothing is."""
    known = [file.size_bytes for file in files if file.size_bytes is not None]
    about = [file.about_megabytes for file in files if file.about_megabytes is not None]
    if len(known) == len(files):
        return _size(sum(known))
    return f"~{sum(about)} MB" if len(about) == len(files) else ""


def _commercial(published: Published) -> str:
    return f"commercial use {_yes(published.commercial_use)}"


def _yes(allowed: bool | None) -> str:
    return {True: "allowed", False: "not allowed", None: "not stated"}[allowed]


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
