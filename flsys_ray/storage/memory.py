"""An object store in memory: for tests, simulations and sweeps."""

import hashlib
import threading
from collections.abc import Iterator

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing
from flsys_ray.storage.base import ObjectStore, StoredObject, check_key, check_prefix


class MemoryStore(ObjectStore):
    """A dictionary with the contract of a store."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._folders: set[str] = set()
        self._lock = threading.Lock()

    def put_new(self, key: str, body: bytes) -> str:
        """Create an object."""
        parents = _parents(check_key(key))
        with self._lock:
            if key in self._objects:
                raise AlreadyExists(f"store: {key} exists")
            if key in self._folders:
                raise InvalidInput(f"store: {key} is a folder of other keys")
            if any(parent in self._objects for parent in parents):
                raise InvalidInput(f"store: a folder of {key} is a key itself")
            self._objects[key] = bytes(body)
            self._folders.update(parents)
        return _etag(body)

    def swap(self, key: str, body: bytes, etag: str) -> str:
        """Replace an object."""
        with self._lock:
            if _etag(self._found(key)) != etag:
                raise Changed(f"store: {key} is not the object that was read")
            self._objects[key] = bytes(body)
        return _etag(body)

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        """Return bytes of an object."""
        with self._lock:
            body = self._found(key)
        return StoredObject(body[start:end], len(body), _etag(body))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield keys in order."""
        check_prefix(prefix)
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        return iter(keys)

    def _found(self, key: str) -> bytes:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise Missing(f"store: {key} does not exist") from None


def _parents(key: str) -> list[str]:
    return [key[:place] for place, letter in enumerate(key) if letter == "/"]


def _etag(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]
