"""The four tasks: which data, which classes, which users are held out, and what is asked of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.splits import user_folds
from flsys_ray.models import get
from flsys_ray.models.sentiment import TOKENIZER

FOLDS = 5
FOLD_SEED = 0


@dataclass(frozen=True)
class Task:
    """A data set as it is learned here.

    Attributes:
        name: its short name in results.
        title: its name in the page.
        data: the data set.
        classes: whose examples count, in this order.
        builtin: the model.
        metric: what the goal is set for: "accuracy" or "macro_f1".
        goal: what federated training should reach, users held out; None: nothing was asked.
        versions: how many a federated training has.
        plan: what differs from the model's own plan.
        epochs, rate: of training on pooled examples.
    """

    name: str
    title: str
    data: str
    classes: tuple[str, ...]
    builtin: str
    metric: str
    goal: float | None
    versions: int
    plan: Mapping[str, Any] = field(default_factory=dict, hash=False)
    epochs: int = 12
    rate: float = 2e-3

    def dataset(self) -> Dataset:
        """Open the data set with these classes."""
        return _opened(self.data, self.classes, self.builtin)

    def plan_with(self, changes: Mapping[str, Any], seed: int, versions: int | None = None) -> TrainingPlan:
        """Return the plan: the model's own, what the task changes of it, and then these changes."""
        merged = changed(changed(get(self.builtin).default_plan(), self.plan), changes)
        return parse_plan(merged | {"seed": seed, "stopping": {"versions": versions or self.versions}})


def changed(plan: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan with other fields where a change is a mapping without a name, and another section otherwise."""
    merged = {}
    for name, new in changes.items():
        old = plan.get(name)
        fields = isinstance(new, Mapping) and isinstance(old, Mapping) and "name" not in new
        merged[name] = {**old, **new} if fields else new  # type: ignore[dict-item]
    return {**plan, **merged}


@cache
def _opened(data: str, classes: tuple[str, ...], builtin: str) -> Dataset:
    return open_dataset(data).fit(classes, TOKENIZER if get(builtin).input_dtype == "int32" else None)


@dataclass(frozen=True, eq=False)
class Part:
    """Examples of some users, one user after the other: x [N, ...], y int32 [N], and whose each is [N]."""

    x: NDArray[Any]
    y: NDArray[np.int32]
    user: NDArray[np.str_]

    def of(self, users: Sequence[str]) -> "Part":
        """Return the examples of these users."""
        rows = np.isin(self.user, users)
        return Part(self.x[rows], self.y[rows], self.user[rows])


@cache
def everything(task: Task) -> Part:
    """Return all examples of a task."""
    dataset = task.dataset()
    parts = [dataset.examples(user) for user in dataset.users]
    owners = np.repeat(np.array([part.user for part in parts]), [len(part) for part in parts])
    return Part(np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts]), owners)


def fold_users(task: Task, fold: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the users who train and those who are held out. Each user is held out in one of the folds."""
    return user_folds(task.dataset().users, FOLDS, FOLD_SEED)[fold]


def check_fold(task: Task, fold: int) -> None:
    """Raise `DataLeak` if examples of both sides of a fold overlap."""
    training, held_out = (map(task.dataset().examples, users) for users in fold_users(task, fold))
    check_no_leak({"training": training, "held out": held_out})
