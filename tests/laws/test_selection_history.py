"""Selectors that know devices: what they know is bounded, whom they prefer, and that no round starves.

Chances are compared with counts over many rounds or devices, whose draws are independent: bounds are four standard
deviations of a binomial. Seeds are fixed: a test passes always or never.
"""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.selection.base import SELECTORS, Candidacy
from flsys_ray.core.selection.class_balance import ClassBalance, seen_shares
from flsys_ray.core.selection.history import LINES, NO_HISTORY, VERSIONS, History
from flsys_ray.core.selection.oort import Oort
from flsys_ray.core.selection.power_of_choice import PowerOfChoice
from flsys_ray.core.selection.refl import Refl
from flsys_ray.core.types import Assignment, Counted, Update, Version

KNOWING = [kind() for kind in SELECTORS.classes.values() if kind.reads_history]
every_knowing = pytest.mark.parametrize("selector", KNOWING, ids=[selector.name for selector in KNOWING])


@dataclass(frozen=True)
class Told:
    """A version's line."""

    device_id: str
    num_examples: int = 10
    loss: float = 1.0
    train_s: float | None = None
    labels: tuple[int, ...] | None = None


def history(*versions: list[Told], first: int = 0) -> History:
    found = NO_HISTORY
    for round_, lines in enumerate(versions, first):
        found = found.after(round_, lines)
    return found


def at_the_door(device: str, known: History, round_: int = 9, **changes) -> Candidacy:
    values = {"seed": 3, "slots": 10, "candidates": 100.0, "elapsed_fraction": 0.0} | changes
    return Candidacy(device_id=device, round=round_, history=known, **values)


def taken(selector, known: History, devices: list[str], round_: int = 9, **changes) -> list[str]:
    return [device for device in devices if selector.chooses(at_the_door(device, known, round_, **changes))]


def spread(expected: float) -> float:
    return 4 * math.sqrt(expected)


# History -------------------------------------------------------------------------------------------------------------

lines = st.lists(st.builds(Told, st.sampled_from("abcdef"), st.integers(1, 50), st.floats(0, 5)), max_size=8)


@given(st.lists(lines, max_size=8))
def test_a_history_says_how_often_when_and_what_last(versions):
    known = history(*versions).devices
    flat = [(round_, line) for round_, version in enumerate(versions) for line in version]
    assert set(known) == {line.device_id for _, line in flat}
    for device, found in known.items():
        own = [(round_, line) for round_, line in flat if line.device_id == device]
        assert found.times == len(own)
        assert (found.last_round, found.loss, found.examples) == (own[-1][0], own[-1][1].loss, own[-1][1].num_examples)


def test_a_history_is_bounded_in_versions_and_in_lines():
    known = history(*([Told(f"phone-{round_}")] for round_ in range(3 * VERSIONS)))
    assert sorted(known.devices) == sorted(f"phone-{round_}" for round_ in range(2 * VERSIONS, 3 * VERSIONS))
    crowd = [Told(f"phone-{number}") for number in range(LINES + 5)]
    assert len(history(crowd[:100], crowd).devices) == LINES
    assert len(history(crowd, crowd[:100]).versions) == 1


@given(st.lists(st.integers(0, LINES), min_size=1, max_size=6))
def test_a_history_is_that_of_its_last_versions_alone(sizes):
    """So one that is read from the end of a log is the one that was kept up from the beginning."""
    crowd = [Told("a")] * LINES
    versions = [(round_, crowd[:size]) for round_, size in enumerate(sizes)]
    whole = NO_HISTORY
    for round_, version in versions:
        whole = whole.after(round_, version)
    newest, total = [], 0
    for round_, version in reversed(versions):
        newest.append((round_, version))
        total += len(version)
        if total >= LINES:
            break
    again = NO_HISTORY
    for round_, version in reversed(newest):
        again = again.after(round_, version)
    assert [(r, len(v)) for r, v in whole.versions if v] == [(r, len(v)) for r, v in again.versions if v]
    assert sum(len(version) for _, version in whole.versions) <= LINES


