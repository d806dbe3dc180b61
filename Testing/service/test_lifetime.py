"""Killed services, ended parents, restarts: nothing hangs and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from GenSegLogic.errors import GenSegError
from GenSegLogic.service import ServiceGone, ServiceProcess
from GenSegLogic.service.exchange import OWNER_FILE, PREFIX, Exchange
from GenSegLogic.volume import Volume

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("tiny_service.py")


def _until(condition, seconds: float = 120.0) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_service_killed_in_mid_job_is_one_sentence_and_the_next_one_works(start, scan: Volume) -> None:
    service = start()
    client = service.wait()
    job = client.submit("steps", {"steps": 1000, "seconds": 0.05}, {"image": scan})
    assert _until(lambda: job.poll().state == "running")
    psutil.Process(service.pid).kill()
    with pytest.raises(ServiceGone) as gone:
        job.wait()
    message = str(gone.value)
    how = "was ended by signal 9" if os.name == "posix" else "ended"
    assert message.startswith(f"The GenSeg service {how}")
    assert str(service.log_path) in message and message.count("\n") == 0 and message.endswith(".")
    assert not service.running and not client.folder.exists()
    for action in (job.poll, job.cancel, client.health, service.poll):
        with pytest.raises(ServiceGone, match="The GenSeg service"):
            action()
    job.delete()
    assert start().wait().run("steps", {}, {"image": scan}).summary == "11 voxels above 0."
    assert Path(f"{service.log_path}.previous").exists()


def test_a_crash_inside_a_job_is_one_sentence(start, scan: Volume) -> None:
    client = start().wait()
    with pytest.raises(ServiceGone, match="ended with exit code 7 while it was needed"):
        client.run("steps", {"fail": "exit"}, {"image": scan})


def test_stop_ends_the_process_in_mid_job_and_deletes_its_folder(start, scan: Volume) -> None:
    service = start()
    client = service.wait()
    job = client.submit("steps", {"steps": 1000, "seconds": 0.05}, {"image": scan})
    assert _until(lambda: job.poll().state == "running")
    process = psutil.Process(service.pid)
    service.stop()
    assert not process.is_running() and not client.folder.exists()
    with pytest.raises(ServiceGone, match="has been stopped"):
        client.health()


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_service_and_deletes_its_folder(start, number: int) -> None:
    service = start()
    client = service.wait()
    os.kill(service.pid, number)
    assert _until(lambda: not service.running) and not client.folder.exists()


def test_a_long_step_does_not_keep_the_service_alive(start, scan: Volume) -> None:
    service = start()
    client = service.wait()
    job = client.submit("steps", {"seconds": 10.0}, {"image": scan})
    assert _until(lambda: job.poll().message.startswith("Step"))
    started = time.monotonic()
    service.stop()
    assert time.monotonic() - started < 8 and not client.folder.exists()


@pytest.mark.parametrize("input_reaches_service", [True, False])
def test_the_service_ends_with_the_process_that_started_it(tmp_path: Path, input_reaches_service: bool) -> None:
    """Also when standard input was not handed on by a launcher: then the process number alone is watched."""
    through = "" if input_reaches_service else textwrap.dedent("""
        import subprocess
        original = subprocess.Popen
        def popen(*arguments, **keywords):
            keywords["stdin"] = subprocess.DEVNULL
            process = original(*arguments, **keywords)
            process.stdin = open(os.devnull, "wb")
            return process
        subprocess.Popen = popen
    """)
    script = "import os, sys, time\n" + through + textwrap.dedent(f"""
        from GenSegLogic.service import ServiceProcess
        service = ServiceProcess.start(device="cpu", program={str(PROGRAM)!r}, log_path={str(tmp_path / "log")!r})
        client = service.wait()
        time.sleep(1.0)
        client.health()
        print(service.pid, client.folder, flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None
        pid, folder = parent.stdout.readline().split(maxsplit=1)
        service = psutil.Process(int(pid))
        assert service.is_running() and Path(folder.strip()).is_dir()
        parent.kill()
        assert _until(lambda: not service.is_running() or service.status() == psutil.STATUS_ZOMBIE)
        assert not Path(folder.strip()).exists()
    finally:
        parent.kill()
        parent.wait()
    ended = "standard input was closed" if input_reaches_service else "has ended"
    assert ended in (tmp_path / "log").read_text()


def test_polling_until_ready_takes_no_time(start) -> None:
    service = start()
    polls = []
    client = None
    while client is None:
        started = time.perf_counter()
        client = service.poll()
        polls.append(time.perf_counter() - started)
        time.sleep(0.01)
    assert len(polls) > 5 and np.median(polls) < 0.02
    assert client.health()["version"]


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(GenSegError, match="cannot be started with no-such-python"):
        ServiceProcess.start(python="no-such-python", log_path=tmp_path / "log")
    broken = tmp_path / "broken.py"
    broken.write_text("import sys; sys.exit('The service needs fastapi: install it.')")
    service = ServiceProcess.start(program=broken, log_path=tmp_path / "log")
    with pytest.raises(ServiceGone, match=r"did not start: The service needs fastapi: install it\."):
        service.wait()
    slow = tmp_path / "slow.py"
    slow.write_text("import time; time.sleep(60)")
    service = ServiceProcess.start(program=slow, log_path=tmp_path / "log")
    with pytest.raises(ServiceGone, match="did not start within 1 s"):
        service.wait(1.0)
    assert not service.running


def test_without_fastapi_the_service_says_what_to_install(tmp_path: Path) -> None:
    """A Python in which fastapi cannot be imported, as Slicer's before the first run."""
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError('no module', name='fastapi')")
    service = ServiceProcess.start(environment=os.environ | {"PYTHONPATH": str(tmp_path)}, log_path=tmp_path / "log")
    with pytest.raises(ServiceGone, match="The service needs fastapi: install it with pip install fastapi uvicorn"):
        service.wait()


def test_a_proxy_in_the_environment_is_not_asked(client, scan: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    assert client.run("steps", {}, {"image": scan}).summary


def test_the_token_is_neither_on_the_command_line_nor_inherited(start) -> None:
    service = start()
    client = service.wait()
    assert client._token not in " ".join(psutil.Process(service.pid).cmdline())


def test_the_client_needs_only_numpy() -> None:
    """Slicer's own Python must load it before anything is installed."""
    script = textwrap.dedent("""
        import sys
        import GenSegLogic.service
        heavy = {"torch", "monai", "fastapi", "uvicorn", "pydantic", "starlette", "psutil", "SimpleITK", "scipy"}
        found = sorted(heavy & set(sys.modules))
        assert not found, found
    """)
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=60)


def test_folders_of_killed_services_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, later, same, other = (tmp_path / f"{PREFIX}{name}" for name in ("dead", "later", "same", "other"))
    mine = json.dumps({"pid": os.getpid(), "command": psutil.Process().cmdline()})
    for folder, content in ((dead, f'{{"pid": {gone.pid}, "command": []}}'), (other, "no JSON"), (same, mine),
                            (later, f'{{"pid": {os.getpid()}, "command": ["genseg", "serve"]}}')):
        folder.mkdir()
        (folder / OWNER_FILE).write_text(content)
    script = "from GenSegLogic.service.exchange import Exchange; print(Exchange().folder, flush=True); input()"
    places = {name: str(tmp_path) for name in ("TMPDIR", "TEMP", "TMP")}
    alive = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             cwd=ROOT, env=os.environ | places)
    try:
        its_folder = Path(alive.stdout.readline().strip())
        assert not dead.exists() and not later.exists()
        private = Exchange()
        assert its_folder.exists() and private.folder != its_folder and not same.exists()
        assert other.exists()  # what is not understood is left alone
        assert os.name != "posix" or private.folder.stat().st_mode & 0o077 == 0
        private.remove()
    finally:
        alive.communicate("\n", timeout=60)
