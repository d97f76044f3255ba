"""What one app may use: models, bytes, check-ins. Beyond it: 429 and `Retry-After`, and no other app feels it."""

from collections.abc import Iterator

import httpx2
import pytest
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, exchange, problem

from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import QuotaExceeded
from flsys_ray.wire.answers import error_of
from flsys_ray.wire.developer_schemas import Quotas

ONE = PAIR | {"pacing": {"cohort": 1, "deadline_s": 60}}


def limited(world: World, name: str = "acme", **quotas: int) -> str:
    """Give an app quotas; return its key."""
    reply = world.http.post("/v1/apps", json={"name": name, "quotas": quotas}, headers=bearer(OPERATOR_KEY))
    assert reply.status_code == 201, reply.text
    return str(reply.json()["key"])


def create(world: World, key: str, model: str) -> httpx2.Response:
    return world.http.put(f"/v1/models/{model}", json={"plan": ONE}, headers=bearer(key))


def check_in(world: World, token: str) -> httpx2.Response:
    body = {"models": [{"model": "tiny", "examples": 5}]}
    return world.http.post("/v1/checkins", json=body, headers=bearer(token))


def exceeded(reply: httpx2.Response, *, retry_after: str) -> str:
    found = problem(reply, 429, "quota-exceeded")
    assert reply.headers["retry-after"] == retry_after
    return str(found["detail"])


# Set -------------------------------------------------------------------------------------------------------------


def test_quotas_are_generous_until_the_operator_sets_them_and_stay(world: World, key):
    def told(body: object) -> dict[str, int]:
        reply = world.http.post("/v1/apps", json=body, headers=bearer(OPERATOR_KEY))
        assert reply.json()["key"] == key
        return dict(reply.json()["quotas"])

    assert told({"name": "acme"}) == Quotas().model_dump()
    mine = {"name": "acme", "quotas": {"models": 3}}
    assert told(mine) == Quotas(models=3).model_dump()
    assert told({"name": "acme"}) == Quotas(models=3).model_dump()
    assert told(mine | {"quotas": {"stored_bytes": 7}}) == Quotas(stored_bytes=7).model_dump()


def test_a_record_of_before_there_were_quotas_has_the_defaults(world: World):
    world.store.put_new("apps/old.json", b'{"app_id": "old"}')
    key = world.app("old")
    assert create(world, key, "steps").status_code == 201
    key = limited(world, "old", models=1)
    exceeded(create(world, key, "more"), retry_after="3600")


@pytest.mark.parametrize(
    "quotas", [{"models": -1}, {"checkins_per_min": 0}, {"stored_bytes": 1.5}, {"modles": 1}, 5, []], ids=str
)
def test_quotas_that_make_no_sense(world: World, quotas):
    reply = world.http.post("/v1/apps", json={"name": "acme", "quotas": quotas}, headers=bearer(OPERATOR_KEY))
    problem(reply, 422, "invalid-input")


def test_an_app_does_not_set_its_own(world: World, key):
    reply = world.http.post("/v1/apps", json={"name": "acme", "quotas": {"models": 9}}, headers=bearer(key))
    problem(reply, 401, "unauthenticated")


# Models ----------------------------------------------------------------------------------------------------------


def test_one_model_too_many(world: World):
    key, other = limited(world, models=2), limited(world, "other", models=1)
    assert [create(world, key, name).status_code for name in ("a", "b")] == [201, 201]
    assert "2 models" in exceeded(create(world, key, "c"), retry_after="3600")
    assert create(world, key, "a").status_code == 200  # a new plan for one that is there
    assert create(world, other, "c").status_code == 201  # the refusal has not taken the name
    assert world.act(key, "archive", "b").status_code == 200
    assert create(world, key, "d").status_code == 201


def test_a_model_that_was_half_created_can_be_finished(world: World):
    key = limited(world, models=1)
    world.store.put_new("catalog/acme/half.json", b"")
    assert create(world, key, "half").status_code == 201


# Bytes -----------------------------------------------------------------------------------------------------------


def test_a_program_that_does_not_fit(world: World):
    size = len(world.program)
    key = limited(world, stored_bytes=2 * size - 1)
    for name in ("a", "b"):
        world.draft(key, name)
    for _ in range(2):
        assert world.put_program(key, "a").status_code == 200
    assert str(size) in exceeded(world.put_program(key, "b"), retry_after="3600")
    assert world.info(key, "b")["program_sha256"] is None
    limited(world, stored_bytes=2 * size)
    assert world.put_program(key, "b").status_code == 200


