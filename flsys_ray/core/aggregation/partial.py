"""Updates that were folded elsewhere: their lines and one state, instead of their vectors.

Whoever folds cannot know what the coordinator knows: that an update is a repeat, too late, or older than it seems. So a
partial fold says which weight each update was given. The coordinator takes it whole, if one after the other it would
have counted every update with just that weight; or not at all, and then reads them one by one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flsys_ray.core.ledger import Ledger, moved
from flsys_ray.core.pacing.base import Pacing, RoundView
from flsys_ray.core.types import Assignment, Contribution, Update, UpdateRef

if TYPE_CHECKING:
    from flsys_ray.core.plan import TrainingPlan


@dataclass(frozen=True, slots=True)
class Line:
    """An update without its vectors; the fields are those of `Update`."""

    assignment: Assignment
    num_examples: int
    loss: float
    sha256: str
    num_steps: int
    num_bytes: int
    train_s: float | None = None
    labels: tuple[int, ...] | None = None

    @classmethod
    def of(cls, update: Update) -> "Line":
        """Return the line of an update."""
        u = update
        return cls(u.assignment, u.num_examples, u.loss, u.sha256, u.num_steps, u.num_bytes, u.train_s, u.labels)

    def ref(self, plan: "TrainingPlan", staleness: int) -> UpdateRef:
        """Return its line of a version's manifest, if it counts `staleness` versions after its base version."""
        work, examples = self.assignment, min(self.num_examples, plan.limits.max_examples)
        weight = weight_of(plan, examples, staleness)
        told = (self.loss, self.num_steps, self.train_s, self.labels if plan.selection.reads_labels else None)
        return UpdateRef(work.assignment_id, work.device_id, examples, self.sha256, weight, staleness, *told)


@dataclass(frozen=True, slots=True, eq=False)
class Partial:
    """What a plan's rule makes of some updates. `weights[i]` is the weight that the update of `lines[i]` was given."""

    lines: tuple[Line, ...]
    weights: tuple[int, ...]
    state: Any

    def fits(self, ledger: Ledger, pacing: Pacing, view: RoundView) -> bool:
        """Return whether a round takes all of them, one after the other, before it ends; each is new to it."""
        if len({line.assignment.assignment_id for line in self.lines}) < len(self.lines):
            return False
        counters = view.counters
        for line in self.lines:
            if pacing.decide(RoundView(view.started_at, counters, view.now)) != "wait":
                return False
            entry = ledger.entry(line.assignment.assignment_id)
            counters = moved(counters, entry.outcome if entry is not None else None, "counted")
        return counters.counted <= pacing.max_updates


def weight_of(plan: "TrainingPlan", num_examples: int, staleness: int) -> int:
    """Return what an update counts: its examples up to the plan's limit, in units of the staleness weight if any."""
    examples = min(num_examples, plan.limits.max_examples)
    stale = plan.pacing.staleness
    return examples if stale is None else stale.weight.units(examples, staleness)


def contribution_of(update: Update, weight: int) -> Contribution:
    """Return what the aggregation rule sees of an update."""
    measures = (weight, update.loss, update.num_steps)
    return Contribution(update.assignment.assignment_id, update.delta, *measures, control=update.control)


def folded(plan: "TrainingPlan", size: int, updates: Sequence[Update], weights: Sequence[int]) -> Partial:
    """Fold checked updates of a model of `size` parameters, each with its weight."""
    state = plan.aggregation.init(plan.scale(), size)
    for update, weight in zip(updates, weights, strict=True):
        state = plan.aggregation.add(state, contribution_of(update, weight))
    return Partial(tuple(Line.of(update) for update in updates), tuple(weights), state)
