"""A model as the store alone tells it: what can be said of it, and whether it needs an owner, without activating one.

An owner adds to this what lives in its memory: the cohort of the open round. A model whose open round has neither an
owner nor an update has no cohort either, so what is said here is then all that there is.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from flsys_ray.cloud import places
from flsys_ray.cloud.evaluating import Evaluating, Wanted, wanted
from flsys_ray.cloud.journal import Entry, Head, Journal, entry_after
from flsys_ray.cloud.reports import demand_of, model_info
from flsys_ray.cloud.versions import load_plan, load_program
from flsys_ray.core.pacing.base import RoundView
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.scheduling.base import Demand
from flsys_ray.core.types import Counters
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import ModelInfo, OpenRound, RoundCounters

KEPT_MODELS = 10_000
FRESH_S = 1.0


@dataclass(frozen=True, slots=True)
class Standing:
    """The last entry of a model's log, the plan of its next round, and that of its open one."""

    head: Head
    plan: TrainingPlan
    round_plan: TrainingPlan

    @property
    def open(self) -> bool:
        """Whether a round is open: updates of it count."""
        return self.head.version is not None and self.head.state in ("training", "paused")

    @property
    def wanted(self) -> Wanted | None:
        """Which version is to be evaluated."""
        return wanted(self.head, self.plan)

    def demand(self, now: float) -> Demand:
        """Return what a training model without an owner wants: its whole round."""
        version = self.head.version.number if self.head.version is not None else 0
        return demand_of(self.round_plan, version, RoundView(now, Counters(), now), self.head.opened_at)


class Standings:
    """Reads the standing of models. Thread-safe. What it says was true at most `FRESH_S` before it was asked."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float]) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, tuple[float, Entry]] = OrderedDict()
        self._evaluated: set[tuple[str, Wanted]] = set()
        self._plan = lru_cache(maxsize=1024)(lambda model, digest: load_plan(store, model, digest))
        self._parameters = lru_cache(maxsize=1024)(
            lambda model, digest: read_manifest(load_program(store, model, digest)).parameters
        )

    def read(self, model: str) -> Standing:
        """Return a model's standing. Raises `NotFound` if it was never created."""
        head = self._last(model).head
        return Standing(head, self._plan(model, head.plan_sha256), self._plan(model, head.round_plan_sha256))

    def is_fresh(self, model: str) -> bool:
        """Return whether `read` would answer without a look at the store, but for a plan that is new."""
        with self._lock:
            read_at = self._kept[model][0] if model in self._kept else float("-inf")
        return 0 <= self._clock() - read_at < FRESH_S

    def forget(self, model: str) -> None:
        """Look at the store at the next reading: the caller has just changed something."""
        with self._lock:
            if model in self._kept:
                self._kept[model] = (float("-inf"), self._kept[model][1])

    def info(self, model: str) -> ModelInfo:
        """Return what the API tells of a model that has no owner and no work."""
        standing = self.read(model)
        head, version = standing.head, standing.head.version
        open_round = None
        if standing.open and version is not None:
            zero = RoundCounters()
            open_round = OpenRound(round=head.round, version=version.number, opened_at=head.opened_at, counters=zero)
        parameters = self._parameters(model, head.program_sha256) if version is not None else None
        seen = Evaluating(self._store, model).seen(head, standing.plan, self._clock())
        return model_info(model, head, standing.plan, parameters, open_round, seen=seen)

    def wants_evaluation(self, model: str) -> bool:
        """Return whether a version of a model is to be evaluated, and too few devices have done so."""
        wants = self.read(model).wanted
        if wants is None or (model, wants) in self._evaluated:
            return False
        done = sum(1 for _ in self._store.list(places.version_evaluations(model, wants.version)))
        if done >= wants.plan.cohort:
            self._evaluated.add((model, wants))
        return done < wants.plan.cohort

    def has_work(self, model: str) -> bool:
        """Return whether the open round has an update, or one of an earlier round that may still count in it.

        Such a model needs an owner: its round has a deadline, and its cohort is more than the store tells.
        """
        standing = self.read(model)
        if not standing.open:
            return False
        staleness = standing.round_plan.pacing.staleness
        oldest = standing.head.round - (staleness.max_staleness if staleness else 0)
        rounds = range(max(oldest, standing.head.restored_round), standing.head.round + 1)
        keys = [key for round_ in rounds for key in self._store.list(places.updates(model, round_))]
        if staleness is None or not keys:
            return bool(keys)
        return not {places.owner_of(key)[0] for key in keys} <= self._held(model, rounds.start)

    def _held(self, model: str, since: int) -> set[str]:
        """Return the assignments whose updates are in a version that was committed from round `since` on."""
        journal = Journal(self._store, model)
        journal.read_tail()
        held: set[str] = set()
        for entry in journal.closed_backwards():
            if entry.head.round <= since:
                break
            held.update(line.assignment_id for line in entry.updates)
        return held

    def _last(self, model: str) -> Entry:
        """Return the last entry of the log. Once it is known, only what was appended behind it is read."""
        now = self._clock()
        with self._lock:
            read_at, known = self._kept.get(model, (float("-inf"), None))
        if known is not None and 0 <= now - read_at < FRESH_S:
            return known
        entry = known or Journal(self._store, model).read_tail()
        while (following := entry_after(self._store, model, entry.seq)) is not None:
            entry = following
        with self._lock:
            self._kept[model] = (now, entry)
            self._kept.move_to_end(model)
            while len(self._kept) > KEPT_MODELS:
                self._kept.popitem(last=False)
        return entry
