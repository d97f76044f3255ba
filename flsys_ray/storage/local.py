"""An object store in a folder: for one machine, or several that share a file system with POSIX links and locks.

An object is written to a temporary file, synced, and then *linked* to its name, which fails if the name is taken: of
two writers one wins, and a crash at any point leaves either nothing or the whole object. The folder's entry is synced
before the call returns. Folders are made with mode 0700 and files with 0600: the store holds keys and updates.
"""

import errno
import fcntl
import hashlib
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing, StoreFull, StoreUnavailable
from flsys_ray.storage.base import ObjectStore, StoredObject, check_key, check_prefix

_TEMPORARY = ".new-"
_LOCKS = ".locks"
_TICK_NS = 1000
_MOST_FOLDERS = 10_000
# Why a folder above the store cannot be synced: it is somebody else's, or of a file system (that of automounts, /proc)
# that keeps nothing. It was there before.
_NOT_OURS = (errno.EACCES, errno.EPERM, errno.EINVAL)


class LocalStore(ObjectStore):
    """Objects as files under `folder`. Raises `StoreUnavailable` if the folder cannot be made."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self._durable: set[Path] = set()
        with _store_errors("folder"):
            self._make(self.folder)

    def put_new(self, key: str, body: bytes) -> str:
        """Create an object: write, sync, link, sync the folder."""
        path = self._path(key)
        with _store_errors(key):
            try:
                if path.exists():
                    raise FileExistsError
                with self._written(path.parent, body) as (temporary, etag):
                    os.link(temporary, path)
                _sync_folder(path.parent)
                return etag
            except FileExistsError:
                if path.is_dir():
                    raise InvalidInput(f"store: {key} is a folder of other keys") from None
                _sync_folder(path.parent)  # who made it may not have come that far
                raise AlreadyExists(f"store: {key} exists") from None
            except NotADirectoryError:
                raise InvalidInput(f"store: a folder of {key} is a key itself") from None

    def swap(self, key: str, body: bytes, etag: str) -> str:
        """Replace an object under a lock: check, write, sync, rename, sync the folder."""
        path = self._path(key)
        with _store_errors(key), self._locked(key):
            status = _status(path, key)
            if _etag(status) != etag:
                raise Changed(f"store: {key} is not the object that was read")
            with self._written(path.parent, body, later_than_ns=status.st_mtime_ns) as (temporary, new_etag):
                temporary.rename(path)
                _sync_folder(path.parent)
            return new_etag

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        """Read bytes of an object."""
        path = self._path(key)
        with _store_errors(key):
            try:
                with path.open("rb") as file:
                    status = os.fstat(file.fileno())
                    stop = status.st_size if end is None else min(end, status.st_size)
                    file.seek(start)
                    return StoredObject(file.read(max(0, stop - start)), status.st_size, _etag(status))
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise Missing(f"store: {key} does not exist") from None

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Walk the folders in the order of keys."""
        parent = check_prefix(prefix).rpartition("/")[0]
        base = self._path(parent) if parent else self.folder
        with _store_errors(prefix):
            for key in _walk(base, f"{parent}/" if parent else ""):
                if key.startswith(prefix) and key > after:
                    yield key

    def remove(self, key: str) -> None:
        """Unlink an object and sync its folder. Folders stay: somebody may be about to write into one."""
        path = self._path(key)
        with _store_errors(key), suppress(FileNotFoundError, NotADirectoryError):
            if path.is_dir():
                return
            path.unlink()
            _sync_folder(path.parent)

    # Inside ------------------------------------------------------------------------------------------------------

    def _path(self, key: str) -> Path:
        return self.folder.joinpath(*check_key(key).split("/"))

    def _make(self, folder: Path) -> None:
        """Make a folder and its parents, each entry synced, so that an object in it survives a power cut.

        A folder that is there may have been made a moment ago by one who has not synced it yet, or died before it
        could: what this store has not seen to itself it syncs once.
        """
        if folder == folder.parent or (folder in self._durable and folder.is_dir()):
            return
        self._make(folder.parent)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        try:
            _sync_folder(folder.parent)
        except OSError as error:
            if error.errno not in _NOT_OURS or folder.parent.is_relative_to(self.folder):
                raise
        if len(self._durable) >= _MOST_FOLDERS:
            self._durable.clear()
        self._durable.add(folder)

    @contextmanager
    def _written(self, folder: Path, body: bytes, later_than_ns: int = 0) -> Iterator[tuple[Path, str]]:
        """Write a synced temporary file in `folder`, with its etag, and remove it afterwards if it is still there.

        An object is younger than the one that it replaces, even if the clock is coarse or jumps back: no etag returns.
        """
        self._make(folder)
        temporary = folder / f"{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                if os.fstat(file.fileno()).st_mtime_ns <= later_than_ns:
                    os.utime(file.fileno(), ns=(later_than_ns + _TICK_NS, later_than_ns + _TICK_NS))
                os.fsync(file.fileno())
                etag = _etag(os.fstat(file.fileno()))
            yield temporary, etag
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        locks = self.folder / _LOCKS
        self._make(locks)
        name = hashlib.sha256(key.encode()).hexdigest()  # a key may be longer than a file's name
        with open(os.open(locks / name, os.O_RDWR | os.O_CREAT, 0o600), "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except (FileNotFoundError, NotADirectoryError):
        return
    # A folder's keys continue with "/": sorted by that, the walk meets keys in the order of their code points.
    for entry in sorted(entries, key=lambda entry: entry.name + "/" * entry.is_dir()):
        if entry.is_dir():
            yield from _walk(Path(entry.path), f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _status(path: Path, key: str) -> os.stat_result:
    with suppress(FileNotFoundError, NotADirectoryError):
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            return status
    raise Missing(f"store: {key} does not exist")


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors(key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StoreFull(f"store: no space left to write {key}") from error
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        raise StoreUnavailable(f"store: {key}: {reason}") from error
