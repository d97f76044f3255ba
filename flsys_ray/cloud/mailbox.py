"""Calls that gather while another one is under way: natural batching, without a timer.

A call to a model's actor costs about a millisecond wherever the time goes, so a replica has one of a kind under way for
each model; what comes meanwhile goes together with the next. Alone, a call waits for nothing. The more come, the larger
are the batches: the cost of a call is shared, and the actor never has more than one of a kind from each replica.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, TypeVar

from flsys_ray.core.ids import model_name
from flsys_ray.errors import TryLater

T = TypeVar("T")
R = TypeVar("R")
FULL_RETRY_S = 5.0
Deliver = Callable[[str, Sequence[T]], Awaitable[Sequence[R]]]


class _Box(Generic[T, R]):
    def __init__(self) -> None:
        self.waiting: list[tuple[T, asyncio.Future[R]]] = []
        self.pump: asyncio.Task[None] | None = None


class Mailboxes(Generic[T, R]):
    """A mailbox for each address. To be used from one event loop at a time.

    Args:
        deliver: takes what has gathered for an address, and returns an answer for each; what it raises, all get.
        limit: at most so many wait at one address; more are refused.
        at_once: at most so many are delivered together,
        together: and only those of which this says the same.
    """

    def __init__(
        self,
        deliver: Deliver[T, R],
        *,
        limit: int,
        at_once: int,
        together: Callable[[T], Hashable] = lambda item: None,
    ) -> None:
        self._deliver = deliver
        self._limit = limit
        self._at_once = at_once
        self._together = together
        self._boxes: dict[str, _Box[T, R]] = {}

    async def send(self, address: str, item: T) -> R:
        """Return the answer to an item. Who is cancelled while waiting is not delivered.

        Raises:
            TryLater: too many wait already.
        """
        box = self._boxes.setdefault(address, _Box())
        if len(box.waiting) >= self._limit:
            raise TryLater(
                f"{self._limit} calls wait for model {model_name(address)!r} already: try again", FULL_RETRY_S
            )
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        box.waiting.append((item, answer))
        if box.pump is None or box.pump.done():
            box.pump = asyncio.ensure_future(self._pump(address, box))
        return await answer

    async def _pump(self, address: str, box: _Box[T, R]) -> None:
        try:
            while taken := self._take(box):
                await self._deliver_to(address, taken)
        finally:
            if not box.waiting:
                self._boxes.pop(address, None)

    async def _deliver_to(self, address: str, taken: list[tuple[T, "asyncio.Future[R]"]]) -> None:
        try:
            answers = await self._deliver(address, [item for item, _ in taken])
        except BaseException as error:
            for _, future in taken:
                if not future.done():
                    future.set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
            return
        for (_, future), answer in zip(taken, answers, strict=True):
            if not future.done():
                future.set_result(answer)

    def _take(self, box: _Box[T, R]) -> list[tuple[T, "asyncio.Future[R]"]]:
        """Take the next items out that go together, in the order in which they came."""
        alive = [(item, future) for item, future in box.waiting if not future.done()]
        taken: list[tuple[T, asyncio.Future[R]]] = []
        left: list[tuple[T, asyncio.Future[R]]] = []
        for item, future in alive:
            fits = len(taken) < self._at_once and (not taken or self._together(item) == self._together(taken[0][0]))
            (taken if fits else left).append((item, future))
        box.waiting = left
        return taken
