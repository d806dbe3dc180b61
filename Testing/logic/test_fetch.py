"""Fetching from a real HTTP server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch

from GenSegLogic import networks
from GenSegLogic.bundles import find_bundle, load_bundle
from GenSegLogic.bundles.fetch import DOWNLOADED, _KeepSecure, fetch, published_folder
from GenSegLogic.bundles.registry import Published, PublishedFile, find_published
from GenSegLogic.cli import main
from GenSegLogic.errors import Cancelled, GenSegError
from GenSegLogic.progress import Progress

CONTENT = np.random.default_rng(0).bytes(1_200_000)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server serves, how it misbehaves, and what it was asked."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    named_sha256: str | None = None  # in place of the true one
    names_sha256: bool = True
    supports_range: bool = True
    status: int = 302
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next answers break off
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, path, range


class Handler(http.server.BaseHTTPRequestHandler):
    """The hub redirects to its storage, with a description of the file; the storage gives bytes."""

    protocol_version = "HTTP/1.1"
    server: HubServer

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub = self.server.hub
        hub.asked.append((self.command, self.path, self.headers.get("Range")))
        path = urlsplit(self.path).path
        if path.startswith("/storage/"):
            self._give(hub, hub.files[path.removeprefix("/storage")])
        elif hub.status != 302 or path not in hub.files:
            self._send(hub.status if hub.status != 302 else 404, {})
        else:
            content = hub.files[path]
            headers = {"Location": f"/storage{path}", "X-Repo-Commit": COMMIT}
            if hub.names_sha256:
                digest = hub.named_sha256 or hashlib.sha256(content).hexdigest()
                headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            self._send(302, headers)

    def _give(self, hub: Hub, content: bytes) -> None:
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and hub.supports_range:
            start, status = int(asked[1]), 206
        rest = content[start:]
        headers = {"ETag": '"plain"', "Content-Length": str(len(rest))}
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, headers)
        if self.command == "GET":
            cut = hub.cut_after.pop(0) if hub.cut_after else None
            self.wfile.write(rest[:cut])
            if cut is not None:
                self.close_connection = True

    def _send(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": "0"} | headers).items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test's output clean."""


