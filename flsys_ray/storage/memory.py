"""An object store in memory: for tests, simulations and sweeps."""

import threading
from collections.abc import Iterator

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing
from flsys_ray.storage.base import ObjectStore, StoredObject, check_key, check_prefix


class MemoryStore(ObjectStore):
    """A dictionary with the contract of a store."""

    def __init__(self) -> None:
        self._objects: dict[str, StoredObject] = {}
        self._folders: set[str] = set()
        self._writes = 0
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
            self._folders.update(parents)
            return self._put(key, body)

    def swap(self, key: str, body: bytes, etag: str) -> str:
        """Replace an object."""
        with self._lock:
            if self._found(key).etag != etag:
                raise Changed(f"store: {key} is not the object that was read")
            return self._put(key, body)

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        """Return bytes of an object."""
        with self._lock:
            found = self._found(key)
        return StoredObject(found.body[start:end], found.size, found.etag)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield keys in order."""
        check_prefix(prefix)
        with self._lock:
            keys = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        return iter(keys)

    def remove(self, key: str) -> None:
        """Forget an object. Its folders stay."""
        with self._lock:
            self._objects.pop(check_key(key), None)

    def _put(self, key: str, body: bytes) -> str:
        self._writes += 1
        stored = StoredObject(bytes(body), len(body), f"{self._writes:x}")
        self._objects[key] = stored
        return stored.etag

    def _found(self, key: str) -> StoredObject:
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise Missing(f"store: {key} does not exist") from None


def _parents(key: str) -> list[str]:
    return [key[:place] for place, letter in enumerate(key) if letter == "/"]
