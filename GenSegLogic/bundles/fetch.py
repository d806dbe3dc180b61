"""Fetching published weights over HTTPS: checked, resumed where it stopped, and never without being asked.

Files come from the Hugging Face hub, or from the address in ``$GENSEG_HUB`` (a mirror inside a hospital) that answers
the same paths. The hub names the SHA-256 of a large file in the header ``X-Linked-ETag`` of its first, redirecting
answer and the commit in ``X-Repo-Commit``.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from ..errors import GenSegError
from ..progress import Progress, part, silent
from .bundle import sha256
from .folders import fetched_folder
from .registry import Published, PublishedFile

DEFAULT_HUB = "https://huggingface.co"
DOWNLOADED = "downloaded.txt"
"""Beside published weights: the names of those that GenSeg put there itself, one a line."""
_TIMEOUT_SECONDS = 30
_ATTEMPTS = 3  # a connection that breaks is taken up again this often before the user is asked
_CHUNK_BYTES = 1 << 18


@dataclass
class Fetched:
    """What :func:`fetch` brought.

    Attributes:
        files: role -> path on disk.
        messages: sentences for the user: how every file was checked.
        revision: the commit that the hub named, None where it named none.
    """

    files: dict[str, Path] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    revision: str | None = None


@dataclass(frozen=True)
class _Remote:
    """What the hub says of a file before it is fetched."""

    url: str
    size_bytes: int | None
    sha256: str | None
    revision: str | None


class _InterruptedError(Exception):
    """The connection broke; the part on disk can be continued."""


class _KeepSecure(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from HTTPS to an open connection."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise GenSegError(f"{req.full_url} redirects to {newurl}, which is not secure; nothing was fetched.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _StopWhereDescribed(_KeepSecure):
    """Stops at the answer that describes the file: past the hub's redirect to its storage, the description is lost."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
        described = "X-Linked-ETag" in headers
        return None if described else super().redirect_request(req, fp, code, msg, headers, newurl)


def published_folder(published: Published) -> Path:
    """Where the files of published weights are put, by :func:`fetch` or by hand."""
    return fetched_folder() / published.name


def fetch(published: Published, progress: Progress = silent) -> Fetched:
    """Bring all needed files into :func:`published_folder`; files that are there already are only checked.

    Raises:
        GenSegError: if the hub cannot be reached or lacks a file (saying where to put it by hand), if a file is not
            what it should be (it is removed), if the disk is full, or if the connection keeps breaking (the part is
            kept and continued next time).
    """
    folder = published_folder(published)
    fetched = Fetched()
    count = len(published.needed)
    for index, file in enumerate(published.needed):
        target = folder / file.name
        if target.is_file():
            fetched.messages.append(_check_present(target, file))
        elif published.hub is None:
            raise GenSegError(f"{published.name} cannot be fetched by GenSeg; {_by_hand(published, target)}.")
        else:
            _fetch_file(published, file, target, fetched, part(progress, index / count, (index + 1) / count))
            with open(folder / DOWNLOADED, "a", encoding="utf-8") as names:
                names.write(file.name + "\n")
        fetched.files[file.role] = target
    return fetched


def check_file(path: Path, file: PublishedFile) -> bool:
    """Compare a file with the registry. True if it matches the SHA-256 there, False if the registry has none.

    Raises:
        GenSegError: if it differs.
    """
    if file.sha256 is None:
        return False
    if sha256(path) != file.sha256:
        raise GenSegError(f"{path} is not the published {file.name} (its SHA-256 differs); remove it and get it again.")
    return True


def _check_present(target: Path, file: PublishedFile) -> str:
    if check_file(target, file):
        return f"{target} was there already and has the registry's SHA-256."
    return f"{target} was there already; the registry has no SHA-256 to check it with."


def _by_hand(published: Published, target: Path) -> str:
    return (f"{published.by_hand}, put {target.name} into {target.parent} and run "
            f"'genseg bundles fetch {published.name}' again")


def _fetch_file(
    published: Published, file: PublishedFile, target: Path, fetched: Fetched, progress: Progress
) -> None:
    """Fetch one file to ``target``, whole or not at all, and say in ``fetched`` how it was checked."""
    hub = os.environ.get("GENSEG_HUB", DEFAULT_HUB).rstrip("/")
    if not hub.startswith(("https://", "http://")):
        raise GenSegError(f"GENSEG_HUB is {hub!r}, but must be an address that starts with https:// or http://.")
    url = f"{hub}/{published.hub}/resolve/{published.revision}/{urllib.parse.quote(file.path)}"
    remote = _ask(url, file, published, target)
    expected = file.sha256 or remote.sha256
    # Named after its hash, so that parts of two versions of the file are never joined.
    partial = target.with_name(f"{target.name}.{expected[:16] if expected else 'unchecked'}.part")
    _make_room(partial, remote, keep=expected is not None)
    for attempt in range(_ATTEMPTS):
        try:
            _continue(remote, partial, target.name, progress)
            break
        except _InterruptedError as error:
            if attempt + 1 == _ATTEMPTS:
                raise GenSegError(
                    f"The connection broke while {target.name} was fetched ({error}); {_megabytes(partial)} MB are "
                    f"kept, run 'genseg bundles fetch {published.name}' again to go on."
                ) from error
            time.sleep(attempt)
    fetched.messages.append(_accept(partial, target, remote, file))
    fetched.revision = remote.revision or fetched.revision


