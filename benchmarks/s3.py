"""What the object store is asked: requests a check-in, a counted update, a commit. A bucket charges for each.

    python benchmarks/s3.py [--cohort 16] [--rounds 4] [--parameters 210438] [--json]

A scripted session of one model on S3 (moto's server in this process: its speed means nothing, so no time is measured).
Every HTTP request of the cloud is counted as it is sent. The same calls of the store reach a folder. One update a round
takes the way through the bucket: the phone's own PUT is beside the table.
"""

import argparse
import asyncio
import hashlib
import json
import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx2
import numpy as np
from moto.server import ThreadedMotoServer

from flsys_ray.cloud.credentials import Device, Ticket
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.service import Cloud
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.programs.manifest import LeafEntry, Manifest, pack, read_manifest
from flsys_ray.storage.base import put_same
from flsys_ray.storage.s3 import S3Store, make_client
from flsys_ray.storage.s3_place import parse_place
from flsys_ray.wire.schemas import CheckInRequest, EvaluationRequest, ModelCandidacy
from flsys_ray.wire.staged_schemas import StagedUpdate
from flsys_ray.wire.tensors import encode_update

BUCKET = "flsys-benchmark"
OPERATIONS = {"PutObject": "PUT", "GetObject": "GET", "HeadObject": "HEAD", "ListObjectsV2": "LIST"}
OPERATIONS |= {"DeleteObject": "DELETE"}
KINDS = ("PUT", "LIST", "GET", "HEAD", "DELETE")


@dataclass
class Counts:
    """Requests by step and kind; and how often each step was taken."""

    step: str = "start"
    requests: dict[str, Counter[str]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def begin(self, step: str) -> None:
        self.step = step
        self.times[step] += 1

    def sent(self, request: Any, event_name: str, **_: Any) -> None:
        kind = OPERATIONS.get(event_name.rpartition(".")[2], event_name)
        self.requests.setdefault(self.step, Counter())[kind] += 1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cohort", type=int, default=16)
    arguments.add_argument("--rounds", type=int, default=4)
    arguments.add_argument("--parameters", type=int, default=210_438)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "key-id", "AWS_SECRET_ACCESS_KEY": "secret"}
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        counts = count(f"s3://{BUCKET}/bench?endpoint_url=http://{host}:{port}&region=us-east-1&presigned=true", given)
    finally:
        server.stop()
    rows = {
        step: {kind: counts.requests.get(step, Counter())[kind] / times for kind in KINDS}
        for step, times in counts.times.items()
    }
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    print("| step |", " | ".join(KINDS), "|")
    print("|---|" + "---:|" * len(KINDS))
    rows.pop("between", None)
    for step, row in rows.items():
        print(f"| {step} |", " | ".join(f"{row[kind]:g}" for kind in KINDS), "|")


def count(uri: str, given: argparse.Namespace) -> Counts:
    """Play the session and return what was asked."""
    place, counts = parse_place(uri), Counts()
    client = make_client(place)
    client.create_bucket(Bucket=BUCKET)
    client.meta.events.register("before-send.s3", counts.sent)
    with asyncio.Runner() as runner:
        session(runner, S3Store(place, client), counts, given)
    return counts


def session(runner: asyncio.Runner, store: S3Store, counts: Counts, given: argparse.Namespace) -> None:
    hosts = LocalHosts(store, lambda: 1_800_000_000.0)
    cloud = Cloud(store, hosts, lambda: 1_800_000_000.0)
    pacing = {"name": "rounds", "cohort": given.cohort, "quorum": given.cohort, "over_selection": 1, "deadline_s": 600}
    counts.begin("a model is made and started")
    runner.run(cloud.put_model("acme", "bench", parse_plan({"pacing": pacing, "selection": "first_come"})))
    model = cloud.find("acme", "bench")
    program = program_of(given.parameters)
    digest = hashlib.sha256(program).hexdigest()
    put_same(store, f"models/{model}/programs/{digest}.tflite", program)
    runner.run(hosts.model(model).put_program(digest))
    hosts.host(model).call(lambda durable: durable.start(initial))
    wanted = CheckInRequest(models=[ModelCandidacy(model="bench", examples=5)])
    body = encode_update(np.full(given.parameters, 0.01, dtype=np.float32), 3, 0.5)
    for round_ in range(given.rounds):
        devices = [Device(f"d-{round_}-{number}", "acme") for number in range(given.cohort)]
        tickets = []
        for number, device in enumerate(devices):
            counts.begin("check-in with an assignment" if number else "check-in, the first of a round")
            (message,) = runner.run(cloud.check_in(device, wanted)).assignments
            tickets.append(cloud.credentials.check_assignment(message.token, device, message.assignment_id))
        counts.begin("check-in without one")
        assert not runner.run(cloud.check_in(Device("d-late", "acme"), wanted)).assignments
        counts.begin("evaluation")
        runner.run(cloud.evaluate(tickets[0], EvaluationRequest(loss_sum=1.5, correct=1, count=2)))
        counts.begin("update that was put into the bucket")
        runner.run(staged(cloud, tickets[1], body))
        for ticket in (tickets[0], *tickets[2:-1]):
            counts.begin("update counted")
            runner.run(cloud.updates.take_in(ticket, body))
        counts.begin("update counted again (a repeat)")
        runner.run(cloud.updates.take_in(tickets[0], body))
        counts.begin("last update of a round, and the commit")
        runner.run(cloud.updates.take_in(tickets[-1], body))
    counts.begin("between")
    (message,) = runner.run(cloud.check_in(Device("d-open", "acme"), wanted)).assignments
    ticket = cloud.credentials.check_assignment(message.token, Device("d-open", "acme"), message.assignment_id)
    runner.run(cloud.updates.take_in(ticket, body))
    counts.begin("a new owner: one update in the open round")
    again = LocalHosts(store, lambda: 1_800_000_000.0)
    runner.run(again.model(model).info())


async def staged(cloud: Cloud, ticket: Ticket, body: bytes) -> None:
    """Do what a phone does: ask for an address, put the update there, announce it."""
    said = StagedUpdate(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
    address = cloud.staging.address(ticket, said)
    await cloud.staging.sweep_now_and_then()
    httpx2.put(address.url, headers=address.headers, content=body).raise_for_status()
    await cloud.staging.take_in(ticket, said)


def program_of(parameters: int) -> bytes:
    """Return a program file whose manifest says how many parameters there are. It is never run."""
    body = b"no flatbuffer"
    layout = (LeafEntry(name="all", shape=(parameters,), offset=0, trainable=True),)
    manifest = Manifest(
        name="bench", flatbuffer_sha256=hashlib.sha256(body).hexdigest(), parameters=parameters, slots=0, batch_size=4,
        input_shape=(2,), input_dtype="float32", classes=("a", "b"), local_optimizer="sgd", layout=layout,
    )  # fmt: skip
    return pack(body, manifest)


def initial(program: bytes, seed: int) -> Version:
    return Version(0, np.zeros(read_manifest(program).parameters, dtype=np.float32), OptimizerState())


if __name__ == "__main__":
    main()
