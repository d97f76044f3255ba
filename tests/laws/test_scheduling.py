"""Scheduling is a pure order: complete, blind to the order of its input, rare devices first, and nobody starves.

Seeds are fixed: a test passes always or never.
"""

import random
import statistics
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.scheduling.base import SCHEDULERS, Candidate, CheckIn, Demand
from flsys_ray.core.scheduling.contention_aware import ContentionAware, owner_of_the_rarest
from flsys_ray.core.scheduling.random_order import RandomOrder
from flsys_ray.core.scheduling.supply import Served, Supply
from flsys_ray.simulation.contention import Contention, Fleet, Job

NOW = 1_800_000_000.0
every_scheduler = pytest.mark.parametrize(
    "scheduler", [kind() for kind in SCHEDULERS.classes.values()], ids=list(SCHEDULERS.classes)
)


def candidate(model, *, free=5, remaining=50, waited_s=10.0, supply=100.0, app="acme", served=0.0):
    return Candidate(model, app, Demand(free, remaining, NOW - waited_s), supply, served)


@st.composite
def check_ins(draw):
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8))
    candidates = [
        candidate(
            name,
            free=draw(st.integers(-2, 5)),
            remaining=draw(st.integers(0, 1000)),
            waited_s=draw(st.floats(-10, 20_000)),
            supply=draw(st.floats(1, 1e6)),
            app=draw(st.sampled_from(["acme", "other"])),
            served=draw(st.floats(0, 1000)),
        )
        for name in names
    ]
    return CheckIn(draw(st.sampled_from(["phone-1", "phone-2"])), tuple(candidates), NOW, draw(st.integers(0, 3)))


@every_scheduler
@given(check_in=check_ins(), shuffle=st.randoms(use_true_random=False))
def test_every_model_is_named_once_in_an_order_that_does_not_depend_on_the_input_s(scheduler, check_in, shuffle):
    order = scheduler.order(check_in)
    assert sorted(order) == sorted(c.model for c in check_in.candidates)
    mixed = list(check_in.candidates)
    shuffle.shuffle(mixed)
    assert scheduler.order(replace(check_in, candidates=tuple(mixed))) == order


@every_scheduler
@given(check_in=check_ins())
def test_models_that_want_nobody_come_last(scheduler, check_in):
    free = {c.model: c.demand.free_slots > 0 for c in check_in.candidates}
    wanting = [free[model] for model in scheduler.order(check_in)]
    assert wanting == sorted(wanting, reverse=True)


@given(check_in=check_ins())
def test_a_round_that_starves_goes_first_the_oldest_at_the_front(check_in):
    scheduler = ContentionAware()
    starving = [
        c for c in check_in.candidates if c.demand.free_slots > 0 and NOW - c.demand.opened_at >= scheduler.starving_s
    ]
    first = scheduler.order(check_in)[: len(starving)]
    opened = {c.model: c.demand.opened_at for c in starving}
    assert set(first) == set(opened)
    assert [opened[model] for model in first] == sorted(opened.values())


def test_the_rare_model_goes_first_and_inside_a_group_the_one_with_the_least_left():
    candidates = (
        candidate("long", remaining=900, supply=1000),
        candidate("short", remaining=30, supply=1100),
        candidate("rare", remaining=5000, supply=100),
    )
    assert ContentionAware().order(CheckIn("phone-1", candidates, NOW)) == ("rare", "short", "long")


def test_a_much_longer_queue_takes_the_rare_devices_over():
    """One rare job has 100 devices; 40 common ones would have 900 of their own: 22.5 devices a job against 100."""
    common = tuple(candidate(f"common-{n:02}", supply=1000, remaining=n) for n in range(40))
    check_in = CheckIn("phone-1", (candidate("rare", supply=100), *common), NOW)
    assert ContentionAware().order(check_in)[0] == "common-00"
    assert ContentionAware().order(replace(check_in, candidates=check_in.candidates[:9]))[0] == "rare"


def test_an_app_far_ahead_stands_back():
    check_in = CheckIn(
        "phone-1",
        (candidate("theirs", app="greedy", supply=10, served=100), candidate("ours", app="modest", served=40)),
        NOW,
    )
    assert ContentionAware().order(check_in) == ("ours", "theirs")
    assert ContentionAware(lead=3).order(check_in) == ("theirs", "ours")
    few = tuple(replace(c, served=c.served / 10) for c in check_in.candidates)
    assert ContentionAware().order(replace(check_in, candidates=few)) == ("theirs", "ours")


@given(steps=st.lists(st.tuples(st.integers(1, 300), st.integers(1, 60)), min_size=1, max_size=7))
def test_who_has_the_rarest_devices_agrees_with_venn_on_explicit_sets(steps):
    sizes = [sum(more for more, _ in steps[: n + 1]) for n in range(len(steps))]
    queues = [queue for _, queue in steps]
    assert owner_of_the_rarest(sizes, queues) == venn_on_sets(sizes, queues)


