"""Ten times what the cloud can take, over real HTTP: nothing that was accepted is lost, the rest is told when to come.

    python benchmarks/overload.py [--seconds 120] [--times 10] [--expect] [--json]

First the capacity is measured: uploads (842 kB) a second of eight phones that never wait. Then phones arrive at `times`
that rate, each with its own connections, whether or not the ones before were answered: each checks in, and uploads if
it is given work. A refused phone does not wait to come back, as if it were another: the rate of arrivals is what is
fixed. The model commits a version every 1,000 updates. `crowd.py` is the phones, in one process beside the cloud.

Printed: accepted uploads that are lost (answered 200, and in no version after 1,000 further uploads: must be 0), the
share of calls that was refused and the share of those with `Retry-After`, p50 and p99 of calls, the resident memory of
the cloud's processes over time, the cores that each side used, and by how much the crowd itself was late: what it could
not send in time was no load.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ingest import check_in, free_port, upload
from load import MODEL, Request, burst, program

from flsys_ray.cloud.credentials import Credentials, Device
from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.storage.uri import open_store
from flsys_ray.wire.developer_schemas import Quotas
from flsys_ray.wire.tensors import encode_update

PROBE = 400
LOOK_S = 1.0
PLAN = {
    "pacing": {"name": "buffered", "buffer": 1000, "concurrency": 40_000, "deadline_s": 30, "max_staleness": 20},
    "selection": "first_come",
    "limits": {"max_examples": 1000},
}
PROCESSES = ("ServeReplica", "ModelActor")


@dataclass
class Watch:
    """Memory in MiB and processor time of the cloud's processes, a look a second."""

    rss_mib: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PROCESSES})
    cpu_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PROCESSES})

    def look(self) -> None:
        """Note both."""
        for name, pid in cloud_processes().items():
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            self.rss_mib[name].append(int(stat[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
            self.cpu_s[name].append((int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK"))

    def report(self, took_s: float) -> dict[str, Any]:
        """Return memory at quarters of the time and the most of it, and the cores used."""
        quarters = {
            name: [round(seen[min(len(seen) - 1, len(seen) * quarter // 4)]) for quarter in range(5)]
            for name, seen in self.rss_mib.items()
        }
        return {
            "rss_mib_by_quarters": quarters,
            "rss_mib_most": {name: round(max(seen)) for name, seen in self.rss_mib.items()},
            "cores": {name: round((seen[-1] - seen[0]) / took_s, 2) for name, seen in self.cpu_s.items()},
        }


def cloud_processes() -> dict[str, int]:
    """Return the pids of the replica and of the model's actor that live below this process."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    return {name: pid for pid in family for name in PROCESSES if name in names.get(pid, "")}


def flush(port: int, tokens: list[str], body: bytes) -> None:
    """Upload as many updates as a version takes: what was counted before is then in a version."""
    for token in tokens:
        reply = until_taken(port, check_in(token))
        until_taken(port, upload(token, reply, body))


def until_taken(port: int, request: Request) -> bytes:
    """Send a request until it is not refused any more, and return the answer."""
    for _ in range(20):
        measured = burst(port, [request], 1)
        if measured.statuses == {200: 1}:
            return measured.bodies[0]
        assert set(measured.statuses) == {503}, measured
        time.sleep(1.0)
    raise AssertionError("the cloud is still busy")


def in_versions(store: Path) -> dict[str, int]:
    """Return in how many versions each assignment's update is."""
    found: dict[str, int] = {}
    for manifest in store.rglob("versions/*.json"):
        for line in json.loads(manifest.read_text())["updates"]:
            found[line["assignment_id"]] = found.get(line["assignment_id"], 0) + 1
    return found


def prepare(url: str, data: bytes) -> None:
    """Register an app without quotas that bind, and start a model."""
    quotas = Quotas(stored_bytes=2**50, checkins_per_min=10**8, upload_bytes_per_min=2**45)
    with DeveloperClient(url, "operator") as operator:
        app_key = operator.create_app("load", quotas).key
    with DeveloperClient(url, app_key) as developer:
        developer.put_model(MODEL, parse_plan(PLAN))
        developer.put_program(MODEL, data)
        developer.act(MODEL, "start")


def enrolled(store: str, count: int, first: int) -> list[str]:
    """Return the tokens of devices, as an enrolment makes them, without the calls for it."""
    credentials, now = Credentials(open_store(store)), time.time()
    devices = (Device(credentials.device_id("load", f"phone-{first + n}"), "load", born=now) for n in range(count))
    return [credentials.device_token(device, now).token for device in devices]


def measure(port: int, tokens: list[str], body: bytes) -> float:
    """Return how many uploads a second eight phones get in that never wait."""
    checked_in = burst(port, [check_in(token) for token in tokens], 8)
    uploads = [upload(token, reply, body) for token, reply in zip(tokens, checked_in.bodies, strict=True)]
    measured = burst(port, uploads, 8)
    assert measured.statuses == {200: len(tokens)}, (MODEL, measured.statuses)
    return measured.per_s


def crowd(folder: Path, port: int, per_s: float, given: argparse.Namespace) -> tuple[dict[str, Any], Watch]:
    """Run the crowd, and watch the cloud meanwhile."""
    command = [sys.executable, str(Path(__file__).with_name("crowd.py")), str(port)]
    command += [str(folder / "tokens"), str(folder / "body"), str(per_s)]
    process = subprocess.Popen(command + ["--expect"] * given.expect, stdout=subprocess.PIPE, start_new_session=True)
    watch, seen = Watch(), None
    while seen is None:
        watch.look()
        try:
            seen, _ = process.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            continue
    return json.loads(seen), watch


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=120.0)
    arguments.add_argument("--times", type=float, default=10.0)
    arguments.add_argument("--expect", action="store_true", help="phones ask before they send: `Expect: 100-continue`")
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from serve_apps.up import Place, cloud

    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        store = str(folder / "store")
        data, parameters = program(folder)
        body = encode_update(np.full(parameters, 0.01, np.float32), 10, 1.0)
        (folder / "body").write_bytes(body)
        with cloud(Place(store=store, port=port), "operator") as url:
            prepare(url, data)
            capacity = measure(port, enrolled(store, PROBE, 0), body)
            per_s = given.times * capacity
            (folder / "tokens").write_text("\n".join(enrolled(store, int(per_s * given.seconds), PROBE)))
            told, watch = crowd(folder, port, per_s, given)
            flush(port, enrolled(store, 1000, PROBE + int(per_s * given.seconds)), body)
        counted, found = told.pop("counted"), in_versions(folder / "store" / "models")
        report = summary(capacity, given, told, watch)
        report |= {
            "uploads_acknowledged": len(counted),
            "uploads_lost": sum(found.get(assignment, 0) == 0 for assignment in counted),
            "uploads_counted_twice": sum(times > 1 for times in found.values()),
        }
    if given.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key:28} {value}")


def summary(capacity: float, given: argparse.Namespace, told: dict[str, Any], watch: Watch) -> dict[str, Any]:
    """Return what to print but for what was lost."""
    calls = sum(sum(seen.values()) for seen in told["statuses"].values()) + sum(told["errors"].values())
    return {
        "capacity_uploads_per_s": round(capacity, 1),
        "phones_per_s": round(told["phones_per_s"], 1),
        "times_the_capacity": round(told["phones_per_s"] / capacity, 1),
        "took_s": round(told["took_s"], 1),
        "statuses": told["statuses"],
        "without_an_answer": told["errors"],
        "uploads_counted_per_s": round(told["statuses"]["upload"].get("200", 0) / told["took_s"], 1),
        "refused_share": round(told["refused"] / calls, 3),
        "refusals_with_retry_after": told["refused_with_retry_after"] / told["refused"] if told["refused"] else None,
        "check_in_ms": told["check_in_ms"],
        "upload_ms": told["upload_ms"],
        "refused_ms": told["refused_ms"],
        "crowd_was_late_ms": told["late_ms"],
        "crowd_cores": round(told["cpu_s"] / told["took_s"], 2),
        "crowd_sent_mb_per_s": round(told["sent_mb"] / told["took_s"], 1),
        "load_average": os.getloadavg()[0],
        **watch.report(told["took_s"]),
    }


if __name__ == "__main__":
    main()
