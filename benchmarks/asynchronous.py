"""Rounds or a buffer: virtual time until a model is good enough, on devices some of which are much slower than others.

python benchmarks/asynchronous.py [--devices 200] [--seeds 5] [--sigma 1.5]

The devices train a softmax regression (10 features, 4 classes) on their own examples: each device has a Dirichlet(0.5)
mix of the classes and 20 to 200 examples. How long one training takes is log-normal, exp(sigma * N(0, 1)) times a
minute, and a device's own: the slow ones are always slow. Every device is always there. Twenty have work at a time;
with `late`, those that missed their round go on beside the next round's. The real coordinator decides everything; the
clock is virtual. The target is a loss, on 4,000 examples of nobody, of at most 1.1 times what training on all examples
together reaches. `counted` is the share of the trainings given out that are in a version when it is reached.
"""

import argparse
import heapq
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment, Update, Version

FEATURES, CLASSES, AT_WORK, K, MINUTE = 10, 4, 20, 16, 60.0
LAYOUT = Layout.of([("weights", (FEATURES + 1, CLASSES), True)])
LIMIT_S = 12 * 3600.0
ROUNDS = {"name": "rounds", "cohort": K, "over_selection": AT_WORK / K, "quorum": K // 2}
MODES: dict[str, dict[str, object]] = {
    "rounds, deadline 5 min": ROUNDS | {"deadline_s": 5 * MINUTE},
    "rounds, deadline 20 min": ROUNDS | {"deadline_s": 20 * MINUTE},
    "rounds 5 min, late folded": ROUNDS | {"deadline_s": 5 * MINUTE, "late": {"max_staleness": 3}},
    "buffered, constant": {"name": "buffered", "buffer": K, "concurrency": AT_WORK, "weight": "constant"},
    "buffered, polynomial": {"name": "buffered", "buffer": K, "concurrency": AT_WORK, "weight": "polynomial"},
    "buffered, K = 4": {"name": "buffered", "buffer": 4, "concurrency": AT_WORK, "weight": "polynomial"},
}


@dataclass(frozen=True)
class World:
    """The devices' examples and durations, and what versions are judged by."""

    x: list[np.ndarray]
    y: list[np.ndarray]
    minutes: np.ndarray
    test: tuple[np.ndarray, np.ndarray]
    target: float


def probabilities(parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    scores = x @ parameters.reshape(FEATURES + 1, CLASSES)
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


def loss(parameters: np.ndarray, examples: tuple[np.ndarray, np.ndarray]) -> float:
    x, y = examples
    return float(-np.log(probabilities(parameters, x)[np.arange(len(y)), y]).mean())


def trained(parameters: np.ndarray, x: np.ndarray, y: np.ndarray, steps: int = 2, rate: float = 0.05) -> np.ndarray:
    """Return the delta of some steps of gradient descent on all examples of a device."""
    found = parameters.astype(np.float64)
    for _ in range(steps):
        found = found - rate * (x.T @ (probabilities(found, x) - np.eye(CLASSES)[y]) / len(y)).ravel()
    return (found - parameters).astype(np.float32)


def make_world(devices: int, sigma: float, seed: int) -> World:
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 1, (CLASSES, FEATURES))

    def examples(mix: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.choice(CLASSES, number, p=mix)
        x = centres[y] + rng.normal(0, 1.5, (number, FEATURES))
        return np.hstack([x, np.ones((number, 1))]), y

    parts = [examples(rng.dirichlet([0.5] * CLASSES), int(rng.integers(20, 200))) for _ in range(devices)]
    test = examples(np.full(CLASSES, 1 / CLASSES), 4000)
    x, y = [part[0] for part in parts], [part[1] for part in parts]
    central = np.zeros(LAYOUT.size)
    central += trained(central, np.vstack(x), np.concatenate(y), steps=300, rate=0.5)
    minutes = np.exp(sigma * rng.normal(0, 1, devices))
    return World(x, y, minutes, test, 1.1 * loss(central, test))


class Run:
    """One mode in one world."""

    def __init__(self, world: World, plan: TrainingPlan, seed: int) -> None:
        self.world, self.now = world, 0.0
        start = Version(0, np.zeros(LAYOUT.size, np.float32), plan.server_optimizer.init(LAYOUT.size))
        self.coordinator = Coordinator("toy", LAYOUT, plan, start, round_=0, opened_at=0.0)
        self.rng = np.random.default_rng(seed + 1)
        self.idle = list(range(len(world.minutes)))
        self.doing: list[tuple[float, int, Assignment, np.ndarray]] = []
        self.trainings = self.counted = 0
        self.ages: list[int] = []

    def until_good(self) -> float | None:
        """Return the virtual time in minutes at which a version reaches the target; None if none did in half a day."""
        while self.now < LIMIT_S:
            self.give_out()
            for version in self.next_event():
                if loss(version.parameters, self.world.test) <= self.world.target:
                    return self.now / MINUTE
        return None

    def give_out(self) -> None:
        """Have idle devices ask for work, in random order, until nobody gets any."""
        self.rng.shuffle(self.idle)
        for device in list(self.idle):
            work = self.coordinator.check_in(str(device), self.now)
            if isinstance(work, Assignment):
                self.idle.remove(device)
                ends = self.now + MINUTE * float(self.world.minutes[device])
                heapq.heappush(self.doing, (ends, device, work, self.coordinator.version.parameters))
                self.trainings += 1
            elif work.reason in ("round-full", "round-closing"):
                return

    def next_event(self) -> Iterator[Version]:
        """Go on to the next upload or deadline; yield the versions that it commits."""
        ends, deadline = self.doing[0][0], self.coordinator.next_deadline()
        self.now = min(ends, deadline) if deadline is not None else ends
        yield from self.tick()
        if ends <= self.now:
            _, device, work, base = heapq.heappop(self.doing)
            self.idle.append(device)
            delta = trained(base, self.world.x[device], self.world.y[device])
            self.coordinator.submit(Update(work, delta, len(self.world.y[device]), 0.0), self.now)
            yield from self.tick()

    def tick(self) -> Iterator[Version]:
        summary = self.coordinator.tick(self.now)
        if summary is not None and summary.commit is not None:
            self.counted += len(summary.commit.updates)
            self.ages += [ref.staleness for ref in summary.commit.updates]
            yield summary.commit.version


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sigma", type=float, default=1.5)
    options = parser.parse_args()
    print(f"{options.devices} devices, {AT_WORK} at work, sigma {options.sigma:g}, seeds 0 to {options.seeds - 1}")
    print(f"{'mode':28}{'minutes to target (median, range)':>36}{'versions':>10}{'counted':>9}{'mean age':>10}")
    worlds = [make_world(options.devices, options.sigma, seed) for seed in range(options.seeds)]
    for name, pacing in MODES.items():
        times, versions, shares, ages = [], [], [], []
        for seed, world in enumerate(worlds):
            run = Run(world, parse_plan({"pacing": pacing, "selection": "first_come", "seed": seed}), seed)
            times.append(run.until_good() or float("inf"))
            versions.append(run.coordinator.version.number)
            shares.append(run.counted / run.trainings)
            ages.append(np.mean(run.ages or [0]))
        spread = f"{np.median(times):.0f} ({min(times):.0f} to {max(times):.0f})"
        print(f"{name:28}{spread:>36}{np.median(versions):>10.0f}{np.mean(shares):>9.0%}{np.mean(ages):>10.2f}")


if __name__ == "__main__":
    main()
