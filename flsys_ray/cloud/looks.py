"""Looks at the store that many wait for at the same moment: one of them is made, and all have its result.

What a replica remembers of keys, revocations, quotas and models grows old for all calls at once. Were each call to look
for itself, then under load thousands would wait for a thread, each with a look that is older than the next one, and the
memory would never be fresh again.
"""

import asyncio
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Looks(Generic[T]):
    """To be used from one event loop."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Future[T]] = {}

    async def share(self, what: Hashable, look: Callable[[], T]) -> T:
        """Return or raise what `look` does, made in a thread, or the one that is under way at the same thing.

        Who is cancelled while waiting does not end it for the others.
        """
        under_way = self._under_way.get(what)
        if under_way is None:
            under_way = asyncio.ensure_future(asyncio.to_thread(look))
            self._under_way[what] = under_way
            under_way.add_done_callback(lambda done: self._ended(what, done))
        return await asyncio.shield(under_way)

    def _ended(self, what: Hashable, done: asyncio.Future[T]) -> None:
        del self._under_way[what]
        if not done.cancelled():
            done.exception()  # nobody may be waiting any more
