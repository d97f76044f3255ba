"""The apps of the demo: what each of them has trained, on whose data, by which plan, and what came of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flsys_ray.commands.evaluation import HeldOut, Result, macro_f1
from flsys_ray.commands.fleets import Phones, fleet_of, for_phones, training_users
from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.data.catalog import default_har_dataset, default_text_dataset
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.developer import DeveloperClient
from flsys_ray.device.fleet import Fleet
from flsys_ray.errors import InvalidInput
from flsys_ray.models import base
from flsys_ray.wire.developer_schemas import AppCreated

HELD_OUT, SPLIT_SEED = 0.2, 0
POINTS = 20


@dataclass(frozen=True)
class Part:
    """One app of the demo, and the model that it has trained.

    Attributes:
        app: its name.
        model: a built-in one.
        form: of its data, "windows" or "texts".
        data: opens the best at hand.
        deal: whether a phone holds the data of several users, where there are more users than phones.
        plan: sections that replace those of the model's own plan.
    """

    app: str
    model: str
    form: str
    data: Callable[[], Dataset]
    deal: bool
    plan: Mapping[str, Any]


# Half of the phones at most are at work for each: no model waits for the other one's phones. Deadlines are short since
# the first wait of a phone that is not needed yet is half of one.
FITNESS = Part(
    "fitness",
    "har-wild",
    "windows",
    default_har_dataset,
    deal=False,
    plan={"pacing": {"name": "rounds", "cohort": 16, "over_selection": 1.25, "quorum": 8, "deadline_s": 20.0}},
)
# A user of the real tweets has four of them: dealt out, the tweets of all users are on some phone.
KEYBOARD = Part(
    "keyboard",
    "sentiment",
    "texts",
    default_text_dataset,
    deal=True,
    plan={
        "pacing": {"name": "buffered", "buffer": 8, "concurrency": 12, "deadline_s": 20.0},
        "aggregation": {"name": "clipping", "norm": 1.0, "inner": "weighted_mean"},
    },
)


@dataclass(frozen=True)
class Training:
    """A part at work in a cloud: the model's name there, the data, and the cloud as the app sees it at `url`."""

    part: Part
    name: str
    dataset: Dataset
    cloud: DeveloperClient
    url: str
    enrol_key: str = field(repr=False)

    @classmethod
    def of(cls, part: Part, name: str, dataset: Dataset, url: str, app: AppCreated) -> "Training":
        """Return it, with a client that its user closes. Phones get the key that opens enrolment alone."""
        return cls(part, name, dataset, DeveloperClient(url, app.key), url, app.enrol_key)

    @property
    def users(self) -> tuple[str, ...]:
        """The users whose data phones hold; the others are held out."""
        return training_users(self.dataset, HELD_OUT, SPLIT_SEED)

    def submit(self, plan: TrainingPlan, program: bytes) -> None:
        """Submit the model. It does not train yet."""
        self.cloud.put_model(self.name, plan)
        self.cloud.put_program(self.name, program)

    def fleet(self, count: int, folder: Path, training_s: Callable[[int], float] | None = None) -> Fleet:
        """Return the app on that many phones."""
        models, own, deal = (self.name,), folder / self.part.app, self.part.deal
        phones = Phones(self.url, self.enrol_key, models, count, self.users, own, deal, training_s)
        return fleet_of(self.cloud, phones, self.dataset)

    def on_a_phone(self, count: int) -> str:
        """Return what one of that many phones holds, in words."""
        what, users = {"windows": "sensor data", "texts": "texts"}[self.part.form], len(self.users)
        if users < count:
            return f"the {what} of one user, or a part of them"
        if users == count or not self.part.deal:
            return f"the {what} of one user"
        least = users // count
        return f"the {what} of {least if users % count == 0 else f'{least} or {least + 1}'} users"

    def outcome(self, points: int = POINTS) -> "Outcome":
        """Evaluate about so many versions on the held-out users, the first and the last among them."""
        rounds = self.cloud.rounds(self.name)
        committed_at = {closed.committed: closed.closed_at for closed in rounds if closed.committed is not None}
        info = self.cloud.info(self.name)
        test = HeldOut.load(self.cloud, info, self.dataset.name, HELD_OUT, SPLIT_SEED)
        newest = max(committed_at, default=0)
        numbers = sorted({*range(0, newest, max(1, newest // points)), newest})
        return Outcome(
            app=self.part.app,
            plan=info.plan,
            results=tuple(test.evaluate(self.cloud, number) for number in numbers),
            at_s=tuple(committed_at.get(number, rounds[0].opened_at) for number in numbers),
            updates=sum(closed.counters.counted for closed in rounds),
            update_bytes=sum(closed.update_bytes for closed in rounds),
            commonest=commonest(self.dataset, self.users, test),
        )


@dataclass(frozen=True)
class Commonest:
    """What always answering the training users' most frequent class would reach on the held-out users."""

    label: str
    accuracy: float
    macro_f1: float


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        app: whose model it is.
        plan: how it trained.
        results: of some versions, version 0 first.
        at_s: when each of them was committed, UTC seconds; version 0: when the first round opened.
        updates, update_bytes: that are in versions.
        commonest: what needs no training.
    """

    app: str
    plan: TrainingPlan
    results: tuple[Result, ...]
    at_s: tuple[float, ...]
    updates: int
    update_bytes: int
    commonest: Commonest

    @property
    def seconds(self) -> float:
        """From the first round's opening to the last version."""
        return self.at_s[-1] - self.at_s[0]

    def row(self) -> tuple[str, ...]:
        """Return a row of the table that the demo ends with."""
        first, last, never = self.results[0], self.results[-1], self.commonest
        return (
            last.model,
            self.app,
            str(last.version),
            f"{first.accuracy:.3f} -> {last.accuracy:.3f}",
            f"{first.macro_f1:.3f} -> {last.macro_f1:.3f}",
            f"{never.label}: {never.accuracy:.3f}, {never.macro_f1:.3f}",
            str(self.updates),
            f"{self.update_bytes / 1e6:.1f}",
            f"{self.seconds:.1f}",
        )

    def as_json(self, start_s: float) -> dict[str, Any]:
        """Return plain data; instants become seconds after `start_s`."""
        versions = [
            {**result.as_json(), "at_s": round(at_s - start_s, 2)}
            for result, at_s in zip(self.results, self.at_s, strict=True)
        ]
        return {
            "model": self.results[0].model,
            "app": self.app,
            "data": self.results[0].data,
            "source": self.results[0].source,
            "plan": self.plan.model_dump(mode="json"),
            "updates": self.updates,
            "update_bytes": self.update_bytes,
            "seconds": round(self.seconds, 1),
            "commonest": {name: getattr(self.commonest, name) for name in Commonest.__dataclass_fields__},
            "versions": versions,
        }


def opened(part: Part, name: str | None) -> Dataset:
    """Open a part's data by name, or the best at hand.

    Raises:
        InvalidInput: the data set is of another form.
        DataInvalid: it lacks one of the model's classes.
        NotFound: there is no such data set.
    """
    dataset = part.data() if name is None else open_dataset(name)
    if dataset.info.form != part.form:
        raise InvalidInput(
            f"data set {dataset.name} holds {dataset.info.form}, and {part.model} learns from {part.form}"
        )
    return dataset.select(base.get(part.model).classes)


def plan_of(part: Part, phones: int, versions: int) -> TrainingPlan:
    """Return a part's plan: at most half of the phones are at work for it at a time, and it ends at a version."""
    own = base.get(part.model).default_plan()
    plan = parse_plan({**own, **part.plan, "stopping": {"versions": versions}})
    return for_phones(plan, max(1, phones // 2))


def commonest(dataset: Dataset, users: Sequence[str], test: HeldOut) -> Commonest:
    """Return how the most frequent class of some users does on the held-out ones."""
    labels = test.program.manifest.classes
    counts = [sum(dataset.info.counts[user].get(label, 0) for user in users) for label in labels]
    answer = int(np.argmax(counts))
    chosen = np.full(len(test.y), answer)
    return Commonest(labels[answer], float((test.y == answer).mean()), macro_f1(test.y, chosen))


def plan_line(plan: TrainingPlan) -> str:
    """Return a plan's pacing, rule and server optimizer in words."""
    pacing, rule = plan.pacing, plan.aggregation
    if isinstance(pacing, Rounds):
        paced = f"rounds of {pacing.cohort} updates, {pacing.slots} phones asked"
    elif isinstance(pacing, Buffered):
        paced = f"buffered, a version every {pacing.buffer} updates, {pacing.concurrency} phones at work"
    else:
        paced = pacing.name
    inner = getattr(rule, "inner", None)
    name = f"{rule.name} of {inner.name}" if inner is not None else rule.name
    return f"{paced}; {name}; server {plan.server_optimizer.name}"
