"""Controls on the phone (SCAFFOLD): they correct training, and one's own changes when its update is counted, once."""

from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import PARAMETERS, START, FakeCloud, FakeModel, fill, live, open_phone, problem, sha
from device_kills import lines_of_a_life, lives_after_kills, places_in
from device_looks import bodies, manifest_of
from safetensors.numpy import load

from flsys_ray.core.layout import Vector
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.controls import ControlPair, Controls, decode_controls
from flsys_ray.device.database import Database
from flsys_ray.device.journal import Journal
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.tensors import encode_vector

MOST_KILLS = 60


def controlled(rounds: int = 3, cohort: int = 1) -> FakeModel:
    zeros = encode_vector("control", np.zeros(PARAMETERS, np.float32))
    return FakeModel("har-wild", rounds=rounds, cohort=cohort, controls=[zeros])


def controlled_cloud(clock: VirtualClock | None = None, **about: int) -> FakeCloud:
    return FakeCloud(clock or VirtualClock(START + 10_000), controlled(**about))


def own_control(folder: Path) -> Vector | None:
    database = Database(folder / "phone.db")
    try:
        found = Journal(database).control("har-wild")
    finally:
        database.close()
    return load(found)["control"] if found else None


def check_once(cloud: FakeCloud, folder: Path, where: str = "") -> None:
    """What the phone has is the sum of the changes that were counted: none twice, none lost."""
    own = own_control(folder)
    expected = np.sum(cloud.models["har-wild"].counted_controls(), axis=0)
    assert own is not None, where
    assert np.abs(own - expected).max() <= 1e-5 * np.abs(expected).max(), where


