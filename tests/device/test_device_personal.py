"""Personalisation: what is better on the phone's own held-out examples answers, and never leaves the phone."""

import sqlite3

import numpy as np
import pytest
from device_fakes import PARAMETERS, SHAPE, START, FakeCloud, FakeModel, SoftmaxProgram, fill, live, open_phone
from safetensors.numpy import load

from flsys_ray.core.plan import Eligibility, LocalTraining
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import READY, Conditions, FixedConditions, TraceConditions
from flsys_ray.device.database import FORMAT, Database
from flsys_ray.device.examples import Batch
from flsys_ray.device.participation import Habits
from flsys_ray.device.personal import fine_tuned
from flsys_ray.errors import InvalidInput, NotFound
from flsys_ray.wire.tensors import encode_vector

LOCAL = LocalTraining(epochs=9, learning_rate=0.01)
ZERO = np.zeros(PARAMETERS, np.float32)


@pytest.fixture
def cloud(clock) -> FakeCloud:
    """A cloud that gives out a version, and no work."""
    return FakeCloud(clock, FakeModel("har-wild", rounds=0))


def publish(cloud: FakeCloud, vector: np.ndarray) -> None:
    cloud.models["har-wild"].versions.append(encode_vector("parameters", vector.astype(np.float32)))


def good_vector() -> np.ndarray:
    """Parameters that have every example of `windows` right: classes have means 0, 1 and 2."""
    kernel = np.zeros((300, 3), np.float32)
    kernel[:, 1], kernel[:, 2] = 1.0, 2.0
    return np.concatenate([kernel.ravel(), np.array([0.0, -150.0, -600.0], np.float32)])


def stored(phone) -> bytes | None:
    row = phone._database.row("SELECT parameters FROM personal")
    return row[0] if row else None


def test_the_better_parameters_answer_after_a_kill_too(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        phone.register()
        before = phone.infer("har-wild", np.full(SHAPE, 2.0, np.float32))
        found = phone.personalise("har-wild", local=LOCAL)
    assert not before.personal
    assert found.personal
    assert found.refusal == ""
    assert found.personal_accuracy > found.shared_accuracy
    with open_phone(tmp_path, cloud) as phone:
        after = phone.infer("har-wild", np.full(SHAPE, 2.0, np.float32))
        status = phone.status().models[0]
        assert after.personal
        assert after.scores[0] != pytest.approx(before.scores[0])
        assert (after.version, status.version) == (0, 0)
        assert status.personal
        assert status.personal_accuracy == found.personal_accuracy
        assert status.shared_accuracy == found.shared_accuracy
        assert after.scores[0] == pytest.approx(
            SoftmaxProgram(next((tmp_path / "programs").iterdir())).infer(
                load(stored(phone))["parameters"], np.full((1, *SHAPE), 2.0, np.float32)
            )[0]
        )


class FailsAtOne(SoftmaxProgram):
    """Raises when it is to train at rate 1."""

    def train(self, parameters, x, y, *, learning_rate, **rest):
        if learning_rate == 1.0:
            raise RuntimeError("diverged")
        return super().train(parameters, x, y, learning_rate=learning_rate, **rest)


def test_the_best_of_several_ways_answers(tmp_path, cloud):
    useless, fails = LocalTraining(learning_rate=1e-9), LocalTraining(learning_rate=1.0)
    publish(cloud, np.concatenate([ZERO[3:], [1.0, 0.0, 0.0]]))  # always "sitting", whatever a tiny step does
    with open_phone(tmp_path / "one", cloud, load_program=FailsAtOne) as phone:
        fill(phone)
        phone.register()
        alone, own = phone.personalise("har-wild", local=LOCAL), stored(phone)
        assert alone.personal
    with open_phone(tmp_path / "several", cloud, load_program=FailsAtOne) as phone:
        fill(phone)
        phone.register()
        found = phone.personalise("har-wild", local=[useless, LOCAL])
        assert (found, stored(phone)) == (alone, own)
        failed = phone.personalise("har-wild", local=[fails, LOCAL, useless])
        assert failed.refusal == "failed: RuntimeError: diverged"
        assert failed.personal
        assert stored(phone) == own


@pytest.mark.parametrize(
    ("epochs", "max_steps", "parts"),
    [
        (1, None, [(1, 0.5)]),
        (2, None, [(1, 0.5), (1, 0.2)]),
        (7, None, [(3, 0.5), (2, 0.2), (2, 0.05)]),
        (7, 6, [(3, 0.5)]),  # two steps an epoch
        (7, 7, [(3, 0.5), (2, 0.2)]),
    ],
)
def test_the_rate_falls_in_three_parts(tmp_path, epochs, max_steps, parts):
    seen = []

    class Noted(SoftmaxProgram):
        def train(self, parameters, x, y, *, epochs, learning_rate, **rest):
            seen.append((epochs, learning_rate))
            trained = super().train(parameters, x, y, epochs=epochs, learning_rate=learning_rate, **rest)
            taken.append(trained.steps)
            return trained

    taken: list[int] = []
    (tmp_path / "program").write_text('{"name": "har-wild"}')
    examples = Batch(np.ones((16, *SHAPE), np.float32), np.arange(16, dtype=np.int32) % 3)
    local = LocalTraining(epochs=epochs, learning_rate=0.5, max_steps=max_steps)
    assert fine_tuned(Noted(tmp_path / "program"), ZERO, examples, local, np.random.default_rng(0)) is not None
    assert seen == [(each, pytest.approx(rate)) for each, rate in parts]
    assert sum(taken) == min(2 * epochs, max_steps or 2 * epochs)


def test_the_habit_tries_its_ways(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=1, local=LocalTraining(learning_rate=1e-9)))
    for ways, personal in (((), False), ((LocalTraining(learning_rate=1e-9), LOCAL), True)):
        habits = Habits(personalise=True, personal=ways, refresh_after_s=60.0)
        with open_phone(tmp_path / str(len(ways)), cloud, habits=habits) as phone:
            fill(phone)
            phone.register()
            phone.refresh("har-wild")
            live(phone, cloud)
            assert phone.status().models[0].personal == personal


