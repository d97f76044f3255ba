"""What the API tells of a model's rounds: the open one, and those that are over."""

from collections.abc import Iterator
from dataclasses import asdict

from flsys_ray.cloud.evaluations import Evaluations
from flsys_ray.cloud.journal import Journal
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.types import RoundSummary
from flsys_ray.wire.schemas import OpenRound, RoundCounters, RoundInfo


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


def round_info(summary: RoundSummary, evaluations: Evaluations) -> RoundInfo:
    """Return how a round ended."""
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
    )


def closed_rounds(journal: Journal, since: int) -> list[RoundInfo]:
    """Return the rounds that are over from number `since` on, oldest first. Reads no more of the log than these."""
    return [*_newest_first(journal, since)][::-1]


def _newest_first(journal: Journal, since: int) -> Iterator[RoundInfo]:
    for entry in journal.entries_backwards():
        if (
            entry.head.round <= since
        ):  # the round that was open then, `since` or an earlier one: nothing older is wanted
            return
        if entry.kind == "closed" and entry.head.last_round is not None:
            yield entry.head.last_round
