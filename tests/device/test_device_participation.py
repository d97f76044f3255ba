import json
import logging
import threading
import time

import httpx2
import numpy as np
import pytest
from device_fakes import (
    CLASSES,
    SHAPE,
    START,
    FakeCloud,
    FakeModel,
    SoftmaxProgram,
    fill,
    live,
    open_phone,
    problem,
    windows,
)
from device_looks import own_examples
from safetensors.numpy import load

from flsys_ray.core.plan import Eligibility
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import SystemClock
from flsys_ray.device.conditions import READY, Conditions, TraceConditions
from flsys_ray.device.participation import Habits
from flsys_ray.errors import Conflict, InvalidInput, NotFound, TryLater, Unauthenticated
from flsys_ray.wire.schemas import AugmentationMessage, SharedSetLink

IN_USE = Conditions(charging=True, idle=False, unmetered=True, battery_fraction=1.0)


def model_of(cloud: FakeCloud) -> FakeModel:
    return cloud.models["har-wild"]


def test_rounds_from_enrolment_to_the_last_version(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        kinds = live(phone, cloud)
        status = phone.status()
    assert kinds[:6] == ["enrolled", "checked-in", "downloaded", "trained", "evaluated", "uploaded"]
    assert model_of(cloud).outcomes() == ["counted"] * 3
    assert model_of(cloud).version == 3
    assert len(cloud.calls("GET .*/program/.*")) == 1  # cached for ever
    assert status.device_id == "device-0"
    assert status.models[0].trainings == 3
    assert status.bytes_up > 3 * 4 * 903
    assert status.bytes_down > 3 * 4 * 903


def test_the_update_is_the_delta_of_a_training_by_hand(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, 10)
        program = SoftmaxProgram(next((tmp_path / "programs").iterdir()))
    x, y, x_held, _ = own_examples()
    key, entry = next(iter(model_of(cloud).assignments.items()))
    base = load(model_of(cloud).versions[0])["parameters"]
    rng = generator(0, "local-training", 0, key)
    expected = program.train(base, x, y, epochs=2, learning_rate=0.01, rng=rng, proximal_mu=0.0)
    np.testing.assert_array_equal(load(entry.bodies[0])["delta"], expected.parameters - base)
    header = json.loads(entry.bodies[0][8 : 8 + int.from_bytes(entry.bodies[0][:8], "little")])
    assert header["__metadata__"]["num_examples"] == str(len(x))
    assert float(header["__metadata__"]["loss"]) == expected.loss
    assert header["__metadata__"]["num_steps"] == str(expected.steps)
    assert entry.metrics.count == len(x_held)
    assert entry.metrics.loss_sum == pytest.approx(len(x_held) * np.log(3), rel=1e-5)


def test_raw_data_never_appear_in_any_request(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert len(cloud.recorded) > 10
    sent = b"\0".join(str(r.url).encode() + bytes(r.headers.raw.__repr__(), "utf8") + r.content for r in cloud.recorded)
    for x, _, start_s in windows(120):
        for row in x[::10]:
            assert row.tobytes() not in sent
        assert str(start_s).encode() not in sent
    assert b"delta" in sent  # the search looks at what was sent


def test_tokens_and_keys_are_in_no_log_and_no_repr(tmp_path, cloud, caplog):
    caplog.set_level(logging.DEBUG)
    cloud.faults = [None, lambda r: httpx2.Response(500), lambda r: problem(429, "try-later", "busy")]
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
        shown = repr(phone.config) + repr(phone.status()) + repr(phone._identity) + caplog.text
    for secret in ("app-key-of-the-test", "device-token", "assignment-token"):
        assert secret not in shown


def test_nobody_asked_means_no_training(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone, consent=False)
        assert set(live(phone, cloud)) == {"enrolled", "waiting"}
    assert not cloud.calls("POST /v1/checkins")


@pytest.mark.parametrize("after", ["checked-in", "trained"])
def test_withdrawing_consent_deletes_the_work_and_gives_it_back(tmp_path, cloud, after):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != after:
            pass
        phone.consent("har-wild", granted=False)
        assert phone._database.rows("SELECT delta FROM assignments") == [(None,)]
        assert phone.step().detail == "withdrawn"
        assert set(live(phone, cloud)) == {"waiting"}
    assert model_of(cloud).outcomes() == ["given-back"]
    assert not cloud.calls("PUT .*")


def test_withdrawing_consent_stops_a_running_training(tmp_path, cloud):
    steps = []

    def withdraw() -> None:
        steps.append(1)
        if len(steps) == 3:
            phone.consent("har-wild", granted=False)

    with open_phone(tmp_path, cloud, load_program=lambda path: SoftmaxProgram(path, withdraw)) as phone:
        fill(phone)
        live(phone, cloud)
    assert len(steps) == 3
    assert model_of(cloud).outcomes() == ["given-back"]


def test_pause_gives_back_and_resume_goes_on(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "trained":
            pass
        phone.pause()
        assert [phone.step().kind for _ in range(3)] == ["given-back", "paused", "paused"]
        assert phone.status().paused
        model_of(cloud).round += 1
        phone.resume()
        live(phone, cloud)
    assert model_of(cloud).outcomes() == ["given-back", "counted", "counted"]


def test_conditions_that_vanish_stop_training_between_steps(tmp_path, cloud):
    begin = cloud.clock.now()
    conditions = TraceConditions([(begin, READY), (begin + 5, IN_USE), (begin + 100, READY)])
    steps = []

    def second_passes() -> None:
        steps.append(cloud.clock.now() - begin)
        cloud.clock.wait(1.0)

    def program(path):
        return SoftmaxProgram(path, second_passes)

    with open_phone(tmp_path, cloud, conditions=conditions, load_program=program) as phone:
        fill(phone)
        kinds = live(phone, cloud, 20)
    assert steps == [0, 1, 2, 3, 4]
    assert kinds[3:] == ["given-back", "waiting"]
    assert json.loads(cloud.calls("DELETE .*")[0].content) == {"reason": "not-eligible"}


def test_the_plan_of_the_first_check_in_is_judged_too(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", eligibility=Eligibility(min_examples=1000)))
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert json.loads(cloud.calls("DELETE .*")[0].content) == {"reason": "not-enough-data"}
    assert len(cloud.calls("POST /v1/checkins")) == 1
    assert not cloud.calls("GET .*")


def test_training_past_the_deadline_is_given_back(tmp_path, cloud):
    def slow(path):
        return SoftmaxProgram(path, lambda: cloud.clock.wait(100))

    with open_phone(tmp_path, cloud, load_program=slow) as phone:
        fill(phone)
        while phone.step().kind != "given-back":
            pass
    assert json.loads(cloud.calls("DELETE .*")[0].content) == {"reason": "out-of-time"}


def test_a_stop_in_training_keeps_the_assignment(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "downloaded":
            pass
        assert [phone.step(should_stop=lambda: True).kind for _ in range(5)] == ["interrupted"] * 5
        assert phone.step().kind == "trained"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(410, "late", "late"), (422, "update-unusable", "refused"), (413, "too-large", "refused"),
     (403, "forbidden", "refused"), (404, "not-found", "refused")],
)  # fmt: skip
def test_an_upload_that_is_refused_is_dropped(tmp_path, cloud, status, code, kind):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "evaluated":
            pass
        cloud.faults = [lambda r: problem(status, code, "because")]
        outcome = phone.step()
        assert (outcome.kind, "because" in outcome.detail) == (kind, True)
        assert phone.status().models[0].work is None
        assert phone._journal.endings() == {outcome.assignment_id: kind}
        model_of(cloud).round += 1
        assert "uploaded" in live(phone, cloud)


def test_an_upload_is_repeated_until_the_cloud_takes_it(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "evaluated":
            pass
        busy = problem(503, "try-later", "busy", {"Retry-After": "120"})
        cloud.faults = [lambda r: busy]
        outcome = phone.step()
        assert outcome.kind == "failed"
        assert 120 <= outcome.wake_at - cloud.clock.now() <= 126
        live(phone, cloud, 200)
    assert model_of(cloud).assignments["har-wild-0000-device-0"].state == "counted"


def test_a_lost_answer_makes_a_duplicate_with_the_same_bytes(tmp_path, cloud):
    def lose(request):
        cloud._route(request)
        raise httpx2.ReadTimeout("lost", request=request)

    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "evaluated":
            pass
        cloud.faults = [lose, lose]
        outcome = phone.step()
    assert (outcome.kind, outcome.detail) == ("uploaded", "duplicate")
    bodies = model_of(cloud).assignments[outcome.assignment_id].bodies
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


def test_an_expired_token_is_renewed_as_the_same_device(tmp_path, cloud):
    cloud.token_life_s = 30.0 * 24 * 3600
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, 10)
        cloud.tokens.clear()  # the cloud's signing key was changed
        live(phone, cloud)
    assert model_of(cloud).outcomes() == ["counted"] * 3
    assert len(cloud.devices) == 1
    assert len(cloud.calls("POST /v1/devices")) == 2


def test_a_wrong_app_key(tmp_path, cloud):
    with open_phone(tmp_path, cloud, app_key="wrong") as phone:
        with pytest.raises(Unauthenticated, match="unknown app key"):
            phone.register()
        outcome = phone.step()
        assert (outcome.kind, outcome.detail) == ("failed", "unauthenticated: unknown app key")
        assert outcome.wake_at > cloud.clock.now()


def test_failures_back_off(tmp_path, cloud):
    def refuse(request):
        raise httpx2.ConnectError("down", request=request)

    with open_phone(tmp_path, cloud) as phone:
        cloud.faults = [refuse] * 1000
        waits = []
        for _ in range(60):
            outcome = phone.step()
            assert outcome.kind == "failed"
            waits.append(outcome.wake_at - cloud.clock.now())
        cloud.faults = []
        assert phone.step().kind == "enrolled"
    assert 1 <= min(waits) < max(waits[:3]) <= 20
    assert 300 < max(waits) <= 900
    assert len(set(waits[-20:])) == 20


def test_two_models_one_of_them_in_trouble(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=1), FakeModel("other", rounds=1))
    cloud.after = lambda request: None
    with open_phone(tmp_path, cloud, models=("har-wild", "other")) as phone:
        fill(phone)
        fill(phone, "other", seed=1)
        cloud.models["har-wild"].program, good = b"changed behind the phone's back", cloud.models["har-wild"].program
        assert live(phone, cloud, 1)[:2] == ["enrolled", "checked-in"]
        assert cloud.models["other"].outcomes() == ["counted"]
        assert cloud.models["har-wild"].outcomes() == ["given-back"]  # a program that does not load
        assert good


def test_an_unknown_model_is_no_harm(tmp_path, cloud):
    with open_phone(tmp_path, cloud, models=("har-wild", "nobody-knows")) as phone:
        fill(phone)
        fill(phone, "nobody-knows")
        live(phone, cloud)
    assert model_of(cloud).outcomes() == ["counted"] * 3


def test_only_new_examples_if_the_app_wants_that(tmp_path, cloud):
    with open_phone(tmp_path, cloud, habits=Habits(min_new_examples=20)) as phone:
        fill(phone)
        live(phone, cloud)
        assert model_of(cloud).outcomes() == ["counted"]
        for x, y, start_s in windows(60, seed=5):
            phone.add_example("har-wild", x, y, at_s=start_s + 5000)
        live(phone, cloud)
        assert model_of(cloud).outcomes() == ["counted"] * 2


def test_inference_with_the_newest_version(tmp_path, cloud):
    x = windows(30)[29][0]
    with open_phone(tmp_path, cloud) as phone:
        first = phone.infer("har-wild", x)  # nothing is held: it is fetched
        assert (first.version, first.scores.shape) == (0, (1, 3))
        np.testing.assert_allclose(first.scores, 1 / 3, rtol=1e-6)
        fill(phone)
        live(phone, cloud)
        assert phone.status().models[0].version == 2  # the last one trained on
        assert phone.infer("har-wild", x).version == 2
        assert phone.infer("har-wild", x, max_age_s=60).version == 3
        many = phone.infer("har-wild", np.stack([x, x]))
        expected = SoftmaxProgram(next((tmp_path / "programs").iterdir())).infer(
            load(model_of(cloud).versions[3])["parameters"], np.stack([x, x])
        )
        np.testing.assert_array_equal(many.scores, expected)
        assert many.labels == tuple(CLASSES[i] for i in expected.argmax(1))
        assert len(list((tmp_path / "weights").iterdir())) == 1  # old versions go

        def down(request):
            raise httpx2.ConnectError("down", request=request)

        cloud.faults = [down] * 100
        cloud.clock.wait(1e6)
        assert phone.infer("har-wild", x, max_age_s=1).version == 3
    with open_phone(tmp_path / "new", cloud) as phone, pytest.raises(TryLater):
        phone.infer("har-wild", x)


def test_an_old_version_is_looked_after(tmp_path, clock):
    cloud = FakeCloud(clock, FakeModel("har-wild", rounds=1))
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, 100)
        assert phone.status().models[0].version == 0
        phone.consent("har-wild", granted=False)
        kinds = live(phone, cloud, 7 * 3600, most=10_000)
        assert "refreshed" in kinds
        assert phone.status().models[0].version == 1


def test_inference_of_what_the_cloud_does_not_have(tmp_path, cloud):
    with open_phone(tmp_path, cloud, models=("nobody-knows",)) as phone, pytest.raises(NotFound):
        phone.infer("nobody-knows", np.zeros(SHAPE, np.float32))


def test_erase_leaves_nothing_of_the_user(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "trained":
            pass
        phone.erase()
        assert phone.step().detail == "withdrawn"
        assert phone.status().example_bytes == 0
        assert not phone.status().models[0].consent
        assert not list((tmp_path / "weights").iterdir())
        files = b"".join(path.read_bytes() for path in tmp_path.glob("phone.db*"))
    for x, _, _ in windows(120):
        assert x.tobytes()[:600] not in files
    assert model_of(cloud).outcomes() == ["given-back"]


def test_another_cloud_is_another_identity(tmp_path, cloud, clock):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    other = FakeCloud(clock)
    with open_phone(tmp_path, other, url="http://other.test") as phone:
        assert phone.status().device_id is None
        assert phone.status().models[0].version is None
        live(phone, other)
    assert model_of(other).outcomes() == ["counted"] * 3


def test_live_samples_become_examples(tmp_path, cloud):
    with open_phone(tmp_path, cloud, sensor_models=("har-wild",)) as phone:
        t = START + np.arange(0, 120, 0.05)
        xyz = np.ones((2400, 3))
        made = sum(phone.add_samples(t[i : i + 37], xyz[i : i + 37], "walking") for i in range(0, 2400, 37))
        assert made == 46  # 5 s every 2.5 s; the last one still waits for late samples
        counts = phone.status().models[0].examples
        assert 0 < counts.training + counts.held_out <= made
        assert counts.unlabelled == 0
        t = t + 1000
        phone.add_samples(t, xyz)
        assert phone.status().models[0].examples.unlabelled > 40
        assert phone.label("har-wild", t[0], t[-1], "running") > 40
        assert phone.status().models[0].examples.unlabelled == 0
        batch = phone._examples.batch("har-wild", "training", CLASSES, SHAPE)
        assert sorted(set(batch.y)) == [1, 2]


def test_wrong_use_is_said_clearly(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        with pytest.raises(InvalidInput, match="'har-wald' is not a model of this phone: it has har-wild"):
            phone.consent("har-wald", granted=True)
        with pytest.raises(InvalidInput, match="sensor_models"):
            phone.add_samples([1.0], [[0, 0, 0]])
        with pytest.raises(InvalidInput, match="not finite"):
            phone.add_example("har-wild", np.full(SHAPE, np.nan, np.float32), 1)
        with pytest.raises(InvalidInput, match="float64"):
            phone.add_example("har-wild", np.zeros(SHAPE), 1)
        with pytest.raises(InvalidInput, match="span of time"):
            phone.label("har-wild", 2, 1, "walking")
        with pytest.raises(Conflict, match="open elsewhere"):
            open_phone(tmp_path, cloud)
    for changes in ({"models": ()}, {"sensor_models": ("other",)}, {"url": "cloud.test"}):
        with pytest.raises(InvalidInput):
            open_phone(tmp_path, cloud, **changes)


def test_an_example_of_another_shape_is_refused_once_the_program_is_known(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, 10)
        with pytest.raises(InvalidInput, match=r"x has shape \(4,\), its program takes \(100, 3\)"):
            phone.add_example("har-wild", np.zeros(4, np.float32), 1)


def test_a_clock_that_was_set_back_does_not_silence_the_phone(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, 10)
        phone._database.set_settings({"next_check_in_at": cloud.clock.now() + 3e6})
        assert phone.step().kind == "checked-in"


def test_an_app_uses_the_phone_while_it_takes_part(tmp_path):
    model = FakeModel("har-wild", rounds=10**6)
    cloud = FakeCloud(SystemClock(), model)
    cloud.retry_after_s = 0.0
    stop, outcomes, errors = threading.Event(), [], []
    with open_phone(tmp_path, cloud, sensor_models=("har-wild",)) as phone:
        fill(phone, consent=False)

        def use(number: int) -> None:
            try:
                for i in range(30):
                    start = START + 1e5 * (number + 1) + 10 * i
                    phone.add_samples(start + np.arange(200) / 20, np.ones((200, 3)), "walking")
                    assert phone.infer("har-wild", np.ones(SHAPE, np.float32)).scores.shape == (1, 3)
                    assert phone.status().models[0].consent
            except BaseException as error:
                errors.append(error)

        runner = threading.Thread(target=phone.run, args=(stop, outcomes.append))
        runner.start()
        phone.consent("har-wild", granted=True)  # wakes a phone that sleeps for want of it
        users = [threading.Thread(target=use, args=(number,)) for number in range(2)]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
        while model.version < 5:
            assert runner.is_alive(), outcomes
            time.sleep(0.01)
        stop.set()
        runner.join()
    assert not errors
    assert not {"failed", "refused", "given-back", "late"} & {outcome.kind for outcome in outcomes}


@pytest.mark.parametrize("asked", ["shared", "transforms"])
def test_an_augmentation_that_a_phone_cannot_do_is_never_ignored_silently(tmp_path, cloud, asked):
    digest = "0" * 64
    link = SharedSetLink(url=f"/v1/models/har-wild/augmentation/{digest}", sha256=digest, share=0.5, seed=0)
    message = {
        "shared": AugmentationMessage(shared=link),
        "transforms": AugmentationMessage(transforms=[{"name": "jitter"}, {"name": "of-a-later-release"}]),
    }[asked]
    model_of(cloud).augmentation = message
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        assert [phone.step().detail for _ in range(3)] == ["", "1", "failed"]
    assert model_of(cloud).outcomes() == ["given-back"]
