"""Mean job completion time on a contended fleet: contention-aware scheduling against random assignment.

    python benchmarks/contention.py [--devices 500] [--rounds 10] [--seeds 5] [--json]

10 % of the devices could train model A, all of them B, C and D. All four start together; a phone comes by every hour.
Virtual time: nobody trains.

- "contended": a round takes 20 % of the devices that could train the model.
- "calm": it takes 4 %. Rounds wait for their last device, not for the first ones: there is little to win.
- "same cohort": every round of every model takes 20 % of the whole fleet, A's too: A alone decides the mean.
"""

import argparse
import json
import statistics
from dataclasses import dataclass

from flsys_ray.core.scheduling.base import Scheduler
from flsys_ray.core.scheduling.contention_aware import ContentionAware
from flsys_ray.core.scheduling.random_order import RandomOrder
from flsys_ray.simulation.contention import Contention, Fleet, Job

RARE = 0.1
SCHEDULERS: dict[str, Scheduler] = {"random": RandomOrder(), "contention_aware": ContentionAware()}


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    jobs: tuple[Job, ...]


def cases(devices: int, rounds: int) -> list[Case]:
    def jobs(share: float, rare_share: float) -> tuple[Job, ...]:
        common = (Job(name, round(share * devices), rounds) for name in "BCD")
        return (Job("A", max(1, round(rare_share * devices)), rounds, RARE), *common)

    return [
        Case("contended", jobs(0.2, 0.2 * RARE)),
        Case("calm", jobs(0.04, 0.04 * RARE)),
        Case("same cohort", jobs(0.2, 0.2)),
    ]


def mean_s(case: Case, scheduler: Scheduler, devices: int, seed: int) -> tuple[float, dict[str, float]]:
    took = Contention(case.jobs, scheduler, Fleet(devices=devices), seed).completion_s()
    return statistics.fmean(took.values()), took


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--devices", type=int, default=500)
    arguments.add_argument("--rounds", type=int, default=10)
    arguments.add_argument("--seeds", type=int, default=5)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    rows = []
    for case in cases(given.devices, given.rounds):
        for seed in range(given.seeds):
            means = {name: mean_s(case, each, given.devices, seed) for name, each in SCHEDULERS.items()}
            ratio = means["random"][0] / means["contention_aware"][0]
            took = {name: {model: round(s) for model, s in each[1].items()} for name, each in means.items()}
            rows.append({"case": case.name, "seed": seed, "ratio": round(ratio, 2), **took})
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'case':12}{'seed':>5}{'ratio':>7}   completion, s: random -> contention-aware")
    for row in rows:
        pairs = (f"{model} {row['random'][model]} -> {row['contention_aware'][model]}" for model in "ABCD")
        print(f"{row['case']:12}{row['seed']:5}{row['ratio']:7.2f}   {', '.join(pairs)}")


if __name__ == "__main__":
    main()
