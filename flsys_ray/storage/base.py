"""What an object store is: four verbs, the first two conditional. They are the only coordination there is.

- `put_new`: create an object once (`If-None-Match: *` on S3). Of two writers one wins, the other gets `AlreadyExists`.
- `swap`: replace the object that was read, and no other (`If-Match`); the loser gets `Changed`.
- `get`: an object, or a range of its bytes.
- `list`: the keys under a prefix, in order.

Beside them there is `remove`, for tidying up: it coordinates nothing.

When a call returns, its effect is durable. When it raises `StoreUnavailable`, the effect may or may not have happened:
`put_new` and `swap` may be repeated, and a repeat that finds its own bytes under the key is a success.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput

MAX_KEY_LENGTH = 512
_SEGMENT = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,126}")


@dataclass(frozen=True, slots=True)
class StoredObject:
    """What `get` returns. `size` is that of the whole object, `body` what was asked for; `etag` names its content."""

    body: bytes
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class PresignedPut:
    """An address by which anyone may create one object. The request must carry `headers`, and a body that fits them."""

    url: str
    headers: Mapping[str, str]


class ObjectStore(ABC):
    """Safe to use from several threads, and from several processes at once where the medium is shared."""

    @abstractmethod
    def put_new(self, key: str, body: bytes) -> str:
        """Create an object and return its etag. Raises `AlreadyExists`.

        No key may be the folder of another: where there is `a/b`, `a` and `a/b/c` raise `InvalidInput`. A store that
        would have to list in order to notice may let it pass. So nobody may count on either; `cloud/places.py` makes
        no such keys.
        """

    @abstractmethod
    def swap(self, key: str, body: bytes, etag: str) -> str:
        """Replace the object whose etag is `etag` and return the new one. Raises `Changed`, `Missing`.

        No etag of a key comes back, even if the content does: who read the first A of A, B, A does not replace the
        last one.
        """

    @abstractmethod
    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        """Return an object's bytes `start:end`. Raises `Missing`."""

    @abstractmethod
    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix` and come after the key `after`, in order of their code points."""

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove an object; one that is not there is removed already.

        Only for what nobody creates, replaces or waits for any more: after it `put_new` makes the object again.
        """

    @property
    def presigns(self) -> bool:
        """Whether phones may be sent to this store with a `presigned_put`."""
        return False

    def presigned_put(self, key: str, size: int, expires_s: float, sha256: str | None = None) -> PresignedPut:
        """Return an address by which a phone creates an object. Raises `InvalidInput` if the store has none."""
        raise InvalidInput(f"store: it has no address at which a phone could put {key}")


def check_key(key: str) -> str:
    """Return the key. Raises `InvalidInput` unless it is segments of letters, digits, `.`, `_`, `-` joined by `/`.

    No segment begins with a dot: a key can never climb out of its prefix, nor meet a store's temporary files.
    """
    if len(key) > MAX_KEY_LENGTH or not all(_SEGMENT.fullmatch(segment) for segment in key.split("/")):
        raise InvalidInput(f"store: {key[:80]!r} is not a key")
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix. Raises `InvalidInput` unless a key could begin with it."""
    folder, _, start = prefix.rpartition("/")
    if prefix.startswith("/") or (start and not _SEGMENT.fullmatch(start)):
        raise InvalidInput(f"store: {prefix[:80]!r} begins no key")
    if folder and not all(_SEGMENT.fullmatch(segment) for segment in folder.split("/")):
        raise InvalidInput(f"store: {prefix[:80]!r} begins no key")
    return prefix


def put_same(store: ObjectStore, key: str, body: bytes) -> bool:
    """Create an object, or find the same bytes there. Returns whether it is new; raises `AlreadyExists` for others."""
    try:
        store.put_new(key, body)
    except AlreadyExists:
        if store.get(key).body != body:
            raise
        return False
    return True


def exchange(store: ObjectStore, key: str, body: bytes, etag: str) -> str | None:
    """Replace the object of this etag; with "" make it. Returns the new etag, or None where another was faster."""
    try:
        return store.swap(key, body, etag) if etag else store.put_new(key, body)
    except (AlreadyExists, Changed):
        return None


def last_key(store: ObjectStore, prefix: str) -> str | None:
    """Return the last key under a prefix, or None."""
    last = None
    for key in store.list(prefix):
        last = key
    return last
