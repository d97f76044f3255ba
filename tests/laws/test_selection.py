"""Selection is fair, does not starve, and is a function of (seed, round, device) alone.

Chi-square bounds are the 0.999 quantiles by Wilson and Hilferty (1931). Seeds are fixed: a test passes always or never.
"""

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.selection.base import SELECTORS, Candidacy
from flsys_ray.core.selection.first_come import FirstCome
from flsys_ray.core.selection.uniform import Uniform
from flsys_ray.core.types import Assignment, Version

every_selector = pytest.mark.parametrize(
    "selector", [kind() for kind in SELECTORS.classes.values()], ids=list(SELECTORS.classes)
)


def chi_square_bound(freedom):
    """Return the 0.999 quantile of chi-square: Wilson-Hilferty, z = 3.0902."""
    return freedom * (1 - 2 / (9 * freedom) + 3.0902 * math.sqrt(2 / (9 * freedom))) ** 3


def candidacy(device="phone-1", **changes):
    values = {"seed": 0, "round": 0, "slots": 10, "candidates": 100.0, "elapsed_fraction": 0.0} | changes
    return Candidacy(device_id=device, **values)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_uniform_chooses_every_device_equally_often(seed):
    devices, rounds = 100, 1000
    chosen = Counter(
        device
        for round_ in range(rounds)
        for device in range(devices)
        if Uniform().chooses(candidacy(f"phone-{device}", seed=seed, round=round_))
    )
    expected = rounds * 0.1
    # The draws of different rounds are independent: a device's count is binomial(1000, 0.1), of variance 90.
    statistic = sum((chosen[device] - expected) ** 2 / (expected * 0.9) for device in range(devices))
    assert statistic < chi_square_bound(devices)
    assert statistic > devices - 4 * math.sqrt(2 * devices)  # too even would be as wrong


def test_uniform_gives_rounds_of_the_right_size():
    """The number chosen is binomial(100, 0.1): mean 10, variance 9."""
    sizes = [
        sum(Uniform().chooses(candidacy(f"phone-{device}", round=round_)) for device in range(100))
        for round_ in range(1000)
    ]
    mean = sum(sizes) / len(sizes)
    variance = sum((size - mean) ** 2 for size in sizes) / len(sizes)
    assert mean == pytest.approx(10, abs=4 * math.sqrt(9 / 1000))
    assert variance == pytest.approx(9, rel=0.2)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.text(max_size=20), st.floats(0, 0.49))
def test_coming_back_does_not_draw_again(seed, round_, device, elapsed):
    first = Uniform().chooses(candidacy(device, seed=seed, round=round_, elapsed_fraction=elapsed))
    for _ in range(3):
        assert Uniform().chooses(candidacy(device, seed=seed, round=round_, elapsed_fraction=elapsed)) == first
    if first:  # the bar only rises: who was chosen once stays chosen
        assert Uniform().chooses(candidacy(device, seed=seed, round=round_, elapsed_fraction=elapsed + 0.1))


@given(
    st.text(max_size=20),
    st.integers(1, 1000),
    st.floats(1, 1e9),
    st.floats(0.01, 1.0),
    st.floats(0, 1),
    st.integers(0, 99),
)
def test_uniform_never_starves_after_it_opens(device, slots, candidates, open_at, beyond, round_):
    selector = Uniform(open_at_fraction=open_at)
    elapsed = open_at + beyond * (1 - open_at)
    view = candidacy(device, slots=slots, candidates=candidates, elapsed_fraction=elapsed, round=round_)
    assert selector.chooses(view)


@given(st.text(max_size=20), st.integers(1, 1000), st.integers(0, 99))
def test_uniform_takes_all_when_there_are_no_more_candidates_than_slots(device, slots, round_):
    assert Uniform().chooses(candidacy(device, slots=slots, candidates=float(slots), round=round_))


def test_the_share_rises_evenly_until_all_are_taken():
    shares = []
    for elapsed in (0.0, 0.125, 0.25, 0.375, 0.5):
        taken = sum(Uniform().chooses(candidacy(f"p{device}", elapsed_fraction=elapsed)) for device in range(2000))
        shares.append(taken / 2000)
    assert shares == [pytest.approx(share, abs=0.04) for share in (0.1, 0.325, 0.55, 0.775, 1.0)]


@given(st.text(max_size=20), st.integers(1, 10), st.floats(1, 1e9), st.floats(0, 1))
def test_first_come_takes_everyone(device, slots, candidates, elapsed):
    view = candidacy(device, slots=slots, candidates=candidates, elapsed_fraction=elapsed)
    assert FirstCome().chooses(view)


@every_selector
@given(st.text(max_size=20), st.integers(1, 10), st.floats(1, 1e6), st.floats(0, 1), st.integers(0, 1000))
def test_a_selector_is_a_function_of_the_view(selector, device, slots, candidates, elapsed, round_):
    views = [
        candidacy(device, slots=slots, candidates=candidates, elapsed_fraction=elapsed, round=round_) for _ in range(2)
    ]
    assert selector.chooses(views[0]) == type(selector)().chooses(views[1])


def test_rounds_and_seeds_choose_apart():
    def chosen(seed, round_):
        return {d for d in range(1000) if Uniform().chooses(candidacy(f"p{d}", seed=seed, round=round_))}

    sets = [chosen(0, 0), chosen(0, 1), chosen(1, 0)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        # Independent sets of about 100 in 1000 share about 10.
        assert len(sets[one] & sets[other]) < 30


def share_of_the_eager(selection, rounds):
    """Return the share of assignments that the eager half of 40 devices gets.

    All come by at the opening of each round, in an order drawn anew; the eager ones ten times, the others once.
    """
    layout = Layout.of([("w", (1,), True)])
    pacing = {"name": "rounds", "cohort": 8, "over_selection": 1.5, "deadline_s": 1000.0}
    plan = parse_plan({"pacing": pacing, "selection": selection})
    version = Version(0, np.zeros(1, dtype=np.float32), plan.server_optimizer.init(1))
    coordinator = Coordinator("m", layout, plan, version, round_=0, opened_at=0.0)
    draw = random.Random(5)
    taken: Counter[bool] = Counter()
    for round_ in range(rounds):
        now = 2000.0 * round_
        queue = [device for device in range(40) for _ in range(10 if device < 20 else 1)]
        draw.shuffle(queue)
        answers = {(device, coordinator.check_in(f"phone-{device}", now)) for device in queue}
        taken.update(device < 20 for device, answer in answers if isinstance(answer, Assignment))
        assert coordinator.tick(now + 1999.0) is not None
    return taken[True] / taken.total()


def test_checking_in_ten_times_as_often_gains_little_under_uniform():
    """The eager come first among those who hold a winning ticket, which matters only when there are too many of them.

    Tickets below the bar are binomial(40, 12 / 40), 12 +- 2.9, for 12 slots: the surplus is 2.9 / sqrt(2 pi) = 1.2 on
    average. If all of it were taken from those who are not eager, the eager half would have 6 of 10.8: 0.556.
    """
    assert 0.48 < share_of_the_eager("uniform", rounds=400) < 0.57
    assert share_of_the_eager("first_come", rounds=60) > 0.75
