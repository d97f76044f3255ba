"""Server optimizers against Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2, written here one scalar at a time.

The reference shares no code with the implementation: plain Python floats, one parameter after the other, line by line
as the paper has them. Its state is rounded to float32 after each step, as the store keeps it.
"""

import math
import random
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.optimizers.adagrad import Adagrad
from flsys_ray.core.optimizers.adam import Adam
from flsys_ray.core.optimizers.base import OPTIMIZERS
from flsys_ray.core.optimizers.sgd import Sgd
from flsys_ray.core.optimizers.yogi import Yogi
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import OptimizerState, Update, Version

every_optimizer = pytest.mark.parametrize(
    "optimizer", [kind() for kind in OPTIMIZERS.classes.values()], ids=list(OPTIMIZERS.classes)
)
STEPS = 200


def float32(value):
    return struct.unpack("f", struct.pack("f", value))[0]


def algorithm_2(name, deltas, eta, beta_1, beta_2, tau):
    """Return the movements of one scalar parameter, and its last (m, v)."""
    m_t, v_t = 0.0, float32(tau**2)  # line 1: v_{-1} >= tau^2
    movements = []
    for delta_t in deltas:
        m_t = beta_1 * m_t + (1 - beta_1) * delta_t  # line 9
        d2 = delta_t**2
        if name == "adagrad":  # line 10, FedAdagrad
            v_t = v_t + d2
        elif name == "yogi":  # line 11, FedYogi
            v_t = v_t - (1 - beta_2) * d2 * (0 if v_t == d2 else math.copysign(1, v_t - d2))
        else:  # line 12, FedAdam
            v_t = beta_2 * v_t + (1 - beta_2) * d2
        movements.append(eta * m_t / (math.sqrt(v_t) + tau))  # line 13
        m_t, v_t = float32(m_t), float32(v_t)
    return movements, (m_t, v_t)


def deltas_of(seed, size):
    """Draw STEPS deltas whose scale wanders over six orders of magnitude, with exact zeros among them."""
    draw = random.Random(seed)
    return [
        [0.0 if draw.random() < 0.1 else draw.gauss(0, 1) * 10 ** draw.uniform(-5, 1) for _ in range(size)]
        for _ in range(STEPS)
    ]


@pytest.mark.parametrize("tau", [1e-3, 1e-1])
@pytest.mark.parametrize("beta_1", [0.0, 0.9])
@pytest.mark.parametrize("kind", [Adagrad, Adam, Yogi])
def test_adaptive_optimizers_follow_algorithm_2(kind, beta_1, tau):
    optimizer = kind(learning_rate=0.03, beta_1=beta_1, tau=tau)
    size = 3
    rows = deltas_of(7, size)
    state = optimizer.init(size)
    movements = []
    for row in rows:
        state, movement = optimizer.step(state, np.array(row))
        movements.append(movement)
    for index in range(size):
        beta_2 = getattr(optimizer, "beta_2", None)
        column = [row[index] for row in rows]
        expected, last = algorithm_2(optimizer.name, column, 0.03, beta_1, beta_2, tau)
        np.testing.assert_allclose([movement[index] for movement in movements], expected, rtol=1e-9, atol=1e-15)
        np.testing.assert_allclose([vector[index] for vector in state.vectors], last, rtol=1e-6)


def test_the_first_step_by_hand():
    """delta 3, tau 1, beta_1 0, beta_2 0.9, learning rate 1; v starts at 1. Adagrad 10; Adam 1.8; Yogi 1 + 0.9."""
    delta = np.array([3.0])
    for optimizer, v in (
        (Adagrad(learning_rate=1, beta_1=0, tau=1), 10.0),
        (Adam(learning_rate=1, beta_1=0, beta_2=0.9, tau=1), 0.9 + 0.9),
        (Yogi(learning_rate=1, beta_1=0, beta_2=0.9, tau=1), 1 + 0.9),
    ):
        state, movement = optimizer.step(optimizer.init(1), delta)
        assert movement[0] == pytest.approx(3 / (math.sqrt(v) + 1), rel=1e-12)
        assert state.vectors[1][0] == pytest.approx(v, rel=1e-7)


def test_sgd_with_momentum_follows_hsu_et_al():
    """`v <- beta v + delta`, `w <- w + eta v` (arXiv 1909.06335, section 4.3)."""
    optimizer = Sgd(learning_rate=0.5, momentum=0.9)
    rows = deltas_of(11, 2)
    state = optimizer.init(2)
    velocity = [0.0, 0.0]
    for row in rows:
        state, movement = optimizer.step(state, np.array(row))
        velocity = [0.9 * v + d for v, d in zip(velocity, row, strict=True)]
        np.testing.assert_allclose(movement, [0.5 * v for v in velocity], rtol=1e-9, atol=1e-15)
        velocity = [float32(v) for v in velocity]