def test_each_counted_update_moves_the_phones_control(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    model = cloud.models["har-wild"]
    assert model.outcomes() == ["counted"] * 3
    assert len(cloud.calls(r"GET /v1/models/har-wild/control/.*")) == 3
    assert all(np.abs(change).max() > 0 for change in model.counted_controls())
    check_once(cloud, tmp_path)
    kept = {path.name for path in (tmp_path / "weights").iterdir()}
    assert len(kept & {sha(control) for control in model.controls}) <= 1  # what no open work needs is deleted


def test_a_model_without_controls_uploads_a_delta_alone_and_keeps_no_control(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert {tuple(load(body)) for body in bodies(cloud)} == {("delta",)}
    assert own_control(tmp_path) is None


def lost(request: httpx2.Request, cloud: FakeCloud) -> httpx2.Response:
    """The cloud counts the upload, and its answer is lost on the way."""
    cloud._route(request)
    raise httpx2.ReadError("lost", request=request)


def test_an_upload_whose_answer_is_lost_is_counted_when_it_is_repeated_after_its_deadline(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock, rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        for kind in ("enrolled", "checked-in", "downloaded", "trained", "evaluated"):
            assert phone.step().kind == kind
        cloud.faults = [lambda request: lost(request, cloud)] + [lambda request: problem(503, "try-later", "down")] * 3
        assert phone.step().kind == "failed"
        assert cloud.models["har-wild"].outcomes() == ["counted"]
        cloud.clock.wait(700.0)  # the deadline has passed
        assert phone.step().kind == "uploaded"
    check_once(cloud, tmp_path)


def test_an_update_that_comes_too_late_changes_no_control(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock, rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        kinds = [phone.step().kind for _ in range(5)]
        cloud.clock.wait(700.0)
        assert (kinds[-1], phone.step().kind) == ("evaluated", "late")
    assert own_control(tmp_path) is None


def test_an_update_that_is_refused_changes_no_control(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock, rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        for _ in range(5):
            phone.step()
        cloud.faults = [lambda request: problem(422, "update-unusable", "no")]
        assert phone.step().kind == "refused"
    assert own_control(tmp_path) is None


def test_after_days_without_an_answer_finished_work_is_given_back(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock, rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        for _ in range(5):
            phone.step()
        cloud.clock.wait(3 * 86_400.0)
        cloud.token_life_s = 1e9
        assert "given-back" in live(phone, cloud, most=5)


def test_a_pause_learns_that_the_upload_had_been_counted(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock, rounds=1)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        for _ in range(5):
            phone.step()
        cloud.faults = [lambda request: lost(request, cloud)] + [lambda request: problem(503, "try-later", "down")] * 3
        assert phone.step().kind == "failed"
        phone.pause()
        assert phone.step().kind == "given-back"  # answered 409: it is counted
    check_once(cloud, tmp_path)


def test_a_withdrawal_deletes_the_phones_control(tmp_path, cloud):
    cloud = controlled_cloud(cloud.clock)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, most=9)
        assert own_control(tmp_path) is not None
        phone.consent("har-wild", granted=False)
        live(phone, cloud, most=5)
    assert own_control(tmp_path) is None


def test_a_database_of_the_format_before_gets_room_for_controls(tmp_path):
    database = Database(tmp_path / "phone.db")
    since = [(f"DROP TABLE {own}s", f"ALTER TABLE assignments DROP COLUMN {own}") for own in ("residual", "control")]
    for statement in (*since[0], *since[1], "PRAGMA user_version = 2"):
        database.write(statement)
    database.close()
    assert own_control(tmp_path) is None


# Kills -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("controls") / "filled"
    with open_phone(folder, controlled_cloud()) as phone:
        fill(phone, count=60)
    return folder


def test_killed_at_any_line_no_change_is_lost_and_none_counts_twice(filled, tmp_path):
    folder, cloud = tmp_path / "phone", controlled_cloud(rounds=2)
    lines = lines_of_a_life(filled, folder, cloud)
    check_once(cloud, folder)
    about = places_in(lines, "delivery.py", "journal.py", "controls.py")
    chosen = sorted({about[i] for i in np.linspace(0, len(about) - 1, MOST_KILLS).astype(int)})
    assert len(chosen) > MOST_KILLS // 2
    for cloud, where in lives_after_kills(filled, folder, lines, chosen, lambda: controlled_cloud(rounds=2)):
        assert cloud.models["har-wild"].outcomes() == ["counted", "counted"], where
        check_once(cloud, folder, where)


# Arithmetic --------------------------------------------------------------------------------------------------------


def pair(own: bytes | None) -> ControlPair:
    return decode_controls(Controls(encode_vector("control", np.array([1, 2, 9], np.float32)), own), manifest_of(2))


def test_a_correction_is_the_difference_of_controls_and_spares_what_is_not_trained():
    own = encode_vector("control", np.array([0.5, 3, 7], np.float32))
    assert pair(own).correction.tolist() == [0.5, -1.0, 0.0]
    assert pair(None).correction.tolist() == [1.0, 2.0, 0.0]


def test_a_phones_control_becomes_the_mean_gradient_that_it_saw():
    """y = x - lr sum(g - c_i + c) over K steps, so that c_i+ = c_i - c + (x - y) / (K lr) is the mean of g."""
    both, gradients, rate = pair(None), np.array([[4.0, 0, 0], [6, -1, 0]], np.float32), 0.25
    delta = -rate * (gradients + both.correction).sum(axis=0)
    change = both.change(delta.astype(np.float32), 2, rate)
    assert change.tolist() == [5.0, -0.5, 0.0]
    assert both.after(change).tolist() == [5.0, -0.5, 0.0]


def test_a_control_of_another_program_counts_as_none():
    assert pair(encode_vector("control", np.ones(7, np.float32))).own.tolist() == [0, 0, 0]
    with pytest.raises(UpdateUnusable):
        decode_controls(Controls(encode_vector("control", np.ones(7, np.float32)), None), manifest_of(2))


def test_nothing_is_estimated_from_no_step_or_from_infinity():
    with pytest.raises(UpdateUnusable, match="no step"):
        pair(None).change(np.zeros(3, np.float32), 0, 0.1)
    with pytest.raises(UpdateUnusable, match="not finite"):
        pair(None).change(np.array([np.inf, 0, 0], np.float32), 1, 0.1)