class HubServer(http.server.ThreadingHTTPServer):
    hub: Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = HubServer(("127.0.0.1", 0), Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}")
    server.hub.files["/lab/net/resolve/main/models/weights.pt"] = CONTENT
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    monkeypatch.setenv("GENSEG_HUB", server.hub.address)
    monkeypatch.setenv("GENSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    yield server.hub
    server.shutdown()
    server.server_close()
    thread.join()


def published(sha256: str | None = None, hub: str | None = "lab/net") -> Published:
    files = (
        PublishedFile("weights", "models/weights.pt", None, sha256, optional=False),
        PublishedFile("extra", "models/extra.pt", None, None, optional=True),
    )
    return Published("lab-net", "A net", None, hub, "main", files, "MIT", "https://example.org", None,
                     "ask the lab for weights.pt", "")


TRUE_SHA256 = hashlib.sha256(CONTENT).hexdigest()


def left_behind() -> list[str]:
    folder = published_folder(published())
    names = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    return [name for name in names if name != DOWNLOADED]


# What arrives


def test_fetch_checks_against_the_hash_that_the_hub_names_and_says_so(hub: Hub) -> None:
    calls: list[tuple[float, str]] = []
    fetched = fetch(published(), lambda fraction, message: calls.append((fraction, message)))
    assert fetched.files["weights"].read_bytes() == CONTENT
    assert fetched.revision == COMMIT
    assert left_behind() == ["weights.pt"]
    assert len(fetched.messages) == 1
    assert "the SHA-256 that the hub names; the registry has none" in fetched.messages[0]
    fractions = [fraction for fraction, _ in calls]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert calls[-1][1] == "Fetching weights.pt: 1.2 of 1.2 MB"


def test_the_registrys_hash_comes_first(hub: Hub) -> None:
    hub.named_sha256 = "f" * 64
    fetched = fetch(published(TRUE_SHA256))
    assert fetched.files["weights"].read_bytes() == CONTENT
    assert fetched.messages == ["weights.pt has the registry's SHA-256."]


def test_without_any_hash_it_says_so(hub: Hub) -> None:
    hub.names_sha256 = False
    fetched = fetch(published())
    assert fetched.files["weights"].read_bytes() == CONTENT
    assert "neither registry nor hub has a SHA-256" in fetched.messages[0]


def test_optional_files_are_not_fetched_and_files_that_are_there_not_again(hub: Hub) -> None:
    fetch(published(TRUE_SHA256))
    assert not [path for _, path, _ in hub.asked if "extra" in path]
    hub.asked.clear()
    assert "was there already" in fetch(published(TRUE_SHA256)).messages[0]
    assert hub.asked == []


# Breaking off and going on


def test_a_connection_that_breaks_is_taken_up_again(hub: Hub) -> None:
    hub.cut_after = [500_000]
    assert fetch(published()).files["weights"].read_bytes() == CONTENT
    assert [asked for method, _, asked in hub.asked if method == "GET" and asked] == ["bytes=500000-"] * 2
    assert left_behind() == ["weights.pt"]


def test_after_a_lasting_failure_the_next_fetch_goes_on(hub: Hub) -> None:
    hub.cut_after = [300_000, 100_000, 0]
    with pytest.raises(GenSegError, match=r"0\.4 MB are kept, run 'genseg bundles fetch lab-net' again"):
        fetch(published())
    assert left_behind() == [f"weights.pt.{TRUE_SHA256[:16]}.part"]
    hub.asked.clear()
    assert fetch(published()).files["weights"].read_bytes() == CONTENT
    assert [asked for method, _, asked in hub.asked if method == "GET" and asked] == ["bytes=400000-"] * 2
    assert left_behind() == ["weights.pt"]


def test_a_server_without_ranges_starts_over(hub: Hub) -> None:
    hub.supports_range = False
    hub.cut_after = [500_000]
    assert fetch(published()).files["weights"].read_bytes() == CONTENT


def test_parts_of_two_versions_are_never_joined(hub: Hub) -> None:
    hub.cut_after = [500_000, 0, 0]
    with pytest.raises(GenSegError, match="connection broke"):
        fetch(published())
    renewed = CONTENT[::-1]
    hub.files["/lab/net/resolve/main/models/weights.pt"] = renewed
    assert fetch(published()).files["weights"].read_bytes() == renewed


def test_a_part_that_nothing_can_check_is_not_continued_later(hub: Hub) -> None:
    hub.names_sha256 = False
    with pytest.raises(Cancelled):
        fetch(published(), cancel_at(0.3))
    hub.files["/lab/net/resolve/main/models/weights.pt"] = CONTENT[::-1]
    assert fetch(published()).files["weights"].read_bytes() == CONTENT[::-1]


def test_cancel_keeps_the_part(hub: Hub) -> None:
    with pytest.raises(Cancelled):
        fetch(published(), cancel_at(0.5))
    assert left_behind() == [f"weights.pt.{TRUE_SHA256[:16]}.part"]
    hub.asked.clear()
    assert fetch(published()).files["weights"].read_bytes() == CONTENT
    (start,) = {asked for method, _, asked in hub.asked if method == "GET"}
    assert start is not None


def cancel_at(limit: float) -> Progress:
    def progress(fraction: float, message: str) -> None:
        if fraction >= limit:
            raise Cancelled

    return progress


# What must not arrive


@pytest.mark.parametrize(("registry", "named", "blamed"), [
    ("e" * 64, None, "the registry"),
    (None, "f" * 64, "the hub"),
])
def test_a_wrong_hash_leaves_nothing(hub: Hub, registry: str | None, named: str | None, blamed: str) -> None:
    hub.named_sha256 = named
    with pytest.raises(GenSegError, match=rf"does not have the SHA-256 that {blamed} names; it was removed"):
        fetch(published(registry))
    assert left_behind() == []


def test_a_wrong_file_put_there_by_hand_is_refused(hub: Hub) -> None:
    folder = published_folder(published())
    folder.mkdir(parents=True)
    (folder / "weights.pt").write_bytes(b"something else")
    with pytest.raises(GenSegError, match="is not the published weights"):
        fetch(published(TRUE_SHA256))


def test_never_from_a_secure_to_an_open_connection() -> None:
    request = urllib.request.Request("https://hub.example/file")
    with pytest.raises(GenSegError, match="not secure"):
        _KeepSecure().redirect_request(request, None, 302, "Found", Message(), "http://elsewhere.example/file")


def test_a_full_disk_is_noticed_before_the_start(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(GenSegError, match="make room or set GENSEG_HOME"):
        fetch(published())
    assert [method for method, _, _ in hub.asked] == ["HEAD"]


# When the hub is not there


def closed_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_unreachable_hub_says_where_to_put_the_file(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSEG_HUB", closed_address())
    folder = published_folder(published())
    with pytest.raises(GenSegError) as caught:
        fetch(published())
    sentence = str(caught.value)
    assert "cannot be reached" in sentence
    assert f"ask the lab for weights.pt, put weights.pt into {folder} and run 'genseg bundles fetch" in sentence
    folder.mkdir(parents=True)
    (folder / "weights.pt").write_bytes(CONTENT)
    assert fetch(published(TRUE_SHA256)).files["weights"].read_bytes() == CONTENT


@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_refusals_of_the_hub_are_passed_on(hub: Hub, status: int) -> None:
    hub.status = status
    with pytest.raises(GenSegError, match=rf"the hub answers {status} .* put weights\.pt into"):
        fetch(published())
    assert left_behind() == []


def test_weights_that_can_only_be_had_by_hand(hub: Hub) -> None:
    with pytest.raises(GenSegError, match=r"cannot be fetched by GenSeg; ask the lab for weights\.pt"):
        fetch(published(hub=None))
    assert hub.asked == []


def test_nonsense_as_the_hubs_address(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENSEG_HUB", "ftp://old.example")
    with pytest.raises(GenSegError, match="must be an address that starts with https"):
        fetch(published())


# The command


def test_nothing_is_fetched_without_being_asked(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundles", "list"]) == 0
    assert main(["bundles", "show", "radimagenet-resnet50"]) == 0
    assert main(["bundles", "verify"]) == 0
    with pytest.raises(GenSegError, match="is not here"):
        find_bundle("radimagenet-resnet50")
    assert hub.asked == []


def test_fetch_command_makes_a_bundle(hub: Hub, tmp_path: Path) -> None:
    network = networks.build("resnet", {}).eval()
    checkpoint = tmp_path / "checkpoint.pt"
    torch.save(network.state_dict(), checkpoint)
    hub.files["/Lab-Rasool/RadImageNet/resolve/main/ResNet50.pt"] = checkpoint.read_bytes()
    command = [sys.executable, "-m", "GenSegLogic.cli", "bundles", "fetch", "radimagenet-resnet50", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ.copy(), check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout.splitlines()[-1])
    assert "commercial use not stated" in result["messages"][0]
    assert any(COMMIT in message for message in result["messages"])
    bundle = find_bundle("radimagenet-resnet50")
    assert result["digest"] == bundle.digest
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(load_bundle(bundle).networks["encoder"](image), network(image))
    assert not (tmp_path / "home" / "fetched" / "radimagenet-resnet50").exists()  # the bundle holds the same weights
    hub.asked.clear()
    assert main(["bundles", "fetch", "radimagenet-resnet50"]) == 0
    assert hub.asked == []


def test_what_an_interrupted_fetch_left_goes_with_the_next(hub: Hub, tmp_path: Path) -> None:
    networks_file = tmp_path / "checkpoint.pt"
    torch.save(networks.build("resnet", {}).state_dict(), networks_file)
    hub.files["/Lab-Rasool/RadImageNet/resolve/main/ResNet50.pt"] = networks_file.read_bytes()
    fetch(find_published("radimagenet-resnet50"))
    folder = tmp_path / "home" / "fetched" / "radimagenet-resnet50"
    assert (folder / "ResNet50.pt").is_file()
    hub.asked.clear()
    assert main(["bundles", "fetch", "radimagenet-resnet50"]) == 0
    assert hub.asked == [] and find_bundle("radimagenet-resnet50").folder.is_dir() and not folder.exists()


def test_what_was_put_there_by_hand_stays_where_it_is(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "home" / "fetched" / "radimagenet-resnet50"
    folder.mkdir(parents=True)
    torch.save(networks.build("resnet", {}).state_dict(), folder / "ResNet50.pt")
    (folder / "notes.txt").write_text("mine")
    assert main(["bundles", "fetch", "radimagenet-resnet50"]) == 0
    assert hub.asked == [] and find_bundle("radimagenet-resnet50").folder.is_dir()
    assert f"{folder} still holds ResNet50.pt, notes.txt; the bundle does not need" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["ResNet50.pt", "notes.txt"]


def test_fetch_command_fails_in_one_line(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundles", "fetch", "radimagenet-resnet50", "--json"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("genseg: radimagenet-resnet50 was not fetched: the hub answers 404")
    assert captured.err.count("\n") == 1
