"""Rounds and buffers: the table of decisions, and the arithmetic of slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.pacing.base import PACINGS, RoundView
from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.types import Counters

START = 1000.0
ROUNDS = Rounds(cohort=4, over_selection=1.5, quorum=2, deadline_s=60.0)


def view(counted=0, pending=0, given_back=0, at=0.0):
    counters = Counters(counted + pending + given_back, counted, 0, given_back, pending)
    return RoundView(START, counters, START + at)


@pytest.mark.parametrize(
    ("counted", "at", "decision"),
    [
        (0, 0.0, "wait"),
        (0, 59.999, "wait"),
        (0, 60.0, "close"),  # the deadline itself is over
        (1, 60.0, "close"),
        (1, 1e9, "close"),
        (2, 59.999, "wait"),  # a quorum is enough only at the deadline
        (2, 60.0, "commit"),
        (3, 59.999, "wait"),
        (3, 61.0, "commit"),
        (4, 0.0, "commit"),  # complete: at once
        (4, 60.0, "commit"),
        (5, 0.0, "commit"),  # more than the cohort, after a restart
        (4, -100.0, "commit"),  # the clock jumped back
        (3, -100.0, "wait"),
    ],
)
def test_decisions(counted, at, decision):
    assert ROUNDS.decide(view(counted, at=at)) == decision


@pytest.mark.parametrize(
    ("counted", "pending", "given_back", "at", "free"),
    [
        (0, 0, 0, 0.0, 6),
        (0, 6, 0, 0.0, 0),
        (2, 3, 0, 0.0, 1),
        (2, 3, 5, 0.0, 1),  # what was given back is free again
        (3, 3, 0, 0.0, 0),
        (4, 0, 0, 0.0, 0),  # complete
        (0, 0, 0, 59.9, 6),
        (0, 0, 0, 60.0, 0),  # too late to begin
    ],
)
def test_free_slots(counted, pending, given_back, at, free):
    assert ROUNDS.free_slots(view(counted, pending, given_back, at)) == free


@pytest.mark.parametrize(
    ("cohort", "over_selection", "slots"),
    [
        (4, 1.5, 6),
        (16, 1.3, 21),
        (1, 1.0, 1),
        (1, 1.3, 2),
        (100, 1.1, 110),
        (50, 1.14, 57),
        (3, 10.0, 30),
    ],
)
def test_slots_are_the_cohort_over_selected_and_rounded_up(cohort, over_selection, slots):
    """100 * 1.1 is a little above 110 in binary: no reason to ask one device more."""
    assert Rounds(cohort=cohort, over_selection=over_selection).slots == slots


@pytest.mark.parametrize(
    ("cohort", "quorum", "needed"), [(4, None, 2), (5, None, 3), (1, None, 1), (5, 5, 5), (5, 1, 1)]
)
def test_the_quorum_is_half_of_the_cohort_unless_it_is_given(cohort, quorum, needed):
    assert Rounds(cohort=cohort, quorum=quorum).needed == needed


def test_a_quorum_that_no_round_could_reach_is_refused():
    with pytest.raises(ValueError, match=r"quorum \(5\) is larger than cohort \(4\)"):
        Rounds(cohort=4, quorum=5)


@pytest.mark.parametrize(("at", "fraction"), [(-5.0, 0.0), (0.0, 0.0), (15.0, 0.25), (60.0, 1.0), (600.0, 1.0)])
def test_the_elapsed_fraction_stays_within_0_and_1(at, fraction):
    assert ROUNDS.elapsed_fraction(view(at=at)) == fraction


def test_the_deadline_counts_from_the_first_assignment():
    assert ROUNDS.deadline(view(at=17.0)) == START + 60.0


@pytest.mark.parametrize(
    ("counted", "pending", "decision", "free"),
    [(0, 0, "wait", 5), (2, 3, "wait", 2), (2, 5, "wait", 0), (3, 0, "commit", 0), (4, 9, "commit", 0)],
)
def test_a_buffer_waits_for_updates_and_for_nothing_else(counted, pending, decision, free):
    """A device that is done makes room; no time that passes ends a buffer."""
    buffered = Buffered(buffer=3, concurrency=5, deadline_s=60.0)
    for at in (-100.0, 0.0, 1e9):
        assert buffered.decide(view(counted, pending, at=at)) == decision
        assert buffered.free_slots(view(counted, pending, at=at)) == free
    assert buffered.deadline(view(at=17.0)) == START + 17.0 + 60.0


def test_late_updates_lengthen_the_assignment_and_not_the_round():
    folding = Rounds(cohort=4, deadline_s=60.0, late={"max_staleness": 2})
    assert folding.deadline(view(at=5.0)) == START + 60.0
    assert folding.assignment_deadline(view(at=5.0)) == START + 180.0
    assert ROUNDS.assignment_deadline(view(at=5.0)) == START + 60.0


@pytest.mark.parametrize("pacing", [kind() for kind in PACINGS.classes.values()], ids=list(PACINGS.classes))
@given(counted=st.integers(0, 200), pending=st.integers(0, 200), at=st.floats(-1e6, 1e6))
def test_every_pacing_keeps_the_contract(pacing, counted, pending, at):
    """There is room for every device that has a slot, no slot in a round that ends, and always an answer."""
    now = view(counted, pending, at=at)
    decision = pacing.decide(now)
    assert decision in ("wait", "commit", "close")
    assert decision != "commit" or counted > 0
    assert decision == "wait" or pacing.free_slots(now) <= 0
    assert pacing.free_slots(now) <= pacing.slots
    assert pacing.slots <= pacing.max_updates
    assert 0.0 <= pacing.elapsed_fraction(now) <= 1.0
