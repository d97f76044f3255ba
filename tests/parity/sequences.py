"""Recorded sequences of what devices do, and how they are played."""

from collections.abc import Callable, Iterator

import numpy as np
from drivers import Driver, Step

from flsys_ray.core.plan import TrainingPlan, parse_plan

NAMES = tuple("abcdefgh")


def plan(selection: str) -> TrainingPlan:
    return parse_plan(
        {
            "pacing": {"name": "rounds", "cohort": 3, "quorum": 2, "over_selection": 1.5, "deadline_s": 60},
            "selection": selection,
            "server_optimizer": {"name": "adam", "learning_rate": 0.05},
            "limits": {"max_examples": 200},
            "seed": 7,
        }
    )


def recorded(seed: int, rounds: int, *, waits: bool) -> list[Step]:
    """Return what devices did in some rounds: too many of them, repeats, work given back, late uploads."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for round_ in range(rounds):
        order = [NAMES[i] for i in rng.permutation(len(NAMES))]
        steps += [Step("check_in", name) for name in order]
        if round_ == 0:
            steps.append(Step("check_in", order[0]))
        steps.append(Step("give_back", order[0]))
        steps.append(Step("check_in", order[-1]))
        enough = 1 if waits and round_ % 3 == 1 else 2 if waits and round_ % 3 == 2 else 4
        for name in order[1 : 1 + enough]:
            steps.append(Step("upload", name, seed=int(rng.integers(2**31))))
            if waits:
                steps.append(Step("wait", seconds=float(rng.uniform(0, 5))))
            if name == order[1]:
                repeat = Step("upload", name, seed=int(rng.integers(2**31)))
                steps += [repeat, Step("give_back", name), Step("check_in", name)]
        steps.append(Step("upload", order[1], seed=int(rng.integers(2**31))))
        if waits:
            steps.append(Step("wait", seconds=61))
        steps.append(Step("upload", order[0], seed=1))
    return steps


def played(open_driver: Callable[[TrainingPlan], Iterator[Driver]], how: TrainingPlan, steps: list[Step]):
    """Return what each step was told, and the versions; steps on work that a device never got are left out."""
    for driver in open_driver(how):
        said, has_work = [], set()
        for step in steps:
            if step.verb in ("upload", "give_back") and step.device not in has_work:
                continue
            said.append((step.verb, step.device, driver.play(step)))
            if said[-1][2].startswith("round ") and step.verb == "check_in":
                has_work.add(step.device)
        return said, driver.versions()
    raise AssertionError("no driver")


TIMELESS = ("first_come", recorded(1, 5, waits=False))
TIMED = ("first_come", recorded(2, 7, waits=True))
LOTTERY = ("uniform", recorded(3, 6, waits=True))
