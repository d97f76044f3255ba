"""Two apps at once against each of them alone: two models, two pacings, two rules, the same phones, real HTTP.

    FLSYS_DATA=/path/to/data python benchmarks/two_apps.py [--phones 48] [--repeats 3] [--training-s 3] [--json]

The apps, models, data and plans are those of `flsys demo`. Each repeat trains the first model alone, the second alone,
and both at once, each time from version 0, with new phones that are enrolled and hold their data before the clock
starts. It stops at the last version. A ratio of 1 means that the models do not hinder each other, the sum of both
alone over the slower one that they take turns.

Phones train for real, with the device program; an emulated phone then waits until its own hardware would be done:
`--training-s` times 1, 1.25 or 1.5, a third of the phones each. So the phones are as slow as phones, and this machine's
cores are not what is measured. `--saturated` repeats go without: then all trainings share the cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from flsys_ray.builtin import compile_builtin
from flsys_ray.commands.demo_apps import FITNESS, KEYBOARD, Part, Training, opened, plan_line, plan_of
from flsys_ray.commands.demo_cloud import create_apps, own_cloud
from flsys_ray.commands.fleets import Watch
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.fleet import Fleet, run_fleet
from flsys_ray.device.phone import Phone

PARTS = (FITNESS, KEYBOARD)
CLASSES = (1.0, 1.25, 1.5)  # of phones' speed
WORKERS = 8  # threads that serve phones: most of the time they wait for the cloud's answers


@dataclass(frozen=True, slots=True)
class Run:
    """One model in one run: seconds from its start to its last version, and how that does on held-out users."""

    model: str
    seconds: float
    updates: int
    accuracy: float
    macro_f1: float
    commonest_macro_f1: float


@dataclass(frozen=True, slots=True)
class Repeat:
    """Each model alone, and both at once."""

    seed: int
    training_s: float
    alone: tuple[Run, ...]
    together: tuple[Run, ...]

    @property
    def ratio(self) -> float:
        """Both at once over the slower one alone."""
        return max(run.seconds for run in self.together) / max(run.seconds for run in self.alone)

    @property
    def turns(self) -> float:
        """One after the other over the slower one alone."""
        seconds = [run.seconds for run in self.alone]
        return sum(seconds) / max(seconds)


class Bench:
    """A cloud, the two apps' data, programs and keys, and how many phones and versions."""

    def __init__(self, folder: Path, url: str, phones: int, versions: int) -> None:
        self._folder, self._url = folder, url
        self._phones, self._versions = phones, versions
        self._data = {part.app: opened(part, None) for part in PARTS}
        self._programs = {part.app: compile_builtin(part.model) for part in PARTS}
        names = [part.app for part in PARTS]
        self._keys = dict(zip(names, create_apps(folder, url, names), strict=True))
        self._runs, self.check_ins = 0, 0

    def repeat(self, seed: int, training_s: float) -> Repeat:
        """Measure once."""
        alone = [self._run([part], seed, training_s)[0] for part in PARTS]
        return Repeat(seed, training_s, tuple(alone), tuple(self._run(PARTS, seed, training_s)))

    def _run(self, parts: Sequence[Part], seed: int, training_s: float) -> list[Run]:
        self._runs += 1
        with ExitStack() as stack:
            trainings = [self._training(part, stack) for part in parts]
            for training in trainings:
                plan = plan_of(training.part, self._phones, self._versions)
                training.submit(plan.model_copy(update={"seed": seed}), self._programs[training.part.app])
            pace = paced(training_s) if training_s > 0 else None
            fleets = [training.fleet(self._phones, self._folder / f"run-{self._runs}", pace) for training in trainings]
            for fleet in fleets:
                enrol(fleet)
            began = time.time()
            for training in trainings:
                training.cloud.act(training.name, "start")
            stop = threading.Event()
            watch = Watch({each.name: each.cloud for each in trainings}, self._versions, None, stop, quiet=True)
            with watch.running():
                report = run_fleet(*fleets, stop=stop, workers=WORKERS)
            self.check_ins = report.steps.get("checked-in", 0)
            return [measured(training, began) for training in trainings]

    def _training(self, part: Part, stack: ExitStack) -> Training:
        name = f"{part.model}-{self._runs}"
        training = Training.of(part, name, self._data[part.app], self._url, self._keys[part.app])
        stack.enter_context(training.cloud)
        return training


def paced(training_s: float) -> Callable[[int], float]:
    return lambda index: training_s * CLASSES[index % len(CLASSES)]


def enrol(fleet: Fleet) -> None:
    """Have every phone of an app enrolled, with consent and its data: what is there before a training begins."""
    for index in range(fleet.count):
        with Phone(fleet.folder / fleet.name(index), fleet.config, conditions=FixedConditions()) as phone:
            phone.register()
            for model in fleet.config.models:
                phone.consent(model, granted=True)
                for source in fleet.sources(index, model):
                    phone.replay(model, source)


def measured(training: Training, began: float) -> Run:
    outcome = training.outcome(points=1)
    last = outcome.results[-1]
    seconds = outcome.at_s[-1] - began
    return Run(training.part.model, seconds, outcome.updates, last.accuracy, last.macro_f1, outcome.commonest.macro_f1)


def line(repeat: Repeat) -> str:
    """Return a repeat as a row of a table."""
    alone = " | ".join(f"{run.seconds:.1f} s, {run.macro_f1:.3f}" for run in repeat.alone)
    together = " | ".join(f"{run.seconds:.1f} s, {run.macro_f1:.3f}" for run in repeat.together)
    return f"| {repeat.training_s:g} | {repeat.seed} | {alone} | {together} | {repeat.ratio:.2f} | {repeat.turns:.2f} |"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--phones", type=int, default=48)
    arguments.add_argument("--versions", type=int, default=15)
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--saturated", type=int, default=1)
    arguments.add_argument("--training-s", type=float, default=3.0)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    repeats = []
    with tempfile.TemporaryDirectory(prefix="two-apps-") as name, own_cloud(Path(name)) as url:
        bench = Bench(Path(name), url, given.phones, given.versions)
        if not given.json:
            for part in PARTS:
                print(f"{part.model}: {plan_line(plan_of(part, given.phones, given.versions))}")
            print(
                "| training_s | seed | " + " | ".join(f"{p.model} {how}" for how in ("alone", "beside") for p in PARTS),
                end="",
            )
            print(" | ratio | in turns |", flush=True)
        paces = [given.training_s] * given.repeats + [0.0] * given.saturated
        for number, training_s in enumerate(paces):
            repeats.append(bench.repeat(number % max(1, given.repeats), training_s))
            if not given.json:
                print(f"{line(repeats[-1])} {bench.check_ins} check-ins together |", flush=True)
    if given.json:
        print(json.dumps([{**asdict(each), "ratio": each.ratio, "turns": each.turns} for each in repeats], indent=1))
        return
    for training_s in dict.fromkeys(paces):
        ratios = [each.ratio for each in repeats if each.training_s == training_s]
        print(f"training_s {training_s:g}: ratio {statistics.median(ratios):.2f} (median of {len(ratios)})")


if __name__ == "__main__":
    main()
