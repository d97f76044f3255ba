"""Whether a store keeps the two conditions that all coordination rests on, asked before a cloud is started on it.

A bucket behind a gateway, a proxy or an older service may take `If-None-Match` and `If-Match` for noise: it answers as
if all were well, and of two owners of a model both win. One object is written for this, always the same: nothing is
left behind that was not there after the first start, and no right to remove is needed.
"""

from contextlib import suppress

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput
from flsys_ray.storage.base import ObjectStore

KEY = "probe/conditions"
_TRIES = 20
_NO_ETAG = "0" * 32  # as S3's look, and of no object


def check_conditions(store: ObjectStore, name: str) -> None:
    """Raises `InvalidInput` if a store, called `name`, creates what is there or replaces what was not read.

    May be called by several at once.
    """
    with suppress(AlreadyExists):
        store.put_new(KEY, b"probe")
    with suppress(AlreadyExists):
        store.put_new(KEY, b"created twice")
        raise _refusal(name, "If-None-Match: it created an object that was there already")
    with suppress(Changed):
        store.swap(KEY, b"replaced unread", _NO_ETAG)
        raise _refusal(name, "If-Match: it replaced an object that nobody had read")
    for _ in range(_TRIES):
        with suppress(Changed):  # another one who starts on this store
            store.swap(KEY, b"probe", store.get(KEY).etag)
            return
    raise _refusal(name, f"If-Match as it should: it refused {_TRIES} times to replace an object that was just read")


def _refusal(name: str, what: str) -> InvalidInput:
    return InvalidInput(
        f"store {name} ignores {what}. Updates would be lost on it: use a service with conditional writes, "
        "and look whether a proxy in between takes these headers away"
    )