# Laws ----------------------------------------------------------------------------------------------------------------


@every_knowing
@given(st.lists(lines, max_size=5), st.sampled_from("abcdefg"), st.integers(1, 9), st.floats(1, 50), st.floats(0, 1))
def test_a_choice_is_a_function_of_what_is_known(selector, versions, device, slots, candidates, elapsed):
    about = {"slots": slots, "candidates": max(candidates, slots), "elapsed_fraction": elapsed}
    views = [at_the_door(device, history(*versions), **about) for _ in range(2)]
    assert selector.chooses(views[0]) == type(selector)().chooses(views[1])


@every_knowing
@given(st.lists(lines, max_size=5), st.sampled_from("abcdefg"), st.floats(0.5, 1))
def test_nobody_is_turned_away_after_half_of_the_rounds_time(selector, versions, device, elapsed):
    assert selector.chooses(at_the_door(device, history(*versions), candidates=1e6, elapsed_fraction=elapsed))


@every_knowing
@given(st.lists(lines, max_size=5), st.sampled_from("abcdefg"), st.integers(1, 50))
def test_all_are_taken_when_there_are_no_more_candidates_than_slots(selector, versions, device, slots):
    view = at_the_door(device, history(*versions), slots=slots, candidates=float(slots))
    assert selector.chooses(view)


@every_knowing
def test_with_nothing_known_it_is_a_lottery_of_the_right_size(selector):
    devices = [f"phone-{number}" for number in range(100)]
    sizes = [len(taken(selector, NO_HISTORY, devices, round_, seed=1)) for round_ in range(200)]
    # Ranked selectors draw a group of three times the slots, and take all of it: nobody is known to be worse.
    expected = 30 if hasattr(selector, "choice") else 10 * np.mean([selector.share_of_unknown(r) for r in range(200)])
    assert np.mean(sizes) == pytest.approx(expected, abs=spread(expected) / math.sqrt(200))


@every_knowing
def test_known_devices_fill_the_slots_on_average(selector):
    """Of 100 devices that are known and come by, 10 are taken, whatever the selector prefers."""
    rng = np.random.default_rng(0)
    crowd = [
        Told(f"phone-{n}", int(rng.integers(5, 50)), float(rng.gamma(2)), float(rng.gamma(4)),
             tuple(map(int, rng.multinomial(20, rng.dirichlet([0.3] * 5)))))
        for n in range(100)
    ]  # fmt: skip
    known, devices = history(crowd, first=0), [line.device_id for line in crowd]
    sizes = [len(taken(selector, known, devices, round_)) for round_ in range(20, 220)]
    assert np.mean(sizes) == pytest.approx(10, rel=0.15)


# Whom each prefers ---------------------------------------------------------------------------------------------------

CROWD = [f"phone-{number:03d}" for number in range(100)]


def shares(selector, known: History, rounds: int = 300) -> np.ndarray:
    """Return how often each of the crowd is taken, a share of the rounds."""
    counts = dict.fromkeys(CROWD, 0)
    for round_ in range(20, 20 + rounds):
        for device in taken(selector, known, CROWD, round_):
            counts[device] += 1
    return np.array([counts[device] for device in CROWD]) / rounds


def test_power_of_choice_takes_the_worst_third_of_those_that_are_drawn():
    """d = 3 m of 100 are drawn evenly, and of them those whose loss is among the highest third: 30 devices or so."""
    known = history([Told(device, loss=float(number)) for number, device in enumerate(CROWD)])
    found = shares(PowerOfChoice(choice=3), known)
    assert found[:66].max() == 0
    assert found[68:].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / (300 * 32)))
    assert shares(PowerOfChoice(choice=1), known)[:66].mean() == pytest.approx(0.1, abs=0.02)


def test_a_device_that_is_not_known_counts_as_the_best():
    known = history([Told(device, loss=float(number)) for number, device in enumerate(CROWD)])
    new = [f"new-{number}" for number in range(1000)]
    assert len(taken(PowerOfChoice(choice=3), known, new)) == pytest.approx(300, abs=spread(300))


