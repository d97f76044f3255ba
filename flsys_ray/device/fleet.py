"""Many phones in one process, for load and demonstrations.

Each is a real `Phone` with a folder and a database of its own, over real HTTP. They share a pool of connections, the
cache of programs, and one LiteRT interpreter a program and worker. A queue ordered by wake-up time is served by few
worker threads: a thousand phones that wait cost nothing but their entry in the queue.

A phone may have several apps, each a runtime with its own key, models, folder and database: one `Fleet` an app, on the
same phones. They share the phone's conditions, and one of them works at a time: a phone has one processor.

Emulated phones hold data that a researcher handed out, so `run_fleet` consents in the place of their users.
"""

import heapq
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
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
    """One app on many phones. The same fleet on the same folder is the same phones.

    Attributes:
        folder: holds one folder a phone; they are made when missing.
        config: of every phone; its seed, 0 if None, gives each phone its own.
        data: the data set of each model.
        count: how many phones.
        users: whose data they hold; None: of all users of each data set. Phone i holds the data of user i modulo their
            number. With more phones than users, the phones of one user share that user's examples between them, each
            with a stretch of its own: no example is on two phones.
        deal: with fewer phones than users, deal out all users: phone i holds the data of users i, i + count, ...
        speed: seconds of a user's stream in one second; None: all data are there from the start.
        training_s: seconds that a training takes on phone i at least, as its hardware would; None: as fast as this
            machine can. What is left of them passes before the upload, and costs no processor time.
    """

    folder: Path
    config: PhoneConfig
    data: Mapping[str, UserData]
    count: int
    users: tuple[str, ...] | None = None
    deal: bool = False
    speed: float | None = None
    training_s: Callable[[int], float] | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InvalidInput(f"a fleet needs at least one phone, not {self.count}")
        if missing := [model for model in self.config.models if model not in self.data]:
            raise InvalidInput(f"no data set for {', '.join(missing)}: give each model of the fleet one")
        for model in self.config.models:
            self._users(model)

    def sources(self, index: int, model: str) -> tuple[ReplaySource, ...]:
        """Return what phone `index` replays for `model`."""
        users = self._users(model)
        number = index % len(users)
        sharing = len(range(number, self.count, len(users)))
        mine = users[number :: self.count] if self.deal else users[number : number + 1]
        part = (index // len(users), sharing)
        return tuple(ReplaySource(self.data[model], user, part, self.speed) for user in mine)

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
    *apps: Fleet,
    stop: threading.Event,
    on_event: Callable[[FleetEvent], None] = lambda event: None,
    workers: int = 2,
    conditions: ConditionsSource | None = None,
    transport: httpx2.BaseTransport | None = None,
) -> FleetReport:
    """Run all phones until `stop` is set. `on_event` is called from the worker threads, one call at a time.

    Args:
        apps: what is on the phones; phone i has phone i of each.
        stop: ends the run.
        on_event: is told of each step.
        workers: threads that serve phones.
        conditions: of every phone; default: ready.
        transport: reaches the cloud in another way than by network.

    Raises:
        InvalidInput: `workers` is not positive; there is no app, or two differ in their number of phones, or share a
            folder.
    """
    if workers < 1:
        raise InvalidInput(f"a fleet needs at least one worker, not {workers}")
    if len({app.count for app in apps}) != 1 or len({app.folder for app in apps}) != len(apps):
        raise InvalidInput("the apps of a fleet are on the same phones: give each a folder, and all the same count")
    with ExitStack() as stack:
        shared = [_shared(app, workers, transport, stack) for app in apps]
        schedule = _Schedule(apps, shared, conditions or FixedConditions(), stop, on_event)
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


def _shared(app: Fleet, workers: int, transport: httpx2.BaseTransport | None, stack: ExitStack) -> Shared:
    """Return what the runtimes of one app have in common."""
    limits = httpx2.Limits(max_connections=workers + 2, max_keepalive_connections=workers + 2)
    http = stack.enter_context(httpx2.Client(base_url=app.config.url, transport=transport, limits=limits))
    return Shared(http=http, program_files=FileCache(app.folder / "programs", SHARED_PROGRAM_BYTES))


