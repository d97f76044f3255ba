"""What the cloud shows of itself: the bytes and candidates of rounds, rounds from a number on, the operator's view."""

import pytest
from cloud_world import OPERATOR_KEY, World, bearer, problem

from flsys_ray.cloud import meter as m
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.errors import TryLater

THREE = {"pacing": {"name": "rounds", "cohort": 3, "deadline_s": 60}, "selection": "first_come"}


def test_a_round_tells_its_bytes_and_who_asked_for_work(world: World, key):
    world.training(key, plan=THREE)
    tokens = [world.device(key, name) for name in ("one", "two", "three", "four", "five", "six")]
    replies = [world.check_in(token) for token in tokens]
    works = [reply["assignments"][0] for reply in replies if reply["assignments"]]
    assert world.info(key)["open_round"]["candidates"] == len(tokens) > len(works)
    body = world.body()
    for token, work in list(zip(tokens, works, strict=False))[:2]:
        world.upload(token, work, body)
        world.upload(token, work, body)  # a repeat
    assert world.info(key)["open_round"]["update_bytes"] == 2 * len(body)
    world.cloud.hosts = LocalHosts(world.store, world.clock)  # the process died: the store says the same
    assert world.info(key)["open_round"]["update_bytes"] == 2 * len(body)
    world.clock.advance(61)
    assert world.info(key)["rounds_closed"] == 1
    assert [closed["update_bytes"] for closed in world.rounds(key)] == [2 * len(body)]


def test_rounds_from_a_number_on(world: World, key):
    world.training(key)
    for n in range(4):
        world.commit(key, f"a{n}", f"b{n}")
    get = lambda since: world.http.get(f"/v1/models/tiny/rounds?since={since}", headers=bearer(key)).json()["rounds"]  # noqa: E731
    everything = world.rounds(key)
    assert [closed["round"] for closed in everything] == [0, 1, 2, 3]
    for since in range(6):
        assert get(since) == everything[since:]
    problem(world.http.get("/v1/models/tiny/rounds?since=-1", headers=bearer(key)), 422, "invalid-input")


def test_only_the_rounds_that_are_asked_for_are_read(world: World, key):
    world.training(key)
    for n in range(5):
        world.commit(key, f"a{n}", f"b{n}")
    read = []
    inner = type(world.store).get

    def counting(store, name, *span):
        read.append(name)
        return inner(store, name, *span)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.store), "get", counting)
        world.http.get("/v1/models/tiny/rounds?since=4", headers=bearer(key))
    assert len([name for name in read if "/log/" in name]) <= 2


def test_the_operator_sees_the_models_of_all_apps(world: World, key):
    world.training(key)
    world.commit(key)
    other = world.app("other")
    world.draft(other, "small")
    reply = world.http.get("/v1/overview", headers=bearer(OPERATOR_KEY)).json()
    assert [(model["model"], model["app_id"], model["state"]) for model in reply["models"]] == [
        ("tiny", "acme", "training"),
        ("small", "other", "draft"),
    ]
    rounds = world.http.get("/v1/overview/acme/tiny/rounds", headers=bearer(OPERATOR_KEY)).json()
    assert rounds["rounds"] == world.rounds(key)
    problem(world.http.get("/v1/overview/acme/nothing/rounds", headers=bearer(OPERATOR_KEY)), 404, "not-found")


