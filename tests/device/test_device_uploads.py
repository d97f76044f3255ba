"""Compression on the phone: it does what it knows, and what an update left out is in the next one, once."""

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import PARAMETERS, START, FakeCloud, FakeModel, fill, live, open_phone, problem
from device_kills import lines_of_a_life, lives_after_kills, places_in
from device_looks import manifest_of
from safetensors.numpy import load

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.layout import Vector
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.database import Database
from flsys_ray.device.journal import Journal
from flsys_ray.device.uploads import Told, chosen_encoding, compressed
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.schemas import AssignmentMessage, ProgramLink, UploadLink, WeightsLink
from flsys_ray.wire.tensors import decode_range, encode_vector, encoding_of

MOST_KILLS = 60
TOP = TopK(fraction=0.02)


def compressing(encoding: Encoding, rounds: int = 3, clock: VirtualClock | None = None) -> FakeCloud:
    model = FakeModel("har-wild", rounds=rounds, compression=encoding)
    return FakeCloud(clock or VirtualClock(START + 10_000), model)


def residual(folder: Path) -> Vector | None:
    database = Database(folder / "phone.db")
    try:
        found = Journal(database).residual("har-wild")
    finally:
        database.close()
    return load(found)["residual"] if found else None


def bodies(cloud: FakeCloud) -> list[bytes]:
    return [entry.bodies[0] for entry in cloud.models["har-wild"].assignments.values() if entry.state == "counted"]


def whole_delta(cloud: FakeCloud, folder: Path, number: int) -> Vector:
    """Return what a phone with the same examples learns from a version, nothing left out."""
    model = FakeModel("har-wild", rounds=number + 1, versions=cloud.models["har-wild"].versions[: number + 1])
    model.round = number
    plain = FakeCloud(VirtualClock(START + 10_000), model)
    with open_phone(folder, plain) as phone:
        fill(phone)
        live(phone, plain)
    return decode_range(bodies(plain)[0], 0, PARAMETERS)


@pytest.mark.parametrize("encoding", [FLOAT32, Float16(), Int8(), Int8(block=64), TOP], ids=str)
def test_a_phone_sends_what_the_assignment_asks_for(tmp_path, encoding):
    cloud = compressing(encoding)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 3
    assert [encoding_of(body) for body in bodies(cloud)] == [encoding] * 3
    form = sum(part.num_bytes for part in encoding.form(PARAMETERS).values())
    assert all(form < len(body) < form + 600 for body in bodies(cloud))
    assert (residual(tmp_path) is not None) == encoding.keeps_error


def test_what_top_k_left_out_is_added_to_the_next_delta(tmp_path):
    cloud = compressing(TOP, rounds=2)
    with open_phone(tmp_path / "phone", cloud) as phone:
        fill(phone)
        live(phone, cloud)
    sent = [decode_range(body, 0, PARAMETERS) for body in bodies(cloud)]
    learnt = [whole_delta(cloud, tmp_path / f"plain-{number}", number) for number in range(2)]
    assert np.count_nonzero(sent[0]) == TOP.kept(PARAMETERS)
    left = residual(tmp_path / "phone")
    np.testing.assert_allclose(sum(sent) + left, sum(learnt), atol=1e-6)
    # The second one is the largest values of both: of what was learnt and what had been left out.
    memory = learnt[0] - sent[0]
    expected = TOP.encode(learnt[1] + memory, np.random.default_rng(0))
    np.testing.assert_array_equal(np.flatnonzero(sent[1]), expected["indices"])


def test_no_work_is_begun_with_a_residual_that_an_unanswered_upload_is_about_to_change(tmp_path):
    """The cloud counts the first upload, its answer is lost, and the next round is open: the phone asks again first."""
    cloud = compressing(TOP, rounds=2)

    def lost(request: httpx2.Request) -> httpx2.Response:
        cloud._route(request)
        raise httpx2.ReadError("lost", request=request)

    def down(request: httpx2.Request) -> httpx2.Response:
        return problem(503, "try-later", "down")

    with open_phone(tmp_path / "phone", cloud) as phone:
        fill(phone)
        while phone.step().kind != "evaluated":
            pass
        seen = len(cloud.recorded)
        cloud.faults = [lost, down, down, down]
        live(phone, cloud, seconds=3600.0)
    paths = [request.url.path for request in cloud.recorded[seen:]]
    answered = [number for number, path in enumerate(paths) if path.endswith("/update")][4]
    assert "/v1/checkins" not in paths[:answered]
    sent = [decode_range(body, 0, PARAMETERS) for body in bodies(cloud)]
    learnt = [whole_delta(cloud, tmp_path / f"plain-{number}", number) for number in range(2)]
    np.testing.assert_allclose(sum(sent) + residual(tmp_path / "phone"), sum(learnt), atol=1e-6)


