"""Looks at the store that are shared: one is made, whoever waits has its end, and the next one is made anew."""

import asyncio
import threading

import pytest

from flsys_ray.cloud.looks import Looks


class Slow:
    """A look that ends when it is told to."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.made = 0

    def __call__(self) -> int:
        self.made += 1
        assert self.may_end.wait(10)
        return self.made


async def started(*calls):
    """Return tasks of these calls that have all come to wait."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_of_many_that_come_together_one_looks():
    async def run():
        looks, slow = Looks(), Slow()
        tasks = await started(*(looks.share("keys", slow) for _ in range(1000)))
        slow.may_end.set()
        assert await asyncio.gather(*tasks) == [1] * 1000
        assert await looks.share("keys", slow) == 2

    asyncio.run(run())


def test_looks_at_different_things_do_not_wait_for_one_another():
    async def run():
        looks, slow = Looks(), Slow()
        (waiting,) = await started(looks.share("one", slow))
        assert await looks.share("other", lambda: 7) == 7
        assert not waiting.done()
        slow.may_end.set()
        assert await waiting == 1

    asyncio.run(run())


def test_who_gives_up_does_not_end_it_for_the_others():
    async def run():
        looks, slow = Looks(), Slow()
        first, second = await started(looks.share("keys", slow), looks.share("keys", slow))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        slow.may_end.set()
        assert await second == 1
        assert slow.made == 1

    asyncio.run(run())


def test_a_failure_is_everybodys_and_is_not_remembered():
    async def run():
        looks = Looks()

        def broken():
            raise OSError("down")

        found = await asyncio.gather(*(looks.share("keys", broken) for _ in range(3)), return_exceptions=True)
        assert [str(error) for error in found] == ["down"] * 3
        assert await looks.share("keys", lambda: "up") == "up"

    asyncio.run(run())
