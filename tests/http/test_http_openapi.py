"""The committed OpenAPI document is what the code says, and the code says what it does."""

import json
from pathlib import Path

import pytest
from cloud_world import World, bearer

from flsys_ray.http.openapi import document
from flsys_ray.wire.schemas import PROBLEM

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
COMMAND = "make openapi    (or: .venv/bin/python -m flsys_ray.http.openapi > docs/openapi.json)"


@pytest.fixture(scope="module")
def api():
    return json.loads(document())


def operations(api):
    return [(path, method, what) for path, methods in api["paths"].items() for method, what in methods.items()]


def test_the_committed_document_is_the_codes():
    assert COMMITTED.read_text() == document(), f"docs/openapi.json is out of date. Run: {COMMAND}"


def test_every_refusal_is_a_problem_document(api):
    for path, method, what in operations(api):
        refusals = {status: answer for status, answer in what["responses"].items() if status[0] in "45"}
        assert set(refusals) == {"4XX", "5XX"}, (path, method)
        for answer in refusals.values():
            assert answer["content"] == {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    assert "HTTPValidationError" not in api["components"]["schemas"]


def test_every_call_says_what_it_does_and_who_may_make_it(api):
    for path, method, what in operations(api):
        assert what["description"].strip(), (path, method)
        kinds = {name for choice in what.get("security", []) for name in choice}
        if path in ("/healthz", "/readyz"):
            assert kinds == set()
        else:
            assert kinds <= {"operator key", "app key", "device token"}
            assert kinds, (path, method)


def test_bodies_that_are_files_say_so(api):
    uploads = {
        "/v1/assignments/{assignment_id}/update": "application/vnd.safetensors",
        "/v1/models/{model}/program": "application/vnd.flsys.program",
    }
    for path, kind in uploads.items():
        body = api["paths"][path]["put"]["requestBody"]
        assert body["content"] == {kind: {"schema": {"type": "string", "format": "binary"}}}
        assert body["required"] is True
    downloads = {
        "/v1/models/{model}/versions/{number}": "application/vnd.safetensors",
        "/v1/models/{model}/program/{sha256}": "application/vnd.flsys.program",
    }
    for path, kind in downloads.items():
        assert kind in api["paths"][path]["get"]["responses"]["200"]["content"]
        assert "206" in api["paths"][path]["get"]["responses"]


def test_the_running_cloud_serves_the_same_document(world: World, key):
    assert world.http.get("/openapi.json", headers=bearer(key)).json() == json.loads(COMMITTED.read_text())
