"""How much of everything a fleet needs, up to ten million phones: arithmetic on measured figures and list prices.

    python benchmarks/capacity.py [--check-ins-per-core 1515] [--uploads-per-core 167] [--json] ...

Every figure is an option. The two rates are a second, divided by what a request takes of a core in all processes of
the cloud (`benchmarks/ingest.py`). The requests of S3 for an upload, a check-in and a commit are counted here, on a
real cloud in memory.
"""

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from flsys_ray.cloud.credentials import Device
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.service import Cloud
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.storage.base import ObjectStore, StoredObject
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.schemas import CheckInRequest, ModelCandidacy
from flsys_ray.wire.tensors import encode_update

DAY_S, DAYS_A_MONTH = 86400, 30
FLEETS = (10_000, 100_000, 1_000_000, 10_000_000)
MODEL, APP = "m", "load"


@dataclass(frozen=True)
class Figures:
    """What the table follows from. Prices are AWS list prices in USD, us-east-1: see docs/operations.md."""

    check_ins_per_core: float = 1515.0
    uploads_per_core: float = 167.0
    check_ins_per_day: float = 12.0
    uploads_per_day: float = 1.0
    peak: float = 3.0
    update_bytes: float = 842_000.0
    download_bytes: float = 842_000.0
    cores_per_node: int = 4
    load: float = 0.6
    kept_days: float = 30.0
    node_usd_per_h: float = 0.2016
    put_usd_per_1000: float = 0.005
    get_usd_per_1000: float = 0.0004
    stored_usd_per_gb_month: float = 0.023
    out_usd_per_gb: float = 0.09


@dataclass(frozen=True)
class Row:
    """One fleet. Rates are at the peak; requests, bytes and dollars are a month's."""

    phones: int
    check_ins_per_s: float
    uploads_per_s: float
    cores: int
    nodes: int
    s3_puts_per_s: float
    s3_gets_per_s: float
    gbit_per_s_in: float
    nodes_usd: float
    requests_usd: float
    stored_usd: float
    out_usd: float


class CountingStore(ObjectStore):
    """Counts the requests that S3 would be sent: a write, a listing page, a read."""

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.counts: Counter[str] = Counter()

    def put_new(self, key: str, body: bytes) -> str:
        self.counts["put"] += 1
        return self.inner.put_new(key, body)

    def swap(self, key: str, body: bytes, etag: str) -> str:
        self.counts["put"] += 1
        return self.inner.swap(key, body, etag)

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        self.counts["get"] += 1
        return self.inner.get(key, start, end)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self.counts["put"] += 1  # a listing costs what a write costs
        return self.inner.list(prefix, after)

    def remove(self, key: str) -> None:
        self.inner.remove(key)  # S3 takes no money for it


def plan(figures: Figures, requests: dict[str, dict[str, float]], phones: int) -> Row:
    """Return the row of a fleet."""
    check_ins = phones * figures.check_ins_per_day / DAY_S
    uploads = phones * figures.uploads_per_day / DAY_S
    peak_check_ins, peak_uploads = check_ins * figures.peak, uploads * figures.peak
    cores = math.ceil(
        (peak_check_ins / figures.check_ins_per_core + peak_uploads / figures.uploads_per_core) / figures.load
    )
    nodes = 1 + max(1, math.ceil(cores / figures.cores_per_node))
    puts = check_ins * requests["check-in"]["put"] + uploads * requests["upload"]["put"]
    gets = check_ins * requests["check-in"]["get"] + uploads * (requests["upload"]["get"] + 1)  # and one download
    month_s = DAY_S * DAYS_A_MONTH
    per_1000 = puts * figures.put_usd_per_1000 + gets * figures.get_usd_per_1000
    return Row(
        phones=phones,
        check_ins_per_s=peak_check_ins,
        uploads_per_s=peak_uploads,
        cores=cores,
        nodes=nodes,
        s3_puts_per_s=puts * figures.peak,
        s3_gets_per_s=gets * figures.peak,
        gbit_per_s_in=peak_uploads * figures.update_bytes * 8 / 1e9,
        nodes_usd=nodes * figures.node_usd_per_h * 24 * DAYS_A_MONTH,
        requests_usd=per_1000 / 1000 * month_s,
        stored_usd=uploads * DAY_S * figures.kept_days * figures.update_bytes / 1e9 * figures.stored_usd_per_gb_month,
        out_usd=uploads * month_s * figures.download_bytes / 1e9 * figures.out_usd_per_gb,
    )


