"""Fetch an owner's files over HTTP: resumable, atomic, checked."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from flsys_ray.data.schema import file_sha256, write_text_atomically
from flsys_ray.errors import DataInvalid, TryLater

if TYPE_CHECKING:
    import httpx2

CHUNK_BYTES = 1 << 20

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Told `(what, done, total)` now and then; a total of None is unknown."""


@dataclass(frozen=True)
class Download:
    """One file at its owner's address.

    Attributes:
        url: where the owner offers it.
        filename: what it is called here.
        sha256: of the file, where it is known. Where it is not, the first fetch writes it to `<filename>.sha256`, and
            later fetches are checked against that: this finds damage and silent changes, not a bad first copy.
    """

    url: str
    filename: str
    sha256: str | None = None


def fetch(download: Download, into: Path, progress: Progress | None = None) -> Path:
    """Fetch a file unless it is there. A broken transfer leaves `<filename>.part`, and the next call goes on from it.

    Raises:
        TryLater: the owner's server cannot be reached, or the transfer broke off.
        DataInvalid: the server has no such file, or not the one whose checksum is known.
    """
    into.mkdir(parents=True, exist_ok=True)
    target = into / download.filename
    if target.is_file():
        _check(target, download, into)
        return target
    part = into / f"{download.filename}.part"
    _transfer(download, part, progress or (lambda what, done, total: None))
    try:
        _check(part, download, into)
    except DataInvalid:
        _discard(part)
        raise
    os.replace(part, target)
    _tag_of(part).unlink(missing_ok=True)
    return target


def _transfer(download: Download, part: Path, progress: Progress) -> None:
    """Bring `part` to its full length, from where it stands if the server still has the same file."""
    import httpx2

    timeout = httpx2.Timeout(30.0)
    try:
        with httpx2.Client(follow_redirects=True, timeout=timeout) as client:
            with client.stream("GET", download.url, headers=_resume_headers(part)) as reply:
                if reply.status_code != 416:
                    _receive(reply, download, part, progress)
                    return
            _discard(part)  # it is longer than the file, or of another one
            with client.stream("GET", download.url, headers=_resume_headers(part)) as reply:
                _receive(reply, download, part, progress)
    except httpx2.HTTPError as problem:
        raise TryLater(
            f"{download.filename}: {download.url} did not deliver it ({type(problem).__name__}); "
            "run the same command again to go on from there, or give a local copy with --from"
        ) from problem


def _resume_headers(part: Path) -> dict[str, str]:
    """Ask for the rest of the file that the part was cut from. Bytes must count: no compression on the way."""
    plain = {"Accept-Encoding": "identity"}
    tag = _tag_of(part)
    if not (part.is_file() and tag.is_file()):
        _discard(part)
        return plain
    return {**plain, "Range": f"bytes={part.stat().st_size}-", "If-Range": tag.read_text(encoding="ascii")}


def _receive(reply: "httpx2.Response", download: Download, part: Path, progress: Progress) -> None:
    if reply.status_code >= 500 or reply.status_code == 429:
        raise TryLater(f"{download.filename}: {download.url} answers {reply.status_code}; try again later", 60.0)
    if reply.status_code not in (200, 206):
        raise DataInvalid(f"{download.filename}: {download.url} answers {reply.status_code}; has it moved?")
    done = part.stat().st_size if reply.status_code == 206 else 0
    if done == 0:
        _note_tag(reply, part)
    length = reply.headers.get("Content-Length")
    total = done + int(length) if length else None
    with part.open("ab" if done else "wb") as file:  # a body that ends early is an httpx2 error
        for chunk in reply.iter_raw(CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            progress(download.filename, done, total)
        file.flush()
        os.fsync(file.fileno())


def _note_tag(reply: "httpx2.Response", part: Path) -> None:
    """Remember what `If-Range` needs; without a strong validator a part cannot be trusted, and is begun anew."""
    tag = reply.headers.get("ETag", "")
    validator = tag if tag.startswith('"') else reply.headers.get("Last-Modified", "")
    _tag_of(part).unlink(missing_ok=True)
    if validator:
        write_text_atomically(_tag_of(part), validator)


def _check(file: Path, download: Download, into: Path) -> None:
    """Compare a file with the known checksum, or with the one that its first fetch noted."""
    noted = into / f"{download.filename}.sha256"
    known = download.sha256 or (noted.read_text(encoding="ascii").strip() if noted.is_file() else None)
    found = file_sha256(file)
    if known is None:
        write_text_atomically(noted, f"{found}\n")
    elif found != known:
        raise DataInvalid(
            f"{download.filename} has SHA-256 {found}, not {known}: damaged, or changed by its owner. "
            "Remove it and its .sha256 and fetch again; if that persists, look at the owner's page"
        )


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.tag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_of(part).unlink(missing_ok=True)
