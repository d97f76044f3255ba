"""The table of experiments, as data: what is run for `docs/results.md`, and under which key each result is kept."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tasks import Task

HAPT = Task(
    name="hapt",
    title="HAPT",
    data="uci_hapt",
    classes=("walking", "upstairs", "downstairs", "sitting", "standing", "lying"),
    builtin="har-wild-axes",
    metric="accuracy",
    goal=0.905,
    versions=40,
    plan={
        "pacing": {"cohort": 24, "over_selection": 1.0},
        "local": {"learning_rate": 0.1, "learning_rate_decay": 0.93},
    },
)
WISDM = Task(
    name="wisdm",
    title="WISDM 2019",
    data="wisdm2019",
    classes=("walking", "jogging", "stairs", "kicking_ball"),
    builtin="har-wild",
    metric="accuracy",
    goal=0.91,
    versions=200,
    plan={
        "pacing": {"cohort": 8, "over_selection": 1.0, "quorum": 4},
        "local": {"learning_rate": 0.1, "learning_rate_decay": 0.988, "max_steps": 3},
    },
    epochs=6,
)
MOTIONSENSE = Task(
    name="motionsense",
    title="MotionSense",
    data="motionsense",
    classes=("walking", "jogging", "upstairs", "downstairs", "sitting", "standing"),
    builtin="har-wild-axes",
    metric="accuracy",
    goal=0.925,
    versions=160,
    plan={
        "pacing": {"cohort": 6, "over_selection": 1.0, "quorum": 3},
        "local": {"learning_rate": 0.1, "learning_rate_decay": 0.985, "max_steps": 5},
    },
    epochs=8,
)
TWEETS = Task(
    name="tweets",
    title="SA: airline tweets",
    data="airline_tweets",
    classes=("negative", "positive"),
    builtin="sentiment",
    metric="macro_f1",
    goal=0.80,
    versions=60,
    epochs=8,
    rate=1e-2,
)
TASKS = {task.name: task for task in (HAPT, WISDM, MOTIONSENSE, TWEETS)}
QUICK = Task(
    name="quick",
    title="Synthetic sensors",
    data="synthetic-har",
    classes=("walking", "jogging", "stairs", "sitting", "standing"),
    builtin="har-wild",
    metric="accuracy",
    goal=None,
    versions=2,
    plan={"pacing": {"cohort": 4, "over_selection": 1.0, "quorum": 2}, "local": {"max_steps": 2}},
    epochs=1,
)
FOLDS, SEEDS = range(5), range(3)


DATA = ("data", "classes")
NETWORK = (*DATA, "builtin", "plan")
MEANS = {
    "classical": DATA,
    "pooled": (*NETWORK, "epochs", "rate"),
    "federated": (*NETWORK, "versions"),
    "local": (*DATA, "builtin"),
    "personal": (*NETWORK, "versions"),
}


@dataclass(frozen=True)
class Trial:
    """One run: one line of results.

    Attributes:
        table: the table of the page that it belongs to.
        row: the row there.
        task: whose data.
        how: "classical", "pooled", "local", "federated" or "personal".
        fold, seed: which users are held out, and all other luck.
        plan: what differs from the task's plan.
        options: of the simulation: see `federated.run`; `classifier` of a classical one.
    """

    table: str
    row: str
    task: str
    how: str
    fold: int = 0
    seed: int = 0
    plan: Mapping[str, Any] = field(default_factory=dict, hash=False)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def key(self) -> str:
        """What its result is found by."""
        return f"{self.table}/{self.task}/{self.row}/fold {self.fold}/seed {self.seed}"

    def configuration(self) -> dict[str, Any]:
        """Return all of it as plain data, with what its result depends on of the task."""
        task = asdict(task_of(self.task))
        if self.how == "pooled":
            task["plan"] = {name: task["plan"][name] for name in task["plan"] if name == "augmentation"}
        means = {"task": {name: task[name] for name in ("name", *MEANS[self.how])}}
        return json.loads(json.dumps(asdict(self) | means))  # type: ignore[no-any-return]


def task_of(name: str) -> Task:
    """Return a task by its name."""
    return QUICK if name == QUICK.name else TASKS[name]


def quick_trials() -> list[Trial]:
    """Return a few small trials on synthetic data: that everything works, and nothing else."""
    ways = {"logistic regression": "classical", "centralised": "pooled", "federated": "federated"}
    options = {"classical": {"classifier": "logistic regression"}}
    return [Trial("headline", row, QUICK.name, how, options=options.get(how, {})) for row, how in ways.items()]


def all_trials() -> list[Trial]:
    """Return every trial, the most important first."""
    return [
        *networks(FOLDS[:3]),
        *label_skew(),
        *drop_out(),
        *compression(),
        *classical(),
        *personal(),
        *networks(FOLDS[3:]),
        *pacing(),
        *selection(),
        *augmentation(),
        *alone(),
    ]


def networks(folds: Sequence[int]) -> Iterator[Trial]:
    """The network, federated and on pooled examples: all tasks, each fold with its own seed."""
    for fold in folds:
        for task in TASKS:
            yield Trial("headline", "federated", task, "federated", fold, fold)
            yield Trial("headline", "centralised", task, "pooled", fold, fold)


def classical() -> Iterator[Trial]:
    """The classical models."""
    for fold in FOLDS:
        for task in TASKS:
            for name in ("logistic regression", "random forest"):
                yield Trial("headline", name, task, "classical", fold, fold, options={"classifier": name})


def alone() -> Iterator[Trial]:
    """The network on one user's examples."""
    for fold in FEW:
        for task in TASKS:
            yield Trial("headline", "one user alone", task, "local", fold, fold)


