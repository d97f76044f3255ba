"""How well a built-in model does on users it never saw: its own plan, the real coordinator and program, virtual time.

    python benchmarks/federated_accuracy.py --model har-wild --data wisdm2019 --versions 20
    python benchmarks/federated_accuracy.py --model har-wild --plan '{server_optimizer: {momentum: 0}}'
    python benchmarks/federated_accuracy.py --model sentiment --data airline_tweets --versions 60 --every 20 --pooled 20

A split's number is the seed that chooses the held-out users (a fifth) and the plan's seed. Phones hold what real ones
would train on: their own held-out part is left out. No Ray, no HTTP, one thread; the same command gives the same
figures on the same machine. The data folder is that of `flsys demo` (`FLSYS_DATA`).

Beside the versions stand two references on the same held-out users: always answering the commonest class of the
training users, and the same program trained on the pooled examples of all phones (`--pooled` epochs), which federated
learning never sees in one place.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from flsys_ray.augmentation.base import augmented
from flsys_ray.commands.evaluation import macro_f1
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.memory import with_memory
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Assignment, Update, Version
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.splits import split_users
from flsys_ray.device.collector import ReplaySource, feed
from flsys_ray.device.controls import Controls, decode_controls, own_control
from flsys_ray.device.database import Database
from flsys_ray.device.examples import Batch, ExampleStore
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.manifest import read_tokenizer
from flsys_ray.programs.runner import Program
from flsys_ray.wire.public_forms import form_after
from flsys_ray.wire.tensors import encode_vector

HELD_OUT = 0.2
STORE_BYTES = 64 * 2**20
VISIT_S = 0.01  # between two check-ins: a round is over long before its deadline


@dataclass(frozen=True, slots=True)
class Score:
    """Answers on all examples of the held-out users."""

    accuracy: float
    macro_f1: float

    @classmethod
    def of(cls, truth: NDArray[np.int32], chosen: NDArray[np.int64]) -> "Score":
        return cls(float((chosen == truth).mean()), macro_f1(truth, chosen))

    def __str__(self) -> str:
        return f"{self.accuracy:.3f} / {self.macro_f1:.3f}"


@dataclass(frozen=True, slots=True)
class Result:
    """One split."""

    split: int
    training_users: int
    held_out_users: int
    held_out_examples: int
    majority: Score
    pooled: Score | None
    versions: Mapping[int, Score]
    steps_per_update: float
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description="A built-in model on held-out users, with its own plan.")
    parser.add_argument("--model", default="har-wild")
    parser.add_argument("--data", default="wisdm2019")
    parser.add_argument("--splits", default="0,1,2", help="seeds of the splits by user")
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--every", type=int, default=0, help="score each so many versions too; 0: the last one only")
    parser.add_argument("--pooled", type=int, default=0, help="epochs of training on the pooled examples")
    parser.add_argument("--plan", default="{}", help="YAML: what differs from the model's own plan")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    builtin = get(options.model)
    compiled = compile_builtin(builtin).data
    program = Program.load(compiled)
    dataset = open_dataset(options.data).fit(program.manifest.classes, read_tokenizer(compiled))
    plan = parse_plan(changed(builtin.default_plan(), yaml.safe_load(options.plan)))
    if not options.json:
        print(f"{options.model}: {program.manifest.parameters} parameters, program {len(compiled) / 1024:.0f} kB")
        print(f"{dataset.title}: {len(dataset.users)} users, {dataset.source} data; accuracy / macro-F1")
    results = []
    for split in options.splits.split(","):
        seeded = plan.model_copy(update={"seed": int(split)})
        results.append(run(options.model, program, dataset, seeded, options))
        if not options.json:
            print(line(results[-1]), flush=True)
    print(json.dumps([asdict(result) for result in results], indent=1) if options.json else summary(results))


def changed(own: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plan with other fields where a change is a mapping, and with another section where it is a name."""
    merged = {name: {**own.get(name, {}), **new} for name, new in changes.items() if isinstance(new, Mapping)}
    return {**own, **changes, **merged}


