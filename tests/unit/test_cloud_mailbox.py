"""Calls that gather: what comes while one is under way goes with the next, in order, bounded, and each is answered."""

import asyncio
from collections.abc import Sequence

import pytest
from cloud_fakes import Crash
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.cloud.mailbox import Mailboxes
from flsys_ray.errors import StoreUnavailable, TryLater


class Office:
    """Delivers when it is let: each delivery waits for `open`."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.delivered: list[tuple[str, list[int]]] = []
        self.under_way = self.most_under_way = 0

    async def deliver(self, address: str, items: Sequence[int]) -> list[int]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.delivered.append((address, [*items]))
        await self.open.wait()
        self.under_way -= 1
        return [10 * item for item in items]


async def soon(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_comes_meanwhile_goes_together_with_the_next():
    async def play() -> None:
        office = Office()
        boxes = Mailboxes(office.deliver, limit=100, at_once=4)
        calls = [asyncio.ensure_future(boxes.send("a", n)) for n in range(10)]
        await soon()
        office.open.set()
        assert await asyncio.gather(*calls) == [10 * n for n in range(10)]
        assert office.delivered == [("a", [0, 1, 2, 3]), ("a", [4, 5, 6, 7]), ("a", [8, 9])]
        assert office.most_under_way == 1
        assert boxes._boxes == {}, "an empty box is not kept"

    asyncio.run(play())


def test_a_slow_address_keeps_no_other_waiting():
    async def play() -> None:
        office = Office()

        async def deliver(address: str, items: Sequence[int]) -> list[int]:
            return await office.deliver(address, items) if address == "slow" else [*items]

        boxes = Mailboxes(deliver, limit=10, at_once=10)
        slow = asyncio.ensure_future(boxes.send("slow", 1))
        await soon()
        assert await boxes.send("quick", 2) == 2
        office.open.set()
        assert await slow == 10

    asyncio.run(play())


def test_more_than_the_limit_are_refused_at_once_and_those_that_wait_are_kept():
    async def play() -> None:
        office = Office()
        boxes = Mailboxes(office.deliver, limit=3, at_once=10)
        calls = [asyncio.ensure_future(boxes.send("a", 0))]
        await soon()
        calls += [asyncio.ensure_future(boxes.send("a", n)) for n in (1, 2, 3)]
        await soon()
        with pytest.raises(TryLater) as refused:
            await boxes.send("a", 4)
        assert refused.value.retry_after_s > 0
        office.open.set()
        assert await asyncio.gather(*calls) == [0, 10, 20, 30]

    asyncio.run(play())


def test_who_has_gone_is_not_delivered():
    async def play() -> None:
        office = Office()
        boxes = Mailboxes(office.deliver, limit=10, at_once=10)
        first = asyncio.ensure_future(boxes.send("a", 0))
        await soon()
        gone, stays = (asyncio.ensure_future(boxes.send("a", n)) for n in (1, 2))
        await soon()
        gone.cancel()
        office.open.set()
        assert (await first, await stays) == (0, 20)
        assert office.delivered == [("a", [0]), ("a", [2])]

    asyncio.run(play())


@pytest.mark.parametrize("error", [StoreUnavailable("gone", 1.0), RuntimeError("bug"), Crash()], ids=repr)
def test_an_error_is_everybody_s_and_the_next_are_delivered_all_the_same(error):
    async def play() -> None:
        failing = True

        async def deliver(address: str, items: Sequence[int]) -> list[int]:
            if failing:
                raise error
            return [*items]

        boxes = Mailboxes(deliver, limit=10, at_once=10)
        calls = await asyncio.gather(*(boxes.send("a", n) for n in range(3)), return_exceptions=True)
        assert calls == [error] * 3
        failing = False
        assert await boxes.send("a", 7) == 7

    asyncio.run(play())


@given(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=30), at_once=st.integers(1, 5))
def test_only_what_goes_together_is_delivered_together_and_in_order(kinds, at_once):
    async def play() -> None:
        delivered: list[list[tuple[int, int]]] = []

        async def deliver(address: str, items: Sequence[tuple[int, int]]) -> Sequence[tuple[int, int]]:
            delivered.append([*items])
            return items

        boxes = Mailboxes(deliver, limit=100, at_once=at_once, together=lambda item: item[0])
        sent = [*zip(kinds, range(len(kinds)), strict=True)]
        assert await asyncio.gather(*(boxes.send("a", item) for item in sent)) == sent
        assert sorted(item for batch in delivered for item in batch) == sorted(sent)
        for batch in delivered:
            assert len(batch) <= at_once
            assert len({kind for kind, _ in batch}) == 1
        for kind in set(kinds):
            order = [number for batch in delivered for of, number in batch if of == kind]
            assert order == sorted(order)

    asyncio.run(play())


def test_one_set_of_boxes_serves_one_loop_after_the_other():
    async def deliver(address: str, items: Sequence[int]) -> list[int]:
        return [*items]

    boxes = Mailboxes(deliver, limit=10, at_once=10)
    assert [asyncio.run(boxes.send("a", n)) for n in range(3)] == [0, 1, 2]