def test_everything_that_happens_to_phones_is_counted(world: World, key):
    world.training(key)
    one, two, three = (world.device(key, name) for name in ("one", "two", "three"))
    work = world.work(one)
    body = world.body()
    assert world.upload(one, work, body[:-4]).status_code == 422
    assert world.upload(one, work, body).status_code == 200
    assert world.upload(one, work, body).json()["duplicate"]
    assert world.upload(two, world.work(two)).status_code == 200
    late = world.work(three)
    world.clock.advance(61)
    assert world.upload(three, late).status_code == 410
    assert world.info(key)["rounds_closed"] == 2
    world.check_in(one, "no-such-model")
    assert world.http.get("/v1/models/tiny/versions/1", headers=bearer(one)).status_code == 200

    total = world.meter.total
    outcomes = ("counted", "duplicate", "unusable", "late", "failed")
    assert [total(m.UPDATES, "acme/tiny", outcome) for outcome in outcomes] == [2, 1, 1, 1, 0]
    assert total(m.UPDATE_BYTES, "acme/tiny") == 5 * len(body) - 4
    assert total(m.CHECK_INS, "acme/tiny", "assigned") == 3
    assert total(m.CHECK_INS, m.NO_MODEL, "unknown-model") == 1
    assert total(m.DOWNLOAD_BYTES, "acme/tiny", "version") > 4 * world.size
    assert total(m.ROUNDS, "acme/tiny", "committed") == 1
    assert total(m.ROUNDS, "acme/tiny", "no-quorum") == 1
    assert world.meter.numbers[m.ROUND_S.name, "acme/tiny"] == [0, 61]
    assert world.meter.numbers[m.COMMIT_S.name, "acme/tiny"] == [0]
    assert world.meter.numbers[m.VERSION.name, "acme/tiny"] == [0, 1]


def test_an_upload_that_the_cloud_could_not_take_is_counted_as_failed(world: World, key, monkeypatch):
    world.training(key)
    one = world.device(key, "one")
    work = world.work(one)

    async def down(*_):
        raise TryLater("down", 1.0)

    monkeypatch.setattr(type(world.cloud.hosts.model("acme/tiny")), "submit_many", down)
    assert world.upload(one, work).status_code == 503
    assert world.meter.total(m.UPDATES, "acme/tiny", "failed") == 1


def test_check_ins_and_the_stages_of_uploads_are_timed(world: World, key):
    world.training(key, plan=THREE)
    token = world.device(key, "one")
    (work,) = world.check_in(token)["assignments"]
    assert world.upload(token, work, b"no tensors").status_code == 422
    refused = {stage: len(world.meter.numbers.get((m.UPLOAD_S.name, stage), ())) for stage in ("body", "check")}
    assert refused == {"body": 1, "check": 0}
    assert world.upload(token, work, world.body()).status_code == 200
    assert len(world.meter.numbers[m.CHECK_IN_S.name,]) == 1
    for stage, times in {"body": 2, "check": 1, "store": 1, "count": 1}.items():
        took = world.meter.numbers[m.UPLOAD_S.name, stage]
        assert len(took) == times
        assert all(0 <= seconds < 60 for seconds in took)


def test_a_stage_begins_when_the_one_before_is_over():
    meter, now = m.MemoryMeter(), [10.0]
    stages = m.Stages(meter, m.UPLOAD_S, lambda: now[0])
    for seconds, stage in ((3.0, "body"), (0.5, "check")):
        now[0] += seconds
        stages.done(stage)
    assert {labels[1]: took for labels, took in meter.numbers.items()} == {"body": [3.0], "check": [0.5]}


def test_a_series_takes_a_value_for_each_label():
    with pytest.raises(ValueError, match="flsys_rounds"):
        m.MemoryMeter().record(m.ROUNDS, 1, "tiny")
    names = [series.name for series in m.SERIES]
    assert len(set(names)) == len(names)
    assert all(series.about and series.name.startswith("flsys_") for series in m.SERIES)


def test_refusals_are_counted_by_their_reason_on_both_ways_to_answer(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    world.upload(token, work, b"nothing")  # the short way
    world.upload("nobody", work)
    with world.http.app.state.admission.body() as came:
        came(world.http.app.state.admission.bounds.body_bytes)
        world.upload(token, work)
    world.http.get("/v1/models/none", headers=bearer(key))  # the framework's
    world.http.get("/v1/models", headers=bearer("nobody"))
    world.http.patch("/v1/models", headers=bearer(key))
    world.http.get("/v1/nothing")
    found = {labels[0]: sum(n) for (name, *labels), n in world.meter.numbers.items() if name == m.REFUSALS.name}
    assert found == {"update-unusable": 1, "unauthenticated": 2, "try-later": 1, "not-found": 2, "http-405": 1}


def test_a_bug_is_counted_too(world: World, key, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(world.cloud, "info", None)
    assert world.http.get("/v1/models/tiny", headers=bearer(key)).status_code == 500
    assert world.meter.total(m.REFUSALS, "internal") == 1
