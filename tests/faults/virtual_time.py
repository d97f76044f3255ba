"""Virtual time: one thread in which code that blocks and code that awaits take turns. Nothing depends on real time.

`VirtualLoop` is an asyncio loop whose clock jumps to the next event. What asyncio would hand to a thread runs as a
greenlet instead: it goes on until it calls `pause`, as a thread would until the system takes the processor from it.
Same events, same order, same run.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from greenlet import getcurrent, greenlet


class Deadlock(Exception):
    """Everybody waits, and nothing will ever happen."""


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop and its clock, in seconds from 0."""

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._selector = self  # asks only itself when the next event is
        self.hub = getcurrent()

    def time(self) -> float:
        return self._now

    def select(self, timeout: float | None) -> list[Any]:
        """Let the time until the next event pass at once."""
        if timeout is None:
            raise Deadlock
        self._now += max(0.0, timeout)
        return []

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> "asyncio.Future[Any]":
        return self.blocking(lambda: func(*args))

    def blocking(self, use: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Run code that blocks, and return the future of its result. Code that ends by `Died` has none."""
        future = self.create_future()

        def body() -> None:
            try:
                result = use()
            except Died:
                return
            except BaseException as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_soon(greenlet(body, parent=self.hub).switch)
        return future

    @property
    def may_pause(self) -> bool:
        """Whether who asks is code that blocks: the loop's own code must never wait."""
        return getcurrent() is not self.hub

    def belongs(self, is_alive: Callable[[], bool]) -> None:
        """Say whose code is running: it dies with its process wherever it pauses."""
        if self.may_pause:
            getcurrent().is_alive = is_alive

    def pause(self, delay_s: float) -> None:
        """Let others run for a while. Raises `Died` in code of a process that ended meanwhile."""
        running = getcurrent()
        self.call_later(delay_s, running.switch)
        self.hub.switch()
        if not getattr(running, "is_alive", lambda: True)():
            raise Died


class Died(BaseException):
    """The process of this code is dead: nothing that it would still do happens."""


class Lock:
    """`threading.Lock` among greenlets."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._held = False
        self._waiting: deque[greenlet] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1.0) -> bool:
        if not self._held:
            self._held = True
            return True
        assert self._loop.may_pause, "the event loop would wait for a lock"
        if not blocking or timeout == 0:
            return False
        waiting = getcurrent()
        self._waiting.append(waiting)
        if timeout > 0:
            self._loop.call_later(timeout, self._give_up, waiting)
        return bool(self._loop.hub.switch())

    def release(self) -> None:
        assert self._held
        if self._waiting:
            self._loop.call_soon(self._waiting.popleft().switch, True)
        else:
            self._held = False

    def _give_up(self, waiting: greenlet) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            waiting.switch(False)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()
