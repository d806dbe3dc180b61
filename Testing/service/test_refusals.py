"""What the service must refuse: always a 4xx with one sentence, never a traceback, never a file outside."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from GenSegLogic.service import Client, exchange
from GenSegLogic.service.wire import TOKEN_VARIABLE
from GenSegLogic.volume import Volume

PROGRAM = Path(exchange.__file__).with_name("__main__.py")
TOKEN = "a-token-for-tests-only"
LARGE = 3_000_000


def _ask(client: Client, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    """Status and sentence of a raw request."""
    connection = http.client.HTTPConnection("127.0.0.1", client._port, timeout=30)
    try:
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in ({"Authorization": f"Bearer {client._token}"} | headers).items():
            connection.putheader(name, value)
        if body is not None and "Content-Length" not in headers and "Transfer-Encoding" not in headers:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    assert "Traceback" not in text
    answer = json.loads(text) if text else {}
    if response.status < 400:
        return response.status, text
    assert list(answer) == ["detail"] and isinstance(answer["detail"], str)
    assert answer["detail"].endswith(".") and "\n" not in answer["detail"] and len(answer["detail"]) < 600
    return response.status, answer["detail"]


def _post(client: Client, path: str, value: Any) -> tuple[int, str]:
    return _ask(client, "POST", path, json.dumps(value).encode(), **{"Content-Type": "application/json"})


def _announcement(**changes: Any) -> dict[str, Any]:
    right = {"shape": [2, 3, 4], "dtype": "int16", "affine": np.eye(4).tolist(), "name": "small", "metadata": {}}
    return right | changes


def _announced(client: Client) -> dict[str, Any]:
    status, text = _post(client, "/volumes", _announcement())
    assert status == 201
    return json.loads(text)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer wrong", "Basic eDp5", "Bearer \xff\xfe", "bearer  "])
@pytest.mark.parametrize("path", ["/health", "/jobs", "/openapi.json", "/nowhere"])
def test_wrong_token(client: Client, path: str, authorization: str) -> None:
    assert _ask(client, "GET", path, Authorization=authorization) == (401, "The bearer token is missing or wrong.")


def test_a_token_with_more_behind_it_is_wrong(client: Client) -> None:
    assert _ask(client, "GET", "/health", Authorization=f"Bearer {client._token}x")[0] == 401
    assert _ask(client, "GET", "/health", Authorization=f"Bearer {client._token[:-1]}")[0] == 401
    assert _ask(client, "GET", f"/health?token={client._token}", Authorization="")[0] == 401


@pytest.mark.parametrize("host", ["example.org", "192.168.0.1:80", "", "127.0.0.1.example.org", "[", "0.0.0.0"])
def test_another_host_in_the_request(client: Client, host: str) -> None:
    assert _ask(client, "GET", "/health", Host=host)[0] in (400, 421)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:1"])
def test_names_of_this_machine_are_accepted(client: Client, host: str) -> None:
    assert _ask(client, "GET", "/health", Host=host)[0] == 200


def test_oversized_body(client: Client) -> None:
    status, detail = _ask(client, "POST", "/jobs", b"[" * LARGE)
    assert status == 413 and "larger than 1024 kB" in detail
    status, _detail = _ask(client, "POST", "/jobs", **{"Content-Length": str(1 << 60)})
    assert status == 413
    chunks = b"%x\r\n" % LARGE + b" " * LARGE + b"\r\n0\r\n\r\n"
    status, _detail = _ask(client, "POST", "/jobs", chunks, **{
        "Transfer-Encoding": "chunked", "Content-Type": "application/json"})
    assert status == 413


@pytest.mark.parametrize("changes", [
    {"shape": [1 << 20, 1 << 20, 1 << 20]}, {"shape": [10**30, 1, 1]}, {"shape": [1 << 62, 4, 1]}])
def test_oversized_volume(client: Client, changes: dict[str, Any]) -> None:
    status, detail = _post(client, "/volumes", _announcement(**changes))
    assert status == 413 and "at most 8192 MB" in detail


@pytest.mark.parametrize("changes", [
    {"shape": [2, 3]}, {"shape": [0, 3, 4]}, {"shape": [-1, -1, 4]}, {"shape": [2.5, 3, 4]}, {"shape": "large"},
    {"dtype": "object"}, {"dtype": "complex64"}, {"dtype": "V8"}, {"dtype": ">i2"}, {"dtype": "i2,i2"},
    {"affine": [[1, 0], [0, 1]]}, {"affine": np.zeros((4, 4)).tolist()}, {"affine": None},
    {"affine": np.diag([float("inf"), 1, 1, 1]).tolist()}, {"affine": np.diag([float("nan"), 1, 1, 1]).tolist()},
    {"affine": np.diag([1e200, 1, 1, 1]).tolist()}, {"affine": np.diag([1, 1, 1, 2]).tolist()},
    {"affine": [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]}, {"metadata": []}, {"metadata": None},
    {"path": "/etc/passwd"}, {"name": None}, {"name": "x" * 2000},
])
def test_malformed_announcement(client: Client, changes: dict[str, Any]) -> None:
    before = set(client.folder.iterdir())
    assert _post(client, "/volumes", _announcement(**changes))[0] == 422
    assert set(client.folder.iterdir()) == before


@pytest.mark.parametrize("body", [
    b"", b"{", b"null", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"task": NaN}', b"1" * 5000])
@pytest.mark.parametrize("path", ["/volumes", "/jobs"])
def test_malformed_body(client: Client, path: str, body: bytes) -> None:
    assert _ask(client, "POST", path, body, **{"Content-Type": "application/json"})[0] in (400, 422)


_PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_JSON = st.recursive(_PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner,
                                                                                       max_size=4), max_leaves=12)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=st.sampled_from(["shape", "dtype", "affine", "name", "metadata", "task", "parameters", "volumes", "device"]),
       value=_JSON)
def test_any_json_gets_a_sentence(client: Client, key: str, value: Any) -> None:
    job = {"task": "steps", "parameters": {}, "volumes": {"image": "x"}}
    right = _announcement() if key in _announcement() else job
    status, _detail = _post(client, "/volumes" if "shape" in right else "/jobs", right | {key: value})
    assert status in (201, 400, 404, 413, 422)


def _submit_file(client: Client, make) -> str:
    """Announce a volume, let ``make`` put something in its place, and return why the job is refused."""
    stored = _announced(client)
    make(Path(stored["path"]))
    status, detail = _post(client, "/jobs", {"task": "steps", "volumes": {"image": stored["id"]}})
    client.request("DELETE", f"/volumes/{stored['id']}")
    assert status == 422
    return detail


def _save(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as stream:
        np.save(stream, array)


def test_malformed_volume_files(client: Client, tmp_path: Path) -> None:
    right = np.zeros((2, 3, 4), np.int16)

    def cut(path: Path) -> None:
        _save(right, path)
        os.truncate(path, path.stat().st_size - 1)

    def longer(path: Path) -> None:
        _save(right, path)
        os.truncate(path, 1 << 20)

    assert "is missing" in _submit_file(client, lambda path: None)
    headers = [b"\x01\x00\x10\x00" + text for text in (b"(" * 16, b" " * 16, b"{'shape': 1}    ", b"__import__('os')")]
    headers += [b"\x09\x00\x10\x00" + b" " * 16, b"\x02\x00\xff\xff\xff\xff", b"\x01\x00"]
    for content in (b"", os.urandom(1000), *(b"\x93NUMPY" + header for header in headers)):
        assert "not a .npy" in _submit_file(client, lambda path, content=content: path.write_bytes(content))
    assert "bytes, but its header promises" in _submit_file(client, cut)
    assert "bytes, but its header promises" in _submit_file(client, longer)
    wider = right.astype(np.int32)
    assert "but int16 of shape 2×3×4 was announced" in _submit_file(client, lambda path: _save(wider, path))
    assert "holds int16 of shape 4×3×2" in _submit_file(client, lambda path: _save(right.reshape(4, 3, 2), path))
    assert "Fortran order" in _submit_file(client, lambda path: _save(np.asfortranarray(right), path))
    assert "holds object" in _submit_file(client, lambda path: _save(np.array([{}], object), path))
    assert "cannot be opened" in _submit_file(client, lambda path: path.mkdir())


@pytest.mark.skipif(sys.platform == "win32", reason="links and named pipes need rights there")
def test_links_are_not_followed(client: Client, tmp_path: Path) -> None:
    outside = tmp_path / "outside.npy"
    _save(np.zeros((2, 3, 4), np.int16), outside)
    assert "is a link" in _submit_file(client, lambda path: path.symlink_to(outside))
    assert "is a link" in _submit_file(client, lambda path: path.symlink_to("/dev/zero"))
    assert "not a plain file" in _submit_file(client, lambda path: path.hardlink_to(outside))
    assert "not a plain file" in _submit_file(client, lambda path: os.mkfifo(path))
    assert outside.exists()


def test_voxels_that_are_no_numbers_fail_the_job(client: Client, scan: Volume) -> None:
    voxels = scan.voxels.astype(np.float32)
    voxels[0, 0, 0] = np.nan
    job = client.submit("steps", {}, {"image": scan.with_voxels(voxels)})
    assert job.wait().state == "failed" and "not finite" in job.state.error


def test_a_file_changed_while_its_job_waits_fails_that_job_only(client: Client, scan: Volume) -> None:
    before = client.submit("steps", {"steps": 5, "seconds": 0.1}, {"image": scan})
    files = set(client.folder.iterdir())
    job = client.submit("steps", {}, {"image": scan})
    [path] = [path for path in set(client.folder.iterdir()) - files if path.stat().st_size > 0]
    os.truncate(path, 100)
    assert job.wait().state == "failed" and "The volume small" in job.state.error
    assert before.wait().state == "done"


@pytest.mark.parametrize(("changes", "said"), [
    ({"task": "nothing"}, "There is no task 'nothing'; the tasks are echo, steps."),
    ({"task": "../steps"}, "no task"),
    ({"task": "os:system"}, "no task"),
    ({"parameters": {"steps": 0}}, "steps is 0, but must be between 1 and 10000"),
    ({"parameters": {"steps": "3"}}, "steps: steps does not fit"),
    ({"parameters": {"steps": 2.5}}, "does not fit"),
    ({"parameters": {"steps": True}}, "does not fit"),
    ({"parameters": {"seconds": None}}, "does not fit"),
    ({"parameters": {"fail": "perhaps"}}, "must be one of"),
    ({"parameters": {"points": [[1, 2]]}}, "does not fit"),
    ({"parameters": {"nothing": 1}}, "has no parameter 'nothing'"),
    ({"parameters": {"__class__": 1}}, "has no parameter"),
    ({"parameters": []}, "does not fit"),
    ({"volumes": {}}, "needs a volume as 'image'"),
    ({"volumes": {"image": "../../etc/passwd"}}, "no such volume"),
    ({"volumes": {"image": "/etc/passwd"}}, "no such volume"),
    ({"volumes": {"other": "x"}}, "takes no 'other'"),
    ({"device": "cuda:99"}, "There is no device 'cuda:99' here"),
    ({"unknown": 1}, "does not fit"),
])
def test_refused_jobs(client: Client, scan: Volume, changes: dict[str, Any], said: str) -> None:
    stored = _announced(client)
    list(exchange.writing(Path(stored["path"]), scan.voxels))
    status, detail = _post(client, "/jobs", {"task": "steps", "volumes": {"image": stored["id"]}} | changes)
    client.request("DELETE", f"/volumes/{stored['id']}")
    assert status in (404, 422) and said in detail
    assert client.request("GET", "/jobs") == []


@pytest.mark.parametrize("text", [
    "/etc", "../..", "..", ".", "C:\\Windows", "\\\\server\\share", "a/b", "nul\0", "~", "-o", "GenSegLogic"])
def test_a_parameter_is_never_a_path(client: Client, scan: Volume, text: str) -> None:
    """``GenSegLogic`` is a folder where the service was started."""
    stored = _announced(client)
    list(exchange.writing(Path(stored["path"]), scan.voxels))
    request = {"task": "steps", "parameters": {"bundle": text}, "volumes": {"image": stored["id"]}}
    status, detail = _post(client, "/jobs", request)
    assert status == 422 and "paths are not accepted here" in detail


@pytest.mark.parametrize("path", [
    "/jobs/unknown", "/jobs/..%2f..%2fetc%2fpasswd", "/jobs/%00", "/jobs/../../etc/passwd", "//etc/passwd",
    "/jobs/unknown/events", "/jobs/unknown/results", "/jobs/unknown/outputs/..%2f..%2fetc%2fpasswd",
    "/jobs/unknown/outputs/%2e%2e", "/volumes/..", "/nowhere", "/%", "/docs", "/redoc", "/jobs/" + "x" * 5000])
def test_unknown_addresses(client: Client, path: str) -> None:
    assert _ask(client, "GET", path)[0] in (404, 405)
    assert _ask(client, "DELETE", path)[0] in (404, 405)


def test_outputs_by_name_and_nothing_else(client: Client, scan: Volume) -> None:
    job = client.submit("steps", {}, {"image": scan})
    job.wait()
    for name, expected in (("negative", -scan.voxels), ("negative.seg", scan.voxels > 0)):
        connection = http.client.HTTPConnection("127.0.0.1", client._port, timeout=30)
        authorization = {"Authorization": f"Bearer {client._token}"}
        connection.request("GET", f"/jobs/{job.id}/outputs/{name}", headers=authorization)
        data = connection.getresponse().read()
        connection.close()
        header = data.index(b"\n") + 1
        assert np.array_equal(np.frombuffer(data[header:], expected.dtype if name == "negative" else np.uint8),
                              expected.ravel())
    owner = exchange.OWNER_FILE
    for name in (owner, f"..%2f{owner}", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "negative%00", "nothing", "."):
        assert _ask(client, "GET", f"/jobs/{job.id}/outputs/{name}")[0] == 404


def test_a_volume_in_use_is_not_deleted(client: Client, scan: Volume) -> None:
    first = client.submit("steps", {"steps": 20, "seconds": 0.05}, {"image": scan})
    status, detail = _ask(client, "DELETE", f"/volumes/{first._volume_ids[0]}")
    assert status == 409 and "still needs this volume" in detail
    first.delete()


def test_a_full_queue(client: Client, scan: Volume) -> None:
    jobs = [client.submit("steps", {"steps": 1000, "seconds": 0.1}, {"image": scan})]
    while jobs[0].poll().state != "running":
        pass
    request = {"task": "steps", "volumes": {"image": jobs[0]._volume_ids[0]}}
    answers = [_post(client, "/jobs", request) for _number in range(33)]
    assert [status for status, _text in answers] == [201] * 32 + [429]
    assert "32 jobs are waiting already" in answers[-1][1]


def test_noise_on_the_socket_does_no_harm(client: Client) -> None:
    for noise in (b"\x16\x03\x01" + os.urandom(200), b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"A" * 200_000):
        with socket.create_connection(("127.0.0.1", client._port), timeout=10) as raw:
            try:
                raw.sendall(noise)
                raw.shutdown(socket.SHUT_WR)
                answer = raw.recv(1000)
            except OSError:
                answer = b""
            assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert client.health()["status"]


def _serve(*arguments: str, token: str | None, temporary: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != TOKEN_VARIABLE}
    environment |= {"TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    if token is not None:
        environment[TOKEN_VARIABLE] = token
    return subprocess.run([sys.executable, PROGRAM, *arguments], env=environment, capture_output=True, text=True,
                          timeout=60, check=False)


@pytest.mark.parametrize(("arguments", "token", "said"), [
    (["--host", "0.0.0.0"], TOKEN, "listens on this machine only (127.0.0.1), so 0.0.0.0 is refused"),
    (["--host", "192.168.1.5"], TOKEN, "so 192.168.1.5 is refused"),
    (["--host", "example.org"], TOKEN, "so example.org is refused"),
    ([], None, "needs a token"),
    ([], "short", "at least 16"),
    (["--token-file", "no-such-file"], None, "no-such-file cannot be read"),
    (["--parent", "999999999"], TOKEN, "no process 999999999"),
    (["--port", "70000"], TOKEN, "cannot listen on port 70000"),
    (["--device", "toaster"], TOKEN, "toaster"),
])
def test_a_service_that_may_not_start(arguments: list[str], token: str | None, said: str, tmp_path: Path) -> None:
    result = _serve(*arguments, token=token, temporary=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert result.returncode == 1
    assert said in result.stderr and result.stderr.count("\n") == 1 and TOKEN not in result.stderr
