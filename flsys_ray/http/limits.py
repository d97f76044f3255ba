"""Limits on the bytes of a request's body, counted as they stream: a body is never held before it is known to fit."""

import re

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flsys_ray.errors import InvalidInput, TooLarge

JSON_BYTES = 1024 * 1024
PROGRAM_BYTES = 64 * 1024 * 1024
# The whole path: a model may be called "update", and its plan is JSON all the same.
_COUNTED_BY_THE_ENDPOINT = re.compile(r"/v1/(assignments/[^/]*/update|models/[^/]*/program)")


class JsonBodyLimit:
    """ASGI middleware: a JSON body ends with 413 when it passes `JSON_BYTES`, with or without a Content-Length."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or _COUNTED_BY_THE_ENDPOINT.fullmatch(scope["path"]):
            await self.app(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > JSON_BYTES:
                raise HTTPException(413, f"the body has more than {JSON_BYTES} bytes")
            return message

        await self.app(scope, counted, send)


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return a request's body. Raises `TooLarge` as soon as it is known to have more than `max_bytes`."""
    refusal = TooLarge(f"the body has more than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared) > max_bytes:
        raise refusal
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise refusal
            chunks.append(chunk)
    except ClientDisconnect:  # an ordinary day of a phone, and no bug: nobody is there to read the answer
        raise InvalidInput("the connection ended before the body did") from None
    return b"".join(chunks)
