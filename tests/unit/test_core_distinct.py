"""The count of different devices: exact when few, within its stated error when many, and blind to repeats and order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.rng import unit
from flsys_ray.core.selection.distinct import DistinctCount, K


def counted(elements):
    count = DistinctCount()
    for element in elements:
        count = count.add(element)
    return count


hashes = st.lists(st.floats(0, 1, exclude_max=True), max_size=60)


@given(hashes, st.randoms(use_true_random=False))
def test_few_are_counted_exactly_in_any_order_however_often_they_come(elements, shuffled):
    again = elements * 2
    shuffled.shuffle(again)
    assert counted(again) == counted(elements)
    assert counted(elements).estimate() == len(set(elements))


@given(hashes, hashes)
def test_merge_counts_the_union(left, right):
    assert counted(left).merge(counted(right)) == counted(left + right)


@pytest.mark.parametrize("number", [K - 1, K, 1000, 20_000])
def test_many_are_estimated_within_four_standard_errors(number):
    """The relative standard error of the k-minimum-values estimate is 1 / sqrt(k - 2)."""
    errors = []
    for seed in range(5):
        estimate = counted(unit(seed, "count", 0, f"p{i}") for i in range(number)).estimate()
        errors.append(estimate / number - 1)
    bound = 0.0 if number < K else 4 / (K - 2) ** 0.5
    assert max(abs(error) for error in errors) <= bound
    assert abs(sum(errors) / 5) <= bound / 2


def test_merging_many_is_counting_many():
    draws = [unit(1, "x", i) for i in range(3000)]
    parts = [counted(draws[start::3]) for start in range(3)]
    assert parts[0].merge(parts[1]).merge(parts[2]) == counted(draws)
    assert len(counted(draws).smallest) == K
