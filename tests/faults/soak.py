"""Play many disasters, or one of them again: `make soak SEEDS=100000`, `python tests/faults/soak.py --seed 17`.

Prints how many faults of each kind struck, how many facts were looked at for each promise, and the seeds of the runs
that broke one. Exits with 1 if there are any. Ctrl-C, or SIGTERM, ends it early with what was played until then.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from invariants import look_at  # noqa: E402
from story import played  # noqa: E402

CHUNK = 50


@dataclass
class Tally:
    """What some runs add up to. `broken` has a line for each run that broke a promise, by its seed."""

    runs: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    broken: dict[int, str] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        """Take another tally in."""
        self.runs += other.runs
        self.struck += other.struck
        self.facts += other.facts
        self.broken |= other.broken


def play_all(seeds: range) -> Tally:
    """Play these, and look at each. Whatever a run raises breaks it: nothing here may ever fail."""
    tally = Tally()
    for seed in seeds:
        tally.runs += 1
        try:
            with played(seed) as story:
                tally.struck += story.room.struck
                tally.facts += look_at(story)
        except Exception as error:
            tally.broken[seed] = "".join(traceback.format_exception_only(error)).strip()
    return tally


def soak(tally: Tally, first: int, seeds: int, jobs: int) -> None:
    """Play `seeds` runs on several cores, add them up in `tally`, and say how far it is."""
    began, said = time.monotonic(), 0
    chunks = [range(start, min(start + CHUNK, first + seeds)) for start in range(first, first + seeds, CHUNK)]
    pool = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        for part in pool.map(play_all, chunks):
            tally.add(part)
            for seed, error in part.broken.items():
                print(f"seed {seed}: {error}", flush=True)
            if tally.runs * 20 // seeds > said:
                said = tally.runs * 20 // seeds
                print(f"{tally.runs} of {seeds} runs, {time.monotonic() - began:.0f} s", flush=True)
    except KeyboardInterrupt:
        print(f"ended after {tally.runs} of {seeds} runs", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def report(tally: Tally, seconds: float) -> str:
    """Return the tally as the table that docs/reliability.md shows."""
    lines = [f"| runs | {tally.runs:,} in {seconds:,.0f} s |", "|---|---|"]
    kinds = {kind.removesuffix("_per_h").replace("_", " "): n for kind, n in sorted(tally.struck.items())}
    lines += [f"| fault: {kind} | {n:,} |" for kind, n in kinds.items()]
    lines += [f"| looked at: {promise} | {n:,} |" for promise, n in sorted(tally.facts.items())]
    return "\n".join([*lines, f"| **runs that broke a promise** | **{len(tally.broken)}** |"])


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10_000, help="how many runs")
    parser.add_argument("--first", type=int, default=0, help="the seed of the first run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--seed", type=int, help="play this one only, and show where it breaks")
    options = parser.parse_args()
    began = time.monotonic()
    if options.seed is not None:
        with played(options.seed) as story:
            print(f"plan: {story.plan.model_dump_json()}")
            print(f"faults: {dict(story.room.struck)}")
            print(f"told: {len(story.told.counted)} counted, {len(story.told.late)} late")
            print(f"looked at: {dict(look_at(story))}")
        return 0
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    tally = Tally()
    soak(tally, options.first, options.seeds, options.jobs)
    print(report(tally, time.monotonic() - began))
    return 1 if tally.broken else 0


if __name__ == "__main__":
    sys.exit(main())
