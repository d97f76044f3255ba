"""The shared set on the phone: fetched once, mixed into training alone, and gone with consent, erasure or its plan."""

from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import PARAMETERS, SHAPE, START, FakeCloud, FakeModel, SoftmaxProgram, fill, live, open_phone
from device_fakes import sha as sha256
from device_kills import lines_of_a_life, lives_after_kills, places_in
from device_looks import bodies, broken_off, own_examples
from safetensors import safe_open
from safetensors.numpy import load

from flsys_ray.augmentation.base import augmented
from flsys_ray.augmentation.jitter import Jitter
from flsys_ray.augmentation.shared import portion_of
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.participation import Habits
from flsys_ray.wire.schemas import AugmentationMessage, SharedSetLink
from flsys_ray.wire.shared_sets import SharedSet, encode_shared_set

SHARE, SEED = 0.5, 9
JITTER = Jitter(share=0.5)


def examples(seed: int, per_class: int = 8) -> SharedSet:
    y = np.repeat(np.arange(3, dtype=np.int32), per_class)
    return SharedSet(np.random.default_rng(seed).normal(y[:, None, None], 0.3, (len(y), *SHAPE)).astype(np.float32), y)


WHOLE = examples(1)
BODY = encode_shared_set(WHOLE)


def asked(body: bytes = BODY, share: float = SHARE, **more: object) -> AugmentationMessage:
    digest = sha256(body)
    url = f"/v1/models/har-wild/augmentation/{digest}"
    return AugmentationMessage(shared=SharedSetLink(url=url, sha256=digest, share=share, seed=SEED), **more)


def sharing(message: AugmentationMessage | None = None, rounds: int = 3) -> FakeCloud:
    model = FakeModel("har-wild", rounds=rounds, augmentation=message or asked(), sets=[BODY])
    return FakeCloud(VirtualClock(START + 10_000), model)


def downloads(cloud: FakeCloud) -> list[httpx2.Request]:
    return cloud.calls(r"GET /v1/models/har-wild/augmentation/.*")


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "weights").iterdir()}


