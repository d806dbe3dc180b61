"""The process that runs the service: started, watched and ended by the client. Standard library only."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from ..bundles import cache_folder
from ..errors import GenSegError
from .client import Client, ServiceGone
from .wire import TOKEN_VARIABLE

_PROGRAM = Path(__file__).with_name("__main__.py")
_GREETING = b"genseg\n"  # see lifetime.py
_STOP_SECONDS = 10.0
_LAUNCHER_SECONDS = 1.0


class ServiceProcess:
    """One service process, that ends with this one.

    After it has ended, for whatever reason, :meth:`start` another; nothing is left behind.
    """

    def __init__(self, process: subprocess.Popen[bytes], token: str, private: Path, log_path: Path) -> None:
        """Use :meth:`start`."""
        self.log_path = log_path
        self._process = process
        self._token = token
        self._private = private
        self._client: Client | None = None
        self._pid: int | None = None
        self._stopped = False

    @classmethod
    def start(
        cls,
        python: str | None = None,
        device: str = "auto",
        environment: Mapping[str, str] | None = None,
        log_path: str | Path | None = None,
        program: str | Path = _PROGRAM,
    ) -> ServiceProcess:
        """Start a service; returns at once. Follow with :meth:`poll` or :meth:`wait`.

        Args:
            python: the Python to run it with; None: this one. Inside Slicer, give PythonSlicer's path.
            device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
            environment: the new process's; None: this one's. Inside Slicer, give the startup environment.
            log_path: where everything that it says goes; the log of the run before is kept with ``.previous`` added.
                None: ``service.log`` in GenSeg's cache folder.
            program: what to run, by path, so that a source checkout needs no place on Python's path.

        Raises:
            GenSegError: if the process cannot be started.
        """
        private = Path(tempfile.mkdtemp(prefix="genseg-service-"))  # readable by this user only
        log = Path(log_path).absolute() if log_path is not None else cache_folder() / "service.log"
        token = secrets.token_urlsafe(32)
        command = [python or sys.executable, str(program), "--device", device, "--parent", str(os.getpid()),
                   "--ready-file", str(private / "ready.json")]
        try:
            with _open_log(log) as stream:  # a file, not a pipe: nobody has to drain it
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=stream, stderr=stream, bufsize=0,
                    env={**(os.environ if environment is None else environment), TOKEN_VARIABLE: token},
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                    start_new_session=os.name == "posix",  # a Ctrl+C in Slicer's terminal is Slicer's
                )
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # it has ended already; poll says why
                process.stdin.write(_GREETING)
        except OSError as error:
            shutil.rmtree(private, ignore_errors=True)
            raise GenSegError(f"The GenSeg service cannot be started with {command[0]}: {error.strerror}.") from error
        return cls(process, token, private, log)

    def poll(self) -> Client | None:
        """The client once the service answers, None as long as it is starting; takes no time. Made for a timer.

        Raises:
            ServiceGone: if it has ended, with the reason as far as it is known.
        """
        if self._stopped or self._process.poll() is not None:
            raise ServiceGone(self._why_gone())
        if self._client is None:
            with contextlib.suppress(FileNotFoundError):
                ready = json.loads((self._private / "ready.json").read_text(encoding="utf-8"))
                self._pid = int(ready["pid"])
                self._client = Client(ready["port"], self._token, ready["exchange"], self._why_gone)
                shutil.rmtree(self._private, ignore_errors=True)
        return self._client

    def wait(self, seconds: float = 120.0) -> Client:
        """Wait until the service answers.

        Raises:
            ServiceGone: if it ends instead, or takes longer than ``seconds``.
        """
        end = time.monotonic() + seconds
        while (client := self.poll()) is None:
            if time.monotonic() > end:
                self.kill()
                raise ServiceGone(f"The GenSeg service did not start within {seconds:.0f} s; see {self.log_path}.")
            time.sleep(0.02)
        return client

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return not self._stopped and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """The service's process, which a launcher may have started in turn; None before it is ready."""
        return self._pid

    def stop(self, seconds: float = _STOP_SECONDS) -> None:
        """End the service and wait for it. It deletes its exchange folder; running jobs are cancelled."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        self._tidy()

    def kill(self) -> None:
        """End the service at once."""
        with contextlib.suppress(GenSegError):
            self.poll()  # it may have become ready since, and said which process it is
        kill_launched(self._process, self._pid)
        self._tidy()

    def __enter__(self) -> ServiceProcess:
        return self

    def __exit__(self, *_reason: object) -> None:
        self.stop()

    def _tidy(self) -> None:
        """Delete what is left of a service that has ended: a killed one could not."""
        self._stopped = True
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        if self._client is not None:
            shutil.rmtree(self._client.folder, ignore_errors=True)
        shutil.rmtree(self._private, ignore_errors=True)

    def _why_gone(self) -> str:
        """One sentence; called when the service does not answer any more."""
        if self._stopped:
            return "The GenSeg service has been stopped; start it again."
        try:
            code = self._process.wait(1.0)  # a connection breaks a moment before the process has ended
        except subprocess.TimeoutExpired:
            return f"The GenSeg service runs, but does not answer; restart it, and see {self.log_path}."
        if self._client is None:
            said = _last_line(self.log_path) or f"exit code {code}"
            self._tidy()
            return f"The GenSeg service did not start: {said}"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        self._tidy()
        return (f"The GenSeg service {how} while it was needed; nothing was changed, so run again, and see "
                f"{self.log_path} if it happens twice.")


def kill_launched(process: subprocess.Popen[bytes], pid: int | None) -> None:
    """End a process at once, with the one that it may have started in its place, and wait for it.

    Args:
        process: what was started; where it is a launcher (PythonSlicer is one), killing it leaves the program alive.
        pid: the number that the program itself has said; None: it has said none yet.
    """
    if process.poll() is not None:
        return
    if pid is not None and pid != process.pid:
        with contextlib.suppress(OSError):
            os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_LAUNCHER_SECONDS)  # it ends after its program, whose files can be deleted from then on
    process.kill()
    process.wait()


def _open_log(path: Path) -> BinaryIO:
    """The log, empty; the one before is kept once, for it may tell of a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with contextlib.suppress(OSError):  # on Windows, while the process before still holds it
            os.replace(path, path.with_name(path.name + ".previous"))
    return open(path, "ab")


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:500] if lines else ""
