"""SCAFFOLD against an independent one in plain numpy: clients with quadratic losses, where FedAvg drifts.

Client i has the loss `a_i / 2 |y - b_i|^2`, whose gradient is `a_i (y - b_i)`: the mean loss is smallest at
`sum a_i b_i / sum a_i`. FedAvg with many local steps ends elsewhere, since a client with a large `a_i` is at its own
minimum after a few steps (Karimireddy et al. 2020, arXiv 1910.06378, section 3.2).
"""

import numpy as np
import pytest

from flsys_ray.core.aggregation.clipping import Clipping
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment, Contribution, Counted, Rejected, Update, Version
from flsys_ray.device.controls import Controls, decode_controls, own_control
from flsys_ray.errors import PlanInvalid
from flsys_ray.programs.manifest import LeafEntry, Manifest
from flsys_ray.wire.tensors import encode_vector

CLIENTS, STEPS, RATE, SIZE = 4, 20, 0.1, 3
CURVATURE = np.array([0.2, 0.5, 1.0, 4.0])
CENTER = np.random.default_rng(3).normal(0, 1, (CLIENTS, SIZE))
OPTIMUM = (CURVATURE[:, None] * CENTER).sum(axis=0) / CURVATURE.sum()
LEAF = LeafEntry(name="y", shape=(SIZE,), offset=0, trainable=True)
MANIFEST = Manifest(
    name="quadratic", flatbuffer_sha256="0" * 64, parameters=SIZE, slots=0, batch_size=1, input_shape=(1,),
    input_dtype="float32", classes=("a", "b"), local_optimizer="sgd", layout=(LEAF,),
)  # fmt: skip


def plan(rule: object, cohort: int) -> TrainingPlan:
    pacing = {"name": "rounds", "cohort": cohort, "over_selection": 1, "quorum": 1, "deadline_s": 60}
    return parse_plan({"pacing": pacing, "selection": "first_come", "aggregation": rule})


def steps(start: np.ndarray, client: int, correction: np.ndarray) -> np.ndarray:
    y = start.astype(np.float64)
    for _ in range(STEPS):
        y = y - RATE * (CURVATURE[client] * (y - CENTER[client]) + correction)
    return y


def scaffold_in_numpy(sampled: list[list[int]]) -> list[np.ndarray]:
    """Return x after each round: the paper's Algorithm 1 with option II, in float64."""
    x, c, own, found = np.zeros(SIZE), np.zeros(SIZE), np.zeros((CLIENTS, SIZE)), []
    for round_ in sampled:
        moves, changes = [], []
        for i in round_:
            y = steps(x, i, c - own[i])
            after = own[i] - c + (x - y) / (STEPS * RATE)
            moves.append(y - x)
            changes.append(after - own[i])
            own[i] = after
        x = x + np.mean(moves, axis=0)
        c = c + len(round_) / CLIENTS * np.mean(changes, axis=0)
        found.append(x)
    return found


def on_the_platform(how: TrainingPlan, sampled: list[list[int]]) -> list[Version]:
    """Return the versions of the coordinator, with the phone's own arithmetic of controls."""
    zeros = np.zeros(SIZE, np.float32)
    start = Version(0, zeros, how.server_optimizer.init(SIZE))
    layout = Layout.of([("y", (SIZE,), True)])
    coordinator = Coordinator("m", layout, how, start, round_=0, opened_at=0.0)
    own: dict[int, bytes] = {}
    found = []
    for now, round_ in enumerate(sampled):
        for i in round_:
            base, work = coordinator.version, coordinator.check_in(f"phone-{i}", float(now))
            assert isinstance(work, Assignment)
            assert coordinator.submit(trained(base, work, i, own), float(now)) == Counted(duplicate=False)
        assert coordinator.tick(float(now)) is not None
        found.append(coordinator.version)
    return found


def trained(base: Version, work: Assignment, i: int, own: dict[int, bytes]) -> Update:
    if base.control is None:
        return Update(work, (steps(base.parameters, i, np.zeros(SIZE)) - base.parameters).astype(np.float32), 1, 0.0)
    pair = decode_controls(Controls(encode_vector("control", base.control), own.get(i)), MANIFEST)
    delta = (steps(base.parameters, i, pair.correction) - base.parameters).astype(np.float32)
    change = pair.change(delta, STEPS, RATE)
    own[i] = own_control(pair, change)
    return Update(work, delta, 1 + 7 * i, 0.0, num_steps=STEPS, control=change)


def everybody(rounds: int) -> list[list[int]]:
    return [list(range(CLIENTS)) for _ in range(rounds)]