def test_refl_prefers_those_that_were_counted_seldom():
    often, seldom = CROWD[:50], CROWD[50:]
    versions = [[Told(device) for device in (CROWD if round_ % 5 == 0 else often)] for round_ in range(10)]
    found = shares(Refl(hold_off=0), history(*versions))
    assert found[50:].mean() > 5 * found[:50].mean()
    assert len(often) == len(seldom)


def test_refl_lets_those_wait_that_took_part_lately():
    known = history([Told(device) for device in CROWD[:50]], [Told(device) for device in CROWD[50:]])
    waiting = Refl(hold_off=3, choice=1)
    assert taken(waiting, known, CROWD[50:], round_=4) == []
    assert taken(waiting, known, CROWD[:50], round_=4)
    assert taken(waiting, known, CROWD[50:], round_=4, candidates=39.0)  # there are not enough others
    assert taken(waiting, known, CROWD[50:], round_=5)


def test_class_balance_prefers_those_that_have_the_rare_class():
    versions = [[Told(device, labels=(20, 0) if number < 90 else (10, 10)) for number, device in enumerate(CROWD)]]
    known = history(*versions)
    assert seen_shares(known) == pytest.approx((1900 / 2000, 100 / 2000))
    found = shares(ClassBalance(choice=3), known)
    assert found[90:].mean() == pytest.approx(0.3, abs=4 * math.sqrt(0.3 * 0.7 / (300 * 10)))
    assert found[90:].mean() > 3 * found[:90].mean()


def test_class_balance_draws_those_that_say_nothing():
    """They pass the second bar with a chance of 1 / choice, whatever the others have."""
    told = [Told(device, labels=None if number < 50 else (10, number)) for number, device in enumerate(CROWD)]
    found = shares(ClassBalance(choice=3), history(told))
    assert found[:50].mean() == pytest.approx(0.1, abs=4 * math.sqrt(0.1 * 0.9 / (300 * 50)))
    nobody = history([Told(device) for device in CROWD])
    assert shares(ClassBalance(choice=3), nobody).mean() == pytest.approx(0.1, abs=0.01)


# Oort ----------------------------------------------------------------------------------------------------------------


def known_of(told: Told, round_: int = 0):
    return history([told], first=round_)


def test_the_utility_of_oort_is_that_of_the_paper():
    """Equation 1 and line 10 of Algorithm 1, by hand."""
    told = Told("a", num_examples=40, loss=0.5, train_s=30.0)
    known = known_of(told, round_=6)
    worth = 40 * 0.5 * (1 + math.sqrt(0.1 * math.log(10) * 3 / 10))
    assert Oort(preferred_s=60).utility(known.devices["a"], known, 9) == pytest.approx(worth)
    assert Oort(preferred_s=10).utility(known.devices["a"], known, 9) == pytest.approx(worth * (10 / 30) ** 2)
    assert Oort(preferred_s=10, penalty=0).utility(known.devices["a"], known, 9) == pytest.approx(worth)


def test_by_default_the_slowest_fifth_is_held_to_the_time_of_the_others():
    known = history([Told(f"{seconds}", train_s=float(seconds)) for seconds in range(1, 11)])
    worth = [Oort().utility(known.devices[f"{seconds}"], known, 1) for seconds in range(1, 11)]
    assert worth[:8] == [pytest.approx(worth[0])] * 8
    assert worth[9] == pytest.approx(worth[0] * (8 / 10) ** 2)


def test_oort_takes_those_above_the_cutoff_in_proportion_to_their_utility():
    """Ten slots, all for known devices: above 0.5 times the tenth highest loss, 91, there are the losses 46 to 100.

    The highest twentieth counts as the sixth highest does.
    """
    known = history([Told(device, loss=float(number + 1)) for number, device in enumerate(CROWD)])
    found = shares(Oort(exploration=0, min_exploration=0, cutoff=0.5), known, rounds=1000)
    losses = np.minimum(np.arange(1, 101), 95)
    above = losses >= 0.5 * 91
    expected = np.where(above, 10 * losses / losses[above].sum(), 0)
    assert found[~above].max() == 0
    assert np.abs(found - expected).max() < 4.5 * math.sqrt(0.25 * 0.75 / 1000)
    assert found.sum() == pytest.approx(10, abs=4 * math.sqrt(10 / 1000))


