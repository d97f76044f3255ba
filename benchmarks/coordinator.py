"""How many decisions a second one coordinator makes, and how near its exact sums come to what numpy can add at all.

    python benchmarks/coordinator.py [--parameters 210438] [--repeats 5] [--json out.json]

The limit of a submit is numpy's plain `total += delta` in float32, measured in the same run on the same arrays: what
any aggregation at all would have to do. Each figure is the median of `--repeats` runs in one thread. Seed 0.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Assignment, Counted, Update, Version
from flsys_ray.wire.tensors import decode_update, encode_update

DEVICES = 5000
UPDATES = 32


@dataclass(frozen=True)
class Figure:
    """One line of the table. `gb_per_s` counts the float32 bytes of the updates, whatever is done with them."""

    what: str
    per_s: float
    gb_per_s: float | None = None


def coordinator_of(parameters: int, cohort: int, selection: str = "first_come", optimizer: str = "sgd") -> Coordinator:
    plan = parse_plan(
        {
            "pacing": {"name": "rounds", "cohort": cohort, "over_selection": 1.0, "deadline_s": 3600.0},
            "selection": selection,
            "server_optimizer": optimizer,
        }
    )
    version = Version(0, np.zeros(parameters, dtype=np.float32), plan.server_optimizer.init(parameters))
    layout = Layout.of([("parameters", (parameters,), True)])
    return Coordinator("bench", layout, plan, version, round_=0, opened_at=0.0)


def median_s(run: Callable[[], float], repeats: int) -> float:
    run()  # once to warm up
    return statistics.median(run() for _ in range(repeats))


def check_ins_s(selection: str, cohort: int) -> float:
    """Let DEVICES devices check in once and then again; return the seconds that one check-in takes."""
    coordinator = coordinator_of(8, cohort, selection)
    names = [f"device-{number:06d}" for number in range(DEVICES)]
    begin = time.perf_counter()
    for now in (0.0, 1.0):
        for name in names:
            coordinator.check_in(name, now)
    return (time.perf_counter() - begin) / (2 * DEVICES)


def assigned(coordinator: Coordinator, deltas: list[np.ndarray]) -> list[Update]:
    updates = []
    for number, delta in enumerate(deltas):
        assignment = coordinator.check_in(f"device-{number:06d}", 0.0)
        assert isinstance(assignment, Assignment)
        updates.append(Update(assignment, delta, 100 + number, 0.5))
    return updates


def submits_s(deltas: list[np.ndarray]) -> float:
    coordinator = coordinator_of(deltas[0].size, len(deltas))
    updates = assigned(coordinator, deltas)
    begin = time.perf_counter()
    answers = [coordinator.submit(update, 1.0) for update in updates]
    seconds = time.perf_counter() - begin
    assert answers == [Counted(duplicate=False)] * len(updates)
    return seconds / len(updates)


def commit_s(deltas: list[np.ndarray], optimizer: str) -> float:
    coordinator = coordinator_of(deltas[0].size, len(deltas), optimizer=optimizer)
    for update in assigned(coordinator, deltas):
        coordinator.submit(update, 1.0)
    begin = time.perf_counter()
    summary = coordinator.tick(1.0)
    seconds = time.perf_counter() - begin
    assert summary is not None
    assert summary.commit is not None
    return seconds


def plain_sum_s(deltas: list[np.ndarray]) -> float:
    total = np.zeros_like(deltas[0])
    begin = time.perf_counter()
    for delta in deltas:
        total += delta
    return (time.perf_counter() - begin) / len(deltas)


def decode_s(bodies: list[bytes], parameters: int) -> float:
    layout = Layout.of([("parameters", (parameters,), True)])
    begin = time.perf_counter()
    for body in bodies:
        decode_update(body, layout, 1024.0)
    return (time.perf_counter() - begin) / len(bodies)


def measure(parameters: int, repeats: int) -> list[Figure]:
    draw = generator(0, "benchmark")
    deltas = [draw.normal(0, 0.01, parameters).astype(np.float32) for _ in range(UPDATES)]
    bodies = [encode_update(delta, 100, 0.5) for delta in deltas]
    gigabytes = 4 * parameters / 1e9

    def vector(what: str, seconds: float) -> Figure:
        return Figure(what, 1 / seconds, gigabytes / seconds)

    return [
        Figure("check-in, every device is taken", 1 / median_s(lambda: check_ins_s("first_come", DEVICES), repeats)),
        Figure("check-in, uniform, one in ten", 1 / median_s(lambda: check_ins_s("uniform", DEVICES // 10), repeats)),
        vector("decode and check an update", median_s(lambda: decode_s(bodies, parameters), repeats)),
        vector("submit (checked, summed exactly)", median_s(lambda: submits_s(deltas), repeats)),
        vector("limit: numpy float32 total += delta", median_s(lambda: plain_sum_s(deltas), repeats)),
        Figure("commit, sgd", 1 / median_s(lambda: commit_s(deltas, "sgd"), repeats)),
        Figure("commit, adam", 1 / median_s(lambda: commit_s(deltas, "adam"), repeats)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parameters", type=int, default=210_438, help="P, the length of an update")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    figures = measure(options.parameters, options.repeats)
    setting = {
        "parameters": options.parameters,
        "repeats": options.repeats,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in setting.items()))
    print(f"{'':38}{'per second':>12}{'GB/s':>8}")
    for figure in figures:
        rate = "" if figure.gb_per_s is None else f"{figure.gb_per_s:8.2f}"
        print(f"{figure.what:38}{figure.per_s:12,.0f}{rate:>8}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"setting": setting, "figures": [asdict(figure) for figure in figures]}, file, indent=2)


if __name__ == "__main__":
    main()