# The tables below: HAPT, three folds with a seed each, fewer versions and devices a version than the headline.
FEW = range(3)
SMALL = {"versions": 60}
COHORT = {"pacing": {"name": "rounds", "cohort": 6, "over_selection": 1.0, "quorum": 2, "deadline_s": 600}}
NATURAL = {"local": {"learning_rate": 0.1, "learning_rate_decay": 0.96}, "augmentation": {"transforms": []}} | COHORT


def _rows(
    table: str, rows: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], how: str = "federated"
) -> Iterator[Trial]:
    """Return the trials of a table whose rows have a plan and options."""
    for fold in FEW:
        for row, (plan, options) in rows.items():
            yield Trial(table, row, "hapt", how, fold, fold, {**NATURAL, **plan}, {**SMALL, **options})


def label_skew() -> Iterator[Trial]:
    """Each device keeps two of its classes, and mixes in a part of a shared set (Zhao et al. 2018)."""
    rows: dict[str, Any] = {"all classes": ({}, {})}
    for percent in (0, 1, 5, 10):
        rows[f"two classes, {percent} % shared"] = ({}, {"classes_per_device": 2, "shared_percent": percent})
    return _rows("label skew", rows)


def compression() -> Iterator[Trial]:
    """Encodings of the upload, on each fold with as many seeds: differences are small, and are looked at run by run.

    float32 on fold f with seed f is in the table of label skew.
    """
    rows: dict[str, dict[str, Any]] = {
        "float32": {"name": "float32"},
        "float16": {"name": "float16"},
        "int8": {"name": "int8"},
        "int8, block 64": {"name": "int8", "block": 64},
        "top_k": {"name": "top_k", "fraction": 0.05},
    }
    for seed in SEEDS:
        for fold in FOLDS:
            for row, encoding in rows.items():
                if row != ("float32" if fold == seed else "float16"):
                    plan = {**NATURAL, "compression": encoding}
                    yield Trial("compression", row, "hapt", "federated", fold, seed, plan, SMALL)


def drop_out() -> Iterator[Trial]:
    """Trainings that are lost."""
    return _rows("drop-out", {f"{percent} %": ({}, {"drop_out": percent / 100}) for percent in (10, 30, 50)})


def personal() -> Iterator[Trial]:
    """Users' own later data, on all folds."""
    for fold in FOLDS:
        yield Trial("personal", "own later data, rate falls", "hapt", "personal", fold, fold, NATURAL, SMALL)


def augmentation() -> Iterator[Trial]:
    """Transforms of windows on the phone."""
    transforms = {
        "rotation, 20 degrees": [{"name": "rotation", "max_degrees": 20}],
        "rotation, 180 degrees": [{"name": "rotation", "max_degrees": 180}],
        "jitter": [{"name": "jitter"}],
        "scaling": [{"name": "scaling"}],
        "time_warp": [{"name": "time_warp"}],
        "permutation": [{"name": "permutation"}],
    }
    return _rows("augmentation", {name: ({"augmentation": {"transforms": t}}, {}) for name, t in transforms.items()})


def pacing() -> Iterator[Trial]:
    """Synchronous rounds beside a buffer, under traces, as many updates in all."""
    rounds = {"pacing": {"name": "rounds", "cohort": 6, "over_selection": 1.3, "quorum": 3, "deadline_s": 600}}
    buffered = {"pacing": {"name": "buffered", "buffer": 6, "concurrency": 12, "deadline_s": 600}}
    options = {"traces": True}
    return _rows("pacing", {"rounds": (rounds, options), "buffered": (buffered, options)})


def selection() -> Iterator[Trial]:
    """Selectors under traces: six of the devices that come by, a version."""
    rounds = {"pacing": {"name": "rounds", "cohort": 6, "over_selection": 1.3, "quorum": 3, "deadline_s": 600}}
    names = ("uniform", "first_come", "class_balance", "oort", "power_of_choice", "refl")
    return _rows("selection", {name: ({**rounds, "selection": name}, {"traces": True}) for name in names})
