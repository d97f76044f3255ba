"""Emulated phones for commands: which data they hold, and a watch on what they do."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from flsys_ray.commands.options import console
from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.data.catalog import default_har_dataset
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.developer import DeveloperClient
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.fleet import Fleet, FleetEvent
from flsys_ray.errors import InvalidInput, TryLater
from flsys_ray.programs.manifest import read_manifest, read_tokenizer
from flsys_ray.wire.developer_schemas import RoundInfo

LOOK_S = 0.5


@dataclass(frozen=True, slots=True)
class Phones:
    """How many phones, of which app and models, with whose data, and where they keep their state.

    `enrol_key` is what they enrol with: the app's enrolment key, or the app key, which opens that as well.
    `deal` and `training_s` are those of `flsys_ray.device.fleet.Fleet`.
    """

    url: str
    enrol_key: str = field(repr=False)
    models: tuple[str, ...]
    count: int
    users: tuple[str, ...]
    folder: Path
    deal: bool = False
    training_s: Callable[[int], float] | None = None


def data_for(name: str | None) -> Dataset:
    """Open a data set by name, or the best sensor data at hand."""
    return open_dataset(name) if name is not None else default_har_dataset()


def training_users(dataset: Dataset, held_out: float, seed: int) -> tuple[str, ...]:
    """Return the users that phones may hold."""
    return dataset.users if held_out == 0 else split_users(dataset.users, held_out, seed)[0]


def fleet_of(cloud: DeveloperClient, phones: Phones, dataset: Dataset) -> Fleet:
    """Return the fleet. Raises `InvalidInput` if a model has no program yet."""
    data = {}
    for model in phones.models:
        info = cloud.info(model)
        if info.program_sha256 is None:
            raise InvalidInput(f"model {model!r} has no program yet")
        program = cloud.program(model, info.program_sha256)
        data[model] = dataset.fit(read_manifest(program).classes, read_tokenizer(program))
    config = PhoneConfig(url=phones.url, app_key=phones.enrol_key, models=phones.models)
    return Fleet(
        folder=phones.folder,
        config=config,
        data=data,
        count=phones.count,
        users=phones.users,
        deal=phones.deal,
        training_s=phones.training_s,
    )


def for_phones(plan: TrainingPlan, phones: int) -> TrainingPlan:
    """Return a plan that has not more than that many phones at work, so that no round waits for its deadline."""
    pacing = plan.pacing
    if pacing.slots <= phones:
        return plan
    if isinstance(pacing, Buffered):
        return plan.model_copy(update={"pacing": pacing.model_copy(update={"concurrency": phones})})
    if not isinstance(pacing, Rounds):
        return plan
    cohort = max(1, int(phones / pacing.over_selection))
    quorum = None if pacing.quorum is None else min(pacing.quorum, cohort)
    fewer = pacing.model_copy(update={"cohort": cohort, "quorum": quorum})
    return plan.model_copy(update={"pacing": fewer})


def too_few(model: str, plan: TrainingPlan, phones: int) -> str | None:
    """Return what to tell somebody whose phones cannot fill a model's cohort, or None."""
    pacing = plan.pacing
    if not isinstance(pacing, Rounds) or phones >= pacing.cohort:
        return None
    return (
        f"note: {model}: its cohort is {pacing.cohort}: with {phones} phones alone each round waits "
        f"for its deadline ({pacing.deadline_s:g} s) and needs {pacing.needed} updates"
    )


class Watch:
    """Looks at the models while phones run: progress bars in a terminal, and a line a round. Says when to stop.

    `clouds` holds each model's cloud, as its app sees it. Of `every` rounds one has a line.
    """

    def __init__(
        self,
        clouds: Mapping[str, DeveloperClient],
        until_version: int | None,
        seconds: float | None,
        stop: threading.Event,
        *,
        every: int = 1,
        quiet: bool = False,
    ) -> None:
        self._clouds = clouds
        self._every = every
        self._until = until_version
        self._end = time.monotonic() + seconds if seconds is not None else None
        self._stop = stop
        self._quiet = quiet
        self._seen = dict.fromkeys(clouds, 0)
        self._versions: dict[str, int | None] = dict.fromkeys(clouds)
        self._uploads = 0

    def on_event(self, event: FleetEvent) -> None:
        """Count what phones do."""
        self._uploads += event.outcome.kind == "uploaded"

    def versions(self) -> dict[str, int | None]:
        """Return the newest version of each model that was seen."""
        return dict(self._versions)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look now and then while the block runs."""
        thread = threading.Thread(target=self._look_until_stop, name="watch")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _look_until_stop(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[what]}"),
            TimeElapsedColumn(),
        )
        shown = console.is_terminal and not self._quiet
        with Progress(*columns, console=console, disable=not shown, transient=True) as progress:
            tasks = {model: progress.add_task(model, total=self._until, what="") for model in self._clouds}
            while not self._stop.is_set():
                with suppress(TryLater):  # the cloud may be restarting: phones wait for it, and so do we
                    self._look(progress, tasks)
                if self._done():
                    self._stop.set()
                self._stop.wait(LOOK_S)

    def _look(self, progress: Progress, tasks: dict[str, TaskID]) -> None:
        for model, cloud in self._clouds.items():
            info = cloud.info(model)
            self._versions[model] = info.version
            counters = info.open_round.counters if info.open_round is not None else None
            what = f"v{info.version}" + (
                f"  {counters.counted} counted, {counters.pending} at work" if counters else ""
            )
            progress.update(tasks[model], completed=info.version or 0, what=what)
            if info.rounds_closed > self._seen[model]:
                for closed in cloud.rounds(model, self._seen[model]):
                    self._say(model, closed)
                self._seen[model] = info.rounds_closed
            if info.state == "finished":
                self._versions[model] = max(info.version or 0, self._until or 0)

    def _say(self, model: str, closed: RoundInfo) -> None:
        if not self._quiet and (closed.round + 1) % self._every == 0:
            console.print(round_line(model, closed))

    def _done(self) -> bool:
        if self._end is not None and time.monotonic() > self._end:
            return True
        return self._until is not None and all((v or 0) >= self._until for v in self._versions.values())


def round_line(model: str, closed: RoundInfo) -> str:
    """Return one line on a round that is over."""
    counters = closed.counters
    made = f"version {closed.committed}" if closed.committed is not None else "no quorum, no version"
    loss = "" if closed.mean_loss is None else f", training loss {closed.mean_loss:.3f}"
    metrics = closed.evaluation
    phones = "" if metrics is None else f", version {closed.version} on phones: accuracy {metrics.accuracy:.3f}"
    took = closed.closed_at - closed.opened_at
    funnel = f"{counters.counted} of {counters.assigned} updates"
    return f"{model} round {closed.round}: {made} from {funnel} in {took:.1f} s{loss}{phones}"