def test_constant_delta_with_momentum_reaches_its_closed_form():
    """A geometric series: the velocity tends to delta / (1 - momentum)."""
    optimizer, state = Sgd(momentum=0.8), Sgd().init(1)
    for _ in range(200):
        state, movement = optimizer.step(state, np.array([0.25]))
    assert movement[0] == pytest.approx(0.25 / 0.2, rel=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=6))
def test_sgd_with_rate_1_and_no_momentum_is_federated_averaging(delta):
    optimizer = Sgd(learning_rate=1.0, momentum=0.0)
    state = OptimizerState(3, (np.full(len(delta), 9.0, dtype=np.float32),))
    _, movement = optimizer.step(state, np.array(delta))
    assert movement.tobytes() == (np.array(delta) + 0.0).tobytes()


@every_optimizer
@given(deltas=st.lists(st.lists(st.floats(-1024, 1024), min_size=3, max_size=3), min_size=1, max_size=10))
def test_finite_deterministic_float32_and_inputs_unchanged(optimizer, deltas):
    state = again = optimizer.init(3)
    assert len(state.vectors) == len(optimizer.slots)
    for step, values in enumerate(deltas, start=1):
        delta = np.array(values)
        delta.flags.writeable = False
        for vector in state.vectors:
            vector.flags.writeable = False
        kept = [vector.tobytes() for vector in state.vectors]
        after, movement = optimizer.step(state, delta)
        again, movement_again = optimizer.step(again, delta.copy())
        assert [vector.tobytes() for vector in state.vectors] == kept
        assert movement.dtype == np.float64
        assert movement.shape == (3,)
        assert np.isfinite(movement).all()
        assert movement.tobytes() == movement_again.tobytes()
        assert after.step == again.step == step
        for vector, vector_again in zip(after.vectors, again.vectors, strict=True):
            assert vector.dtype == np.float32
            assert vector.shape == (3,)
            assert np.isfinite(vector).all()
            assert vector.tobytes() == vector_again.tobytes()
        state = after


@every_optimizer
def test_the_first_step_goes_where_the_devices_went(optimizer):
    """The delta is not negated: `next = base + movement`."""
    _, movement = optimizer.step(optimizer.init(3), np.array([0.5, -0.5, 0.0]))
    assert np.sign(movement).tolist() == [1.0, -1.0, 0.0]


@every_optimizer
@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4), st.permutations(range(4)))
def test_parameters_do_not_influence_each_other(optimizer, delta, order):
    whole, shuffled = optimizer.init(4), optimizer.init(4)
    for _ in range(3):
        whole, movement = optimizer.step(whole, np.array(delta))
        shuffled, moved = optimizer.step(shuffled, np.array(delta)[list(order)])
        assert moved.tobytes() == movement[list(order)].tobytes()


@every_optimizer
def test_state_that_is_not_trained_moves_by_the_plain_mean(optimizer):
    """Batch-norm statistics are averaged, whatever the optimizer does to the weights; and its state ignores them."""
    layout = Layout.of([("kernel", (2,), True), ("moving_mean", (2,), False)])
    plan = parse_plan(
        {"pacing": {"name": "rounds", "cohort": 2, "over_selection": 1.0}, "server_optimizer": optimizer.model_dump()}
    )
    base = np.array([1.0, 2.0, 3.0, 4.0], dtype=np.float32)
    version = Version(0, base, plan.server_optimizer.init(4))
    coordinator = Coordinator("m", layout, plan, version, round_=0, opened_at=0.0)
    for device, weight, value in (("a", 1, 0.5), ("b", 3, 0.25)):
        assignment = coordinator.check_in(device, 0.0)
        coordinator.submit(Update(assignment, np.full(4, value, dtype=np.float32), weight, 0.1), 1.0)
    made = coordinator.tick(1.0).commit.version
    mean = (0.5 + 3 * 0.25) / 4
    assert made.parameters[2:].tolist() == [3.0 + mean, 4.0 + mean]
    trained = optimizer.step(optimizer.init(2), np.full(2, mean))
    assert made.parameters[:2].tolist() == (base[:2] + trained[1]).astype(np.float32).tolist()
    untouched = optimizer.step(optimizer.init(2), np.zeros(2))[0]
    for vector, trained_vector, still in zip(
        made.optimizer_state.vectors, trained[0].vectors, untouched.vectors, strict=True
    ):
        assert vector[:2].tolist() == trained_vector.tolist()
        assert vector[2:].tolist() == still.tolist()
