"""One HTTP request that never makes a window wait: sent, then looked after from time to time."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from ..errors import GenSegError
from .wire import LOOPBACK

BLOCKING_SECONDS = 30.0
"""How long a call that may block waits for its answer."""


class ServiceGone(GenSegError):
    """The service does not answer any more."""


class Call:
    """A request in flight. ``http.client`` knows no proxies, which would send 127.0.0.1 elsewhere.

    Every call has a connection of its own: on the loopback that costs a fraction of a millisecond, and none can be
    found closed by the other side.
    """

    def __init__(self, port: int, token: str, method: str, path: str, body: Any = None) -> None:
        """Send the request.

        Raises:
            ServiceGone: if nothing listens there.
        """
        self._connection = http.client.HTTPConnection(LOOPBACK, port, timeout=BLOCKING_SECONDS)
        headers = {"Authorization": f"Bearer {token}", "Connection": "close"}
        data = None
        if body is not None:
            data = json.dumps(body, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, path, data, headers)
        except OSError as error:
            self.close()
            raise ServiceGone("The GenSeg service does not answer.") from error

    def answered(self, seconds: float) -> bool:
        """Whether the answer has begun to arrive, after waiting at most ``seconds``.

        Raises:
            ServiceGone: if the connection broke.
        """
        sock = self._connection.sock
        sock.settimeout(max(seconds, 1e-3))
        try:
            sock.recv(1, socket.MSG_PEEK)  # select() would fail on the high descriptors of a long-running Slicer
        except TimeoutError:
            return False
        except OSError as error:
            self.close()
            raise ServiceGone("The GenSeg service does not answer.") from error
        finally:
            if self._connection.sock is not None:
                sock.settimeout(BLOCKING_SECONDS)
        return True

    def result(self) -> Any:
        """Wait for the answer and return its JSON value; None for an empty one.

        Raises:
            ServiceGone: if the connection broke or nothing came in time.
            GenSegError: the service's own sentence, if it refused.
        """
        try:
            response = self._connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceGone("The GenSeg service does not answer.") from error
        finally:
            self.close()
        try:
            value = json.loads(data) if data else None
        except ValueError as error:
            raise GenSegError("The GenSeg service gave an answer that is not JSON; restart it.") from error
        if response.status >= 400:
            detail = value.get("detail") if isinstance(value, dict) else None
            raise GenSegError(str(detail or f"The GenSeg service answered with the error {response.status}."))
        return value

    def close(self) -> None:
        """Drop the request."""
        self._connection.close()
