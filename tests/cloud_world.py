"""A whole cloud in memory behind its HTTP surface, and short names for what developers and phones do with it."""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from cloud_fakes import Clock
from fastapi.testclient import TestClient

from flsys_ray.cloud.credentials import set_operator_key
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.meter import MemoryMeter
from flsys_ray.cloud.service import Cloud
from flsys_ray.http.app import create_app
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.tensors import encode_update

OPERATOR_KEY = "flsys_operator_of-the-test-0123456789"
PAIR = {"pacing": {"name": "rounds", "cohort": 2, "deadline_s": 60}, "selection": "first_come"}


def bearer(secret: str, ticket: str | None = None) -> dict[str, str]:
    """Return the headers of a call: who calls, and for which assignment."""
    headers = {"Authorization": f"Bearer {secret}"}
    return headers if ticket is None else headers | {"Flsys-Assignment": ticket}


@dataclass
class World:
    """One cloud. `http` never raises what the app raised: a bug is a 500, as it is for a phone."""

    http: TestClient
    store: ObjectStore
    clock: Clock
    cloud: Cloud
    program: bytes = field(repr=False)
    size: int
    meter: MemoryMeter

    # Developers

    def app(self, name: str = "acme") -> str:
        reply = self.http.post("/v1/apps", json={"name": name}, headers=bearer(OPERATOR_KEY))
        assert reply.status_code == 201, reply.text
        return str(reply.json()["key"])

    def draft(self, key: str, model: str = "tiny", plan: Any = PAIR) -> None:
        reply = self.http.put(f"/v1/models/{model}", json={"plan": plan}, headers=bearer(key))
        assert reply.status_code in (200, 201), reply.text

    def act(self, key: str, action: str, model: str = "tiny") -> httpx2.Response:
        return self.http.post(f"/v1/models/{model}/{action}", headers=bearer(key))

    def put_program(self, key: str, model: str = "tiny", program: bytes | None = None) -> httpx2.Response:
        body = self.program if program is None else program
        return self.http.put(f"/v1/models/{model}/program", content=body, headers=bearer(key))

    def training(self, key: str, model: str = "tiny", plan: Any = PAIR) -> None:
        """Have a model that trains."""
        self.draft(key, model, plan)
        assert self.put_program(key, model).status_code == 200
        assert self.act(key, "start", model).json()["state"] == "training"

    def info(self, key: str, model: str = "tiny") -> Any:
        reply = self.http.get(f"/v1/models/{model}", headers=bearer(key))
        assert reply.status_code == 200, reply.text
        return reply.json()

    def rounds(self, key: str, model: str = "tiny") -> Any:
        return self.http.get(f"/v1/models/{model}/rounds", headers=bearer(key)).json()["rounds"]

    def manifest(self, key: str, number: int, model: str = "tiny") -> Any:
        reply = self.http.get(f"/v1/models/{model}/versions/{number}/manifest", headers=bearer(key))
        assert reply.status_code == 200, reply.text
        return reply.json()

    # Phones

    def device(self, key: str, name: str) -> str:
        """Enrol a device and return its token."""
        reply = self.http.post("/v1/devices", json={"installation_id": f"installation-{name}"}, headers=bearer(key))
        assert reply.status_code == 201, reply.text
        return str(reply.json()["token"])

    def check_in(self, token: str, *models: str) -> Any:
        body = {"models": [{"model": model, "examples": 5} for model in models or ("tiny",)]}
        reply = self.http.post("/v1/checkins", json=body, headers=bearer(token))
        assert reply.status_code == 200, reply.text
        return reply.json()

    def work(self, token: str, model: str = "tiny") -> Any:
        """Check in and return the assignment."""
        reply = self.check_in(token, model)
        assert len(reply["assignments"]) == 1, reply
        return reply["assignments"][0]

    def body(self, value: float = 0.1, num_examples: int = 5) -> bytes:
        """Return an update whose delta is `value` everywhere."""
        return encode_update(np.full(self.size, value, dtype=np.float32), num_examples, 1.0)

    def upload(self, token: str, work: Any, body: Any = None, **headers: str) -> httpx2.Response:
        content = self.body() if body is None else body
        all_headers = bearer(token, work["token"]) | headers
        return self.http.put(work["upload"]["url"], content=content, headers=all_headers)

    def give_back(self, token: str, work: Any) -> httpx2.Response:
        address = f"/v1/assignments/{work['assignment_id']}"
        return self.http.request("DELETE", address, json={"reason": "failed"}, headers=bearer(token, work["token"]))

    def evaluate(self, token: str, work: Any, **metrics: float) -> httpx2.Response:
        body = {"loss_sum": 3.0, "correct": 2, "count": 4} | metrics
        address = f"/v1/assignments/{work['assignment_id']}/evaluation"
        return self.http.put(address, json=body, headers=bearer(token, work["token"]))

    def commit(self, key: str, *names: str, value: float = 0.1) -> None:
        """Have these devices fill a round."""
        for name in names or ("one", "two"):
            token = self.device(key, name)
            assert self.upload(token, self.work(token), self.body(value)).status_code == 200


def open_world(program: bytes, size: int, store: ObjectStore | None = None) -> Iterator[World]:
    """Yield a fresh cloud. To be used by fixtures."""
    clock = Clock()
    store = MemoryStore() if store is None else store
    set_operator_key(store, OPERATOR_KEY)
    meter = MemoryMeter()
    cloud = Cloud(store, LocalHosts(store, clock, meter), clock, meter=meter)
    with TestClient(create_app(cloud), raise_server_exceptions=False) as http:
        yield World(http, store, clock, cloud, program, size, meter)


def exchange(
    world: World, method: str, path: str, headers: dict[str, str], pieces: Iterator[bytes]
) -> tuple[int | None, bytes]:
    """Speak ASGI to the app: a body in pieces, drawn one at a time, and then the phone hangs up.

    Returns the status, None if there was no answer, and the body of the answer.
    """
    sent: list[Any] = []

    async def receive() -> Any:
        piece = next(pieces, None)
        if piece is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": piece, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "server": ("test", 80),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(world.http.app(scope, receive, send))
    status = next((message["status"] for message in sent if message["type"] == "http.response.start"), None)
    return status, b"".join(message.get("body", b"") for message in sent)


def problem(reply: httpx2.Response, status: int, code: str) -> Any:
    """Return the problem document of an answer, after a look at what all of them share."""
    assert reply.status_code == status, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    found = reply.json()
    assert found["status"] == status
    assert found["type"] == f"https://flsys-ray.dev/problems/{code}"
    assert found["title"]
    assert found["detail"]
    return found
