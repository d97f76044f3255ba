"""Several models and one fleet of phones, in virtual time: how long each job takes under a scheduler.

A simulation of waiting alone: nobody trains. A phone comes by at intervals of its own, says which jobs it could work
for, is asked to do one of them, trains for a while, and comes by again later. A job is a number of synchronous rounds;
a round takes a cohort of devices, ends when all of them are back, and the next one opens.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from flsys_ray.core.rng import generator
from flsys_ray.core.scheduling.base import Candidate, CheckIn, Demand, Scheduler
from flsys_ray.core.scheduling.supply import Served, Supply

_CHECK_IN, _DONE = 0, 1


@dataclass(frozen=True, slots=True)
class Job:
    """A model that wants `rounds` rounds of `cohort` devices, or None for ever; `eligible_fraction` could train it.

    It is there from `starts_s` on. Devices are ranked once: a job with a smaller fraction has a part of a larger one's.
    """

    model: str
    cohort: int
    rounds: int | None
    eligible_fraction: float = 1.0
    app: str = "app"
    starts_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """Phones. A phone comes by every `interval_s` (exponential), and a training takes it `training_s` (log-normal)."""

    devices: int = 500
    interval_s: float = 3600.0
    training_s: float = 60.0
    spread: float = 0.5


@dataclass(slots=True)
class _Progress:
    """Where a job is."""

    job: Job
    opened_at: float
    rounds_done: int = 0
    given: int = 0
    back: int = 0
    finished_at: float | None = None

    def demand(self) -> Demand:
        """Return what the job wants now."""
        rounds_left = 1 if self.job.rounds is None else self.job.rounds - self.rounds_done
        free = self.job.cohort - self.given
        return Demand(free, rounds_left * self.job.cohort - self.given, self.opened_at)

    def come_back(self, now: float) -> None:
        """Count a trained update; the last one of a round ends it."""
        self.back += 1
        if self.back == self.job.cohort:
            self.rounds_done, self.given, self.back, self.opened_at = self.rounds_done + 1, 0, 0, now
            if self.rounds_done == self.job.rounds:
                self.finished_at = now


@dataclass(slots=True)
class Contention:
    """One run. The same seed gives the same phones, at the same instants, under every scheduler."""

    jobs: Sequence[Job]
    scheduler: Scheduler
    fleet: Fleet = field(default_factory=Fleet)
    seed: int = 0
    longest_wait_s: dict[str, float] = field(default_factory=dict)

    def completion_s(self, horizon_s: float = 1e9) -> dict[str, float]:
        """Run to the end; return how long each job took from its start. One that did not end counts as the horizon."""
        progress = {job.model: _Progress(job, job.starts_s) for job in self.jobs}
        supply, served = Supply(), Served()
        draws = generator(self.seed, "contention")
        start = draws.uniform(0, self.fleet.interval_s, self.fleet.devices)
        events = [(float(at), _CHECK_IN, device, "") for device, at in enumerate(start)]
        heapq.heapify(events)
        pace = [generator(self.seed, "phone", 0, str(device)) for device in range(self.fleet.devices)]
        ends = [p for p in progress.values() if p.job.rounds is not None]
        while events and any(p.finished_at is None for p in ends):
            now, kind, device, model = heapq.heappop(events)
            if now > horizon_s:
                break
            wait_s = float(pace[device].exponential(self.fleet.interval_s))
            if kind == _DONE:
                progress[model].come_back(now)
                heapq.heappush(events, (now + wait_s, _CHECK_IN, device, ""))
                continue
            work_s = float(self.fleet.training_s * pace[device].lognormal(0.0, self.fleet.spread))
            chosen = self._choose(device, now, progress, supply, served)
            event = (now + work_s, _DONE, device, chosen) if chosen else (now + wait_s, _CHECK_IN, device, "")
            heapq.heappush(events, event)
        return {
            model: (horizon_s if p.finished_at is None else p.finished_at) - p.job.starts_s
            for model, p in progress.items()
        }

    def _choose(
        self, device: int, now: float, progress: dict[str, _Progress], supply: Supply, served: Served
    ) -> str | None:
        """Return the job that a phone is given, or None when none of its jobs wants anyone."""
        rank = (device + 0.5) / self.fleet.devices
        mine = [p for p in progress.values() if rank < p.job.eligible_fraction and p.job.starts_s <= now]
        for p in mine:
            supply.seen(p.job.model, str(device), now)
        open_jobs = [p for p in mine if p.finished_at is None]
        candidates = tuple(
            Candidate(p.job.model, p.job.app, p.demand(), supply.of(p.job.model, now), served.of(p.job.app, now))
            for p in open_jobs
        )
        for model in self.scheduler.order(CheckIn(str(device), candidates, now, self.seed)):
            taken = progress[model]
            if taken.demand().free_slots > 0:
                taken.given += 1
                served.give(taken.job.app, now)
                waited_s = now - taken.opened_at
                self.longest_wait_s[model] = max(waited_s, self.longest_wait_s.get(model, 0.0))
                return model
        return None
