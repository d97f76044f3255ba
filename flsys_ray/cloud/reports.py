"""What is told of a model: by the API its state and its rounds, to a scheduler its demand."""

from collections.abc import Iterator
from dataclasses import asdict

from flsys_ray.cloud.evaluating import Seen
from flsys_ray.cloud.evaluations import Evaluations, combined
from flsys_ray.cloud.journal import Head, Journal
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.pacing.base import RoundView
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.scheduling.base import Demand
from flsys_ray.core.types import RoundSummary
from flsys_ray.wire.developer_schemas import ModelInfo, OpenRound, RoundCounters, RoundInfo


def model_info(
    model: str,
    head: Head,
    plan: TrainingPlan,
    parameters: int | None,
    open_round: OpenRound | None,
    *,
    seen: Seen,
) -> ModelInfo:
    """Return a model as it is now."""
    return ModelInfo(
        model=model,
        app_id=head.app_id,
        state=head.state,
        version=head.version.number if head.version else None,
        program_sha256=head.program_sha256,
        weights_sha256=head.version.weights_sha256 if head.version else None,
        shared_sha256=head.shared_sha256,
        serving=head.serving,
        promoted=head.promoted is not None,
        parameters=parameters,
        open_round=open_round,
        rounds_closed=head.round,
        last_metrics=combined(head.last_round.evaluation, seen.assigned) if head.last_round else None,
        evaluation=seen.progress,
        plan=plan,
    )


def demand_of(plan: TrainingPlan, version: int, view: RoundView, opened_at: float) -> Demand:
    """Return what a model wants: slots of its open round, and updates until its plan stops, a slot for each."""
    free = plan.pacing.free_slots(view)
    limit = plan.stopping.versions
    rounds_after = max(0, limit - version - 1) if limit is not None else 0
    return Demand(free, max(0, free) + rounds_after * plan.pacing.slots, opened_at)


def open_demand(coordinator: Coordinator, now: float) -> Demand:
    """Return what a model's open round wants at `now`."""
    started_at = now if coordinator.started_at is None else coordinator.started_at
    view = RoundView(started_at, coordinator.counters, now)
    return demand_of(coordinator.plan, coordinator.version.number, view, coordinator.opened_at)


def open_round(coordinator: Coordinator) -> OpenRound:
    """Return the round that is open now."""
    return OpenRound(
        round=coordinator.round,
        version=coordinator.version.number,
        opened_at=coordinator.opened_at,
        counters=RoundCounters(**asdict(coordinator.counters)),
        update_bytes=coordinator.update_bytes,
        candidates=round(coordinator.candidates),
    )


def round_info(summary: RoundSummary, evaluations: Evaluations, sent_bytes: int) -> RoundInfo:
    """Return how a round ended. `sent_bytes` of versions went out in it."""
    return RoundInfo(
        round=summary.round,
        version=summary.version,
        committed=summary.commit.version.number if summary.commit else None,
        opened_at=summary.opened_at,
        closed_at=summary.closed_at,
        counters=RoundCounters(**asdict(summary.counters)),
        num_examples=summary.num_examples,
        mean_loss=summary.mean_loss,
        delta_norm=summary.commit.delta_norm if summary.commit else None,
        evaluation=evaluations.metrics(),
        update_bytes=summary.update_bytes,
        download_bytes=sent_bytes,
    )


def closed_rounds(journal: Journal, since: int) -> list[RoundInfo]:
    """Return the rounds that are over from number `since` on, oldest first. Reads no more of the log than these."""
    return [*_newest_first(journal, since)][::-1]


def _newest_first(journal: Journal, since: int) -> Iterator[RoundInfo]:
    for entry in journal.closed_backwards():
        closed = entry.head.last_round
        if closed is None or closed.round < since:
            return
        yield closed
