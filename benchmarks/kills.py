"""Kill -9 of real processes under real uploads, for minutes; afterwards an auditor compares what phones were told.

`python benchmarks/kills.py --minutes 10`: a cloud comes up on a new store, phones check in and upload over HTTP as fast
as they are answered. Every few seconds one process is killed: the model's actor, the API replica, Serve's proxy or
controller, or all of Ray, after which `flsys up` starts on the same store. In the end every `200 counted` that a phone
saw must be in exactly one version's manifest, or in the open round, and a replay must give the same bits.

Exits with 1 if an update is lost or counted twice.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from load import program

from flsys_ray.cloud import places
from flsys_ray.cloud.replay import replay
from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.storage.local import LocalStore
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.tensors import encode_update

APP, MODEL = "kills", "survivor"
KEY = "operator-key-of-the-kills"
PLAN = {"pacing": {"name": "buffered", "buffer": 8, "concurrency": 16, "deadline_s": 30}, "selection": "first_come"}
VICTIMS = {  # what is killed, how its process is called, and how often it is chosen
    "model actor": ("ray::ModelActor", 5),
    "API replica": ("ray::ServeReplica", 3),
    "Serve's proxy": ("ray::ProxyActor", 1),
    "Serve's controller": ("ray::ServeController", 1),
    "all of Ray": ("", 1),
}


@dataclass
class Cloud:
    """`flsys up` in a session of its own, on one store."""

    store: Path
    port: int
    log: Path
    process: subprocess.Popen[str] | None = None

    def up(self) -> None:
        """Start it, and wait until it says that it is ready."""
        command = [sys.executable, "-m", "flsys_ray", "up", "--store", str(self.store), "--port", str(self.port)]
        environment = os.environ | {"FLSYS_OPERATOR_KEY": KEY}
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment, start_new_session=True
            )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready"):
                return
        raise RuntimeError(f"flsys up ended before it was ready: see {self.log}")

    def processes(self, title: str) -> list[int]:
        """Return the ids of its processes, itself included, whose title begins so."""
        assert self.process is not None
        listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        family = {self.process.pid}
        for _ in range(10):  # parents may come after their children
            family |= {int(pid) for pid, parent, *_ in rows if int(parent) in family}
        return [int(row[0]) for row in rows if int(row[0]) in family and row[-1].startswith(title)]

    def kill_all(self) -> None:
        """Kill every process of it at once."""
        assert self.process is not None
        for pid in self.processes(""):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@dataclass(frozen=True)
class Told:
    """One update that a phone was told is counted: how to ask for it again."""

    assignment_id: str
    url: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Ledger:
    """What phones were told."""

    counted: dict[str, Told] = field(default_factory=dict)
    counted_at: list[float] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    duplicates: int = 0


class Phone(threading.Thread):
    """Checks in and uploads, over and over. It repeats an upload until it has an answer that is not 5xx."""

    def __init__(self, url: str, app_key: str, number: int, size: int, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._http = httpx2.Client(base_url=url, timeout=20.0)
        self._key, self._number, self._size, self._ledger, self._ended = app_key, number, size, ledger, stop
        self._rng = np.random.default_rng(number)

    def run(self) -> None:
        """Live as a phone."""
        body = {"installation_id": f"installation-{self._number:04d}"}
        app = {"Authorization": f"Bearer {self._key}"}
        token = self._answered("POST", "/v1/devices", app, json=body).json()["token"]
        device = {"Authorization": f"Bearer {token}"}
        while not self._ended.is_set():
            wanted = {"models": [{"model": MODEL, "examples": 5}]}
            reply = self._answered("POST", "/v1/checkins", device, json=wanted)
            for work in reply.json().get("assignments", []):
                self._upload(device | {"Flsys-Assignment": work["token"]}, work)
            self._ended.wait(0.02)

    def _upload(self, headers: dict[str, str], work: Any) -> None:
        delta = self._rng.normal(0, 0.01, self._size).astype(np.float32)
        told = Told(work["assignment_id"], work["upload"]["url"], headers, encode_update(delta, 5, 0.5))
        answer = self._answered("PUT", told.url, headers, content=told.body)
        if answer.status_code == 200:
            self._ledger.counted[told.assignment_id] = told
            self._ledger.counted_at.append(time.monotonic())
            self._ledger.duplicates += answer.json()["duplicate"]

    def _answered(self, method: str, path: str, headers: dict[str, str], **body: Any) -> httpx2.Response:
        while True:
            try:
                answer = self._http.request(method, path, headers=headers, **body)
                self._ledger.answers[answer.status_code] += 1
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            except httpx2.RequestError:
                self._ledger.answers[0] += 1
            time.sleep(0.1)


def attack(cloud: Cloud, ledger: Ledger, minutes: float, seed: int) -> dict[str, list[float]]:
    """Kill, and wait until the next update is counted; return how long that took, by what was killed, in seconds."""
    rng = random.Random(seed)
    end = time.monotonic() + 60 * minutes
    took_s: dict[str, list[float]] = {name: [] for name in VICTIMS}
    names, weights = [*VICTIMS], [often for _, often in VICTIMS.values()]
    while time.monotonic() < end:
        time.sleep(rng.uniform(1, 4))
        (name,) = rng.choices(names, weights)
        began = _kill(cloud, name)
        if began is None:
            continue
        while not ledger.counted_at or ledger.counted_at[-1] < began:
            if time.monotonic() > began + 180:
                raise SystemExit(f"no update was counted for three minutes after a kill of {name}")
            time.sleep(0.02)
        took_s[name].append(next(at for at in ledger.counted_at if at >= began) - began)
        print(f"{time.monotonic() - end + 60 * minutes:6.1f} s  {name}: {took_s[name][-1]:.1f} s", flush=True)
    return took_s


def _kill(cloud: Cloud, name: str) -> float | None:
    """Kill one process, or all. Returns when, or None if there is no such process now."""
    if name == "all of Ray":
        cloud.kill_all()
        began = time.monotonic()
        cloud.up()
        return began
    victims = cloud.processes(VICTIMS[name][0])
    if not victims:
        return None
    with suppress(ProcessLookupError):
        os.kill(victims[0], signal.SIGKILL)
    return time.monotonic()


def audit(store: LocalStore, ledger: Ledger, url: str) -> dict[str, Any]:
    """Compare what phones were told with the manifests, and ask once more for what is in none of them."""
    model = f"{APP}/{MODEL}"
    infos = [VersionInfo.model_validate_json(store.get(key).body) for key in store.list(places.versions(model))]
    held = Counter(line.assignment_id for info in infos for line in info.updates)
    missing = [told for key, told in ledger.counted.items() if key not in held]
    with httpx2.Client(base_url=url, timeout=60.0) as http:
        in_open_round = [told for told in missing if _still_counted(http, told)]
    verdicts = Counter(replayed.verdict for replayed in replay(store, model))
    return {
        "told_counted": len(ledger.counted),
        "in_manifests": sum(key in held for key in ledger.counted),
        "in_open_round": len(in_open_round),
        "lost": len(missing) - len(in_open_round),
        "doubled": sum(times > 1 for times in held.values()),
        "told_duplicate": ledger.duplicates,
        "versions": len(infos) - 1,
        "versions_in_order": [info.version for info in infos] == [*range(len(infos))],
        "replayed": dict(verdicts),
    }


def _still_counted(http: httpx2.Client, told: Told) -> bool:
    for _ in range(60):
        answer = http.put(told.url, headers=told.headers, content=told.body)
        if answer.status_code < 500:
            return answer.status_code == 200 and bool(answer.json()["duplicate"])
        time.sleep(0.5)
    return False


def run(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the whole thing in a folder, and return what came of it."""
    data, size = program(folder, options.parameters)
    cloud = Cloud(folder / "store", options.port, folder / "up.log")
    cloud.up()
    url = f"http://127.0.0.1:{options.port}"
    try:
        with DeveloperClient(url, KEY) as operator:
            key = operator.create_app(APP).key
        with DeveloperClient(url, key) as developer:
            developer.put_model(MODEL, parse_plan(PLAN))
            developer.put_program(MODEL, data)
            developer.act(MODEL, "start")
        ledger, stop = Ledger(), threading.Event()
        phones = [Phone(url, key, number, size, ledger, stop) for number in range(options.phones)]
        for phone in phones:
            phone.start()
        took_s = attack(cloud, ledger, options.minutes, options.seed)
        stop.set()
        for phone in phones:
            phone.join(120)
        result = audit(LocalStore(cloud.store), ledger, url)
        everything = [each for times in took_s.values() for each in times]
        return result | {
            "kills": {name: len(times) for name, times in took_s.items()},
            "median_s": {name: round(statistics.median(times), 2) for name, times in took_s.items() if times},
            "worst_s": {name: round(max(times), 2) for name, times in took_s.items() if times},
            "median_of_all_s": round(statistics.median(everything), 2),
            "answers": {str(status): count for status, count in sorted(ledger.answers.items())},
        }
    finally:
        cloud.kill_all()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--phones", type=int, default=8)
    parser.add_argument("--parameters", type=int, default=25_000)
    parser.add_argument("--port", type=int, default=8431)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = run(Path(folder), options)
    print(json.dumps(result, indent=2))
    return 1 if result["lost"] or result["doubled"] or set(result["replayed"]) != {"equal"} else 0


if __name__ == "__main__":
    sys.exit(main())
