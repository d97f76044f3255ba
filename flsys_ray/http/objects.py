"""Downloads of immutable objects: entity tags, ranges and caching (RFC 9110)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from flsys_ray.errors import Missing, NotFound
from flsys_ray.storage.base import ObjectStore

FOR_EVER = "private, max-age=31536000, immutable"
REVALIDATE = "private, no-cache"
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


@dataclass(frozen=True, slots=True)
class Download:
    """One object of the store to be sent: `sha256` is that of its bytes, and its entity tag."""

    key: str
    sha256: str
    media_type: str
    cache: str
    headers: Mapping[str, str]


def serve(store: ObjectStore, request: Request, download: Download) -> Response:
    """Answer 200, 206 for a range, 304, or 416 with the size. Raises `NotFound`."""
    etag = f'"{download.sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": download.cache,
        "Flsys-Sha256": download.sha256,
        **download.headers,
    }
    try:
        size = store.get(download.key, 0, 0).size
        if _is_held(request, etag):
            return Response(status_code=304, headers=headers)
        span = _span(request, etag, size)
        if span is None:
            return Response(store.get(download.key).body, media_type=download.media_type, headers=headers)
        start, end = span
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        body = store.get(download.key, start, end).body
        return Response(body, status_code=206, media_type=download.media_type, headers=headers)
    except Missing:
        raise NotFound("no such object") from None


def _is_held(request: Request, etag: str) -> bool:
    """Return whether the caller says that it has the object (If-None-Match: weak comparison, RFC 9110 13.1.2)."""
    given = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    return etag in given or given == ["*"]


def _span(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """Return the bytes `start:end` that a request asks for, or None for all. Several ranges at once mean all."""
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or request.headers.get("if-range", etag) != etag or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), size if last == "" else min(size, int(last) + 1)
    if start >= end:
        raise HTTPException(416, f"the object has {size} bytes", {"Content-Range": f"bytes */{size}"})
    return start, end