def line(result: Result) -> str:
    """Return one split in words."""
    steps = ", ".join(f"v{number} {score}" for number, score in result.versions.items())
    return (
        f"split {result.split}: {result.training_users} users train, {result.held_out_users} are held out "
        f"({result.held_out_examples} examples). Commonest class {result.majority}, pooled {result.pooled}, federated "
        f"{steps}; {result.steps_per_update:.1f} steps an update, {result.seconds:.0f} s"
    )


def summary(results: list[Result]) -> str:
    """Return means over the splits, with the range."""
    last = [list(result.versions.values())[-1] for result in results]
    rows = {"commonest class": [r.majority for r in results], "pooled": [r.pooled for r in results], "federated": last}
    lines = []
    for name, scores in rows.items():
        found = [score for score in scores if score is not None]
        if found:
            lines.append(
                f"| {name} | {_spread([s.accuracy for s in found])} | {_spread([s.macro_f1 for s in found])} |"
            )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def run(model: str, program: Program, dataset: Dataset, plan: TrainingPlan, options: argparse.Namespace) -> Result:
    """Train on one part of the users, and score on the other."""
    start = time.perf_counter()
    training, held_out = split_users(dataset.users, HELD_OUT, plan.seed)
    parts = [dataset.examples(user) for user in held_out]
    check_no_leak({"training": map(dataset.examples, training), "held out": parts})
    x, y = np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])
    phones = dict(phone_examples(model, dataset, training, program.manifest.input_shape))
    everything = np.concatenate([batch.y for batch in phones.values()])
    scores, steps = {}, list[int]()
    for number, parameters in train(model, program, plan, phones, options.versions, steps):
        if number in (0, options.versions) or (options.every and number % options.every == 0):
            scores[number] = Score.of(y, program.infer(parameters, x).argmax(axis=1))
    return Result(
        split=plan.seed,
        training_users=len(phones),
        held_out_users=len(held_out),
        held_out_examples=len(y),
        majority=Score.of(y, np.full(len(y), np.bincount(everything).argmax())),
        pooled=Score.of(y, _pooled(program, plan, phones, x, options.pooled)) if options.pooled else None,
        versions=scores,
        steps_per_update=float(np.mean(steps)),
        seconds=time.perf_counter() - start,
    )


def phone_examples(
    model: str, dataset: Dataset, users: tuple[str, ...], shape: tuple[int, ...]
) -> Iterator[tuple[str, Batch]]:
    """Yield what each user's phone would train on; users all of whose examples are held out have no phone."""
    with tempfile.TemporaryDirectory(prefix="federated-accuracy-") as folder:
        database = Database(Path(folder) / "phone.db")
        store = ExampleStore(database, STORE_BYTES)
        for user in users:
            feed(model, ReplaySource(dataset, user), store, 0.0)
            batch = store.batch(model, "training", dataset.classes, shape)
            store.erase()
            if batch is not None:
                yield user, batch
        database.close()


def train(
    model: str,
    program: Program,
    plan: TrainingPlan,
    phones: Mapping[str, Batch],
    versions: int,
    steps: list[int],
) -> Iterator[tuple[int, Vector]]:
    """Yield each version, number 0 first; `steps` gets the number of local steps of each update."""
    first = program.init(plan.seed)
    start = Version(0, first, plan.server_optimizer.init(first.size))
    yield 0, first
    coordinator = Coordinator(model, program.manifest.to_layout(), plan, start, round_=1, opened_at=0.0)
    controls: dict[str, bytes] = {}
    residuals: dict[str, Vector] = {}
    now, seen, base = 0.0, 0, _base(plan, start, None)
    while seen < versions:
        for user in generator(plan.seed, "visits", coordinator.round).permutation(sorted(phones)):
            now += VISIT_S
            if coordinator.tick(now) is not None:
                break
            work = coordinator.check_in(str(user), now)
            if isinstance(work, Assignment):
                version = replace(coordinator.version, parameters=base)
                update = _update(program, plan, version, work, phones[str(user)], controls)
                update = _as_sent(program, plan, update, residuals)
                coordinator.submit(update, now)
                steps.append(update.num_steps)
        else:  # all were here, and the lottery took fewer than a cohort: they come back when it is open to all
            now += plan.pacing.deadline_s / 8 if hasattr(plan.pacing, "deadline_s") else 1.0
            coordinator.tick(now)
        if coordinator.version.number != seen:
            seen, base = coordinator.version.number, _base(plan, coordinator.version, base)
            yield seen, coordinator.version.parameters


