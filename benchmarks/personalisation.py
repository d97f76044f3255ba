"""What personalisation is worth: shared and personal accuracy on users' own held-out parts.

    python benchmarks/personalisation.py [--data wisdm2019] [--seed 0] [--versions 20] [--epochs 5] [--json]

A fifth of the users trains nothing; the others train `--versions` versions of HAR-Wild by its own plan. Then every
user's phone, of both kinds, trains the last version further on its own training part, and what `phone.personalise`
would keep is scored on its own held-out part. The part that chooses is the part that scores, as on the phone: `chosen`
looks a little better than it is, and `personal` (always the fine-tuned one) does not. No Ray, no HTTP, one thread.
Without the data set in `FLSYS_DATA`: `--data synthetic`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from federated_accuracy import HELD_OUT, STORE_BYTES, train

from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import LocalTraining, parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.device.collector import ReplaySource, feed
from flsys_ray.device.database import Database
from flsys_ray.device.examples import Batch, ExampleStore
from flsys_ray.device.personal import fine_tuned
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.runner import Program

MODEL = "har-wild"
Parts = tuple[Batch, Batch]


def main() -> None:
    parser = argparse.ArgumentParser(description="Shared and personal accuracy on users' own held-out parts.")
    parser.add_argument("--data", default="wisdm2019")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--learning-rate", type=float, default=None, help="default: the plan's")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    begun = time.perf_counter()
    program = Program.load(compile_builtin(get(MODEL)).data)
    dataset = open_dataset(options.data).select(program.manifest.classes)
    plan = parse_plan({**get(MODEL).default_plan(), "seed": options.seed})
    learning_rate = options.learning_rate or plan.local.learning_rate
    training, apart = split_users(dataset.users, HELD_OUT, options.seed)
    parts = {user: found for user in dataset.users if (found := phone_parts(dataset, user)) is not None}
    phones = {user: parts[user][0] for user in training if user in parts}
    *_, (_, shared) = train(MODEL, program, plan, phones, options.versions, [])
    rows = []
    for kind, users in (("trained with it", training), ("never seen", apart)):
        scores = [personalised(program, shared, parts[u], u, options, learning_rate) for u in users if u in parts]
        rows.append(row(kind, np.array(scores)))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    print(f"{MODEL} on {options.data}, seed {options.seed}, {options.versions} versions, then {options.epochs} epochs")
    for each in rows:
        print("| " + " | ".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in each.values()) + " |")
    print(f"{time.perf_counter() - begun:.0f} s")


def row(kind: str, scores: np.ndarray) -> dict[str, object]:
    """Means over users of the columns shared, personal; and of the better of the two, a tie being the shared one."""
    shared, personal = scores[:, 0], scores[:, 1]
    return {
        "users": kind,
        "count": len(scores),
        "shared": float(shared.mean()),
        "personal": float(personal.mean()),
        "chosen": float(np.maximum(shared, personal).mean()),
        "kept_personal": int((personal > shared).sum()),
    }


def personalised(
    program: Program, shared: Vector, parts: Parts, user: str, options: argparse.Namespace, learning_rate: float
) -> tuple[float, float]:
    """Return the accuracies of the shared and of the fine-tuned parameters on the user's held-out part."""
    training, held_out = parts
    rng = generator(options.seed, "personalisation", 0, user)
    local = LocalTraining(epochs=options.epochs, learning_rate=learning_rate)
    own = fine_tuned(program, shared, training, local, rng)
    assert own is not None, "nothing stops it"
    before, after = (program.evaluate(vector, held_out.x, held_out.y).correct for vector in (shared, own))
    return before / len(held_out.y), after / len(held_out.y)


def phone_parts(dataset: Dataset, user: str) -> Parts | None:
    """Return what this user's phone trains on and what it holds out; None if it lacks either."""
    with tempfile.TemporaryDirectory(prefix="personalisation-") as folder:
        database = Database(Path(folder) / "phone.db")
        store = ExampleStore(database, STORE_BYTES)
        feed(MODEL, ReplaySource(dataset, user), store, 0.0)
        training = store.batch(MODEL, "training", dataset.classes, dataset.spec.shape)
        held_out = store.batch(MODEL, "held-out", dataset.classes, dataset.spec.shape)
        database.close()
    return (training, held_out) if training is not None and held_out is not None else None


if __name__ == "__main__":
    main()
