"""Run the service in this process until it is told to end. Imported only for that, for it needs FastAPI and uvicorn."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import uvicorn

from .. import __version__
from ..errors import GenSegError
from .lifetime import watch_parent
from .server import TIME_TO_LIVE_SECONDS, Service, create_app
from .wire import LOOPBACK

logger = logging.getLogger(__name__)

TOKEN_LENGTH = 16
_END_SECONDS = 8.0


class _Server(uvicorn.Server):
    """Says when it is ready."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()


def run_service(
    token: str,
    devices: Sequence[str] = ("auto",),
    host: str = LOOPBACK,
    port: int = 0,
    ready_file: Path | None = None,
    parent: int | None = None,
    time_to_live: float = TIME_TO_LIVE_SECONDS,
    say: Callable[[str], None] = lambda sentence: None,
) -> None:
    """Serve until a signal comes or the parent ends.

    Args:
        token: the bearer token that every request must bring; at least 16 letters.
        devices: one queue each, as :class:`GenSegLogic.engine.Engine` takes them.
        host: a loopback address; no other is accepted.
        port: 0 lets the system choose.
        ready_file: written, whole or not at all, when the service answers: port, pid, version, exchange folder.
        parent: process whose end ends the service.
        time_to_live: seconds after which what nobody asks for is deleted.
        say: told the address in one sentence.

    Raises:
        GenSegError: if the token is too short, the host is not this machine's loopback, or the port is taken.
    """
    if len(token) < TOKEN_LENGTH or not token.isascii() or not token.isprintable() or " " in token:
        raise GenSegError(f"The service's token must have at least {TOKEN_LENGTH} plain letters and digits.")
    listening = _listen(host, port)
    service: Service | None = None
    try:
        service = Service(list(devices), time_to_live)
        address, port = listening.getsockname()[:2]

        def ready() -> None:
            if ready_file is not None:
                _write_whole(ready_file, {"port": port, "pid": os.getpid(), "version": __version__,
                                          "exchange": str(service.exchange.folder)})
            say(f"GenSeg listens on http://{f'[{address}]' if ':' in address else address}:{port}")

        # No access log: what clients ask for is theirs. log_config None: records go where the caller's logging goes.
        config = uvicorn.Config(create_app(service, token), log_config=None, access_log=False, http="h11", ws="none",
                                lifespan="on", server_header=False, timeout_graceful_shutdown=1)
        server = _Server(config, ready)
        if parent is not None:
            watch_parent(parent, lambda reason: _end(server, service, reason))
        server.run([listening])
    except KeyboardInterrupt:
        logger.info("interrupted")
    finally:
        listening.close()
        if service is not None and not service.close(0.0):
            # A job is inside a long step. Python would wait for nobody, but tearing libraries down under it may crash.
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)


def _end(server: uvicorn.Server, service: Service, reason: str) -> None:
    """End the service; from a thread of the parent's watch."""
    logger.info("%s, so the service ends", reason)
    server.should_exit = True

    def enforce() -> None:
        service.exchange.remove()
        os._exit(1)

    timer = threading.Timer(_END_SECONDS, enforce)
    timer.daemon = True
    timer.start()


def _listen(host: str, port: int) -> socket.socket:
    try:
        address = ipaddress.ip_address(LOOPBACK if host == "localhost" else host)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise GenSegError(f"The service listens on this machine only ({LOOPBACK}), so {host} is refused as its host.")
    listening = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET)
    try:
        if sys.platform == "win32":  # where SO_REUSEADDR would let another program take the port over
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((str(address), port))
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise GenSegError(f"The service cannot listen on port {port}: {reason}; choose another or 0.") from error
    return listening


def _write_whole(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content), encoding="utf-8")
    os.replace(partial, path)
