"""Check-ins and durable uploads (842 kB) a second: the cloud on Ray Serve against a bare ASGI app, in one run.

    python benchmarks/ingest.py [--devices 1000] [--connections 32] [--haproxy] [--json]

Each device checks in once and uploads once. The peer (`bare_asgi.py`) makes the same bytes durable and does no more; it
is measured before and after the cloud.
Both are on this machine together with the client, which costs its share: the ratio says more than the rates, and where
others use the machine too, the processor's time for a request more than both. With `--haproxy` the cloud is reached
through Serve's HAProxy (`RAY_SERVE_ENABLE_HA_PROXY=1`), and not at its replica's own port.

Then the stages of an upload, in this process, one at a time: where the processor's time of a replica goes.
"""

import argparse
import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from load import MODEL, Measured, Request, burst, program

from flsys_ray.cloud.credentials import Credentials, Device, Ticket
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.core.aggregation.partial import contribution_of, folded
from flsys_ray.core.layout import Layout, Leaf
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Assignment
from flsys_ray.developer import DeveloperClient
from flsys_ray.storage.local import LocalStore
from flsys_ray.wire.schemas import ASSIGNMENT_HEADER
from flsys_ray.wire.tensors import decode_update, encode_update


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--devices", type=int, default=1000)
    arguments.add_argument("--connections", type=int, default=32)
    arguments.add_argument("--haproxy", action="store_true")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        before = measure_bare(folder / "before", given.devices, given.connections)
        cloud = measure_cloud(folder, given)
        after = measure_bare(folder / "after", given.devices, given.connections)
        stages = upload_stages(folder)
    rows = zip(("check-ins", "uploads"), cloud, before, after, strict=True)
    report = {what: describe(ours, theirs) for what, ours, *theirs in rows}
    if given.json:
        print(json.dumps(report | {"upload_stages_ms": stages}, indent=2))
        return
    print(f"{'':12}{'cloud/s':>10}{'bare/s':>10}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}{'cpu us':>9}{'bare us':>9}")
    for what, row in report.items():
        print(
            f"{what:12}{row['cloud_per_s']:10.0f}{row['bare_per_s']:10.0f}{row['ratio']:8.2f}"
            f"{row['cloud_p50_ms']:9.1f}{row['cloud_p99_ms']:9.1f}{row['cloud_cpu_us']:9.0f}{row['bare_cpu_us']:9.0f}"
        )
    for what, row in report.items():
        print(f"{what}, us of a core: " + ", ".join(f"{who} {us}" for who, us in row["cloud_cpu_us_by"].items()))
    print("upload, ms of one core: " + ", ".join(f"{stage} {took:.2f}" for stage, took in stages.items()))


@dataclass(frozen=True)
class Costed:
    """A burst, and the processor's microseconds a request of the processes that served it, the client's left out."""

    burst: Measured
    cpu_us_by: dict[str, float]

    @property
    def cpu_us(self) -> float:
        """Of all of them."""
        return sum(self.cpu_us_by.values())


def costed(root: int, port: int, requests: list[Request], connections: int) -> Costed:
    """Measure a burst that the processes below `root` serve."""
    before = cpu_s(root)
    measured = burst(port, requests, connections)
    after = cpu_s(root)
    return Costed(measured, {who: 1e6 * (after[who] - before.get(who, 0.0)) / len(requests) for who in after})


