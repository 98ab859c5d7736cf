"""What a request must pass before the page's code sees it, and the headers that every response carries.

The page holds patients' images, so other sites in the same browser, other programs and other computers must not get at
it: a secret in the link (its fragment, which no server and no log receives) comes back as a header with each request
for data; requests from other origins are refused; a body has a size and a time.
"""

import asyncio
import hmac
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

# A clip of 120 uncompressed frames of 800 x 600 pixels in colour has 173 MB.
MOST_BYTES = 256 << 20
# Seconds for a whole body: on the same computer the largest takes one.
_LONGEST = 60.0
# Bodies in memory at the same time.
_MOST_BODIES = 3

_LONGEST_PATH = 500

LINK_HEADER = "x-bus-smp-link"

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware.

    Args:
        token: what ``LINK_HEADER`` must be for every path below ``/api/``.
        most, longest: bytes and seconds of a request's body.
    """

    def __init__(self, app: ASGIApp, token: str, most: int = MOST_BYTES, longest: float = _LONGEST) -> None:
        self.app, self._token, self._most, self._longest = app, token, most, longest
        self._bodies = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its whole body, or answer it with the reason why not."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        status, words = self._refusal(scope, headers)
        body = b""
        if not status:
            if self._bodies >= _MOST_BODIES:
                status, words = 503, "busy: other uploads are under way; try again in a moment"
            else:
                self._bodies += 1
                try:
                    body = await asyncio.wait_for(self._read(receive), self._longest)
                except TimeoutError:
                    status, words = 408, f"the upload took longer than {self._longest:g} s"
                except _TooLarge:
                    status, words = 413, self._too_large()
                except ConnectionError:
                    return
                finally:
                    self._bodies -= 1
        if status:
            # what is left of the body is not read: the connection ends
            refusal = JSONResponse({"error": words}, status, {"connection": "close"})
            await refusal(scope, receive, guarded)
            return
        messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, guarded)

    def _too_large(self) -> str:
        return f"the file is larger than {self._most >> 20} MB"

    def _refusal(self, scope: Scope, headers: Headers) -> tuple[int, str]:
        """Status and reason; 0 for a request that may pass."""
        # such a number is none that Python reads
        if len(scope["path"]) > _LONGEST_PATH:
            return 414, "the address is too long"
        # the page itself holds nothing; a browser opens it from anywhere
        if not scope["path"].startswith("/api/"):
            return (0, "") if scope["method"] in ("GET", "HEAD") else (405, "only GET")
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return 403, "a request from another site"
        if headers.get("origin", own := f"{scope['scheme']}://{headers.get('host')}") != own:
            return 403, "a request from another site"
        given = headers.get(LINK_HEADER, "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return 401, "open the page by the link that bus-smp serve printed"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._most:
            return 413, self._too_large()
        return 0, ""

    async def _read(self, receive: Receive) -> bytes:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ConnectionResetError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most:
                raise _TooLarge
            more = message.get("more_body", False)
        return b"".join(parts)


class TimedProtocol(H11Protocol):
    """HTTP whose headers come in time: uvicorn waits for them without end, and a connection that waits takes a place."""

    # Seconds from the beginning of the wait to its end: once to twice of these.
    patience = 15.0

    def connection_made(self, transport: Any) -> None:
        """Begin to look at the connection from time to time."""
        super().connection_made(transport)
        self.loop.call_later(self.patience, self._look, None)

    def _look(self, before: Any) -> None:
        now = (self.cycle,) if self.conn.their_state is h11.IDLE else None
        if now is not None and now == before:
            self.transport.close()
        if not self.transport.is_closing():
            self.loop.call_later(self.patience, self._look, now)


class _TooLarge(Exception):
    pass