def count_requests(devices: int = 64) -> dict[str, dict[str, float]]:
    """Return the requests of the store for one check-in and one upload; a round's commit is shared by its uploads."""
    return asyncio.run(_count(devices))


async def _count(devices: int) -> dict[str, dict[str, float]]:
    store, clock = CountingStore(), lambda: 1_800_000_000.0
    hosts = LocalHosts(store, clock)
    cloud = Cloud(store, hosts, clock)
    size = await _training(cloud, hosts, devices)
    request = CheckInRequest(models=[ModelCandidacy(model=MODEL, examples=5)])
    phones = [Device(f"d-{number}", APP) for number in range(devices)]
    await cloud.check_in(Device("d-first", APP), request)  # fills the caches that every replica fills once
    store.counts.clear()
    replies = [await cloud.check_in(phone, request) for phone in phones]
    found = {"check-in": _each(store, devices)}
    body = encode_update(np.full(size, 0.01, np.float32), 5, 1.0)
    for phone, reply in zip(phones, replies, strict=True):
        [work] = reply.assignments
        ticket = cloud.credentials.check_assignment(work.token, phone, work.assignment_id)
        await cloud.updates.take_in(ticket, body)
    found["upload"] = _each(store, devices)
    return found


def _each(store: CountingStore, devices: int) -> dict[str, float]:
    counted = {kind: store.counts[kind] / devices for kind in ("put", "get")}
    store.counts.clear()
    return counted


async def _training(cloud: Cloud, hosts: LocalHosts, devices: int) -> int:
    """Have a model that trains, with a round of `devices` updates. Returns its number of parameters."""
    import hashlib

    from flsys_ray.cloud import places
    from flsys_ray.core.ids import model_id
    from flsys_ray.programs.manifest import LeafEntry, Manifest, pack

    size, flatbuffer = 6, b"no flatbuffer: nothing here runs it"
    leaf = LeafEntry(name="kernel", shape=(size,), offset=0, trainable=True)
    manifest = Manifest(
        name="load", flatbuffer_sha256=hashlib.sha256(flatbuffer).hexdigest(), parameters=size, slots=0, batch_size=4,
        input_shape=(2,), input_dtype="float32", classes=("a", "b"), local_optimizer="sgd", layout=(leaf,),
    )  # fmt: skip
    program = pack(flatbuffer, manifest)
    digest = hashlib.sha256(program).hexdigest()
    pacing = {"name": "rounds", "cohort": devices, "over_selection": 2, "quorum": 1, "deadline_s": 3600}
    cloud.create_app(APP)
    await cloud.put_model(APP, MODEL, parse_plan({"pacing": pacing, "selection": "first_come"}))
    found = model_id(APP, MODEL)
    cloud.store.put_new(places.program(found, digest), program)
    await hosts.model(found).put_program(digest)
    hosts.host(found).call(
        lambda model: model.start(lambda program, seed: Version(0, np.zeros(size, np.float32), OptimizerState()))
    )
    cloud.standings.forget(found)
    return size


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Figures()).items():
        arguments.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments.add_argument("--json", action="store_true")
    given = vars(arguments.parse_args())
    as_json = given.pop("json")
    requests = count_requests()
    rows = [plan(Figures(**given), requests, phones) for phones in FLEETS]
    if as_json:
        print(json.dumps({"requests": requests, "rows": [asdict(row) for row in rows]}, indent=2))
        return
    for what, counts in requests.items():
        print(f"S3 requests of one {what}: {counts['put']:.2f} writes or listings, {counts['get']:.2f} reads")
    print("\n| phones | check-ins/s | uploads/s | cores | nodes | S3 writes/s | S3 reads/s | Gbit/s in ", end="")
    print("| nodes USD | requests USD | storage USD | traffic out USD |\n|" + "---:|" * 12)
    for row in rows:
        print(
            f"| {row.phones:,} | {row.check_ins_per_s:,.0f} | {row.uploads_per_s:,.1f} | {row.cores:,} | {row.nodes:,} "
            f"| {row.s3_puts_per_s:,.1f} | {row.s3_gets_per_s:,.1f} | {row.gbit_per_s_in:,.2f} | {row.nodes_usd:,.0f} "
            f"| {row.requests_usd:,.0f} | {row.stored_usd:,.0f} | {row.out_usd:,.0f} |"
        )


if __name__ == "__main__":
    main()