def _base(plan: TrainingPlan, version: Version, before: Vector | None) -> Vector:
    """Return what phones train from: a version, or its public form if the plan compresses downloads."""
    if plan.download == FLOAT32:
        return version.parameters
    rng = generator(plan.seed, "download", version.number)
    return form_after(version.parameters, before, plan.download, rng)[0]


def _update(
    program: Program,
    plan: TrainingPlan,
    version: Version,
    work: Assignment,
    examples: Batch,
    controls: dict[str, bytes],
) -> Update:
    """Train as a phone does; `controls` holds each phone's own, for a rule that has them."""
    base, pair = version.parameters, None
    if version.control is not None:
        own = controls.get(work.device_id)
        pair = decode_controls(Controls(encode_vector("control", version.control), own), program.manifest)
    trained = program.train(
        base,
        examples.x,
        examples.y,
        epochs=plan.local.epochs,
        learning_rate=plan.local.at(work.version).learning_rate,
        proximal_mu=plan.local.proximal_mu,
        rng=generator(0, "local-training", work.round, work.assignment_id),
        max_steps=plan.local.max_steps,
        correction=pair.correction if pair is not None else None,
        augment=_augment(plan, work),
    )
    delta, change = trained.parameters - base, None
    if pair is not None:
        change = pair.change(delta, trained.steps, plan.local.at(work.version).learning_rate)
        controls[work.device_id] = own_control(pair, change)
    return Update(work, delta, len(examples.y), trained.loss, num_steps=trained.steps, control=change)


def _augment(plan: TrainingPlan, work: Assignment) -> Callable[[NDArray[Any], int], NDArray[Any]] | None:
    transforms = plan.augmentation.transforms
    if not transforms:
        return None
    return lambda x, epoch: augmented(transforms, x, assignment_id=work.assignment_id, epoch=epoch)


def _as_sent(program: Program, plan: TrainingPlan, update: Update, residuals: dict[str, Vector]) -> Update:
    """Return an update as the cloud decodes it; `residuals` holds what each phone left out before."""
    encoding, work, size = plan.compression, update.assignment, update.delta.size
    memory = residuals.get(work.device_id, np.zeros(size, np.float32))
    parts, left = with_memory(encoding, update.delta, memory, generator(0, "compression", work.round, work.device_id))
    if encoding.keeps_error:
        residuals[work.device_id] = np.where(program.manifest.to_layout().trainable_mask(), left, np.float32(0))
    return replace(update, delta=encoding.decode(parts, 0, size))


def _pooled(
    program: Program, plan: TrainingPlan, phones: Mapping[str, Batch], x: NDArray[Any], epochs: int
) -> NDArray[np.int64]:
    """Return the answers of the program that was trained on all phones' examples in one place."""
    trained = program.train(
        program.init(plan.seed),
        np.concatenate([batch.x for batch in phones.values()]),
        np.concatenate([batch.y for batch in phones.values()]),
        epochs=epochs,
        learning_rate=plan.local.learning_rate,
        rng=generator(plan.seed, "pooled"),
    )
    return program.infer(trained.parameters, x).argmax(axis=1)


if __name__ == "__main__":
    main()
