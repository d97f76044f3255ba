"""Opens the store that a URI names: a path or `file:` for a folder, `memory:` for one as long-lived as its holder."""

from flsys_ray.errors import InvalidInput
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore


def open_store(uri: str) -> ObjectStore:
    """Return the store. Raises `InvalidInput` for a scheme that is not known."""
    scheme, separator, rest = uri.partition(":")
    if not separator or len(scheme) == 1:  # a path, perhaps with a drive letter
        return LocalStore(uri)
    if scheme == "file":
        return LocalStore(rest.removeprefix("//"))
    if scheme == "memory":
        return MemoryStore()
    raise InvalidInput(f"store: unknown scheme {scheme!r} in {uri!r}: use a folder's path, file: or memory:")
