"""Opens the store that a URI names: a path or `file:` for a folder, `s3:` for a bucket, `memory:` for a dictionary.

A store in memory lives as long as its holder. What `s3:` takes stands in `s3_place`.
"""

from flsys_ray.errors import InvalidInput
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.storage.s3_place import parse_place


def open_store(uri: str) -> ObjectStore:
    """Return the store. Raises `InvalidInput` for a scheme that is not known, or whose library is not installed."""
    scheme, separator, rest = uri.partition(":")
    if not separator or len(scheme) == 1:  # a path, perhaps with a drive letter
        return LocalStore(uri)
    if scheme == "file":
        return LocalStore(rest.removeprefix("//"))
    if scheme == "memory":
        return MemoryStore()
    if scheme == "s3":
        return _open_s3(uri)
    raise InvalidInput(f"store: unknown scheme {scheme!r} in {uri!r}: use a folder's path, file:, s3: or memory:")


def _open_s3(uri: str) -> ObjectStore:
    place = parse_place(uri)
    try:
        from flsys_ray.storage.s3 import S3Store
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("boto3", "botocore"):
            raise
        raise InvalidInput("store: s3: needs boto3: pip install 'flsys-ray[s3]'") from None
    return S3Store(place)
