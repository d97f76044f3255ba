"""The event loop: devices come by, are given work, train, and upload, in virtual time.

The coordinator decides, the same as behind HTTP; traces say when things happen; executors compute. An event is a visit
of a device, an arrival of an update (or the instant at which one is lost), or a deadline. `tick` comes before any other
call at its time. Equal instants: deadlines, then arrivals in the order in which they were given out, then visits by
the number of the device.
"""

import heapq
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from flsys_ray.cloud.reports import open_demand
from flsys_ray.cloud.versions import check_fit
from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.rng import generator, unit
from flsys_ray.core.scheduling.base import Candidate, CheckIn, Scheduler
from flsys_ray.core.scheduling.contention_aware import ContentionAware
from flsys_ray.core.scheduling.supply import Served, Supply
from flsys_ray.core.types import Assignment
from flsys_ray.errors import InvalidInput
from flsys_ray.simulation.agenda import Agenda
from flsys_ray.simulation.executors import Executor
from flsys_ray.simulation.population import Population
from flsys_ray.simulation.results import Outcome, Row
from flsys_ray.simulation.traces import Traces
from flsys_ray.simulation.trainee import Trainee

SOON_S = 1.0
Fate = Literal["arrives", "given-back", "lost", "dropped-out"]


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """A model that trains in a simulation.

    Attributes:
        name, app: what it is called; the scheduler is fair between apps.
        plan: how it trains; its stopping condition ends its training.
        program: the device program.
        population: the devices that hold examples of it, numbers 0 to `population.devices - 1` of the traces.
        step_s: seconds that a device of speed 1 needs for a local step.
    """

    name: str
    plan: TrainingPlan
    program: bytes
    population: Population
    app: str = "app"
    step_s: float = 0.05


@dataclass(frozen=True, slots=True)
class Terms:
    """What a simulation is run with.

    Attributes:
        seed: of devices' luck; a plan's own seed is its own.
        scheduler: which model a device is offered first.
        check_in_every_s: a device comes back no sooner than this, whatever it is told.
        evaluate_every: versions whose number is a multiple of it are evaluated, and the last one; 0: none.
        drop_out: how likely an assignment is lost whatever the traces say, 0 to 1; its device is away until the
            assignment's deadline.
        horizon_s: virtual time at which a simulation that does not finish is ended.
    """

    seed: int = 0
    scheduler: Scheduler = field(default_factory=ContentionAware)
    check_in_every_s: float = 15.0
    evaluate_every: int = 1
    drop_out: float = 0.0
    horizon_s: float = 365 * 86400.0


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """What becomes of an assignment at an instant. `number` is its place in the order of being given out."""

    at: float
    number: int
    model: str = field(compare=False)
    device: int = field(compare=False)
    assignment: Assignment = field(compare=False)
    fate: Fate = field(compare=False)
    device_s: float = field(compare=False)


@dataclass(slots=True)
class LoopState:
    """The loop's own state beside the coordinators' and the desks'."""

    agenda: Agenda
    now: float = 0.0
    given: int = 0
    trained: int = 0
    arrivals: list[Arrival] = field(default_factory=list)
    supply: Supply = field(default_factory=Supply)
    served: Served = field(default_factory=Served)
    rows: list[Row] = field(default_factory=list)