def test_oort_gives_a_falling_share_of_the_slots_to_devices_that_are_not_known():
    known = history([Told(device) for device in CROWD])
    new = [f"new-{number}" for number in range(100)]
    for round_, share in ((0, 0.9), (20, 0.9 * 0.98**20), (500, 0.2)):
        selector = Oort()
        assert selector.share_of_unknown(round_) == pytest.approx(share)
        sizes = [len(taken(selector, known, new, round_, seed=seed, candidates=200.0)) for seed in range(100)]
        assert np.mean(sizes) == pytest.approx(10 * share, abs=spread(10 * share) / 10)


def test_oort_gives_a_rest_to_devices_that_were_counted_very_often():
    versions = [[Told(device) for device in CROWD[: 50 if round_ else 100]] for round_ in range(5)]
    found = shares(Oort(max_times=5, exploration=0, min_exploration=0), history(*versions), rounds=50)
    assert found[:50].max() == 0
    assert found[50:].mean() == pytest.approx(0.2, abs=4 * math.sqrt(0.2 * 0.8 / (50 * 50)))


# In the coordinator --------------------------------------------------------------------------------------------------


def coordinator(selection: object, known: History = NO_HISTORY) -> Coordinator:
    pacing = {"name": "rounds", "cohort": 4, "over_selection": 1, "deadline_s": 1000.0}
    plan = parse_plan({"pacing": pacing, "selection": selection})
    version = Version(0, np.zeros(1, np.float32), plan.server_optimizer.init(1))
    return Coordinator("m", Layout.of([("w", (1,), True)]), plan, version, round_=0, opened_at=0.0, history=known)


def one_round(machine: Coordinator, now: float) -> list[str]:
    """Have the crowd come by twice, and those that get work do it; return who they were."""
    done = []
    for number, device in [*enumerate(CROWD)] * 2:
        when = now + 600.0 * (len(done) < 4) * (number / 100)
        machine.tick(when)
        work = machine.check_in(device, when)
        if isinstance(work, Assignment):
            delta = np.ones(1, np.float32)
            update = Update(work, delta, 5 + number, number / 10, train_s=float(number), labels=(1, 2))
            assert machine.submit(update, when) == Counted(duplicate=False)
            done.append(device)
        if machine.counters.counted == 4:
            break
    assert machine.tick(now + 1001.0) is not None
    return done


@every_knowing
def test_a_coordinator_that_is_restored_chooses_as_the_one_that_went_on(selector):
    machine = coordinator(selector.model_dump())
    for round_ in range(4):
        one_round(machine, 2000.0 * round_)
    twin = Coordinator.restore("m", machine.layout, machine.plan, machine.snapshot())
    for round_ in range(4, 8):
        assert one_round(machine, 2000.0 * round_) == one_round(twin, 2000.0 * round_)


def test_what_is_known_is_what_was_committed():
    machine = coordinator("power_of_choice")
    done = one_round(machine, 0.0)
    known = machine.snapshot().history.devices
    assert sorted(known) == sorted(done)
    number = CROWD.index(done[0])
    assert (known[done[0]].loss, known[done[0]].examples, known[done[0]].train_s) == (number / 10, 5 + number, number)
    assert known[done[0]].labels is None  # this selector does not read them, so they are not kept
    balanced = coordinator("class_balance")
    done = one_round(balanced, 0.0)
    assert balanced.snapshot().history.devices[done[0]].labels == (1, 2)


def test_a_selector_that_reads_no_history_has_none():
    machine = coordinator("uniform")
    one_round(machine, 0.0)
    assert machine.snapshot().history.devices == {}
