"""A user's own later data: the shared model, one trained on that user alone, and the shared one trained further there.

Each user's examples are cut in time, class by class: the earlier part is for training, and the later one judges. Of
the fold's training users the shared model has seen the earlier parts; of its held-out users it has seen nothing. All
training is the phone's own program, as `phone.personalise` runs it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from federated import ended
from numpy.typing import NDArray
from tasks import Task, everything, fold_users

from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import LocalTraining
from flsys_ray.core.rng import generator
from flsys_ray.data.schema import Examples
from flsys_ray.device.examples import Batch
from flsys_ray.device.personal import fine_tuned
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.experiment import builtin
from flsys_ray.simulation.population import make_pool
from flsys_ray.simulation.training import Examples as Rows

EARLY = 0.7
ALONE = {"epochs": 60, "learning_rate": 0.05}
FURTHER = LocalTraining(epochs=60, learning_rate=0.05, proximal_mu=0.1)
WAYS = ("shared", "alone", "alone, falling rate", "personal")


def cut(examples: Examples) -> tuple[Examples, Examples]:
    """Return the earlier and the later part of each class; windows that overlap the later part are in neither."""
    early, late = np.zeros(len(examples), bool), np.zeros(len(examples), bool)
    for label in np.unique(examples.y):
        rows = np.flatnonzero(examples.y == label)
        sessions = np.array([str(one) for one in examples.session[rows]])
        rows = rows[np.lexsort((examples.start_s[rows], sessions))]
        first = max(1, round(EARLY * len(rows)))
        late[rows[first:]] = True
        kept = rows[:first]
        border = rows[first] if first < len(rows) else None
        if border is not None:
            near = (examples.session[kept] == examples.session[border]) & (
                examples.end_s[kept] > examples.start_s[border]
            )
            kept = kept[~near]
        early[kept] = True
    return examples.take(early), examples.take(late)


def compare(task: Task, fold: int, seed: int, plan: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return accuracies on later parts, means over users, for users who trained with the others and for new ones.

    Of the first, as many as there are new ones, drawn by the seed.
    """
    training, held_out = fold_users(task, fold)
    dataset = task.dataset()
    parts = {user: cut(dataset.examples(user)) for user in dataset.users}
    judged = everything(task).of(held_out)
    early = [(user, parts[user][0].x, parts[user][0].y) for user in training]
    simulation = ended(task, make_pool(early, Rows(judged.x, judged.y)), seed, plan, options)
    (trainee,) = simulation.trainees.values()
    shared, program = trainee.coordinator.version.parameters, Program.load(trainee.model.program)
    drawn = generator(seed, "trained with it").choice(sorted(training), len(held_out), replace=False).tolist()
    with_it = [_of_user(program, shared, *parts[user], seed) for user in drawn]
    new = [_of_user(program, shared, *parts[user], seed) for user in held_out]
    means = {"trained with it": np.mean(with_it, axis=0), "new": np.mean(new, axis=0)}
    return {
        "accuracy": float(means["trained with it"][WAYS.index("personal")]),
        "macro_f1": None,
        "later": {
            kind: dict(zip(WAYS, [round(float(v), 4) for v in values], strict=True)) for kind, values in means.items()
        },
        "digest": trainee.digest(),
    }


def _of_user(program: Program, shared: Vector, early: Examples, late: Examples, seed: int) -> Sequence[float]:
    """Return the accuracy of each way on one user's later part."""
    rng = generator(seed, "personal", 0, early.user)
    alone = program.train(program.init(seed), early.x, early.y, rng=rng, **ALONE).parameters
    found, examples = [shared, alone], Batch(early.x, early.y)
    for base in (program.init(seed), shared):
        own = fine_tuned(program, base, examples, FURTHER, generator(seed, "personal", 0, early.user))
        assert own is not None, "nothing stops it"
        found.append(own)
    return [accuracy(program, parameters, late.x, late.y) for parameters in found]


def accuracy(program: Program, parameters: Vector, x: NDArray[Any], y: NDArray[np.int32]) -> float:
    """Return the part of the examples that a version has right."""
    return float((program.infer(parameters, x).argmax(axis=1) == y).mean())


def alone_on_strangers(task: Task, fold: int, seed: int, users: int) -> list[NDArray[np.int64]]:
    """Return the answers, on the fold's held-out users, of models that were each trained on one user alone."""
    training, held_out = fold_users(task, fold)
    program = Program.load(builtin(task.builtin, task.classes).program)
    x = np.concatenate([task.dataset().examples(user).x for user in held_out])
    chosen = generator(seed, "alone").choice(sorted(training), min(users, len(training)), replace=False)
    found = []
    for user in chosen.tolist():
        own = task.dataset().examples(user)
        rng = generator(seed, "personal", 0, user)
        found.append(program.infer(program.train(program.init(seed), own.x, own.y, rng=rng, **ALONE).parameters, x))
    return [scores.argmax(axis=1) for scores in found]
