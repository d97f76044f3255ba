"""The layout names every element of the flat vector."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.layout import Layout, Leaf
from flsys_ray.errors import InvalidInput

shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@given(st.lists(st.tuples(shapes, st.booleans()), max_size=6))
def test_every_element_belongs_to_one_leaf(parts):
    layout = Layout.of([(f"leaf{i}", shape, trainable) for i, (shape, trainable) in enumerate(parts)])
    owners = [f"leaf{i}" for i, (shape, _) in enumerate(parts) for _ in range(int(np.prod(shape)))]
    flags = [trainable for shape, trainable in parts for _ in range(int(np.prod(shape)))]
    assert layout.size == len(owners)
    assert [layout.leaf_at(index).name for index in range(layout.size)] == owners
    assert layout.trainable_mask().tolist() == flags


@pytest.mark.parametrize("index", [-1, 9, 10**9])
def test_no_leaf_holds_what_is_outside(index):
    with pytest.raises(InvalidInput, match=f"element {index} of 9"):
        Layout.of([("kernel", (2, 3), True), ("bias", (3,), True)]).leaf_at(index)


@pytest.mark.parametrize("offset", [5, 7, 0])
def test_gaps_and_overlaps_are_refused_by_name(offset):
    with pytest.raises(InvalidInput, match=f"'bias' starts at {offset}, expected 6"):
        Layout((Leaf("kernel", (2, 3), 0), Leaf("bias", (3,), offset)))


def test_two_leaves_of_one_name_are_refused():
    with pytest.raises(InvalidInput, match="same name"):
        Layout.of([("w", (1,), True), ("w", (1,), True)])
