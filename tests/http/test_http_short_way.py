"""Check-ins and uploads are answered without the framework: with the same answers as with it, whatever is sent."""

import json
from typing import Any

import pytest
from cloud_world import World, bearer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def both_ways(world: World, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> list[Any]:
    """Return what both ways answer to one request: status, the headers that matter, and the body."""
    app, answers = world.http.app, []
    short_way = app.short_way
    for way in (short_way, None):
        app.short_way = way
        try:
            reply = world.http.request(method, path, headers=headers, content=body)
        finally:
            app.short_way = short_way
        told = {name: reply.headers.get(name) for name in ("content-type", "retry-after", "www-authenticate")}
        answers.append((reply.status_code, told, _plain(reply.content)))
    return answers


def _plain(body: bytes) -> Any:
    """Return a body without what differs from one call to the next."""
    found = json.loads(body)
    for work in found.get("assignments", []):
        work.pop("deadline_s")
    found.pop("retry_after_s", None)
    return found


MANY = {"pacing": {"name": "rounds", "cohort": 50, "deadline_s": 600}, "selection": "first_come"}
LINE = {"model": "tiny", "examples": 5}
GOOD = {"models": [LINE]}
NAMES = st.sampled_from(["models", "model", "conditions", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=8,
)
CHANGED = st.sampled_from(["model", "examples", "version", "z"])
BODY = st.one_of(
    st.just(GOOD),
    JSON,
    st.builds(lambda value, name: {"models": [LINE | {name: value}]}, JSON, CHANGED),
    st.builds(lambda value: GOOD | {"conditions": value}, JSON),
).map(lambda value: json.dumps(value).encode())
TYPES = ["application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "text/plain", "application/x+json"]
SECRETS = ["good", "bad", "none", "twice", "lower"]


@given(body=BODY | st.binary(max_size=40), kind=st.sampled_from([*TYPES, ""]), secret=st.sampled_from(SECRETS))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_check_in_is_answered_alike(world: World, body, kind, secret):
    key = world.app()
    if not world.http.get("/v1/models", headers=bearer(key)).json()["models"]:
        world.training(key, plan=MANY)
    token = world.device(key, "one")
    headers = {
        "good": [("Authorization", f"Bearer {token}")],
        "bad": [("Authorization", f"Bearer {token[:-2]}xx")],
        "none": [],
        "twice": [("Authorization", f"Bearer {token}"), ("Authorization", "Bearer other")],
        "lower": [("Authorization", f"bearer {token}")],
    }[secret]
    headers += [("Content-Type", kind)] if kind else []
    short, long = both_ways(world, "POST", "/v1/checkins", headers, body)
    assert short == long


@pytest.mark.parametrize("length", [None, "5", "999999999"])
@pytest.mark.parametrize("ticket", ["good", "bad", "none", "another"])
@pytest.mark.parametrize("body", ["good", "broken", "empty"])
def test_an_upload_is_answered_alike(world: World, key, length, ticket, body):
    world.training(key, plan=MANY)
    token, other = world.device(key, "one"), world.device(key, "two")
    work, others = world.work(token), world.work(other)
    content = {"good": world.body(), "broken": b"x" * 100, "empty": b""}[body]
    assert world.upload(other, others).status_code == 200
    tokens = {"good": work["token"], "bad": work["token"][:-2] + "xx", "none": "", "another": others["token"]}
    headers = [("Authorization", f"Bearer {token}")]
    headers += [("Flsys-Assignment", tokens[ticket])] if tokens[ticket] else []
    headers += [("Content-Length", length)] if length is not None else []
    short, long = both_ways(world, "PUT", work["upload"]["url"], headers, content)
    if short[0] == 200:
        assert (short[2]["duplicate"], long[2]["duplicate"]) == (False, True)
    else:
        assert short == long


@pytest.mark.parametrize(
    "path", ["/v1/assignments/nonsense/update", "/v1/assignments/00000000-" + "a" * 20 + "/update/"]
)
def test_a_path_that_is_none_goes_the_long_way(world: World, key, path):
    token = world.device(key, "one")
    short, long = both_ways(world, "PUT", path, [("Authorization", f"Bearer {token}")], b"")
    assert short == long