def venn_on_sets(sizes, queues):
    """Return who has device 0 after Venn's algorithm 1 on the sets {0..size-1}, written down with sets of devices."""
    eligible = [set(range(size)) for size in sizes]
    owned, left = [], set(eligible[-1])
    for devices in eligible:
        owned.append(devices & left)
        left -= devices
    for large in reversed(range(len(sizes))):
        for small in reversed(range(large)):
            if not owned[large] or not owned[small]:
                continue
            if queues[large] / len(owned[large]) <= queues[small] / len(owned[small]):
                break
            owned[large] |= eligible[large] & owned[small]
            owned[small] -= owned[large]
    return next(group for group, devices in enumerate(owned) if 0 in devices)


# In virtual time -------------------------------------------------------------------------------------------------

FLEET = Fleet(devices=200)
JOBS = (Job("A", 4, 5, 0.1), *(Job(name, 40, 5) for name in "BCD"))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_contended_jobs_take_much_less_time_than_by_random_assignment(seed):
    """10 % of the devices could train A, all of them B, C and D; benchmarks/contention.py prints more."""
    ours = Contention(JOBS, ContentionAware(), FLEET, seed).completion_s()
    theirs = Contention(JOBS, RandomOrder(), FLEET, seed).completion_s()
    assert statistics.fmean(theirs.values()) >= 1.5 * statistics.fmean(ours.values())
    assert ours["A"] < 0.5 * theirs["A"]
    assert max(ours.values()) < 1.15 * max(theirs.values()), "the mean must not be bought with the last job's time"


def test_the_same_seed_gives_the_same_times():
    assert (
        Contention(JOBS, ContentionAware(), FLEET, 7).completion_s()
        == Contention(JOBS, ContentionAware(), FLEET, 7).completion_s()
    )


def test_no_round_starves_while_shorter_jobs_never_end():
    """Three small jobs could take every device for ever; the large one still gets its rounds, within a bound."""
    endless = tuple(Job(f"small-{n}", 60, None) for n in range(3))
    jobs = (Job("large", 120, 4), *endless)
    scheduler = ContentionAware(starving_s=3600)
    run = Contention(jobs, scheduler, FLEET, 0)
    took = run.completion_s(horizon_s=80_000)
    unbounded = Contention(jobs, ContentionAware(starving_s=1e9), FLEET, 0).completion_s(horizon_s=80_000)
    fill_s = 2 * 120 / (FLEET.devices / FLEET.interval_s)  # twice the time in which so many devices come by
    assert took["large"] < 4 * (3600 + fill_s)
    assert max(run.longest_wait_s.values()) < 3600 + 2 * fill_s
    assert took["large"] < unbounded["large"]


def test_two_apps_at_the_same_doors_are_served_within_the_lead():
    """An app whose jobs are always the shorter ones cannot have more than about `lead` times the other's devices."""
    ends = Job("never", 1, 1, starts_s=1e9)  # keeps the run going until the horizon
    jobs = (Job("short", 200, None, app="greedy"), Job("long", 400, None, app="modest"), ends)
    given = Counter()

    scheduler = ContentionAware(starving_s=1e9, head_start=4)

    class Counting:
        def order(self, check_in):
            order = scheduler.order(check_in)
            given[order[0]] += bool(check_in.candidates)
            return order

    Contention(jobs, Counting(), FLEET, 0).completion_s(horizon_s=100_000)
    assert given.total() > 3000
    assert given["short"] < 2.3 * given["long"]


# Estimates -------------------------------------------------------------------------------------------------------


def test_supply_counts_different_devices_and_forgets_old_windows():
    supply = Supply(window_s=100)
    for device in [*range(50), *range(50)]:
        supply.seen("m", str(device), NOW)
    assert supply.of("m", NOW) == 50
    supply.seen("m", "new", NOW + 100)
    assert supply.of("m", NOW + 100) == 51
    assert supply.of("m", NOW + 250) == 1
    assert supply.of("never heard of", NOW) == 1


def test_supply_keeps_no_more_models_than_told():
    supply, draw = Supply(max_models=10), random.Random(0)
    for _ in range(300):
        supply.seen(f"m{draw.randrange(100)}", "d", NOW)
    assert len(supply._windows) == 10


def test_what_an_app_was_served_halves_with_time():
    served = Served(half_life_s=100)
    for _ in range(8):
        served.give("acme", NOW)
    assert served.of("acme", NOW) == 8
    assert served.of("acme", NOW + 200) == pytest.approx(2)
    assert served.of("other", NOW) == 0
