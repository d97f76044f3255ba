"""Check-ins and durable uploads (842 kB) a second: the cloud on Ray Serve against a bare ASGI app, in one run.

    python benchmarks/ingest.py [--devices 300] [--connections 8] [--json]

Each device checks in once and uploads once. The peer (`bare_asgi.py`) makes the same bytes durable and does no more.
Both are on this machine together with the client, which costs its share: the ratio says more than the rates.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from load import MODEL, Measured, Request, burst, program

from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.wire.schemas import ASSIGNMENT_HEADER
from flsys_ray.wire.tensors import encode_update


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--devices", type=int, default=300)
    arguments.add_argument("--connections", type=int, default=8)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bare = measure_bare(folder, given.devices, given.connections)
        cloud = measure_cloud(folder, given.devices, given.connections)
        rows = {"check-ins": (cloud[0], bare[0]), "uploads": (cloud[1], bare[1])}
    report = {what: describe(ours, theirs) for what, (ours, theirs) in rows.items()}
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'':12}{'cloud/s':>10}{'bare/s':>10}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}")
    for what, row in report.items():
        print(
            f"{what:12}{row['cloud_per_s']:10.0f}{row['bare_per_s']:10.0f}{row['ratio']:8.2f}"
            f"{row['cloud_p50_ms']:9.1f}{row['cloud_p99_ms']:9.1f}"
        )


def describe(ours: Measured, theirs: Measured) -> dict[str, Any]:
    return {
        "cloud_per_s": round(ours.per_s, 1),
        "bare_per_s": round(theirs.per_s, 1),
        "ratio": round(ours.per_s / theirs.per_s, 3),
        "cloud_p50_ms": round(ours.percentile_ms(50), 2),
        "cloud_p99_ms": round(ours.percentile_ms(99), 2),
        "cloud_statuses": ours.statuses,
    }


def measure_bare(folder: Path, devices: int, connections: int) -> tuple[Measured, Measured]:
    port = free_port()
    objects = folder / "bare"
    objects.mkdir()
    peer = subprocess.Popen([sys.executable, str(Path(__file__).with_name("bare_asgi.py")), str(objects), str(port)])
    try:
        wait_for(port)
        body = encode_update(np.zeros(210_438, np.float32), 10, 1.0)
        checkins = [Request.of("POST", "/checkins", {}, check_in_body()) for _ in range(devices)]
        uploads = [Request.of("PUT", f"/{index}", {}, body) for index in range(devices)]
        burst(port, checkins[:20], connections)
        return burst(port, checkins, connections), burst(port, uploads, connections)
    finally:
        peer.terminate()
        peer.wait()


def measure_cloud(folder: Path, devices: int, connections: int) -> tuple[Measured, Measured]:
    from serve_apps.up import Place, cloud

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    data, parameters = program(folder)
    port = free_port()
    with cloud(Place(store=str(folder / "store"), port=port), "operator") as url:
        app_key = prepare(url, data, devices)
        enrol = {"Authorization": f"Bearer {app_key}", "Content-Type": "application/json"}
        enrolled = burst(
            port,
            [Request.of("POST", "/v1/devices", enrol, installation(index)) for index in range(devices)],
            connections,
        )
        tokens = [json.loads(body)["token"] for body in enrolled.bodies]
        checked_in = burst(port, [check_in(token) for token in tokens], connections)
        body = encode_update(np.full(parameters, 0.01, np.float32), 10, 1.0)
        uploads = [upload(token, reply, body) for token, reply in zip(tokens, checked_in.bodies, strict=True)]
        return checked_in, burst(port, uploads, connections)


def prepare(url: str, data: bytes, devices: int) -> str:
    """Register an app and start a model whose round takes all devices. Returns the app's key."""
    with DeveloperClient(url, "operator") as operator:
        app_key = operator.create_app("load").key
    pacing = {"name": "rounds", "cohort": devices + 1, "over_selection": 1, "quorum": 1, "deadline_s": 3600}
    with DeveloperClient(url, app_key) as developer:
        developer.put_model(MODEL, parse_plan({"pacing": pacing, "selection": "first_come"}))
        developer.put_program(MODEL, data)
        developer.act(MODEL, "start")
    return app_key


def installation(index: int) -> bytes:
    return json.dumps({"installation_id": f"installation-{index:08d}"}).encode()


def check_in_body() -> bytes:
    return json.dumps({"models": [{"model": MODEL, "examples": 100}]}).encode()


def check_in(token: str) -> Request:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    return Request.of("POST", "/v1/checkins", headers, check_in_body())


def upload(token: str, reply: bytes, body: bytes) -> Request:
    work = json.loads(reply)["assignments"][0]
    headers = {"Authorization": f"Bearer {token}", ASSIGNMENT_HEADER: work["token"]}
    return Request.of("PUT", work["upload"]["url"], headers, body)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}")


if __name__ == "__main__":
    main()
