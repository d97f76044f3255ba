"""Ten times what the cloud can take, over real HTTP: nothing that was accepted is lost, the rest is told when to come.

    python benchmarks/overload.py [--seconds 120] [--times 10] [--json]

First the capacity is measured: uploads (842 kB) a second of eight phones that never wait. Then phones arrive at `times`
that rate, each with its own connection, whether or not the ones before were answered: each checks in, and uploads if it
is given work. A refused phone does not wait to come back, as if it were another: the rate of arrivals is what is fixed.

Printed: accepted uploads that are lost (answered 200, and neither in a version's manifest nor an object of the open
round: must be 0), the share of calls that was refused and the share of those with `Retry-After`, p50 and p99 of
accepted calls, and the resident memory of the cloud's processes after a quarter of the time and at the end.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ingest import check_in, free_port, installation, prepare, upload
from load import MODEL, Request, burst, program

from flsys_ray.wire.tensors import encode_update

PROBE = 200


@dataclass
class Told:
    """What the cloud answered."""

    statuses: dict[int, int] = field(default_factory=dict)
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: {"check-in": [], "upload": []})
    counted: list[str] = field(default_factory=list)
    with_retry_after: int = 0
    refused: int = 0
    broken: int = 0


async def send(port: int, request: Request, told: Told, kind: str) -> tuple[int, bytes]:
    """Send one request over a connection of its own, and note the answer."""
    begun = time.perf_counter()
    writer = None
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.raw)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        status = int(head.split()[1])
        length = int(head.partition("content-length:")[2].split()[0])
        body = await reader.readexactly(length)
    except (OSError, asyncio.IncompleteReadError):
        told.broken += 1
        return 0, b""
    finally:
        if writer is not None:
            writer.transport.abort()
    told.statuses[status] = told.statuses.get(status, 0) + 1
    if status in (503, 429):
        told.refused += 1
        told.with_retry_after += "\r\nretry-after:" in head
    elif status == 200:
        told.latencies_s[kind].append(time.perf_counter() - begun)
    return status, body


async def phone(port: int, token: str, body: bytes, told: Told) -> None:
    """Check in, and upload if there is work."""
    status, reply = await send(port, check_in(token), told, "check-in")
    if status != 200 or not json.loads(reply)["assignments"]:
        return
    status, _ = await send(port, upload(token, reply, body), told, "upload")
    if status == 200:
        told.counted.append(json.loads(reply)["assignments"][0]["assignment_id"])


async def arrive(port: int, tokens: list[str], body: bytes, per_s: float, watch: "Memory") -> Told:
    """Have a phone arrive every `1 / per_s` seconds."""
    told, phones, begun = Told(), set[asyncio.Task[None]](), time.perf_counter()
    for number, token in enumerate(tokens):
        await asyncio.sleep(max(0.0, begun + number / per_s - time.perf_counter()))
        task = asyncio.ensure_future(phone(port, token, body, told))
        phones.add(task)
        task.add_done_callback(phones.discard)
        watch.look(number / len(tokens))
    await asyncio.gather(*phones)
    watch.look(1.0)
    return told


@dataclass
class Memory:
    """Resident memory of the cloud's processes, in MiB, at a quarter of the time and at the end."""

    seen: dict[str, list[float]] = field(default_factory=dict)
    due: list[float] = field(default_factory=lambda: [0.25, 1.0])

    def look(self, share: float) -> None:
        """Note it if it is time."""
        if self.due and share >= self.due[0]:
            self.due.pop(0)
            for name, mib in resident().items():
                self.seen.setdefault(name, []).append(mib)


def resident() -> dict[str, float]:
    """Return the resident memory of the replica and of the model's actor that live below this process."""
    found, parents, names = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:
            continue
    family = [os.getpid()]
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
    for pid in family:
        for name in ("ServeReplica", "ModelActor"):
            if name in names.get(pid, ""):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[name] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return found


def lost(store: Path, counted: list[str]) -> int:
    """Return how many acknowledged uploads are neither in a manifest nor an object of a round."""
    held: set[str] = set()
    for manifest in store.rglob("versions/*.json"):
        held.update(line["assignment_id"] for line in json.loads(manifest.read_text())["updates"])
    newest = max((path.parent.parent.name for path in store.rglob("rounds/*/updates/*")), default="")
    for path in store.rglob(f"rounds/{newest}/updates/*"):
        if path.stat().st_size:
            held.add(path.name.partition(".")[0])
    return len(set(counted) - held)


def percentile_ms(latencies_s: list[float], percent: float) -> float:
    return round(1000 * float(np.percentile(latencies_s, percent)), 1) if latencies_s else float("nan")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=float, default=120.0)
    arguments.add_argument("--times", type=float, default=10.0)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from serve_apps.up import Place, cloud

    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        data, parameters = program(folder)
        body = encode_update(np.full(parameters, 0.01, np.float32), 10, 1.0)
        with cloud(Place(store=str(folder / "store"), port=port), "operator") as url:
            app_key = prepare(url, data, 90_000)
            capacity = measure(port, enrolled(port, app_key, PROBE, 0), body)
            per_s = given.times * capacity
            devices = enrolled(port, app_key, int(3 * capacity * given.seconds), PROBE)
            tokens = [devices[number % len(devices)] for number in range(int(per_s * given.seconds))]
            watch = Memory()
            told = asyncio.run(arrive(port, tokens, body, per_s, watch))
            calls = sum(told.statuses.values()) + told.broken
            report: dict[str, Any] = {
                "capacity_uploads_per_s": round(capacity, 1),
                "phones_per_s": round(per_s, 1),
                "calls": calls,
                "statuses": told.statuses,
                "broken_connections": told.broken,
                "uploads_acknowledged": len(told.counted),
                "uploads_lost": lost(folder / "store" / "models", told.counted),
                "refused_share": round(told.refused / calls, 3),
                "refusals_with_retry_after": told.with_retry_after / told.refused if told.refused else None,
                "check_in_p50_ms": percentile_ms(told.latencies_s["check-in"], 50),
                "check_in_p99_ms": percentile_ms(told.latencies_s["check-in"], 99),
                "upload_p50_ms": percentile_ms(told.latencies_s["upload"], 50),
                "upload_p99_ms": percentile_ms(told.latencies_s["upload"], 99),
                "rss_mib": {process: [round(mib) for mib in seen] for process, seen in watch.seen.items()},
            }
    if given.json:
        print(json.dumps(report, indent=2))
    else:
        for key, value in report.items():
            print(f"{key:28} {value}")


def enrolled(port: int, app_key: str, count: int, first: int) -> list[str]:
    """Enrol devices and return their tokens."""
    headers = {"Authorization": f"Bearer {app_key}", "Content-Type": "application/json"}
    requests = [Request.of("POST", "/v1/devices", headers, installation(first + n)) for n in range(count)]
    return [json.loads(body)["token"] for body in burst(port, requests, 16).bodies]


def measure(port: int, tokens: list[str], body: bytes) -> float:
    """Return how many uploads a second eight phones get in that never wait."""
    checked_in = burst(port, [check_in(token) for token in tokens], 8)
    uploads = [upload(token, reply, body) for token, reply in zip(tokens, checked_in.bodies, strict=True)]
    measured = burst(port, uploads, 8)
    assert measured.statuses == {200: len(tokens)}, (MODEL, measured.statuses)
    return measured.per_s


if __name__ == "__main__":
    main()
