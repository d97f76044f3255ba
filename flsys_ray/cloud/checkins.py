"""A device at the doors of several models: who is asked, in which order, and who is not.

A model that does not train is not asked: the store tells its state. But one that is finished and still wants its
version evaluated is asked, behind those that train. The others are ordered by the scheduler, and asked
one after the other until the device has as many assignments as one check-in may carry. What each model wants came with
its last answer, to this replica; a view that is older than `VIEW_S` is replaced by what the store tells. So the order
follows a model with a delay of seconds, and the answer itself comes from the model: an old view can cost a question
that is answered "round-full", or an order that is not the best one, and never an assignment too much.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from flsys_ray.cloud.credentials import Device
from flsys_ray.cloud.hosts import Hosts
from flsys_ray.cloud.looks import Looks
from flsys_ray.cloud.mailbox import Mailboxes
from flsys_ray.cloud.model import IDLE_RETRY_S
from flsys_ray.cloud.offers import CheckInAnswer, Offer
from flsys_ray.cloud.standing import Standing, Standings
from flsys_ray.core.ids import model_name
from flsys_ray.core.pacing.steering import Steering
from flsys_ray.core.rng import unit
from flsys_ray.core.scheduling.base import Candidate, CheckIn, Demand, Scheduler
from flsys_ray.core.scheduling.contention_aware import ContentionAware
from flsys_ray.core.scheduling.supply import Served, Supply
from flsys_ray.core.types import Reason, Rejected
from flsys_ray.errors import NotFound, TryLater

VIEW_S = 2.0
SOON_S = 1.0
KEPT_DEVICES = 10_000
WAITING = 2_000  # check-ins of one model, at one replica
TOGETHER = 256
Answer = CheckInAnswer | TryLater | None


@dataclass(frozen=True, slots=True)
class Terms:
    """How devices are shared between models.

    Attributes:
        scheduler: who is asked first.
        assignments: the most that one check-in may carry. A phone does one after the other, so a second one only
            waits, and holds a place in its round meanwhile; the phone comes back a second after the first.
        patience_s: how long a device waits for the answer of the last model that it could have work of.
        hurry_s: a model that has not answered for so long, since it commits a version, say, is passed over.
        steering: the check-ins of an app's devices that get no work, at each replica of the cloud.
    """

    scheduler: Scheduler = field(default_factory=ContentionAware)
    assignments: int = 1
    patience_s: float = 2.0
    hurry_s: float = 0.2
    steering: Steering = field(default_factory=Steering)


@dataclass(slots=True)
class CheckIns:
    """Asks models on behalf of devices. Its memory is a replica's: estimates, and hints that may be lost."""

    hosts: Hosts
    standings: Standings
    clock: Callable[[], float]
    terms: Terms = field(default_factory=Terms)
    _doors: Mailboxes[str, CheckInAnswer] = field(init=False)
    _supply: Supply = field(default_factory=Supply)
    _served: Served = field(default_factory=Served)
    _views: dict[str, tuple[float, Demand]] = field(default_factory=dict)
    _given: OrderedDict[str, dict[str, float]] = field(default_factory=OrderedDict)
    _free_at: dict[str, float] = field(default_factory=dict)
    _running: set[asyncio.Task[CheckInAnswer]] = field(default_factory=set)
    _looks: Looks[Standing | TryLater | None] = field(default_factory=Looks)
    _evaluations: Looks[bool] = field(default_factory=Looks)

    def __post_init__(self) -> None:
        self._doors = Mailboxes(self._ask_many, limit=WAITING, at_once=TOGETHER)

    async def ask(self, device: Device, models: Sequence[str]) -> dict[str, Answer]:
        """Return each model's answer by its id, in the order of `models`: None for one that does not exist."""
        standings = await self._standings(device, models)
        answers: dict[str, Answer] = {}
        training: dict[str, Standing] = {}
        finished: dict[str, Standing] = {}
        for model, standing in standings.items():
            if not isinstance(standing, Standing):
                answers[model] = standing
            elif standing.head.state == "training":
                training[model] = standing
            elif standing.wanted is not None and await self._wants_evaluation(model):
                finished[model] = standing
            else:
                refusal: Reason = "finished" if standing.head.state == "finished" else "not-training"
                answers[model] = CheckInAnswer(Rejected(refusal, IDLE_RETRY_S), standing.plan.eligibility)
        order = [*self._order(device, training), *finished]
        answers |= await self._down_the_list(device, order, training | finished)
        return {model: answers[model] for model in models}

    async def _wants_evaluation(self, model: str) -> bool:
        return await self._evaluations.share(model, partial(self.standings.wants_evaluation, model))

    def come_back_in_s(self, device: Device, wanted_s: float) -> float:
        """Return when a device that got no work comes back: when its models want it, or later if very many come."""
        now, app_id = self.clock(), device.app_id
        lot = np.array([unit(0, "steering", int(now), device.device_id)])
        self._free_at[app_id], waits = self.terms.steering.take(self._free_at.get(app_id, now), now, lot)
        return max(wanted_s, float(waits[0]))

    async def _down_the_list(
        self, device: Device, order: Sequence[str], standings: Mapping[str, Standing]
    ) -> dict[str, Answer]:
        answers: dict[str, Answer] = {}
        offers = 0
        for model in order:
            if offers >= self.terms.assignments:
                rejected = Rejected("not-scheduled", SOON_S)
                answers[model] = CheckInAnswer(rejected, standings[model].plan.eligibility)
                continue
            wait_s = self.terms.patience_s if model == order[-1] else self.terms.hurry_s
            answer = await self._ask_one(device, model, wait_s)
            answers[model] = answer
            if isinstance(answer, CheckInAnswer) and isinstance(answer.outcome, Offer):
                offers += 1
                self._note_offer(device, answer.outcome)
            else:
                self._given.get(device.device_id, {}).pop(model, None)
        return answers

    def _order(self, device: Device, training: dict[str, Standing]) -> list[str]:
        """Return the models in the order in which to ask. Open work comes first: the device may not know of it."""
        now = self.clock()
        for model in training:
            self._supply.seen(model, device.device_id, now)
        if len(training) < 2:
            return list(training)
        candidates = tuple(
            Candidate(
                model,
                standing.head.app_id,
                self._demand(model, standing, now),
                self._supply.of(model, now),
                self._served.of(standing.head.app_id, now),
            )
            for model, standing in training.items()
        )
        order = self.terms.scheduler.order(CheckIn(device.device_id, candidates, now))
        given = self._given.get(device.device_id, {})
        return sorted(order, key=lambda model: given.get(model, 0.0) <= now)

    def _demand(self, model: str, standing: Standing, now: float) -> Demand:
        seen_at, demand = self._views.get(model, (float("-inf"), None))
        if demand is not None and 0 <= now - seen_at < VIEW_S:
            return demand
        return standing.demand(now)

    async def _ask_one(self, device: Device, model: str, wait_s: float) -> Answer:
        """Return a model's answer, or an error if it is down or busy: it is then asked last for a while."""
        task = asyncio.ensure_future(self._doors.send(model, device.device_id))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        done, _ = await asyncio.wait({task}, timeout=wait_s)
        try:
            if not done:
                task.add_done_callback(lambda late: self._came_late(device, late))
                raise TryLater(f"model {model_name(model)!r} is busy: try again", VIEW_S)
            answer = task.result()
        except NotFound:
            return None
        except TryLater as error:
            self._views[model] = (self.clock(), Demand(0, 0, self.clock()))
            return error
        if answer.demand is not None:
            self._views[model] = (self.clock(), answer.demand)
        return replace(answer, demand=None)

    async def _ask_many(self, model: str, device_ids: Sequence[str]) -> Sequence[CheckInAnswer]:
        return await self.hosts.model(model).check_in_many(device_ids)

    def _came_late(self, device: Device, late: "asyncio.Task[CheckInAnswer]") -> None:
        """Take note of an assignment that the device was not told of: it is asked for first when it comes again."""
        if late.cancelled() or late.exception() is not None:
            return
        outcome = late.result().outcome
        if isinstance(outcome, Offer):
            self._note_offer(device, outcome)

    def _note_offer(self, device: Device, offer: Offer) -> None:
        now, work = self.clock(), offer.assignment
        given = self._given.setdefault(device.device_id, {})
        if given.get(work.model, 0.0) <= now:
            self._served.give(device.app_id, now)
        given[work.model] = work.deadline
        self._given.move_to_end(device.device_id)
        while len(self._given) > KEPT_DEVICES:
            self._given.popitem(last=False)

    async def _standings(self, device: Device, models: Sequence[str]) -> dict[str, Standing | TryLater | None]:
        """Return the models' standings: where the store must tell, in a thread, for all check-ins that wait for it."""
        found = {model: self._standing(model) for model in models if self.standings.is_fresh(model)}
        if old := [model for model in models if model not in found]:
            looks = (self._looks.share(model, partial(self._standing, model)) for model in old)
            found |= dict(zip(old, await asyncio.gather(*looks), strict=True))
        return {model: _of_app(device.app_id, found[model]) for model in models}

    def _standing(self, model: str) -> Standing | TryLater | None:
        try:
            return self.standings.read(model)
        except NotFound:
            return None
        except TryLater as error:
            return error


def _of_app(app_id: str, found: Standing | TryLater | None) -> Standing | TryLater | None:
    return None if isinstance(found, Standing) and found.head.app_id != app_id else found