class Simulation:
    """One run, from its beginning or from a checkpoint.

    Raises:
        InvalidInput: no model, two of one name, a plan without end, a share of no shared set, more devices than the
            traces have, or a drop-out that is not in 0 .. 1.
        PlanInvalid: a program cannot be trained as its plan says.
    """

    def __init__(self, models: Sequence[SimulatedModel], traces: Traces, executor: Executor, terms: Terms) -> None:
        check(models, traces)
        if not 0 <= terms.drop_out <= 1:
            raise InvalidInput(f"simulation: drop_out must lie in 0 .. 1, not {terms.drop_out}")
        self.traces, self.executor, self.terms = traces, executor, terms
        self.models = {model.name: model for model in models}
        self.trainees = {model.name: Trainee(model, executor) for model in models}
        self._min_battery = min(model.plan.eligibility.min_battery_fraction for model in models)
        spread = generator(terms.seed, "first-visit").random(len(traces))
        self.state = LoopState(Agenda(traces.first_visits(self._min_battery, spread)))
        self._pending: list[tuple[Row, str, Any]] = []

    def run(
        self,
        on_round: Callable[[Row], None] = lambda row: None,
        between: "Callable[[Simulation], bool | None] | None" = None,
    ) -> Outcome:
        """Go on until every model has finished, or the horizon is reached.

        `on_round` is called with the row of each round that closes, `between` after it, when no event is half done.
        If `between` returns true the run ends there ("paused"); another call goes on.
        """
        start, ended = time.perf_counter(), "finished"
        while not all(trainee.coordinator.finished for trainee in self.trainees.values()):
            deadline = self._next_deadline()
            at = min(deadline, self._next_event())
            if at > self.terms.horizon_s:
                ended = "horizon"
                break
            rows = len(self.state.rows)
            self._step(at, deadline, on_round)
            if between is not None and len(self.state.rows) > rows and between(self):
                ended = "paused"
                break
        self.settle()
        return replace(self._outcome(), wall_s=time.perf_counter() - start, ended=ended)

    def settle(self) -> None:
        """Wait for the evaluations that were asked for."""
        for row, model, future in self._pending:
            row.judge(future.result(), self.models[model].population.pool.held_out.y)
        self._pending.clear()

    # Events ------------------------------------------------------------------------------------------------------

    def _next_event(self) -> float:
        """Return when a device comes by next, or an assignment ends."""
        arrival = self.state.arrivals[0].at if self.state.arrivals else math.inf
        return min(arrival, self.state.agenda.next_at())

    def _next_deadline(self) -> float:
        """Return when the next round ends at the latest."""
        deadlines = [trainee.coordinator.next_deadline() for trainee in self.trainees.values()]
        return min((at for at in deadlines if at is not None), default=math.inf)

    def _step(self, at: float, soonest: float, on_round: Callable[[Row], None]) -> None:
        """Do what happens next, at an instant; `soonest` is the next deadline."""
        state = self.state
        state.now = max(state.now, at)
        for name, trainee in self.trainees.items() if soonest <= state.now else ():
            deadline = trainee.coordinator.next_deadline()
            if deadline is not None and deadline <= state.now:
                self._tick(name, on_round)
                return
        if state.arrivals and state.arrivals[0].at <= state.agenda.next_at():
            arrival = heapq.heappop(state.arrivals)
            self._pass_time(arrival.model, on_round)
            self._arrive(arrival)
            self._tick(arrival.model, on_round)
        else:
            self._visit(state.agenda.pop()[1], on_round)

    def _visit(self, device: int, on_round: Callable[[Row], None]) -> None:
        """A device comes by: it is asked what it could do, if it may do anything."""
        state = self.state
        stretch = self.traces.eligible(device, state.now, self._min_battery)
        if stretch is None or stretch[0] > state.now:
            if stretch is not None:
                state.agenda.set(device, stretch[0])
            return
        retry_s = math.inf
        for name in self._order(device):
            self._pass_time(name, on_round)
            trainee = self.trainees[name]
            trainee.tally.check_ins += 1
            answer = trainee.coordinator.check_in(str(device), state.now)
            if isinstance(answer, Assignment):
                state.served.give(self.models[name].app, state.now)
                self._give(name, device, answer, stretch[1])
                return
            retry_s = min(retry_s, answer.retry_after_s)
        if retry_s < math.inf:
            state.agenda.set(device, state.now + max(retry_s, self.terms.check_in_every_s))

    def _order(self, device: int) -> Sequence[str]:
        """Return the models that a device could train, the one to ask first at the front."""
        state, mine = self.state, []
        for name, model in self.models.items():
            held = device < model.population.devices
            enough = held and model.population.count(device) >= model.plan.eligibility.min_examples
            if enough and not self.trainees[name].coordinator.finished:
                mine.append(name)
        if len(self.models) == 1:
            return mine
        for name in mine:
            state.supply.seen(name, str(device), state.now)
        candidates = tuple(
            Candidate(
                name,
                self.models[name].app,
                open_demand(self.trainees[name].coordinator, state.now),
                state.supply.of(name, state.now),
                state.served.of(self.models[name].app, state.now),
            )
            for name in mine
        )
        return self.terms.scheduler.order(CheckIn(str(device), candidates, state.now, self.terms.seed))

    def _give(self, name: str, device: int, work: Assignment, until: float) -> None:
        """A device begins with an assignment: when it ends, and how, is decided here."""
        state, trainee, traces = self.state, self.trainees[name], self.traces
        state.given += 1
        training_s = trainee.steps(device) * self.models[name].step_s / float(traces.speed[device])
        download_bytes = trainee.download_bytes(device, work)
        down_s = download_bytes / float(traces.down_bytes_per_s[device])
        up_s = trainee.upload_bytes / float(traces.up_bytes_per_s[device])
        fate, ends, device_s = self._fate(device, work, (down_s, training_s, up_s), until)
        if fate != "given-back":
            trainee.tally.download_bytes += download_bytes
            trainee.downloaded(device, work)
        if fate == "arrives":
            trainee.begin(work, device, ends)
        heapq.heappush(state.arrivals, Arrival(ends, state.given, name, device, work, fate, device_s))

    def _fate(
        self, device: int, work: Assignment, durations: tuple[float, float, float], until: float
    ) -> tuple[Fate, float, float]:
        """Return how an assignment ends, when, and how long the device trained for it."""
        now, traces = self.state.now, self.traces
        if (dropped := self._dropped(work, durations, until)) is not None:
            return dropped
        luck = unit(self.terms.seed, "luck", work.round, f"{work.assignment_id}@{now}")
        down_s, training_s, up_s = durations
        before = float(traces.loss_before[device])
        during = before + float(traces.loss_during[device])
        if luck < before:
            return "given-back", now + SOON_S, 0.0
        if luck < during:  # at a place that is uniform, like the luck within its share
            part = (luck - before) / (during - before)
            return "lost", min(now + down_s + part * training_s, until), part * training_s
        ends = now + down_s + training_s + up_s
        if ends > until:
            return "lost", until, min(training_s, max(0.0, until - now - down_s))
        if luck < during + float(traces.loss_after[device]):
            return "lost", ends, training_s
        return "arrives", ends, training_s

    def _dropped(
        self, work: Assignment, durations: tuple[float, float, float], until: float
    ) -> tuple[Fate, float, float] | None:
        """Return how an assignment ends whose device drops out by `terms.drop_out`, None if it does not.

        The same assignment always has the same lot: its device drops out before it trains, while it does (at a place
        that is uniform), or when its update is to be uploaded, each as often.
        """
        if self.terms.drop_out == 0:
            return None
        lot = unit(self.terms.seed, "drop-out", work.round, work.assignment_id) / self.terms.drop_out
        if lot >= 1:
            return None
        down_s, training_s, up_s = durations
        part = min(1.0, max(0.0, 3 * lot - 1))
        ends = self.state.now + down_s + part * training_s + (up_s if 3 * lot >= 2 else 0.0)
        trained_s = min(part * training_s, max(0.0, until - self.state.now - down_s))
        return "dropped-out", max(min(ends, until), self.state.now + SOON_S), trained_s

    def _arrive(self, arrival: Arrival) -> None:
        """An assignment ends. The device comes back a moment later, and asks again when it may."""
        state, trainee = self.state, self.trainees[arrival.model]
        trainee.tally.device_s += arrival.device_s
        counted = False
        if arrival.fate == "arrives":
            counted, computed = trainee.submit(arrival.assignment, arrival.device, state.now, arrival.device_s)
            state.trained += computed
        elif arrival.fate == "given-back":
            trainee.coordinator.give_back(arrival.assignment, state.now)
        trainee.tally.wasted_device_s += 0.0 if counted else arrival.device_s
        back_at = state.now + max(SOON_S, self.terms.check_in_every_s * (not counted))
        if arrival.fate == "dropped-out":  # or it would only begin the same work again
            back_at = max(back_at, arrival.assignment.deadline)
        state.agenda.set(arrival.device, back_at)

    def _pass_time(self, name: str, on_round: Callable[[Row], None]) -> None:
        """Tick before a call, where time alone changes something: a round ends by an arrival or at its deadline."""
        if self.models[name].plan.pacing.asynchronous:
            self._tick(name, on_round)

    def _tick(self, name: str, on_round: Callable[[Row], None]) -> None:
        """Close the model's round if it is time."""
        trainee = self.trainees[name]
        while (summary := trainee.coordinator.tick(self.state.now)) is not None:
            row = trainee.row(summary)
            self.state.rows.append(row)
            if summary.commit is not None and self._is_judged(trainee):
                self._judge(row, name, trainee.coordinator.version.parameters)
            on_round(row)

    def _is_judged(self, trainee: Trainee) -> bool:
        every = self.terms.evaluate_every
        number = trainee.coordinator.version.number
        return every > 0 and (number % every == 0 or trainee.coordinator.finished)

    def _judge(self, row: Row, name: str, parameters: Vector) -> None:
        self._pending.append((row, name, self.executor.evaluate(name, parameters)))
        while self._pending and self._pending[0][2].done():
            done, model, future = self._pending.pop(0)
            done.judge(future.result(), self.models[model].population.pool.held_out.y)

    def _outcome(self) -> Outcome:
        state = self.state
        return Outcome(
            rows=state.rows,
            seed=self.terms.seed,
            devices=len(self.traces),
            virtual_s=state.now,
            trainings=state.trained,
            versions={name: trainee.coordinator.version.number for name, trainee in self.trainees.items()},
            digests={name: trainee.digest() for name, trainee in self.trainees.items()},
            parameters={name: trainee.coordinator.version.parameters for name, trainee in self.trainees.items()},
        )


def check(models: Sequence[SimulatedModel], traces: Traces) -> None:
    """Raise `InvalidInput` for models that cannot be simulated together on these traces.

    Raises `PlanInvalid` for a plan that the program cannot be trained by.
    """
    if not models or len({model.name for model in models}) != len(models):
        raise InvalidInput("simulation: at least one model is needed, and each name once")
    for model in models:
        if model.plan.stopping.versions is None:
            raise InvalidInput(f"simulation: the plan of {model.name!r} has no end: set stopping.versions, or --rounds")
        check_fit(model.plan, model.program)
        if model.plan.augmentation.share > 0 and model.population.pool.shared == 0:
            raise InvalidInput(
                f"simulation: the plan of {model.name!r} mixes in a share of a shared set, and there is none"
            )
        if model.population.devices > len(traces):
            raise InvalidInput(
                f"simulation: {model.name!r} has {model.population.devices} devices, the traces {len(traces)}"
            )