def test_a_phone_trains_on_its_own_examples_and_its_portion_and_tells_of_its_own(tmp_path):
    cloud = sharing(asked(transforms=[JITTER.model_dump(mode="json")]), rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
        device_id = phone.status().device_id
        program = SoftmaxProgram(next((tmp_path / "programs").iterdir()))
    key, entry = next(iter(cloud.models["har-wild"].assignments.items()))
    x, y, x_held, y_held = own_examples()
    rows = portion_of(len(WHOLE.y), SHARE, seed=SEED, device_id=device_id)
    assert len(rows) == 12
    x_all, y_all = np.concatenate([x, WHOLE.x[rows]]), np.concatenate([y, WHOLE.y[rows]])
    base = load(cloud.models["har-wild"].versions[0])["parameters"]
    expected = program.train(
        base, x_all, y_all, epochs=2, learning_rate=0.01, rng=generator(0, "local-training", 0, key),
        augment=lambda x, epoch: augmented([JITTER], x, assignment_id=key, epoch=epoch),
    )  # fmt: skip
    np.testing.assert_array_equal(load(entry.bodies[0])["delta"], expected.parameters - base)
    (tmp_path / "update").write_bytes(entry.bodies[0])
    with safe_open(tmp_path / "update", "np") as update:
        assert update.metadata()["num_examples"] == str(len(y))
        assert update.metadata()["num_steps"] == str(2 * (len(y_all) // 8))
    found = program.evaluate(base, x_held, y_held)
    assert (entry.metrics.count, entry.metrics.correct) == (found.examples, found.correct)


def test_label_counts_are_those_of_the_phones_own_examples(tmp_path, monkeypatch):
    cloud = sharing(rounds=1)
    offer = cloud._offer
    monkeypatch.setattr(cloud, "_offer", lambda *about: offer(*about).model_copy(update={"label_counts": True}))
    with open_phone(tmp_path, cloud, habits=Habits(label_counts=True)) as phone:
        fill(phone)
        live(phone, cloud, most=6)
    (tmp_path / "update").write_bytes(bodies(cloud)[0])
    with safe_open(tmp_path / "update", "np") as update:
        assert update.metadata()["labels"] == ",".join(map(str, np.bincount(own_examples()[1], minlength=3)))


def test_the_set_is_fetched_once_for_all_rounds_and_stays(tmp_path):
    cloud = sharing()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 3
    assert len(downloads(cloud)) == 1
    assert sha256(BODY) in kept(tmp_path)


def test_another_set_takes_its_place_and_a_plan_without_one_deletes_it(tmp_path):
    cloud = sharing(rounds=1)
    model, other = cloud.models["har-wild"], encode_shared_set(examples(2))
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
        model.sets.append(other)
        model.augmentation, model.rounds = asked(other), 2
        live(phone, cloud)
        assert sha256(other) in kept(tmp_path)
        assert sha256(BODY) not in kept(tmp_path)
        model.augmentation, model.rounds = None, 3
        live(phone, cloud)
        assert sha256(other) not in kept(tmp_path)
    assert model.outcomes() == ["counted"] * 3


@pytest.mark.parametrize("end", ["withdrawal", "erasure"])
def test_a_withdrawal_and_an_erasure_delete_it(tmp_path, end):
    cloud = sharing()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, most=9)
        assert sha256(BODY) in kept(tmp_path)
        if end == "erasure":
            phone.erase()
        else:
            phone.consent("har-wild", granted=False)
        assert sha256(BODY) not in kept(tmp_path)


def test_a_download_that_breaks_off_is_continued_where_it_stopped(tmp_path):
    cloud = sharing(rounds=1)

    def broken(request: httpx2.Request) -> httpx2.Response | None:
        return broken_off(cloud, request, 1000) if "/augmentation/" in request.url.path else None

    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        cloud.faults = [lambda request: None] * 4 + [broken]
        live(phone, cloud)
    assert [request.headers.get("Range") for request in downloads(cloud)] == [None, "bytes=1000-"]
    assert cloud.models["har-wild"].outcomes() == ["counted"]


def test_another_file_than_the_one_announced_is_never_trained_on(tmp_path):
    cloud = sharing(rounds=1)
    cloud.models["har-wild"].sets = []
    other = encode_shared_set(examples(3))
    route = cloud._route
    cloud._route = lambda request: (
        cloud._file(request, other, {}) if "/augmentation/" in request.url.path else route(request)
    )
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        assert [phone.step().detail for _ in range(3)] == ["", "1", "failed"]
    assert cloud.models["har-wild"].outcomes() == ["given-back"]


def test_a_set_that_does_not_fit_the_program_ends_the_assignment_and_says_why(tmp_path):
    odd = encode_shared_set(SharedSet(WHOLE.x[:, :50], WHOLE.y))
    cloud = sharing(asked(odd), rounds=1)
    cloud.models["har-wild"].sets = [odd]
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        detail = [phone.step().detail for _ in range(4)][-1]
    assert detail.startswith("failed: DataInvalid: shared set: 'x' has shape [24, 50, 3]")
    assert cloud.models["har-wild"].outcomes() == ["given-back"]


def test_personal_parameters_are_of_the_phones_own_examples_alone(tmp_path):
    """With the set and without it the same version is personalised to the same bits."""
    found, updates = [], []
    for name, message in (("with", asked()), ("without", None)):
        cloud = sharing(rounds=1)
        cloud.models["har-wild"].augmentation, cloud.models["har-wild"].cohort = message, 2
        with open_phone(tmp_path / name, cloud) as phone:
            fill(phone)
            live(phone, cloud)
            assert phone.personalise("har-wild").personal
            found.append(phone._database.row("SELECT version, parameters FROM personal"))
        updates.append(bodies(cloud)[0])
    assert found[0] == found[1]
    assert updates[0] != updates[1]


def test_killed_at_any_line_the_same_update_is_sent_and_the_set_fetched_at_most_twice(tmp_path):
    filled, folder, cloud = tmp_path / "filled", tmp_path / "phone", sharing(rounds=1)
    with open_phone(filled, cloud) as phone:
        fill(phone, count=60)
    cloud = sharing(rounds=1)
    lines = lines_of_a_life(filled, folder, cloud)
    expected = bodies(cloud)
    assert load(expected[0])["delta"].size == PARAMETERS
    about = places_in(lines, "mixing.py", "versions.py", "download.py")
    assert len(about) > 40
    numbers = about[:: len(about) // 20]
    for cloud, where in lives_after_kills(filled, folder, lines, numbers, lambda: sharing(rounds=1)):
        assert bodies(cloud) == expected, where
        assert len(downloads(cloud)) <= 2, where
        assert sha256(BODY) in kept(folder), where