def test_a_tie_is_the_shared_version(tmp_path, cloud):
    publish(cloud, good_vector())
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        phone.register()
        found = phone.personalise("har-wild", local=LocalTraining(learning_rate=1e-9))
        assert not phone.infer("har-wild", np.zeros(SHAPE, np.float32)).personal
        assert stored(phone) is None
    assert not found.personal
    assert found.personal_accuracy == found.shared_accuracy == 1.0


def test_a_newer_version_answers_until_it_was_compared(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        phone.register()
        phone.personalise("har-wild", local=LOCAL)
        own = stored(phone)
        publish(cloud, ZERO + 1e-6)  # no better than version 0: the phone's own stay
        phone._versions.refresh("har-wild")
        assert not phone.infer("har-wild", np.zeros(SHAPE, np.float32)).personal
        assert phone.refresh("har-wild") == 1
        assert phone.infer("har-wild", np.zeros(SHAPE, np.float32)).personal
        assert stored(phone) == own
        publish(cloud, good_vector())  # as good or better: they go
        assert phone.refresh("har-wild") == 2
        assert not phone.infer("har-wild", np.zeros(SHAPE, np.float32)).personal
        assert stored(phone) is None
        assert phone.status().models[0].shared_accuracy == 1.0


def test_taking_part_compares_again_and_the_habit_personalises(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=2, local=LocalTraining(learning_rate=1e-6)))
    habits = Habits(personalise=True, refresh_after_s=60.0)
    with open_phone(tmp_path, cloud, habits=habits) as phone:
        fill(phone)
        kinds = live(phone, cloud)
        last = phone.status().models[0]
        assert phone._journal.local("har-wild") == LocalTraining(learning_rate=1e-6)
    # Versions 0 and 1 came with assignments, 2 by refreshing: each is personalised once.
    assert kinds.count("personalised") == 3
    assert last.version == 2
    assert last.personal_accuracy is not None


