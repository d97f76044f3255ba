"""Many phones in one process, for load and demonstrations.

Each is a real `Phone` with a folder and a database of its own, over real HTTP. They share a pool of connections, the
cache of programs, and one LiteRT interpreter a program and worker. A queue ordered by wake-up time is served by few
worker threads: a thousand phones that wait cost nothing but their entry in the queue.

Emulated phones hold data that a researcher handed out, so `run_fleet` consents in the place of their users.
"""

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import httpx2

from flsys_ray.device.clock import SystemClock
from flsys_ray.device.collector import ReplaySource, UserData
from flsys_ray.device.conditions import ConditionsSource, FixedConditions
from flsys_ray.device.configuration import MEBIBYTE, PhoneConfig, Shared
from flsys_ray.device.download import FileCache
from flsys_ray.device.outcome import Kind, Outcome
from flsys_ray.device.phone import Phone
from flsys_ray.errors import InvalidInput

MOST_OPEN = 128  # an open phone holds four file descriptors
STEPS_AT_ONCE = 16
SHARED_PROGRAM_BYTES = 1024 * MEBIBYTE


@dataclass(frozen=True, slots=True)
class Fleet:
    """Which phones there are. The same fleet on the same folder is the same phones.

    Attributes:
        folder: holds one folder a phone; they are made when missing.
        config: of every phone; its seed, 0 if None, gives each phone its own.
        data: the data set of each model.
        count: how many phones.
        users: whose data they hold; None: of all users of each data set. Phone i holds the data of user i modulo their
            number. With more phones than users, the phones of one user share that user's examples between them, each
            with a stretch of its own: no example is on two phones.
        speed: seconds of a user's stream in one second; None: all data are there from the start.
    """

    folder: Path
    config: PhoneConfig
    data: Mapping[str, UserData]
    count: int
    users: tuple[str, ...] | None = None
    speed: float | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInput(f"a fleet needs at least one phone, not {self.count}")
        if missing := [model for model in self.config.models if model not in self.data]:
            raise InvalidInput(f"no data set for {', '.join(missing)}: give each model of the fleet one")
        for model in self.config.models:
            self._users(model)

    def source(self, index: int, model: str) -> ReplaySource:
        """Return what phone `index` replays for `model`."""
        users = self._users(model)
        number = index % len(users)
        sharing = len(range(number, self.count, len(users)))
        return ReplaySource(self.data[model], users[number], (index // len(users), sharing), self.speed)

    def name(self, index: int) -> str:
        """Return the folder name of phone `index`."""
        return f"phone-{index:05d}"

    def _users(self, model: str) -> tuple[str, ...]:
        known = self.data[model].users
        wanted = set(known if self.users is None else self.users)
        chosen = tuple(user for user in known if user in wanted)
        if not chosen:
            raise InvalidInput(f"{self.data[model].name} has none of the users asked for; it has {len(known)} others")
        return chosen


@dataclass(frozen=True, slots=True)
class FleetEvent:
    """Phone `index` did one step."""

    index: int
    phone: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class FleetReport:
    """How many steps of each kind the phones did."""

    steps: Mapping[Kind, int]


def run_fleet(
    fleet: Fleet,
    *,
    stop: threading.Event,
    on_event: Callable[[FleetEvent], None] = lambda event: None,
    workers: int = 2,
    conditions: ConditionsSource | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> FleetReport:
    """Run all phones until `stop` is set. `on_event` is called from the worker threads, one call at a time.

    Raises:
        InvalidInput: `workers` is not positive.
    """
    if workers < 1:
        raise InvalidInput(f"a fleet needs at least one worker, not {workers}")
    limits = httpx2.Limits(max_connections=workers + 2, max_keepalive_connections=workers + 2)
    with httpx2.Client(base_url=fleet.config.url, transport=transport, limits=limits) as http:
        files = FileCache(fleet.folder / "programs", SHARED_PROGRAM_BYTES)
        shared = Shared(http=http, program_files=files)
        schedule = _Schedule(fleet, shared, conditions or FixedConditions(), stop, on_event)
        threads = [threading.Thread(target=schedule.work, name=f"fleet-{i}") for i in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        finally:  # interrupted at the keyboard, say: no worker may outlive the call
            stop.set()
            for thread in threads:
                thread.join()
            schedule.close()
    if schedule.error is not None:
        raise schedule.error
    return FleetReport(MappingProxyType(dict(schedule.steps)))


class _Schedule:
    """The queue by wake-up time, and the phones that are open. A phone is with one worker at a time."""

    def __init__(
        self,
        fleet: Fleet,
        shared: Shared,
        conditions: ConditionsSource,
        stop: threading.Event,
        on_event: Callable[[FleetEvent], None],
    ) -> None:
        self._fleet, self._shared, self._conditions = fleet, shared, conditions
        self._stop, self._on_event = stop, on_event
        self._clock = SystemClock(stop)
        self._queue = [(0.0, index) for index in range(fleet.count)]
        self._open: dict[int, Phone] = {}
        self._fed: set[int] = set()
        self._sources: dict[int, dict[str, ReplaySource]] = {}
        self._changed = threading.Condition()
        self._reporting = threading.Lock()
        self.steps: Counter[Kind] = Counter()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Serve phones until the fleet stops."""
        try:
            while (index := self._next()) is not None:
                wake_at = self._serve(index)
                with self._changed:
                    heapq.heappush(self._queue, (wake_at, index))
                    self._changed.notify()
        except BaseException as error:  # `run_fleet` raises it
            self.error = error
            self._stop.set()

    def close(self) -> None:
        """Close all phones."""
        for phone in self._open.values():
            phone.close()
        self._open.clear()

    def _next(self) -> int | None:
        """Wait for the next phone that is due; None: the fleet stops."""
        with self._changed:
            while not self._stop.is_set():
                left_s = self._queue[0][0] - time.time() if self._queue else 1.0
                if left_s <= 0:
                    return heapq.heappop(self._queue)[1]
                self._changed.wait(min(left_s, 0.2))  # `stop` is somebody else's event: look at it now and then
        return None

    def _serve(self, index: int) -> float:
        """Let one phone work until it has to wait, as a phone of its own would; return when it wants to go on."""
        phone = self._open.get(index) or self._opened(index)
        self._feed(index, phone)
        wake_at = 0.0
        for _ in range(STEPS_AT_ONCE):
            outcome = phone.step(should_stop=self._stop.is_set)
            self._report(index, outcome)
            wake_at = outcome.wake_at
            if self._stop.is_set() or wake_at > time.time():
                break
        # All state is on the disk: a phone that has to wait can be closed, and opened again when it is due.
        if len(self._open) > MOST_OPEN:
            del self._open[index]
            phone.close()
        return wake_at

    def _report(self, index: int, outcome: Outcome) -> None:
        with self._reporting:
            self.steps[outcome.kind] += 1
            self._on_event(FleetEvent(index, self._fleet.name(index), outcome))

    def _opened(self, index: int) -> Phone:
        config = self._fleet.config
        own = replace(config, seed=(config.seed or 0) + index)
        folder = self._fleet.folder / self._fleet.name(index)
        phone = Phone(folder, own, conditions=self._conditions, clock=self._clock, shared=self._shared)
        self._open[index] = phone
        for status in phone.status().models:
            if not status.consent:
                phone.consent(status.model, granted=True)
        return phone

    def _feed(self, index: int, phone: Phone) -> None:
        if self._fleet.speed is None:
            if index not in self._fed:
                for model in self._fleet.config.models:
                    phone.replay(model, self._fleet.source(index, model))
                self._fed.add(index)
            return
        if index not in self._sources:
            self._sources[index] = {model: self._fleet.source(index, model) for model in self._fleet.config.models}
        for model, source in self._sources[index].items():
            phone.replay(model, source)
