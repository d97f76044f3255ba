"""Resumable downloads into a cache of files named by their sha256.

A file is visible under its hash only when it is whole, checked and on the disk. What has arrived of an unfinished one
stays in `<hash>.part`, with the `ETag` that it belongs to beside it: a killed phone goes on where it stopped, by
`Range` and `If-Range` (RFC 9110 section 13.1.5).
"""

import functools
import hashlib
import os
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from flsys_ray.device.client import CloudClient
from flsys_ray.errors import InvalidInput, RangeUnsatisfiable, TryLater
from flsys_ray.wire.answers import error_of

MAX_FILE_BYTES = 512 * 1024 * 1024
_PART, _TAG = ".part", ".etag"


class _Changed(Exception):
    """What lies in `.part` cannot be continued."""


@dataclass(frozen=True)
class FileCache:
    """Files by hash in one folder, at most `cap_bytes` of them, the least recently used going first.

    One process at a time; its threads may share the cache: the same file is downloaded once.
    """

    folder: Path
    cap_bytes: int = sys.maxsize
    _guard: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, sha256: str) -> Path | None:
        """Return the file with this hash, None if it is not here (yet)."""
        path = self.folder / sha256
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def fetch(self, client: CloudClient, token: str, url: str, sha256: str) -> Path:
        """Return the file with this hash, downloading what is missing of it.

        Raises:
            InvalidInput: the cloud serves another file under this address, twice, or an endless one.
            TryLater: the connection is bad; what has arrived is kept.
            Unauthenticated, NotFound, ...: the cloud's refusal.
        """
        with self._lock(sha256):
            found = self.path(sha256)
            if found is None:
                found = self._download(client, token, url, sha256)
                self.trim(keep={sha256})
        return found

    def add(self, sha256: str, body: bytes) -> bool:
        """Keep a file that was made here, if it has this hash; return whether it has."""
        if hashlib.sha256(body).hexdigest() != sha256:
            return False
        with self._lock(sha256):
            if self.path(sha256) is None:
                _Part(self.folder, sha256).fill(body).finish()
        return True

    def trim(self, keep: set[str], cap_bytes: int | None = None) -> None:
        """Delete the least recently used files until the cap holds; those in `keep` stay."""
        cap = self.cap_bytes if cap_bytes is None else cap_bytes
        entries = []
        for path in self.folder.iterdir():
            try:
                stat = path.stat()
            except FileNotFoundError:  # another thread was faster
                continue
            entries.append((stat.st_mtime, path, stat.st_size))
        total = sum(size for _, _, size in entries)
        for _, path, size in sorted(entries):
            if total <= cap:
                break
            if path.name.partition(".")[0] not in keep and not self._busy(path):
                path.unlink(missing_ok=True)
                total -= size

    def _busy(self, path: Path) -> bool:
        lock = self._locks.get(path.name.partition(".")[0])
        return lock is not None and lock.locked()

    def _lock(self, sha256: str) -> threading.Lock:
        with self._guard:
            return self._locks.setdefault(sha256, threading.Lock())

    def _download(self, client: CloudClient, token: str, url: str, sha256: str) -> Path:
        for _ in range(2):
            part = _Part(self.folder, sha256)
            if part.digest() != sha256:  # whole already, if a kill came just before the end
                client.with_retries(functools.partial(part.receive, client, token, url))
            if part.digest() == sha256:
                return part.finish()
            part.discard()
        raise InvalidInput(f"the file at {url} does not have the announced sha256 {sha256[:12]}..., twice")


@dataclass(frozen=True)
class _Part:
    """One unfinished download."""

    folder: Path
    sha256: str

    @property
    def path(self) -> Path:
        return self.folder / (self.sha256 + _PART)

    @property
    def tag_path(self) -> Path:
        return self.folder / (self.sha256 + _TAG)

    def receive(self, client: CloudClient, token: str, url: str) -> None:
        """Make one attempt to receive the rest; raise `TryLater` when it breaks off."""
        try:
            self._receive(client, token, url, self._offset())
        except (_Changed, RangeUnsatisfiable):
            self.discard()
            self._receive(client, token, url, 0)

    def digest(self) -> str:
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return ""

    def fill(self, body: bytes) -> "_Part":
        """Put all of the file there, in place of what has arrived."""
        self.discard()
        self.path.write_bytes(body)
        os.chmod(self.path, 0o600)
        return self

    def finish(self) -> Path:
        with self.path.open("rb") as file:
            os.fsync(file.fileno())
        target = self.folder / self.sha256
        self.path.rename(target)
        self.tag_path.unlink(missing_ok=True)
        _sync_folder(self.folder)
        return target

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.tag_path.unlink(missing_ok=True)

    def _offset(self) -> int:
        """Return how many bytes can be kept: none without the strong tag that they belong to."""
        if self.path.is_file() and self.tag_path.is_file():
            return self.path.stat().st_size
        return 0

    def _receive(self, client: CloudClient, token: str, url: str, offset: int) -> None:
        headers = {"Range": f"bytes={offset}-", "If-Range": self.tag_path.read_text()} if offset else {}
        response = client.stream(url, token, headers)
        try:
            if response.status_code not in (200, 206):
                response.read()
                raise error_of(response)
            append = response.status_code == 206
            if append and not response.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                raise _Changed("the cloud sent another range than the one asked for")
            if not append:
                self.discard()
                tag = response.headers.get("ETag", "")
                if tag.startswith('"'):  # a weak tag does not promise the same bytes
                    self.tag_path.write_text(tag)
            self._write(response, client, mode="ab" if append else "wb")
        except httpx2.RequestError as error:
            raise TryLater(f"the download of {url} broke off ({type(error).__name__})", 0.0) from error
        finally:
            response.close()

    def _write(self, response: httpx2.Response, client: CloudClient, *, mode: str) -> None:
        with self.path.open(mode) as file:
            os.chmod(self.path, 0o600)
            for block in response.iter_bytes():
                client.traffic.down_bytes += len(block)
                file.write(block)
                if file.tell() > MAX_FILE_BYTES:
                    raise InvalidInput(f"a download grew over {MAX_FILE_BYTES} bytes: neither program nor version")


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