def _accept(partial: Path, target: Path, remote: _Remote, file: PublishedFile) -> str:
    """Check a finished part and give it its name; returns how it was checked. A wrong one is removed."""
    expected = file.sha256 or remote.sha256
    if expected is not None and sha256(partial) != expected:
        partial.unlink()
        source = "the registry" if file.sha256 else "the hub"
        raise GenSegError(f"{target.name} from {remote.url} does not have the SHA-256 that {source} names; it was "
                          "removed, fetch it again, and if this recurs do not use that source.")
    os.replace(partial, target)
    if file.sha256:
        return f"{target.name} has the registry's SHA-256."
    if remote.sha256:
        return (f"{target.name} has the SHA-256 that the hub names; the registry has none, so this proves an undamaged "
                "download, not the publisher.")
    if remote.size_bytes is None:
        return f"{target.name} could not be checked: neither registry nor hub has a SHA-256 or its size."
    return f"{target.name} has the size that the hub names; neither registry nor hub has a SHA-256."


def _ask(url: str, file: PublishedFile, published: Published, target: Path) -> _Remote:
    """Ask the hub about a file without fetching it."""
    request = urllib.request.Request(url, method="HEAD", headers={"Accept-Encoding": "identity"})
    try:
        with urllib.request.build_opener(_StopWhereDescribed).open(request, timeout=_TIMEOUT_SECONDS) as answer:
            headers = answer.headers
    except urllib.error.HTTPError as error:
        if "X-Linked-ETag" not in error.headers:
            reason = f"the hub answers {error.code} {error.reason} for {url}"
            raise GenSegError(f"{published.name} was not fetched: {reason}; {_by_hand(published, target)}.") from error
        headers = error.headers
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = f"the hub cannot be reached ({getattr(error, 'reason', error)})"
        raise GenSegError(f"{published.name} was not fetched: {reason}; {_by_hand(published, target)}.") from error
    return _describe(url, headers, file)


def _describe(url: str, headers: Message, file: PublishedFile) -> _Remote:
    linked = headers.get("X-Linked-ETag", "").strip('"').lower()
    named = linked if re.fullmatch(r"[0-9a-f]{64}", linked) else None
    size = headers.get("X-Linked-Size") or headers.get("Content-Length")
    size_bytes = int(size) if size is not None and size.isdigit() else file.size_bytes
    return _Remote(url, size_bytes, named, headers.get("X-Repo-Commit"))


def _make_room(partial: Path, remote: _Remote, keep: bool) -> None:
    """Create the folder, see that the disk can hold the file, and drop an old part unless ``keep``."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise GenSegError(f"{partial.parent} cannot be created: {error.strerror}; set GENSEG_HOME to a folder that can "
                          "be written.") from error
    if not keep:
        partial.unlink(missing_ok=True)
    present = partial.stat().st_size if partial.exists() else 0
    free = shutil.disk_usage(partial.parent).free
    if remote.size_bytes is not None and remote.size_bytes - present > free:
        raise GenSegError(f"{partial.parent} has {free >> 20} MB free, but {remote.size_bytes - present >> 20} MB are "
                          "needed; make room or set GENSEG_HOME to another disk.")


def _continue(remote: _Remote, partial: Path, name: str, progress: Progress) -> None:
    """Append to ``partial`` what it lacks.

    Raises:
        _InterruptedError: if the connection breaks before the end.
    """
    have = partial.stat().st_size if partial.exists() else 0
    if remote.size_bytes is not None and have > remote.size_bytes:
        partial.unlink()
        have = 0
    if have and have == remote.size_bytes:
        return
    with _open(remote.url, have) as answer, open(partial, "ab") as stream:
        if have and answer.status != http.client.PARTIAL_CONTENT:  # the server starts from the beginning
            stream.truncate(0)
            have = 0
        length = answer.headers.get("Content-Length")
        size = remote.size_bytes or (have + int(length) if length is not None else None)
        while chunk := answer.read(_CHUNK_BYTES):
            stream.write(chunk)
            have += len(chunk)
            total = f" of {size / 1e6:.1f}" if size else ""
            progress(min(have / size, 1.0) if size else 0.0, f"Fetching {name}: {have / 1e6:.1f}{total} MB")
    if size is not None and have < size:
        raise _InterruptedError(f"after {have} of {size} bytes")


@contextmanager
def _open(url: str, start: int) -> Iterator[http.client.HTTPResponse]:
    """Open ``url`` from byte ``start`` on; a connection that breaks at any time raises _InterruptedError."""
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        request = urllib.request.Request(url, headers=headers)
        with urllib.request.build_opener(_KeepSecure).open(request, timeout=_TIMEOUT_SECONDS) as answer:
            yield answer
    except urllib.error.HTTPError as error:
        raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error
    except (ConnectionError, TimeoutError, ssl.SSLError, urllib.error.URLError, http.client.HTTPException) as error:
        raise _InterruptedError(str(getattr(error, "reason", error)) or type(error).__name__) from error
    except OSError as error:
        raise GenSegError(f"{url} was not fetched, for it cannot be written: {error.strerror}.") from error


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f}" if path.exists() else "0"