def test_without_the_habit_nothing_is_trained_by_itself(tmp_path, clock):
    cloud = FakeCloud(clock)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        assert "personalised" not in live(phone, cloud)
        assert phone.status().models[0].personal_accuracy is None


def test_the_habit_off_still_compares_with_a_newer_version(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=1, local=LocalTraining(learning_rate=1e-6)))
    with open_phone(tmp_path, cloud, habits=Habits(refresh_after_s=60.0)) as phone:
        fill(phone)
        phone.register()
        phone.personalise("har-wild", local=LOCAL)
        assert live(phone, cloud).count("personalised") == 1
        assert phone.status().models[0].version == 1


def test_neither_data_nor_personal_parameters_leave(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=2))
    with open_phone(tmp_path, cloud, habits=Habits(personalise=True)) as phone:
        fill(phone)
        live(phone, cloud, 60)
        phone.personalise("har-wild", local=LOCAL)
        own = stored(phone)
        live(phone, cloud)
    assert own is not None
    sent = b"\0".join(r.content for r in cloud.recorded)
    vector = load(own)["parameters"]
    assert b"delta" in sent
    for start in range(0, PARAMETERS, 100):
        assert vector[start : start + 8].tobytes() not in sent
        for served in cloud.models["har-wild"].versions:
            base = load(served)["parameters"]
            assert (vector - base)[start : start + 8].tobytes() not in sent


@pytest.mark.parametrize("way", ["consent", "erase"])
def test_personal_parameters_go_with_consent_and_with_the_data(tmp_path, cloud, way):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        phone.register()
        phone.personalise("har-wild", local=LOCAL)
        own = stored(phone)
        if way == "consent":
            phone.consent("har-wild", granted=False)
        else:
            phone.erase()
        assert phone._database.rows("SELECT * FROM personal") == []
        phone._database.shrink()
        assert load(own)["parameters"][:8].tobytes() not in (tmp_path / "phone.db").read_bytes()
        if way == "consent":
            assert phone.personalise("har-wild").refusal == "withdrawn"
            assert not phone.infer("har-wild", np.zeros(SHAPE, np.float32)).personal


def test_what_stands_against_training_stands_against_it(tmp_path, cloud):
    in_use = Conditions(charging=True, idle=False, unmetered=True, battery_fraction=1.0)
    with open_phone(tmp_path, cloud, conditions=FixedConditions(in_use)) as phone:
        phone.register()
        fill(phone, count=4)
        assert phone.personalise("har-wild").refusal == "in-use, too-few-examples"
        phone.pause()
        assert phone.personalise("har-wild").refusal == "paused"
        assert phone._database.rows("SELECT * FROM personal") == []


@pytest.mark.parametrize("way", ["should_stop", "consent", "conditions", "erase"])
def test_a_running_personalisation_stops_between_steps(tmp_path, way):
    clock = VirtualClock(START + 10_000)
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=0))
    away = READY if way != "conditions" else Conditions(charging=False, idle=True, unmetered=True, battery_fraction=1.0)
    steps = []

    def on_step() -> None:
        steps.append(1)
        clock.wait(1.0)
        if len(steps) == 3 and way == "consent":
            phone.consent("har-wild", granted=False)
        if len(steps) == 3 and way == "erase":
            phone.erase()
            phone.consent("har-wild", granted=True)

    conditions = TraceConditions([(0.0, READY), (START + 10_003, away)])
    program = lambda path: SoftmaxProgram(path, on_step)  # noqa: E731
    with open_phone(tmp_path, cloud, conditions=conditions, load_program=program) as phone:
        fill(phone)
        phone.register()
        stop = {"should_stop": lambda: len(steps) == 3} if way == "should_stop" else {}
        found = phone.personalise("har-wild", local=LOCAL, **stop)
        assert found.refusal == "interrupted"
        assert not found.personal
        assert phone._database.rows("SELECT * FROM personal") == []
    assert len(steps) == 3


