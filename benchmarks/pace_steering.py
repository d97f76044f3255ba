"""A million phones that come at once: check-ins a second with and without pace steering, in simulation.

    python benchmarks/pace_steering.py [--phones 1000000] [--hours 2] [--seed 0] [--json]

Two stories. *Outage*: the cloud was away; when it is back every phone tries within a minute. *Nights*: phones are
plugged in at about 22:30 (standard deviation 90 minutes) for about 8 hours, and check in only then, for two days; this
is played with a tenth of the phones, of the capacity and of the target, and the rates are given ten times.
No phone gets work: the round is full, which is the worst case. The cloud answers `--capacity` check-ins a second; the
others are refused (503), and come back when `Retry-After` says.

Three ways to say when to come back: *fixed* (30 s, to all the same), *half* (half of the rest of a round of 60 s, with
a quarter of jitter: what the coordinator says alone), *steered* (`flsys_ray.core.pacing.steering`, the code that the
cloud runs). Printed are the highest number of check-ins of a second, the highest after ten minutes, the mean, the ratio
of the first and the mean, and the share that was refused.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.pacing.steering import Steering, busy_retry_s, retry_after_s

Array = NDArray[np.float64]
DAY_S = 86_400.0
ROUND_S = 60.0


@dataclass
class Cloud:
    """Says when to come back. `way` is one of `WAYS`."""

    way: str
    capacity: int
    step_s: float
    rng: np.random.Generator
    free_at: float = 0.0
    steering: Steering = field(default_factory=Steering)

    def answer(self, count: int, now: float) -> Array:
        """Return the waits of phones that come in one second: the first `capacity` are served, the others refused."""
        served = min(count, self.capacity)
        lots = self.rng.random(count)
        refused = count - served
        if self.way == "fixed":
            return np.full(count, 30.0)
        left = ROUND_S - now % ROUND_S
        wanted = np.array([retry_after_s(left, 0.0), retry_after_s(left, 1.0)])
        waits = wanted[0] + (wanted[1] - wanted[0]) * lots
        if self.way == "steered":
            self.free_at, slots = self.steering.take(self.free_at, now, lots[:served])
            waits[:served] = np.maximum(waits[:served], slots)
            low, high = (busy_retry_s(refused, served, self.step_s, lot) for lot in (0.0, 1.0))
            waits[served:] = low + (high - low) * lots[served:]
        return waits


WAYS = ("fixed", "half", "steered")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--phones", type=int, default=1_000_000)
    arguments.add_argument("--hours", type=float, default=2.0)
    arguments.add_argument("--capacity", type=int, default=2_000)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    whole, tenth = Scale(given.phones, given.capacity), Scale(given.phones // 10, given.capacity // 10, 10.0)
    report = {
        "outage": {way: play(outage, way, whole, given.hours * 3600, given.seed) for way in WAYS},
        "nights": {way: play(nights, way, tenth, 2 * DAY_S, given.seed) for way in WAYS},
    }
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'':10}{'':10}{'peak/s':>10}{'later':>10}{'mean/s':>10}{'peak/mean':>11}{'refused':>10}")
    for name, rows in report.items():
        for way, row in rows.items():
            print(
                f"{name:10}{way:10}{row['peak_per_s']:10,.0f}{row['peak_after_10_min_per_s']:10,.0f}"
                f"{row['mean_per_s']:10,.0f}"
                f"{row['peak_over_mean']:11.1f}{row['refused_share']:10.1%}"
            )


Who = NDArray[np.intp]
Plugged = Callable[[Array, Who], Array]


def outage(phones: int, rng: np.random.Generator) -> tuple[Array, Plugged]:
    """Return when each phone first comes, and what delays a time to one at which its phone may come: nothing."""
    return rng.uniform(0, 60, phones), lambda times, who: times


def nights(phones: int, rng: np.random.Generator) -> tuple[Array, Plugged]:
    """Return the same for phones that are plugged in at night. Time begins at noon."""
    begins = rng.normal(10.5 * 3600, 1.5 * 3600, phones) % DAY_S
    lasts = np.clip(rng.normal(8 * 3600, 3600, phones), 3600, 20 * 3600)

    def plugged(times: Array, who: Who) -> Array:
        since = (times - begins[who]) % DAY_S
        return np.where(since < lasts[who], times, times + DAY_S - since)

    return plugged(np.zeros(phones), np.arange(phones)), plugged


@dataclass(frozen=True)
class Scale:
    """How large a play is; its rates are told `times` as high."""

    phones: int
    capacity: int
    times: float = 1.0


Story = Callable[[int, np.random.Generator], tuple[Array, Plugged]]


def play(story: Story, way: str, scale: Scale, span_s: float, seed: int) -> dict[str, float]:
    """Let phones come, step by step."""
    rng = np.random.default_rng(seed)
    comes_at, delayed = story(scale.phones, rng)
    step_s = 1.0 if scale.times == 1 else 10.0
    steering = Steering(Steering().per_s / scale.times)
    cloud = Cloud(way, int(scale.capacity * step_s), step_s, rng, steering=steering)
    came = np.zeros(int(span_s / step_s))
    refused = 0
    for number in range(len(came)):
        now = number * step_s
        who = np.flatnonzero(comes_at < now + step_s)
        came[number] = len(who)
        if len(who):
            rng.shuffle(who)
            refused += max(0, len(who) - cloud.capacity)
            comes_at[who] = delayed(now + cloud.answer(len(who), now), who)
    per_s = came * scale.times / step_s
    return {
        "peak_per_s": float(per_s.max()),
        "peak_after_10_min_per_s": float(per_s[int(600 / step_s) :].max()),
        "mean_per_s": float(per_s.mean()),
        "peak_over_mean": float(per_s.max() / per_s.mean()),
        "refused_share": float(refused / came.sum()),
    }


if __name__ == "__main__":
    main()
