"""Buffers and late updates through every layer: the same answers, and versions that are equal to the bit."""

import numpy as np
import pytest
from drivers import Step
from sequences import NAMES, plan, played
from test_parity_one_sequence import bare, http, local_hosts, restarted_hosts

from flsys_ray.core.plan import TrainingPlan, parse_plan

BUFFERED = {"name": "buffered", "buffer": 3, "concurrency": 5, "deadline_s": 60, "max_staleness": 2}
LATE = {"name": "rounds", "cohort": 3, "quorum": 2, "over_selection": 2, "deadline_s": 60, "late": {"max_staleness": 1}}
PACINGS = {
    "polynomial": BUFFERED,
    "hinge": BUFFERED | {"weight": {"name": "hinge", "a": 1.0, "b": 1}},
    "constant": BUFFERED | {"weight": "constant"},
    "rounds": LATE,
}


def planned(pacing: object, rule: object = "weighted_mean") -> TrainingPlan:
    return parse_plan(plan("first_come").model_dump(mode="json") | {"pacing": pacing, "aggregation": rule})


def recorded(seed: int, number: int, *, waits: bool) -> list[Step]:
    """Return what fast and slow devices did: the later its letter, the longer a device keeps its work."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    weights = np.array([0.5**rank for rank in range(len(NAMES))])
    for _ in range(number):
        name = str(rng.choice(NAMES))
        fast = str(rng.choice(NAMES, p=weights / weights.sum()))
        steps.append(Step("check_in", name))
        steps += [Step("check_in", fast), Step("upload", fast, seed=int(rng.integers(2**31)))]
        if rng.uniform() < 0.2:
            steps.append(Step("upload", name, seed=int(rng.integers(2**31))))
        if rng.uniform() < 0.1:
            steps.append(Step("give_back", str(rng.choice(NAMES))))
        if waits and rng.uniform() < 0.3:
            steps.append(Step("wait", seconds=float(rng.uniform(0, 40))))
    return steps


TIMELESS = recorded(5, 60, waits=False)
TIMED = recorded(6, 60, waits=True)


@pytest.mark.parametrize("pacing", PACINGS.values(), ids=PACINGS)
@pytest.mark.parametrize("steps", [TIMELESS, TIMED], ids=["timeless", "timed"])
def test_every_layer_says_the_same_and_commits_the_same_bits(pacing, steps):
    said, expected = played(bare, planned(pacing), steps)
    assert len(set(expected)) > 8
    for layer in (local_hosts, http):
        found, versions = played(layer, planned(pacing), steps)
        assert found == said
        assert [version.hex() for version in versions] == [version.hex() for version in expected]


def test_a_rule_that_reads_its_updates_again_finds_those_of_earlier_rounds():
    said, expected = played(bare, planned(BUFFERED, "coordinate_median"), TIMELESS)
    assert played(local_hosts, planned(BUFFERED, "coordinate_median"), TIMELESS) == (said, expected)
    assert len(set(expected)) > 8


@pytest.mark.parametrize("pacing", [BUFFERED, LATE], ids=["buffered", "rounds"])
def test_a_restart_before_every_call_changes_no_bit(pacing):
    """Work in hand is forgotten, and honoured all the same when its update comes."""
    # Devices take work once and keep it: after a restart one that asks again would get newer work, as it should.
    steps = list(once_each(TIMELESS))
    _, versions = played(restarted_hosts, planned(pacing), steps)
    _, expected = played(bare, planned(pacing), steps)
    assert len(expected) > 4
    assert [version.hex() for version in versions] == [version.hex() for version in expected]


def once_each(steps):
    """Leave out check-ins of a device that has work in hand, and giving back."""
    busy: set[str] = set()
    for step in steps:
        if step.verb == "upload":
            busy.discard(step.device)
        if step.verb == "give_back" or (step.verb == "check_in" and step.device in busy):
            continue
        if step.verb == "check_in":
            busy.add(step.device)
        yield step


def test_the_sequences_hold_what_they_are_meant_to():
    said, _ = played(bare, planned(BUFFERED), TIMED)
    answers = {answer for _, _, answer in said}
    assert {"counted", "duplicate", "late", "back", "conflict", "round-full"} <= answers
    offers = [answer for verb, _, answer in said if verb == "check_in" and answer.startswith("round ")]
    assert len(offers) > len(set(offers)), "a device gets work of the same round again"
