"""Compressed downloads from a cloud on Ray: steps lead from one public form to the next, though the owner is killed."""

import os
import signal
from typing import Any

import httpx2
import numpy as np
import ray
from ray_cloud import OPERATOR_KEY, PARAMETERS, Up

from actors.hosts import NAMESPACE, actor_name
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.versions import sha256
from flsys_ray.compression.public import stepped
from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.storage.local import LocalStore
from flsys_ray.wire.public_forms import decode_half, decode_step
from flsys_ray.wire.tensors import decode_vector, encode_update

PLAN = {
    "pacing": {"name": "rounds", "cohort": 1, "deadline_s": 600},
    "selection": "first_come",
    "download": {"name": "int8", "block": 16},
}


def test_steps_lead_from_form_to_form_though_the_owner_is_killed(up: Up, program: bytes) -> None:
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        key = operator.create_app("downloads").key
    with DeveloperClient(up.url, key) as developer, httpx2.Client(base_url=up.url, timeout=60) as http:
        developer.put_model("forms", parse_plan(PLAN))
        developer.put_program("forms", program)
        developer.act("forms", "start")
        before, weights, _ = one_round(http, key, 0)
        assert weights["steps"] == []
        for number in (1, 2):
            kill_owner()
            form, weights, bodies = one_round(http, key, number)
            assert sha256(form) == weights["sha256"]
            assert weights["steps"][-1]["before"] == sha256(before)
            public = decode_vector(form, "parameters", PARAMETERS)
            np.testing.assert_array_equal(decode_half(bodies["half"], PARAMETERS), public)
            held = decode_vector(before, "parameters", PARAMETERS)
            np.testing.assert_array_equal(stepped(held, *decode_step(bodies["step"], PARAMETERS)), public)
            before = form
        assert developer.info("forms").version == 3
    assert [one.verdict for one in replay(LocalStore(up.store), "downloads/forms")] == ["equal"] * 4


def kill_owner() -> None:
    actor = ray.get_actor(actor_name("downloads/forms"), namespace=NAMESPACE)
    os.kill(ray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)


def one_round(http: httpx2.Client, key: str, number: int) -> tuple[bytes, dict[str, Any], dict[str, bytes]]:
    """Have a new phone fill a round; return its file of weights, what it was told of it, and the smaller ways to it."""
    own = {"Authorization": f"Bearer {key}"}
    enrolled = http.post("/v1/devices", json={"installation_id": f"downloads-{number}"}, headers=own).json()
    headers = {"Authorization": f"Bearer {enrolled['token']}"}
    work = checked_in(http, headers)
    weights = work["weights"]
    ways = {"half": weights["half"]} | ({"step": weights["steps"][-1]} if weights["steps"] else {})
    form = fetched(http, headers, weights["url"])
    bodies = {way: fetched(http, headers, link["url"]) for way, link in ways.items()}
    assert all(sha256(body) == ways[way]["sha256"] for way, body in bodies.items())
    delta = np.random.default_rng(number).normal(0, 0.1, PARAMETERS).astype(np.float32)
    update = encode_update(delta, 5, 0.5)
    sent = http.put(work["upload"]["url"], content=update, headers=headers | {"Flsys-Assignment": work["token"]})
    assert sent.status_code == 200, sent.text
    return form, weights, bodies


def checked_in(http: httpx2.Client, headers: dict[str, str]) -> Any:
    """Return an assignment: a phone that is told to come back does, since the owner may have just been killed."""
    body = {"models": [{"model": "forms", "examples": 5}]}
    for _ in range(600):
        reply = http.post("/v1/checkins", json=body, headers=headers)
        if reply.status_code < 500 and reply.json()["assignments"]:
            return reply.json()["assignments"][0]
    raise AssertionError(reply.text)


def fetched(http: httpx2.Client, headers: dict[str, str], url: str) -> bytes:
    reply = http.get(url, headers=headers)
    assert reply.status_code == 200, reply.text
    return reply.content
