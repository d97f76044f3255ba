"""Which aggregation rules hold when a fifth of the devices lie: the table of docs/aggregation.md.

    python benchmarks/attacks.py [--rounds 30] [--seed 0] [--json out.json]

A linear model of 20 parameters, squared loss, trained by the real coordinator: 20 devices with 40 examples each, of
their own distribution and with a true model of their own near the common one; five steps of gradient descent a round.
Four of the devices lie in every round. The figure is `|w - w*| / |w*|` after the last round: 1.0 is as good as not
training at all. Nothing but the seed is random. Runs in one thread.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Assignment, Update, Version

DEVICES, LIARS, EXAMPLES, SIZE = 20, 4, 40, 20
STEPS, LEARNING_RATE = 5, 0.05
MODEL = "linear"

RULES: dict[str, object] = {
    "weighted_mean": "weighted_mean",
    "coordinate_median": "coordinate_median",
    "trimmed_mean": {"name": "trimmed_mean", "fraction": 0.2},
    "krum": {"name": "krum", "f": LIARS},
    "multi_krum": {"name": "multi_krum", "f": LIARS},
    "bulyan": {"name": "bulyan", "f": LIARS},
    "geometric_median": "geometric_median",
    "clipping": {"name": "clipping", "norm": 0.2},
    "zeroing": {"name": "zeroing", "norm": 1.0},
    "clipping, geometric_median": {"name": "clipping", "norm": 0.2, "inner": "geometric_median"},
    "q_fedavg": {"name": "q_fedavg", "q": 1.0, "lipschitz": 1 / LEARNING_RATE},
    "fednova": "fednova",
}

# What a liar sends instead of its delta, and how many examples it claims.
Attack = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, int]]
ATTACKS: dict[str, Attack] = {
    "none": lambda delta, rng: (delta, EXAMPLES),
    "flipped": lambda delta, rng: (-delta, EXAMPLES),
    "flipped x5": lambda delta, rng: (-5 * delta, EXAMPLES),
    "scaled x100": lambda delta, rng: (100 * delta, EXAMPLES),
    "random": lambda delta, rng: (rng.normal(0, 1, delta.size), EXAMPLES),
    "flipped, examples x10": lambda delta, rng: (-delta, 10 * EXAMPLES),
}


class Device:
    """One device's data: x [40, 20] around a mean of its own, y by a true model near the common one."""

    def __init__(self, truth: np.ndarray, rng: np.random.Generator) -> None:
        self.x = rng.normal(rng.normal(0, 0.3, SIZE), 1, (EXAMPLES, SIZE))
        self.y = self.x @ (truth + rng.normal(0, 0.02, SIZE)) + rng.normal(0, 0.1, EXAMPLES)

    def train(self, base: np.ndarray) -> tuple[np.ndarray, float]:
        """Return trained minus base, and the mean loss over the steps."""
        w, loss = base.copy(), 0.0
        for _ in range(STEPS):
            residual = self.x @ w - self.y
            loss += float(residual @ residual) / EXAMPLES / STEPS
            w -= LEARNING_RATE * 2 * self.x.T @ residual / EXAMPLES
        return w - base, loss


def plan_of(rule: object, max_examples: int) -> TrainingPlan:
    return parse_plan(
        {
            "pacing": {"name": "rounds", "cohort": DEVICES, "quorum": DEVICES, "over_selection": 1.0},
            "selection": "first_come",
            "aggregation": rule,
            "limits": {"max_examples": max_examples, "max_abs_delta": 1e6},
        }
    )


def final_error(rule: object, attack: str, rounds: int = 30, seed: int = 0, max_examples: int = 1000) -> float:
    """Return the relative distance to the true model after some rounds; infinity if an update could not be sent."""
    rng = generator(seed, "attacks")
    truth = rng.normal(0, 1, SIZE) / np.sqrt(SIZE)
    devices = [Device(truth, rng) for _ in range(DEVICES)]
    plan = plan_of(rule, max_examples)
    start = Version(0, np.zeros(SIZE, dtype=np.float32), plan.server_optimizer.init(SIZE))
    layout = Layout.of([("w", (SIZE,), True)])
    coordinator = Coordinator(MODEL, layout, plan, start, round_=0, opened_at=0.0)
    for round_ in range(rounds):
        if not play_round(coordinator, devices, attack, generator(seed, "lies", round_)):
            return float("inf")
    return float(np.linalg.norm(coordinator.version.parameters - truth) / np.linalg.norm(truth))


def play_round(coordinator: Coordinator, devices: list[Device], attack: str, rng: np.random.Generator) -> bool:
    """Train one round. Returns whether it committed: an update beyond the plan's limits is refused."""
    now, base = float(coordinator.round), coordinator.version.parameters.astype(np.float64)
    for number, device in enumerate(devices):
        work = coordinator.check_in(f"device-{number:02d}", now)
        assert isinstance(work, Assignment)
        delta, loss = device.train(base)
        examples = EXAMPLES
        if number < LIARS:
            delta, examples = ATTACKS[attack](delta, rng)
        coordinator.submit(Update(work, delta.astype(np.float32), examples, loss, num_steps=STEPS), now)
    summary = coordinator.tick(now)
    return summary is not None and summary.commit is not None


def table(rounds: int, seed: int) -> dict[str, dict[str, float]]:
    return {
        name: {attack: final_error(rule, attack, rounds, seed) for attack in ATTACKS} for name, rule in RULES.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    errors = table(args.rounds, args.seed)
    print("| rule | " + " | ".join(ATTACKS) + " |")
    print("|---" * (len(ATTACKS) + 1) + "|")
    for name, row in errors.items():
        cells = ["diverged" if error > 10 else f"{error:.3f}" for error in row.values()]
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        args.json.write_text(json.dumps({"rounds": args.rounds, "seed": args.seed, "errors": errors}, indent=1))


if __name__ == "__main__":
    main()