def some(rounds: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [sorted(int(i) for i in rng.choice(CLIENTS, 2, replace=False)) for _ in range(rounds)]


@pytest.mark.parametrize("sampled", [everybody(6), some(8)], ids=["everybody", "two of four"])
def test_versions_are_those_of_the_algorithm_in_numpy(sampled):
    versions = on_the_platform(plan({"name": "scaffold", "devices": CLIENTS}, len(sampled[0])), sampled)
    for version, expected in zip(versions, scaffold_in_numpy(sampled), strict=True):
        assert np.abs(version.parameters - expected).max() < 1e-6


def test_fedavg_drifts_and_scaffold_does_not():
    fedavg = on_the_platform(plan("weighted_mean", CLIENTS), everybody(60))[-1]
    scaffold = on_the_platform(plan({"name": "scaffold", "devices": CLIENTS}, CLIENTS), everybody(60))[-1]
    assert np.abs(fedavg.parameters - OPTIMUM).max() > 0.1
    assert np.abs(scaffold.parameters - OPTIMUM).max() < 1e-5


def test_with_some_of_the_devices_it_does_not_drift_either():
    versions = on_the_platform(plan({"name": "scaffold", "devices": CLIENTS}, 2), some(300))
    assert np.abs(versions[-1].parameters - OPTIMUM).max() < 1e-4


def test_a_wrong_number_of_devices_slows_it_down_and_moves_no_fixed_point():
    versions = on_the_platform(plan({"name": "scaffold", "devices": 4 * CLIENTS}, CLIENTS), everybody(300))
    assert np.abs(versions[-1].parameters - OPTIMUM).max() < 1e-4


# The coordinator ---------------------------------------------------------------------------------------------------


def opened(how: TrainingPlan, control: np.ndarray | None = None) -> tuple[Coordinator, Assignment]:
    layout = Layout.of([("y", (2,), True), ("mean", (1,), False)])
    start = Version(0, np.zeros(SIZE, np.float32), how.server_optimizer.init(SIZE), control)
    coordinator = Coordinator("m", layout, how, start, round_=0, opened_at=0.0)
    work = coordinator.check_in("phone", 0.0)
    assert isinstance(work, Assignment)
    return coordinator, work


def update(work: Assignment, control: object) -> Update:
    made = None if control is None else np.array(control, np.float32)
    return Update(work, np.full(SIZE, 0.5, np.float32), 1, 0.0, control=made)


def test_a_version_without_a_control_starts_from_zero_and_what_is_not_trained_keeps_none():
    coordinator, work = opened(plan({"name": "scaffold", "devices": 1}, 1))
    assert coordinator.version.control.tolist() == [0, 0, 0]
    assert coordinator.submit(update(work, [4, -2, 7]), 0.0) == Counted(duplicate=False)
    summary = coordinator.tick(0.0)
    assert summary.commit.version.control.tolist() == [4, -2, 0]
    assert summary.commit.version.parameters.tolist() == [0.5, 0.5, 0.5]


def test_more_updates_than_devices_count_as_all_devices():
    rule = plan({"name": "scaffold", "devices": 1}, 1).aggregation
    how = plan({"name": "scaffold", "devices": 1}, 1)
    state = rule.init(how.scale(), SIZE)
    for key in "ab":
        one = np.ones(SIZE, np.float32)
        state = rule.add(state, Contribution(key, one, 1, control=one))
    assert rule.next_control(state, np.zeros(SIZE, np.float32)).tolist() == [1, 1, 1]


def test_a_plan_without_controls_lets_go_of_a_versions_control():
    coordinator, work = opened(plan("weighted_mean", 1), np.ones(SIZE, np.float32))
    assert coordinator.version.control is None
    coordinator.submit(update(work, None), 0.0)
    assert coordinator.tick(0.0).commit.version.control is None


@pytest.mark.parametrize(
    ("rule", "control", "said"),
    [
        ("weighted_mean", [0, 0, 0], "control is not asked for by weighted_mean"),
        ("scaffold", None, "control is missing: scaffold asks for it"),
        ("scaffold", [0, 0], "control has shape"),
        ("scaffold", [0, np.nan, 0], "control holds a value that is not finite"),
        ("scaffold", [0, 1025, 0], "control holds a value that is not finite or above 1024"),
    ],
)
def test_a_control_that_cannot_be_used_is_refused_by_name(rule, control, said):
    coordinator, work = opened(plan(rule, 1))
    outcome = coordinator.submit(update(work, control), 0.0)
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "unusable"
    assert said in outcome.detail


def test_a_restored_coordinator_goes_on_to_the_same_bits():
    how = plan({"name": "scaffold", "devices": 3}, 2)
    coordinator, work = opened(how)
    coordinator.submit(update(work, [1, 2, 3]), 0.0)
    again = Coordinator.restore("m", coordinator.layout, how, coordinator.snapshot())
    versions = []
    for one in (coordinator, again):
        other = one.check_in("other", 0.0)
        one.submit(update(other, [0.25, 0.5, 3]), 0.0)
        versions.append(one.tick(0.0).commit.version)
    assert versions[0].control.tobytes() == versions[1].control.tobytes()
    assert versions[0].parameters.tobytes() == versions[1].parameters.tobytes()


# Plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said", "fields"),
    [
        ({"pacing": "buffered"}, "needs the pacing rounds", ("pacing", "aggregation")),
        ({"pacing": {"late": {"max_staleness": 1}}}, "without late updates", ("pacing", "aggregation")),
        ({"local": {"proximal_mu": 0.1}}, "proximal_mu", ("local.proximal_mu", "aggregation")),
        ({"aggregation": {"name": "scaffold", "devices": 3}}, "3 devices", ("pacing", "aggregation.devices")),
        ({"aggregation": {"name": "clipping", "inner": "scaffold"}}, "clipping cannot wrap scaffold", None),
    ],
)
def test_a_plan_that_scaffold_cannot_keep_is_refused_by_name(changes, said, fields):
    with pytest.raises(PlanInvalid, match=said) as caught:
        parse_plan({"aggregation": "scaffold"} | changes)
    assert fields is None or caught.value.fields == fields


def test_a_wrapper_of_a_rule_without_controls_stays_as_it_was():
    assert not Clipping(norm=1.0).carries_control
