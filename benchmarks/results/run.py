"""Run what `docs/results.md` shows, one line of JSON a trial; what is there already is not run again.

    python benchmarks/results/run.py [--only TEXT] [--minutes M] [--quick] [--out docs/results/results.jsonl]

`--only`: trials whose key contains the text. A trial whose configuration has changed is run again, and its old line
replaced. The data sets are read from `FLSYS_DATA`. One thread; run it twice at a time and both write the same file,
each trial once more at worst.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["TF_NUM_INTEROP_THREADS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import fcntl
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments import Trial, all_trials, quick_trials, task_of
from numpy.typing import NDArray
from tasks import Task, check_fold, everything, fold_users

from flsys_ray.simulation.results import scores
from flsys_ray.simulation.training import Answers

RESULTS = Path(__file__).parents[2] / "docs/results/results.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the trials of docs/results.md that have no line yet.")
    parser.add_argument("--only", default="", help="trials whose key contains this")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no trial after so long")
    parser.add_argument("--quick", action="store_true", help="a few small trials on synthetic data instead")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    trials = quick_trials() if options.quick else all_trials()
    run_all([trial for trial in trials if options.only in trial.key], options.out, options.minutes * 60)


def run_all(trials: Sequence[Trial], out: Path, most_s: float = float("inf")) -> None:
    """Run the trials that a file has no line of."""
    begun = time.monotonic()
    for trial in trials:
        if time.monotonic() - begun > most_s:
            print("time is up: run it again to go on", flush=True)
            return
        found = read(out).get(trial.key)
        if found is None or found["configuration"] != trial.configuration():
            line = run(trial)
            write(out, line)
            print(f"{trial.key}: accuracy {line['accuracy']:.4f}, {line['cpu_s']:.0f} s", flush=True)


def run(trial: Trial) -> dict[str, Any]:
    """Run a trial, and return its line."""
    cpu_s = time.process_time()
    task = task_of(trial.task)
    made = WAYS[trial.how](task, trial)
    return {
        "key": trial.key,
        **made,
        "cpu_s": round(time.process_time() - cpu_s, 1),
        "command": f"python benchmarks/results/run.py --only '{trial.key}'",
        "configuration": trial.configuration(),
    }


def classical(task: Task, trial: Trial) -> dict[str, Any]:
    """A classical model, on pooled examples."""
    from baselines import CLASSICAL, words

    training, held_out = fold_users(task, trial.fold)
    check_fold(task, trial.fold)
    if task.dataset().info.form == "texts":
        x, judged = words(task.dataset(), training), words(task.dataset(), held_out)
        y = [task.dataset().examples(user).y for user in training]
        truth = [task.dataset().examples(user).y for user in held_out]
        return judge(
            CLASSICAL[trial.options["classifier"]](x, np.concatenate(y), judged, trial.seed), np.concatenate(truth)
        )
    part, rest = everything(task).of(training), everything(task).of(held_out)
    return judge(CLASSICAL[trial.options["classifier"]](part.x, part.y, rest.x, trial.seed), rest.y)


def pooled(task: Task, trial: Trial) -> dict[str, Any]:
    """The network, on pooled examples."""
    from pooled import answers, train

    training, held_out = fold_users(task, trial.fold)
    rest = everything(task).of(held_out)
    return judge(answers(train(task, everything(task).of(training), trial.seed), rest.x), rest.y)


def federated(task: Task, trial: Trial) -> dict[str, Any]:
    """The network, by a plan."""
    from federated import line_of, simulate

    return line_of(simulate(task, trial.fold, trial.seed, trial.plan, trial.options))


def local(task: Task, trial: Trial) -> dict[str, Any]:
    """The network, trained on one user alone and judged on the held-out ones: the mean over some users."""
    from personal import alone_on_strangers

    truth = np.concatenate([task.dataset().examples(user).y for user in fold_users(task, trial.fold)[1]])
    found = [judge(chosen.astype(np.int32), truth) for chosen in alone_on_strangers(task, trial.fold, trial.seed, 4)]
    return {name: float(np.mean([one[name] for one in found])) for name in ("accuracy", "macro_f1")}


def personal(task: Task, trial: Trial) -> dict[str, Any]:
    """The network on users' own later data."""
    from personal import compare

    return compare(task, trial.fold, trial.seed, trial.plan, trial.options)


def judge(chosen: NDArray[np.int32], truth: NDArray[np.int32]) -> dict[str, Any]:
    """Return accuracy and macro-F1, as the simulator counts them."""
    accuracy, macro_f1, _ = scores(Answers(chosen, 0.0), truth)
    return {"accuracy": accuracy, "macro_f1": macro_f1}


WAYS = {"classical": classical, "pooled": pooled, "federated": federated, "local": local, "personal": personal}


def read(path: Path) -> dict[str, dict[str, Any]]:
    """Return the lines of a file of results by their keys."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {line["key"]: line for line in map(json.loads, lines)}


def write(path: Path, line: dict[str, Any]) -> None:
    """Add a line, in the place of an older one of its key. Lines are sorted by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = read(path) | {line["key"]: line}
        made = path.with_suffix(".part")
        made.write_text("".join(json.dumps(lines[key]) + "\n" for key in sorted(lines)))
        os.replace(made, path)


if __name__ == "__main__":
    main()