def cpu_s(root: int) -> dict[str, float]:
    """Return the processor time of a process and all below it, but this one's own: replica, owner, and the rest."""
    parents, used = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
        used[int(stat.parent.name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    family = [root]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    found: dict[str, float] = {}
    for pid in family:
        if pid != os.getpid() and pid in used:
            found[role(pid)] = found.get(role(pid), 0.0) + used[pid]
    return found


def role(pid: int) -> str:
    """Return what a process of the cloud does: `replica`, `owner` (the model's actor), or `rest`."""
    try:
        name = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return "rest"
    return "replica" if b"ServeReplica" in name else "owner" if b"ModelActor" in name else "rest"


def describe(mine: Costed, peers: Sequence[Costed]) -> dict[str, Any]:
    """Compare with the peer's mean before and after: writing costs more where free memory was never used before."""
    ours, theirs = mine.burst, [peer.burst.per_s for peer in peers]
    return {
        "cloud_cpu_us": round(mine.cpu_us),
        "cloud_cpu_us_by": {who: round(us) for who, us in sorted(mine.cpu_us_by.items())},
        "bare_cpu_us": round(mean(peer.cpu_us for peer in peers)),
        "cloud_per_s": round(ours.per_s, 1),
        "bare_per_s": round(mean(theirs), 1),
        "bare_per_s_of": [round(per_s, 1) for per_s in theirs],
        "ratio": round(ours.per_s / mean(theirs), 3),
        "cloud_p50_ms": round(ours.percentile_ms(50), 2),
        "cloud_p99_ms": round(ours.percentile_ms(99), 2),
        "cloud_statuses": ours.statuses,
    }


def measure_bare(folder: Path, devices: int, connections: int) -> tuple[Costed, Costed]:
    port = free_port()
    folder.mkdir()
    peer = subprocess.Popen([sys.executable, str(Path(__file__).with_name("bare_asgi.py")), str(folder), str(port)])
    try:
        wait_for(port)
        body = encode_update(np.zeros(210_438, np.float32), 10, 1.0)
        checkins = [Request.of("POST", "/checkins", {}, check_in_body()) for _ in range(devices)]
        uploads = [Request.of("PUT", f"/{index}", {}, body) for index in range(devices)]
        burst(port, checkins[:20], connections)
        return costed(peer.pid, port, checkins, connections), costed(peer.pid, port, uploads, connections)
    finally:
        peer.terminate()
        peer.wait()


def measure_cloud(folder: Path, given: argparse.Namespace) -> tuple[Costed, Costed]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    if given.haproxy:
        os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
        os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "serve_apps.front:middlewares"
    from ray import serve

    from serve_apps.up import Place, cloud

    devices, connections = given.devices, given.connections
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
        if given.haproxy:
            port = serve.context._global_client.http_config.port
        burst(port, [check_in(token) for token in tokens[:20]], connections)
        checked_in = costed(os.getpid(), port, [check_in(token) for token in tokens], connections)
        body = encode_update(np.full(parameters, 0.01, np.float32), 10, 1.0)
        uploads = [upload(token, reply, body) for token, reply in zip(tokens, checked_in.burst.bodies, strict=True)]
        return checked_in, costed(os.getpid(), port, uploads, connections)


def upload_stages(folder: Path, count: int = 100) -> dict[str, float]:
    """Return the milliseconds of one core that each stage of an upload takes, alone and one after the other."""
    size, plan = 210_438, parse_plan({})
    layout = Layout((Leaf("all", (size,), 0),))
    store = LocalStore(folder / "stages")
    values = np.random.default_rng(0).normal(0, 0.01, size).astype(np.float32)
    body = encode_update(values, 10, 1.0)
    work = Assignment("00000000-" + "a" * 20, "app/model", 0, 0, "d-1", 0.0)
    decoded = decode_update(body, layout, plan.limits.max_abs_delta)
    update = to_update(work, decoded, body)
    partial = folded(plan, size, [update], [10])
    tickets = Credentials(store)
    token = tickets.assignment_token(Ticket(work, "a" * 64, "b" * 64))
    chunks = [body[at : at + 65536] for at in range(0, len(body), 65536)]
    number = iter(range(10 * count))
    stages: dict[str, Callable[[], object]] = {
        "join the body": lambda: b"".join(chunks),
        "token": lambda: tickets.check_assignment(token, Device("d-1", "app"), work.assignment_id),
        "decode and check": lambda: decode_update(body, layout, plan.limits.max_abs_delta),
        "sha256": lambda: hashlib.sha256(body).hexdigest(),
        "store, synced": lambda: store.put_new(f"updates/{next(number)}", body),
        "fold": lambda: plan.aggregation.add(partial.state, contribution_of(update, 10)),
        "send a batch's sum": lambda: pickle.loads(pickle.dumps(partial, 5)),
        "merge a batch's sum": lambda: plan.aggregation.merge(partial.state, partial.state),
    }
    return {stage: cpu_ms(do, count) for stage, do in stages.items()}


def cpu_ms(do: Callable[[], object], count: int) -> float:
    """Return the milliseconds of one core that a call takes, the least of ten groups."""
    took = []
    for _ in range(10):
        begun = time.process_time()
        for _ in range(count // 10):
            do()
        took.append((time.process_time() - begun) / (count // 10))
    return 1000 * min(took)


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
