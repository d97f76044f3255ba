"""Every error becomes its problem document; what is ours alone to know becomes an opaque one."""

import inspect
import logging

import httpx2
import pytest
from cloud_fakes import FaultyStore
from cloud_world import PAIR, World, bearer, open_world, problem
from fastapi.testclient import TestClient
from tiny_program import PARAMETERS, tiny_program

from flsys_ray import errors
from flsys_ray.errors import (
    FlsysError,
    OwnershipLost,
    PlanInvalid,
    StoreFull,
    StoreRefusal,
    StoreUnavailable,
    TryLater,
    all_errors,
)
from flsys_ray.http.app import create_app
from flsys_ray.storage.memory import MemoryStore

OURS_ALONE = [FlsysError, *(kind for kind in all_errors() if issubclass(kind, StoreRefusal))]
PUBLIC = [kind for kind in all_errors() if kind not in OURS_ALONE and kind.__module__ == errors.__name__]
SECRET = "where /home/operator/flsys lies"


def answer_to(error: Exception):
    """Return what an app answers whose endpoint raises this."""
    app = create_app()

    @app.get("/raises")
    async def raises() -> None:
        raise error

    with TestClient(app, raise_server_exceptions=False) as http:
        return http.get("/raises")


def made(kind: type[FlsysError]) -> FlsysError:
    """Return an error with a value for every parameter of its class."""
    samples = {"fields": ("a.b", "c"), "retry_after_s": 7.2}
    names = [name for name in inspect.signature(kind.__init__).parameters if name in samples]
    return kind("what happened", *(samples[name] for name in names))


@pytest.mark.parametrize("kind", PUBLIC, ids=lambda kind: kind.__name__)
def test_every_error_that_may_leave_the_cloud_becomes_its_problem(kind):
    reply = answer_to(made(kind))
    found = problem(reply, kind.status, kind.code)
    assert (found["title"], found["detail"], found["instance"]) == (kind.title, "what happened", "/raises")
    assert found.get("fields") == (["a.b", "c"] if kind is PlanInvalid else None)
    assert (reply.headers.get("retry-after"), found.get("retry_after_s")) == (
        ("8", 7.2) if issubclass(kind, TryLater) else (None, None)
    )
    assert reply.headers.get("www-authenticate") == ("Bearer" if kind.status == 401 else None)


@pytest.mark.parametrize(
    "error",
    [*(kind(SECRET) for kind in OURS_ALONE), RuntimeError(SECRET), KeyError(SECRET), AssertionError(SECRET)],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_opaque_to_the_caller_and_whole_in_the_log(error, caplog):
    reply = answer_to(error)
    found = problem(reply, 500, "internal")
    assert SECRET not in reply.text + str(reply.headers)
    assert found["detail"] == "The request could not be served. The operator's log says why."
    (record,) = [record for record in caplog.records if record.name == "flsys_ray.http"]
    assert (record.levelno, record.exc_info[1]) == (logging.ERROR, error)
    assert "GET /raises" in record.getMessage()


def test_every_status_of_the_table_is_a_problem_of_the_documented_range():
    assert {kind.status for kind in PUBLIC} == {401, 403, 404, 409, 410, 413, 416, 422, 429, 503, 507}


# A store that fails behind the whole cloud ---------------------------------------------------------------------------


@pytest.fixture
def faulty():
    """A world whose store can be broken."""
    store = FaultyStore(MemoryStore())
    for world in open_world(tiny_program().data, PARAMETERS, store):
        yield world, store


def broken(error: Exception, verbs: tuple[str, ...] = ("put_new", "swap")):
    def strike(verb: str, key: str) -> None:
        if verb in verbs:
            raise error

    return strike


def healthy(verb: str, key: str) -> None:
    """Let a call pass."""


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (StoreFull("store: no space left"), 507, "store-full"),
        (StoreUnavailable("store: does not answer", 3.0), 503, "store-unavailable"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_full_or_silent_disk_is_told_with_a_retry_and_loses_nothing(
    faulty: tuple[World, FaultyStore], error, status, code, when
):
    world, store = faulty
    key = world.app()
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    setattr(store, when, broken(error))
    calls = [
        lambda: world.upload(token, work),
        lambda: world.evaluate(token, work),
        lambda: world.http.put("/v1/models/new", json={}, headers=bearer(key)),
        lambda: world.act(key, "pause"),
    ]
    for call in calls:
        reply = call()
        problem(reply, status, code)
        assert int(reply.headers["retry-after"]) >= 1
    setattr(store, when, healthy)
    assert world.upload(token, work).json()["status"] == "counted"
    assert world.evaluate(token, work).json()["status"] == "counted"
    if when == "before":
        assert world.info(key)["state"] == "training"
    world.act(key, "start")
    world.commit(key, "two")
    assert len(world.manifest(key, 1)["updates"]) == 2
    assert world.rounds(key)[0]["evaluation"]["devices"] == 1


def test_reading_goes_on_while_writing_does_not(faulty: tuple[World, FaultyStore]):
    world, store = faulty
    key = world.app()
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    store.before = broken(StoreFull("store: no space left"))
    assert world.http.get(work["weights"]["url"], headers=bearer(token)).status_code == 200
    assert world.info(key)["version"] == 0
    assert world.work(token)["assignment_id"] == work["assignment_id"]
    assert world.http.get("/readyz").status_code == 200


def test_not_ready_without_the_store_but_alive(faulty: tuple[World, FaultyStore]):
    world, store = faulty
    store.before = broken(StoreUnavailable("store: does not answer"), ("get", "list", "put_new"))
    problem(world.http.get("/readyz"), 503, "store-unavailable")
    assert world.http.get("/healthz").status_code == 200


def test_a_model_that_moved_is_told_once_and_then_answers(faulty: tuple[World, FaultyStore]):
    """Another cloud on the same store took the model over: the first call says so, the repeat is served."""
    world, store = faulty
    key = world.app()
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    for other in open_world(world.program, world.size, store.inner):
        assert other.info(key)["state"] == "training"
    reply = world.upload(token, work)
    assert "model 'tiny' moved" in problem(reply, 503, OwnershipLost.code)["detail"]
    assert reply.headers["retry-after"] == "1"
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": True}


def test_an_app_is_told_of_its_model_by_name_and_where_a_missing_thing_goes(faulty: tuple[World, FaultyStore]):
    world, _ = faulty
    key = world.app()
    address = {"json": {"version": 7}, "headers": bearer(key)}

    def refused(reply: httpx2.Response, status: int = 409) -> str:
        found = str(problem(reply, status, {404: "not-found", 409: "conflict"}[status])["detail"])
        assert found.startswith("model 'tiny' ")
        return found

    world.draft(key, plan=PAIR | {"augmentation": {"share": 0.5}})
    assert "PUT /v1/models/tiny/program" in refused(world.act(key, "start"))
    refused(world.http.put("/v1/models/tiny/augmentation", content=b"x", headers=bearer(key)))
    world.put_program(key)
    assert "PUT /v1/models/tiny/augmentation" in refused(world.act(key, "start"))
    refused(world.act(key, "pause"))
    world.draft(key)
    assert world.act(key, "start").status_code == 200
    refused(world.act(key, "archive"))
    for action in ("promote", "rollback"):
        refused(world.http.post(f"/v1/models/tiny/{action}", **address), 404)
    world.act(key, "stop")
    refused(world.act(key, "start"))
    world.act(key, "archive")
    refused(world.act(key, "start"))
