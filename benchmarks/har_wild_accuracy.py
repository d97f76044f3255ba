"""How well HAR-Wild does on users it never saw: its own plan, the real coordinator and program, virtual time.

    python benchmarks/har_wild_accuracy.py [--data wisdm2019] [--splits 0,1,2] [--versions 20] [--json]
    python benchmarks/har_wild_accuracy.py --plan '{server_optimizer: {momentum: 0}, local: {epochs: 3}}'

A split's number is the seed that chooses the held-out users (a fifth) and the plan's seed. Phones hold what a real one
would train on: their own held-out blocks are left out. No Ray, no HTTP, one thread; the same command gives the same
figures on the same machine. The name of the data set and its folder (`FLSYS_DATA`) are those of `flsys demo`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from flsys_ray.commands.evaluation import macro_f1
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Assignment, Update, Version
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.device.collector import ReplaySource, feed
from flsys_ray.device.database import Database
from flsys_ray.device.examples import Batch, ExampleStore
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.runner import Program

MODEL = "har-wild"
HELD_OUT = 0.2
STORE_BYTES = 64 * 2**20
VISIT_S = 0.01  # between two check-ins: a round is over long before its deadline


@dataclass(frozen=True, slots=True)
class Score:
    """One split: how the last version does on all windows of the held-out users."""

    split: int
    version_0_accuracy: float
    accuracy: float
    macro_f1: float
    loss: float
    steps_per_update: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of HAR-Wild on held-out users, with its own plan.")
    parser.add_argument("--data", default="wisdm2019")
    parser.add_argument("--splits", default="0,1,2", help="seeds of the splits by user")
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--plan", default="{}", help="YAML: fields of the plan that differ from the model's own")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    program = Program.load(compile_builtin(get(MODEL)).data)
    dataset = open_dataset(options.data).select(program.manifest.classes)
    own, changes = get(MODEL).default_plan(), yaml.safe_load(options.plan)
    plan = parse_plan({**own, **{name: {**own.get(name, {}), **fields} for name, fields in changes.items()}})
    scores = [score(program, dataset, plan, int(split), options.versions) for split in options.splits.split(",")]
    if options.json:
        print(json.dumps([{name: getattr(each, name) for name in each.__slots__} for each in scores], indent=1))
        return
    print(f"{MODEL}: {program.manifest.parameters} parameters, changes of its plan: {changes}")
    for each in scores:
        print(
            f"split {each.split}: accuracy {each.version_0_accuracy:.3f} -> {each.accuracy:.3f}, "
            f"macro-F1 {each.macro_f1:.3f}, loss {each.loss:.3f}, {each.steps_per_update:.1f} steps an update, "
            f"{each.seconds:.0f} s"
        )
    print(_row(options.data, options.versions, scores))


def _row(data: str, versions: int, scores: list[Score]) -> str:
    accuracy, f1 = [each.accuracy for each in scores], [each.macro_f1 for each in scores]
    return (
        f"| {data} | {versions} | {np.mean(accuracy):.3f} ({min(accuracy):.3f} to {max(accuracy):.3f}) "
        f"| {np.mean(f1):.3f} ({min(f1):.3f} to {max(f1):.3f}) |"
    )


def score(program: Program, dataset: Dataset, plan: TrainingPlan, split: int, versions: int) -> Score:
    """Train on one part of the users, and score version 0 and the last one on the other."""
    start = time.perf_counter()
    training, held_out = split_users(dataset.users, HELD_OUT, split)
    phones = {user: phone_examples(dataset, user) for user in training}
    parts = [dataset.examples(user) for user in held_out]
    x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    first, last, steps = train(program, plan.model_copy(update={"seed": split}), phones, versions)
    scores = program.infer(last, x)
    chosen = scores.argmax(axis=1)
    return Score(
        split=split,
        version_0_accuracy=float((program.infer(first, x).argmax(axis=1) == y).mean()),
        accuracy=float((chosen == y).mean()),
        macro_f1=macro_f1(y, chosen),
        loss=float(-np.log(np.maximum(scores[np.arange(len(y)), y], 1e-7)).mean()),
        steps_per_update=steps,
        seconds=time.perf_counter() - start,
    )


def phone_examples(dataset: Dataset, user: str) -> Batch:
    """Return the examples that this user's phone would train on."""
    with tempfile.TemporaryDirectory(prefix="har-wild-accuracy-") as folder:
        database = Database(Path(folder) / "phone.db")
        store = ExampleStore(database, STORE_BYTES)
        feed(MODEL, ReplaySource(dataset, user), store, 0.0)
        batch = store.batch(MODEL, "training", dataset.classes, dataset.spec.shape)
        database.close()
    if batch is None:
        raise SystemExit(f"{dataset.name}: user {user} has no training example")
    return batch


def train(program: Program, plan: TrainingPlan, phones: dict[str, Batch], versions: int) -> tuple[Any, Any, float]:
    """Return version 0, the last version, and the mean number of local steps an update."""
    first = program.init(plan.seed)
    start = Version(0, first, plan.server_optimizer.init(first.size))
    coordinator = Coordinator(MODEL, program.manifest.to_layout(), plan, start, round_=1, opened_at=0.0)
    now, steps = 0.0, list[int]()
    while coordinator.version.number < versions:
        for user in generator(plan.seed, "visits", coordinator.round).permutation(sorted(phones)):
            now += VISIT_S
            if coordinator.tick(now) is not None:
                break
            work = coordinator.check_in(str(user), now)
            if isinstance(work, Assignment):
                update, taken = _update(program, plan, coordinator, work, phones[str(user)])
                coordinator.submit(update, now)
                steps.append(taken)
        else:  # all were here, and the lottery took fewer than a cohort: they come back when it is open to all
            now += plan.pacing.deadline_s / 8 if hasattr(plan.pacing, "deadline_s") else 1.0
            coordinator.tick(now)
    return first, coordinator.version.parameters, float(np.mean(steps))


def _update(
    program: Program, plan: TrainingPlan, coordinator: Coordinator, work: Assignment, examples: Batch
) -> tuple[Update, int]:
    base = coordinator.version.parameters
    trained = program.train(
        base,
        examples.x,
        examples.y,
        epochs=plan.local.epochs,
        learning_rate=plan.local.learning_rate,
        proximal_mu=plan.local.proximal_mu,
        rng=generator(0, "local-training", work.round, work.assignment_id),
        max_steps=plan.local.max_steps,
    )
    return Update(work, trained.parameters - base, len(examples.y), trained.loss), trained.steps


if __name__ == "__main__":
    main()