def test_updates_fill_an_app_up_and_what_was_given_out_is_still_taken(world: World):
    key = limited(world, stored_bytes=len(world.program) + 1)
    world.training(key, plan=PAIR)
    first, second = world.device(key, "one"), world.device(key, "two")
    for token, work in [(token, world.work(token)) for token in (first, second)]:
        assert world.upload(token, work).status_code == 200
    assert world.info(key)["version"] == 1
    world.clock.advance(11)  # what a replica knows of an app is ten seconds old at most
    exceeded(check_in(world, first), retry_after="3600")
    limited(world, stored_bytes=10**9)
    assert check_in(world, first).status_code == 200


# Check-ins -------------------------------------------------------------------------------------------------------


def test_check_ins_beyond_the_quota_come_back_later(world: World):
    key, other = limited(world, checkins_per_min=3), world.app("other")
    world.training(key)
    one, two, foreign = world.device(key, "one"), world.device(key, "two"), world.device(other, "three")
    assert [check_in(world, token).status_code for token in (one, two, one)] == [200] * 3
    assert "3 times a minute" in exceeded(check_in(world, two), retry_after="30")
    assert check_in(world, foreign).status_code == 200
    world.clock.advance(20)  # a third of a minute: one more
    assert check_in(world, two).status_code == 200
    exceeded(check_in(world, one), retry_after="30")
    limited(world, checkins_per_min=60)
    world.clock.advance(2)
    assert [check_in(world, one).status_code for _ in range(2)] == [200, 200]
    world.clock.advance(3600)  # no more than a minute's are saved up
    assert [check_in(world, one).status_code for _ in range(61)] == [200] * 60 + [429]


# Uploads ---------------------------------------------------------------------------------------------------------


def test_uploads_beyond_the_quota_come_back_later_and_count_then(world: World):
    """A fifth of an update a second: one that overdraws the share is taken, the next one waits, and none is lost."""
    size = len(world.body())
    key, other = limited(world, upload_bytes_per_min=12 * size), world.app("other")
    world.training(key, plan=PAIR | {"pacing": {"cohort": 20, "quorum": 1, "deadline_s": 600}})
    world.training(other)
    tokens = [world.device(key, f"d-{number}") for number in range(14)]
    works = [world.work(token) for token in tokens]
    for token, work in list(zip(tokens, works, strict=True))[:12]:
        assert world.upload(token, work).status_code == 200
    waits = (tokens[12], works[12])
    assert f"{12 * size} bytes a minute" in exceeded(world.upload(*waits), retry_after="1")
    exceeded(check_in(world, world.device(key, "late")), retry_after="1")
    stranger = world.device(other, "three")
    assert world.upload(stranger, world.work(stranger)).status_code == 200
    assert world.info(key)["open_round"]["counters"]["counted"] == 12

    world.clock.advance(1)
    assert world.upload(*waits).json() == {"status": "counted", "duplicate": False}
    exceeded(world.upload(*waits), retry_after="5")  # four fifths of an update and a byte: a little more than 4 s
    world.clock.advance(4.1)
    assert world.upload(tokens[13], works[13]).status_code == 200
    assert world.info(key)["open_round"]["counters"]["counted"] == 14


def test_repeats_and_unusable_updates_use_the_share_up_too(world: World):
    size = len(world.body())
    key = limited(world, upload_bytes_per_min=3 * size)
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    assert world.upload(token, work, b"x" * size).status_code == 422
    assert [world.upload(token, work).status_code for _ in range(3)] == [200, 200, 429]
    limited(world, upload_bytes_per_min=100 * size)
    world.clock.advance(1)
    assert world.upload(token, work).json()["duplicate"]


def test_a_refused_upload_is_not_read(world: World):
    key = limited(world, upload_bytes_per_min=1)
    world.training(key)
    one, two = world.device(key, "one"), world.device(key, "two")
    first, second = world.work(one), world.work(two)
    assert world.upload(one, first).status_code == 200

    def body() -> Iterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    status, _ = exchange(world, "PUT", second["upload"]["url"], bearer(two, second["token"]), body())
    assert status == 429


# Clients ---------------------------------------------------------------------------------------------------------


def test_the_clients_know_the_error(world: World):
    key = limited(world, models=0)
    refused = create(world, key, "a")
    error = error_of(httpx2.Response(429, headers=dict(refused.headers), content=refused.content))
    assert isinstance(error, QuotaExceeded)
    assert error.retry_after_s == 3600.0
    with DeveloperClient("http://cloud.test", OPERATOR_KEY) as operator:
        operator._http = world.http
        world.http.headers.update(bearer(OPERATOR_KEY))
        assert operator.create_app("acme", Quotas(models=4)).quotas.models == 4
        assert operator.create_app("acme").quotas.models == 4