def test_a_program_that_fails_leaves_the_shared_version(tmp_path, cloud):
    def on_step() -> None:
        raise RuntimeError("out of memory")

    habits = Habits(personalise=True)
    with open_phone(tmp_path, cloud, load_program=lambda p: SoftmaxProgram(p, on_step), habits=habits) as phone:
        fill(phone)
        phone.register()
        phone.refresh("har-wild")
        found = phone.personalise("har-wild")
        assert found.refusal == "failed: RuntimeError: out of memory"
        assert found.shared_accuracy is not None
        assert found.personal_accuracy is None
        assert "personalised" not in live(phone, cloud)  # not again for the same version


def test_one_that_kills_the_phone_each_time_is_given_up(tmp_path, cloud):
    def on_step() -> None:
        raise KeyboardInterrupt  # goes through everything, as a kill does

    habits = Habits(personalise=True, max_starts=2)
    died = 0
    for _ in range(4):
        with open_phone(tmp_path, cloud, load_program=lambda p: SoftmaxProgram(p, on_step), habits=habits) as phone:
            if not phone.status().models[0].examples.training:
                fill(phone)
                phone.register()
                phone.refresh("har-wild")
            try:
                live(phone, cloud, 120)
            except KeyboardInterrupt:
                died += 1
    assert died == 2


def test_without_held_out_examples_the_shared_version_stays(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=0, eligibility=Eligibility(min_examples=1)))
    with open_phone(tmp_path, cloud) as phone:
        fill(phone, count=11)
        phone.register()
        found = phone.personalise("har-wild")
        assert (found.personal, found.held_out, found.personal_accuracy) == (False, 0, None)


def test_with_a_real_program(tmp_path, clock):
    from tiny_program import tiny_program

    from flsys_ray.programs.runner import Program

    program = tiny_program().data
    shared = Program.load(program).init(3)
    model = FakeModel("har-wild", rounds=0, program=program, versions=[encode_vector("parameters", shared)])
    cloud, rng = FakeCloud(clock, model), np.random.default_rng(1)
    x = rng.normal(size=(120, 4)).astype(np.float32)
    y = np.argmax(x[:, :3], axis=1)
    with open_phone(tmp_path, cloud, load_program=Program.load) as phone:
        for each, label in zip(x, y, strict=True):
            phone.add_example("har-wild", each, int(label))
        phone.consent("har-wild", granted=True)
        phone.register()
        found = phone.personalise("har-wild", local=LocalTraining(epochs=20, learning_rate=0.3))
        assert found.personal
        assert found.personal_accuracy > 0.8 > found.shared_accuracy
        answer = phone.infer("har-wild", x)
        own = load(stored(phone))["parameters"]
        np.testing.assert_array_equal(answer.scores, Program.load(program).infer(own, x))
        assert np.mean([label == "abc"[number] for label, number in zip(answer.labels, y, strict=True)]) > 0.8


def test_wrong_use(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("other"))
    with open_phone(tmp_path, cloud) as phone:
        with pytest.raises(InvalidInput, match="not a model of this phone"):
            phone.personalise("nope")
        phone.register()
        with pytest.raises(NotFound):
            phone.personalise("har-wild")


def test_a_database_of_the_first_format_is_brought_up_to_date(tmp_path):
    path = tmp_path / "phone.db"
    database = Database(path)
    database.set_settings({"a": 1})
    database.close()
    connection = sqlite3.connect(path)
    since = "DROP TABLE residuals; ALTER TABLE assignments DROP COLUMN residual;"
    since += "DROP TABLE controls; ALTER TABLE assignments DROP COLUMN control; DROP TABLE personal;"
    connection.executescript(f"{since} PRAGMA user_version=1;")
    connection.close()
    database = Database(path)
    assert database.setting("a") == 1
    assert database.rows("SELECT * FROM personal") == []
    assert database.row("PRAGMA user_version") == (FORMAT,)
    database.close()
