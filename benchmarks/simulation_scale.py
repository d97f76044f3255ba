"""Large fleets on one machine: time and memory of many rounds, and of a population of a million devices.

    python benchmarks/simulation_scale.py [--devices 10000] [--rounds 1000] [--cohort 20] [--workers 2] [--json]
    python benchmarks/simulation_scale.py --devices 1000000 --rounds 20

The model is the small one of `simulation_workloads.py` (25,334 parameters). 1,000 users have 20 windows each, made up;
device d has those of user d mod 1,000. Traces are made up (`flsys_ray/simulation/traces.py`); a device checks in no
more often than every 15 minutes. Memory is the process's, after each tenth of the rounds.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import argparse
import json
import resource
import time
from functools import partial
from pathlib import Path

from simulation_workloads import CLASSES, RATE, WORKLOADS, build, examples_of

import flsys_ray
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.population import Pool, Population, make_pool
from flsys_ray.simulation.results import Row
from flsys_ray.simulation.traces import synthetic_traces
from flsys_ray.simulation.training import Examples, TrainerSpec, group_size_of

CHECK_IN_S = 900.0
PAGE = resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.devices, options.rounds, options.cohort, options.workers)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:24s} {value}")


def measure(devices: int, rounds: int, cohort: int, workers: int) -> dict[str, object]:
    plan = plan_of(cohort, rounds)
    pool = pool_of_windows()
    before = resident_mb()
    start = time.perf_counter()
    traces = synthetic_traces(devices, seed=0)
    made_s, traces_mb = time.perf_counter() - start, resident_mb() - before
    simulation = simulation_of(plan, pool, devices, traces, workers)
    seen: list[float] = []

    def note(row: Row) -> None:
        if row.round % max(1, rounds // 10) == 0:
            seen.append(resident_mb())

    outcome = simulation.run(note)
    return {
        "devices": devices,
        "rounds": len(outcome.rows),
        "versions": outcome.versions["small"],
        "trainings": outcome.trainings,
        "check_ins": sum(row.check_ins for row in outcome.rows),
        "virtual_h": round(outcome.virtual_s / 3600, 1),
        "wall_s": round(outcome.wall_s, 1),
        "cpu_s": round(time.process_time(), 1),
        "traces_made_s": round(made_s, 2),
        "traces_mb": round(traces_mb),
        "resident_mb": [round(mb) for mb in seen],
        "accuracy": [round(row.accuracy, 3) for row in outcome.rows if row.accuracy is not None],
        "digest": outcome.digests["small"][:12],
    }


def plan_of(cohort: int, rounds: int) -> TrainingPlan:
    return parse_plan(
        {
            "pacing": {"name": "rounds", "cohort": cohort, "deadline_s": 600},
            "local": {"learning_rate": RATE},
            "stopping": {"versions": rounds},
        }
    )


def pool_of_windows() -> Pool:
    x, y = examples_of(WORKLOADS["small"])
    return make_pool(
        [(str(i), x[i], y[i]) for i in range(len(x))], Examples(x[:20].reshape(-1, *x.shape[2:]), y[:20].ravel())
    )


def simulation_of(plan: TrainingPlan, pool: Pool, devices: int, traces: object, workers: int) -> Simulation:
    classes = [str(i) for i in range(CLASSES)]
    batch = WORKLOADS["small"].batch
    program = flsys_ray.compile(build("small"), classes=classes, batch_size=batch, name="small").data
    model = SimulatedModel("small", plan, program, Population(pool, devices, 0), step_s=1.0)
    spec = TrainerSpec(
        "fast", program, partial(build, "small"), plan.local, group_size_of(plan), pool.training, pool.held_out
    )
    every = max(1, (plan.stopping.versions or 0) // 10)
    terms = Terms(check_in_every_s=CHECK_IN_S, evaluate_every=every)
    return Simulation([model], traces, InlineExecutor({"small": spec}, workers), terms)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


if __name__ == "__main__":
    main()