class _Runtime:
    """One app on one phone. All its state is on the disk: it is opened when it is due, and may be closed in between."""

    def __init__(
        self, app: Fleet, index: int, shared: Shared, conditions: ConditionsSource, clock: SystemClock
    ) -> None:
        self.app, self._index = app, index
        self._shared, self._conditions, self._clock = shared, conditions, clock
        self._phone: Phone | None = None
        self._fed = False
        self._sources: dict[str, tuple[ReplaySource, ...]] = {}
        self.wake_at = 0.0

    def step(self, should_stop: Callable[[], bool]) -> Outcome:
        """Do the next thing."""
        return self._opened().step(should_stop=should_stop)

    def feed(self) -> None:
        """Store what is due of the data."""
        if self._fed:
            return
        sources = self._sources or {model: self.app.sources(self._index, model) for model in self.app.config.models}
        for model, parts in sources.items():
            for source in parts:
                self._opened().replay(model, source)
        if self.app.speed is None:
            self._fed = True
        else:
            self._sources = sources

    def close(self) -> None:
        """Close the phone, if it is open."""
        if self._phone is not None:
            self._phone.close()
            self._phone = None

    @property
    def is_open(self) -> bool:
        """Whether it holds files open."""
        return self._phone is not None

    def _opened(self) -> Phone:
        if self._phone is None:
            config = self.app.config
            own = replace(config, seed=(config.seed or 0) + self._index)
            folder = self.app.folder / self.app.name(self._index)
            self._phone = Phone(folder, own, conditions=self._conditions, clock=self._clock, shared=self._shared)
            for status in self._phone.status().models:
                if not status.consent:
                    self._phone.consent(status.model, granted=True)
        return self._phone


class _EmulatedPhone:
    """The apps on one phone."""

    def __init__(self, apps: Sequence[_Runtime]) -> None:
        self.apps = apps
        self._training: _Runtime | None = None

    @property
    def wake_at(self) -> float:
        """When there will be something to do."""
        return self._training.wake_at if self._training else min(app.wake_at for app in self.apps)

    def next(self) -> _Runtime:
        """Return the app that goes on: whose training has just lasted long enough, else the first that is due."""
        app = self._training or min(self.apps, key=lambda app: app.wake_at)
        self._training = None
        return app

    def trains_until(self, app: _Runtime, instant: float) -> None:
        """Keep the phone busy: no app does anything until a training has lasted as long as it takes here."""
        app.wake_at, self._training = instant, app


class _Schedule:
    """The queue by wake-up time, and the phones. A phone is with one worker at a time."""

    def __init__(
        self,
        apps: Sequence[Fleet],
        shared: Sequence[Shared],
        conditions: ConditionsSource,
        stop: threading.Event,
        on_event: Callable[[FleetEvent], None],
    ) -> None:
        self._stop, self._on_event = stop, on_event
        clock = SystemClock(stop)
        self._phones = [
            _EmulatedPhone([_Runtime(app, i, its, conditions, clock) for app, its in zip(apps, shared, strict=True)])
            for i in range(apps[0].count)
        ]
        self._queue = [(0.0, index) for index in range(len(self._phones))]
        self._open = 0
        self._changed = threading.Condition()
        self._reporting = threading.Lock()
        self.steps: Counter[Kind] = Counter()
        self.error: BaseException | None = None

    def work(self) -> None:
        """Serve phones until the fleet stops."""
        try:
            while (index := self._next()) is not None:
                self._serve(index, self._phones[index])
                with self._changed:
                    heapq.heappush(self._queue, (self._phones[index].wake_at, index))
                    self._changed.notify()
        except BaseException as error:  # `run_fleet` raises it
            self.error = error
            self._stop.set()

    def close(self) -> None:
        """Close all phones."""
        for phone in self._phones:
            for app in phone.apps:
                app.close()

    def _next(self) -> int | None:
        """Wait for the next phone that is due; None: the fleet stops."""
        with self._changed:
            while not self._stop.is_set():
                left_s = self._queue[0][0] - time.time() if self._queue else 1.0
                if left_s <= 0:
                    return heapq.heappop(self._queue)[1]
                self._changed.wait(min(left_s, 0.2))  # `stop` is somebody else's event: look at it now and then
        return None

    def _serve(self, index: int, phone: _EmulatedPhone) -> None:
        """Let one app of a phone work until it has to wait, as on a phone of its own."""
        app = phone.next()
        was_open = app.is_open
        app.feed()
        for _ in range(STEPS_AT_ONCE):
            began = time.time()
            outcome = app.step(self._stop.is_set)
            self._report(index, app, outcome)
            app.wake_at = outcome.wake_at
            if outcome.kind == "trained" and app.app.training_s is not None:
                done_at = began + app.app.training_s(index)
                if done_at > time.time():
                    phone.trains_until(app, done_at)
                    break
            if self._stop.is_set() or app.wake_at > time.time():
                break
        self._account(app, was_open=was_open)

    def _account(self, app: _Runtime, *, was_open: bool) -> None:
        """Count open phones, and close this one if there are too many: it can be opened again when it is due."""
        with self._changed:
            self._open += not was_open
            if self._open > MOST_OPEN:
                self._open -= 1
                app.close()

    def _report(self, index: int, app: _Runtime, outcome: Outcome) -> None:
        with self._reporting:
            self.steps[outcome.kind] += 1
            self._on_event(FleetEvent(index, app.app.name(index), outcome))
