"""The peer of `ingest.py`: an ASGI app without a framework that does the same I/O and nothing else.

A check-in is read and answered with a body of the usual size. An update is read, written to a new file, synced, linked
to its name, and its folder synced: durable, as the cloud promises. Nothing is checked, parsed, counted or added up.
"""

import asyncio
import os
import sys
from pathlib import Path

import uvicorn

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
ANSWER = b"x" * 1100


async def app(scope, receive, send):  # type: ignore[no-untyped-def]
    """Serve one request."""
    if scope["type"] != "http":
        return
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    if scope["method"] == "PUT":
        await asyncio.to_thread(durable, FOLDER / scope["path"].rpartition("/")[2], body)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1100")]})
    await send({"type": "http.response.body", "body": ANSWER})


def durable(path: Path, body: bytes) -> None:
    """Create a file that survives a power cut."""
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.link(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)
    temporary.unlink()


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
