"""What every request passes before anything else looks at it: host, token, size."""

from __future__ import annotations

import hmac
import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_LIMIT_BYTES = 1 << 20  # bodies are descriptions only; voxels travel as files
_DRAIN_LIMIT_BYTES = 16 << 20


class Gate:
    """ASGI middleware that lets in only requests to this machine, with the token and a body of reasonable size."""

    def __init__(self, app: ASGIApp, token: str, body_limit: int = BODY_LIMIT_BYTES) -> None:
        self._app, self._token, self._limit = app, token.encode(), body_limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one sentence."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # a WebSocket; there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        refusal = self._refusal(headers)
        if refusal is not None:
            await _drain(receive, headers)
            await refusal(scope, receive, send)
            return
        await self._app(scope, self._limited(receive), send)

    def _refusal(self, headers: Headers) -> JSONResponse | None:
        # A web page that points its own name at 127.0.0.1 comes with that name as its host.
        if not _is_loopback(headers.get("host", "")):
            return _answer(421, "This service answers on this machine's loopback address only.")
        scheme, _, given = headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token)
        if scheme.lower() != "bearer" or not right:
            return _answer(401, "The bearer token is missing or wrong.", {"WWW-Authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > self._limit:
            return _answer(413, self._too_large)
        return None

    @property
    def _too_large(self) -> str:
        return f"The request is larger than {self._limit >> 10} kB; voxels travel as files, not in requests."

    def _limited(self, receive: Receive) -> Receive:
        """Count a body that does not say its length."""
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._limit:
                raise HTTPException(413, self._too_large)
            return message

        return limited


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _answer(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, headers)


async def _drain(receive: Receive, headers: Headers) -> None:
    """Read on a little, for closing on a client that still sends would lose it the answer."""
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length[:20]) > _DRAIN_LIMIT_BYTES:
        return
    received = 0
    while received < _DRAIN_LIMIT_BYTES:
        message = await receive()
        received += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
