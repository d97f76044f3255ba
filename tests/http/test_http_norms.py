"""`limits.max_norm`: no update is longer, whatever the rule, however it came."""

import numpy as np
import pytest
from cloud_fakes import Clock
from cloud_world import PAIR, World, bearer, problem
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from test_http_devices import replica

from flsys_ray.core.flaws import flaw_of, flaw_of_norm
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Assignment, Update
from flsys_ray.wire.tensors import encode_update

NORM = 2.0
BOUNDED = PAIR | {"limits": {"max_norm": NORM}}


def update(world: World, norm: float) -> bytes:
    """Return an update of this norm, all of it in one coordinate out of many."""
    delta = np.zeros(world.size, dtype=np.float32)
    delta[world.size // 2] = norm
    return encode_update(delta, 5, 1.0)


@pytest.mark.parametrize("rule", ["weighted_mean", "coordinate_median", "geometric_median", "q_fedavg"])
def test_a_longer_update_is_refused_and_can_be_sent_again_shorter(world: World, key, rule):
    world.training(key, plan=BOUNDED | {"aggregation": rule})
    one, two = world.device(key, "one"), world.device(key, "two")
    first, second = world.work(one), world.work(two)
    found = problem(world.upload(one, first, update(world, 2.001)), 422, "update-unusable")
    assert "L2 norm 2.001" in found["detail"]
    assert "limits.max_norm is 2" in found["detail"]
    assert not list(world.store.list("models/acme/tiny/rounds/"))
    assert world.upload(one, first, update(world, 2.0)).status_code == 200
    assert world.upload(two, second, update(world, -2.0)).status_code == 200
    assert world.info(key)["version"] == 1


def test_without_a_bound_only_single_values_are_bounded(world: World, key):
    world.training(key)
    one = world.device(key, "one")
    assert world.upload(one, world.work(one), world.body(1000.0)).status_code == 200


def test_one_that_lies_in_the_store_already_is_not_counted_by_the_next_owner(world: World, key):
    """It may have been put there by a replica of before there was a bound."""
    world.training(key, plan=BOUNDED)
    work = world.work(world.device(key, "one"))
    device_id = world.cloud.credentials.device_id("acme", "installation-one")
    name = f"models/acme/tiny/rounds/00000000/updates/{work['assignment_id']}.{device_id}"
    world.store.put_new(name, update(world, 3.0))
    found = replica(world).get("/v1/models/tiny", headers=bearer(key)).json()["open_round"]["counters"]
    assert found["counted"] == 0
    world.store.swap(name, update(world, 1.0), world.store.get(name).etag)
    found = replica(world).get("/v1/models/tiny", headers=bearer(key)).json()["open_round"]["counters"]
    assert found["counted"] == 1


def made(delta: np.ndarray) -> Update:
    work = Assignment("00000000-" + "0" * 20, "acme/tiny", 0, 0, "d", Clock()() + 60)
    return Update(work, delta, 5, 1.0)


@given(arrays(np.float32, st.integers(1, 50), elements=st.floats(-1000, 1000, width=32)), st.floats(1e-3, 1e4))
def test_the_norm_is_that_of_the_definition(delta, bound):
    plan = parse_plan({"limits": {"max_norm": bound}})
    norm = float(np.sqrt(np.sum(np.square(delta.astype(np.longdouble)))))
    if abs(norm - bound) > 1e-9 * bound:
        assert bool(flaw_of_norm(delta, plan)) == (norm > bound)
        assert bool(flaw_of(made(delta), delta.size, plan)) == (norm > bound)


def test_large_values_do_not_overflow_into_passing():
    plan = parse_plan({"limits": {"max_norm": 1e30, "max_abs_delta": 1e6}})
    assert flaw_of_norm(np.full(4, 1e38, dtype=np.float32), plan)
    assert not flaw_of_norm(np.full(4, 1e20, dtype=np.float32), plan)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), "x"])
def test_what_is_no_bound(wrong):
    with pytest.raises(Exception, match="max_norm"):
        parse_plan({"limits": {"max_norm": wrong}})