def test_an_update_that_is_late_or_refused_leaves_the_residual_as_it_was(tmp_path):
    for name, ending in (("late", 700.0), ("refused", 0.0)):
        cloud = compressing(TOP, rounds=1)
        with open_phone(tmp_path / name, cloud) as phone:
            fill(phone)
            for _ in range(5):
                phone.step()
            cloud.clock.wait(ending)
            cloud.faults = [lambda request: problem(422, "update-unusable", "no")] if name == "refused" else []
            assert phone.step().kind == name
        assert residual(tmp_path / name) is None


def test_a_withdrawal_and_an_erasure_delete_the_residual(tmp_path):
    for name in ("withdrawal", "erasure"):
        cloud = compressing(TOP)
        with open_phone(tmp_path / name, cloud) as phone:
            fill(phone)
            live(phone, cloud, most=9)
            assert residual(tmp_path / name) is not None
            if name == "erasure":
                phone.erase()
            else:
                phone.consent("har-wild", granted=False)
        assert residual(tmp_path / name) is None


def test_a_database_of_the_format_before_gets_room_for_residuals(tmp_path):
    database = Database(tmp_path / "phone.db")
    since = ("DROP TABLE residuals", "ALTER TABLE assignments DROP COLUMN residual", "PRAGMA user_version = 3")
    for statement in since:
        database.write(statement)
    database.close()
    assert residual(tmp_path) is None


# What is asked for -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encodings", "compression", "expected"),
    [
        (["float32"], None, FLOAT32),
        (["int8", "float32"], {"name": "int8", "block": 64}, Int8(block=64)),
        (["zip", "float32"], {"name": "zip", "level": 9}, FLOAT32),
        (["int8", "float32"], {"name": "int8", "block": 64, "of-a-later-release": True}, FLOAT32),
        (["float32"], {"name": "int8"}, FLOAT32),
        (["float32"], {}, FLOAT32),
    ],
)
def test_what_a_phone_does_not_know_it_sends_in_float32(encodings, compression, expected):
    upload = UploadLink(url="/", encodings=encodings, compression=compression, max_bytes=1)
    assert chosen_encoding(upload) == expected


def message(encoding: Encoding) -> AssignmentMessage:
    return AssignmentMessage(
        assignment_id="a1", token="t", model="m", round=1, version=1, local={}, deadline_s=1,
        program=ProgramLink(url="/p", sha256="0" * 64), weights=WeightsLink(url="/w", sha256="0" * 64),
        upload=UploadLink(url="/u", encodings=[encoding.name], compression=json.loads(encoding.model_dump_json()),
                          max_bytes=1),
    )  # fmt: skip


def test_the_residual_of_what_is_not_trained_is_zero():
    delta = np.array([4, 1, 0, 3], np.float32)
    found = compressed(delta, Told(1, 0.5, 1), message(TopK(fraction=0.25)), manifest_of(3), None)
    assert decode_range(found.body, 0, 4).tolist() == [4, 0, 0, 0]
    assert load(found.residual)["residual"].tolist() == [0, 1, 0, 0]


def test_a_residual_of_another_program_counts_as_none():
    delta = np.array([4, 1, 0, 3], np.float32)
    other = encode_vector("residual", np.full(7, 100, np.float32))
    found = compressed(delta, Told(1, 0.5, 1), message(TopK(fraction=0.25)), manifest_of(3), other)
    assert decode_range(found.body, 0, 4).tolist() == [4, 0, 0, 0]


def test_a_residual_that_has_grown_beyond_all_bounds_is_told():
    largest = np.full(4, np.finfo(np.float32).max)
    with pytest.raises(UpdateUnusable, match="not finite"), np.errstate(over="ignore"):
        compressed(largest, Told(1, 0.5, 1), message(TOP), manifest_of(3), encode_vector("residual", largest))


# Kills -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def filled(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uploads") / "filled"
    with open_phone(folder, compressing(TOP)) as phone:
        fill(phone, count=60)
    return folder


def test_killed_at_any_line_the_same_bytes_are_sent_and_the_same_is_kept(filled, tmp_path):
    """So nothing that was left out is lost, and nothing counts twice: all is as in a life without a kill."""
    folder, cloud = tmp_path / "phone", compressing(TOP, rounds=2)
    lines = lines_of_a_life(filled, folder, cloud)
    expected, kept = bodies(cloud), residual(folder)
    assert kept is not None
    about = places_in(lines, "delivery.py", "journal.py", "uploads.py")
    chosen = sorted({about[i] for i in np.linspace(0, len(about) - 1, MOST_KILLS).astype(int)})
    assert len(chosen) > MOST_KILLS // 2
    for cloud, where in lives_after_kills(filled, folder, lines, chosen, lambda: compressing(TOP, rounds=2)):
        assert bodies(cloud) == expected, where
        np.testing.assert_array_equal(residual(folder), kept, err_msg=where)
