"""Limits on a request's body: its bytes, counted as they stream, and the time that it may take.

A body is never held before it is known to fit, and a client that sends it drop by drop is sent away.
"""

import asyncio
import re
from collections.abc import Callable

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flsys_ray.errors import InvalidInput, TooLarge, TryLater

JSON_BYTES = 1024 * 1024
PROGRAM_BYTES = 64 * 1024 * 1024
PATIENCE_S = 30.0
SLOWEST_BYTES_PER_S = 10_000.0  # 80 kbit/s: a phone on a bad day
SLOW_RETRY_S = 60.0
TOO_SLOW = "the body came too slowly: try again on a better connection"
# The whole path: a model may be called "update", and its plan is JSON all the same.
_COUNTED_BY_THE_ENDPOINT = re.compile(r"/v1/(assignments/[^/]*/update|models/[^/]*/(program|augmentation))")


class JsonBodyLimit:
    """ASGI middleware: a JSON body ends with 413 when it passes `JSON_BYTES`, with or without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _COUNTED_BY_THE_ENDPOINT.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        seen, whole = 0, False
        deadline = asyncio.get_running_loop().time() + time_for(JSON_BYTES)

        async def counted() -> Message:
            nonlocal seen, whole
            try:
                async with asyncio.timeout_at(None if whole else deadline):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(503, TOO_SLOW, {"Retry-After": f"{SLOW_RETRY_S:.0f}"}) from None
            whole = not message.get("more_body")
            seen += len(message.get("body", b""))
            if seen > JSON_BYTES:
                raise HTTPException(413, f"the body has more than {JSON_BYTES} bytes")
            return message

        await self.app(scope, counted, send)


def time_for(size: int) -> float:
    """Return the seconds that a body of so many bytes may take."""
    return PATIENCE_S + size / SLOWEST_BYTES_PER_S


async def read_body(request: Request, max_bytes: int, came: Callable[[int], None] = lambda size: None) -> bytes:
    """Return a request's body; `came` is told of the bytes as they come.

    Raises:
        TooLarge: as soon as it is known to have more than `max_bytes`.
        TryLater: it takes too long.
    """
    refusal = TooLarge(f"the body has more than {max_bytes} bytes")
    if declared_bytes(request) > max_bytes:
        raise refusal
    chunks, size = [], 0
    try:
        async with asyncio.timeout(time_for(max_bytes)):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    raise refusal
                came(len(chunk))
                chunks.append(chunk)
    except TimeoutError:
        raise TryLater(TOO_SLOW, SLOW_RETRY_S) from None
    except ClientDisconnect:  # an ordinary day of a phone, and no bug: nobody is there to read the answer
        raise InvalidInput("the connection ended before the body did") from None
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def declared_bytes(request: Request) -> int:
    """Return the length that a request says its body has, 0 if it says none."""
    return length_of(request.headers.get("content-length", ""))


def length_of(declared: str) -> int:
    """Return what a `Content-Length` says, 0 if that is no number."""
    return int(declared) if declared.isascii() and declared.isdigit() else 0
