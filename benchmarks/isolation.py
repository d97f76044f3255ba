"""Check-ins of model B while model A commits versions of 5,000,000 parameters with Adam, one after the other.

    python benchmarks/isolation.py [--parameters 5000000] [--checkins 2000] [--connections 4] [--json]

A's rounds have a cohort of one: every upload is a commit, of 20 MB parameters and 40 MB of optimizer state. Beside it,
check-ins that name B alone, and check-ins that name both, are timed. Client, cloud and store share this machine, so the
processors are shared too: what is left of the difference is not waiting, but work beside work.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from ingest import free_port, installation
from load import Measured, Request, burst, program

from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.wire.tensors import encode_update

WIDE = {"name": "rounds", "cohort": 100_000, "over_selection": 1, "quorum": 1, "deadline_s": 3600}
ONE = {"name": "rounds", "cohort": 1, "over_selection": 1, "deadline_s": 3600}
COMMIT_S = 120.0


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--parameters", type=int, default=5_000_000)
    arguments.add_argument("--checkins", type=int, default=2000)
    arguments.add_argument("--connections", type=int, default=4)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), given.parameters, given.checkins, given.connections)
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'check-ins':34}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'commits of A':>14}")
    for what, row in report.items():
        print(f"{what:34}{row['p50_ms']:9.1f}{row['p99_ms']:9.1f}{row['max_ms']:9.1f}{row['commits']:14}")


def measure(folder: Path, parameters: int, checkins: int, connections: int) -> dict[str, dict[str, Any]]:
    from serve_apps.up import Place, cloud

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    large, size = program(folder, parameters)
    small, _ = program(folder, 1000)
    port = free_port()
    with cloud(Place(store=str(folder / "store"), port=port), "operator") as url:
        with DeveloperClient(url, "operator") as operator:
            key = operator.create_app("isolation").key
        with DeveloperClient(url, key) as developer:
            train(developer, "a", large, {"pacing": ONE, "server_optimizer": "adam"})
            train(developer, "b", small, {"pacing": WIDE})
        tokens = enrolled(port, key, 3 * checkins, connections)
        uploader = Uploader(url, key, size)

        def timed(part: int, *models: str) -> dict[str, Any]:
            before = uploader.commits
            requests = [check_in(token, *models) for token in tokens[part * checkins : (part + 1) * checkins]]
            return row(burst(port, requests, connections), lambda: uploader.commits - before)

        burst(port, [check_in(token, "b") for token in tokens[:20]], connections)
        report = {"B, while A rests": timed(0, "b")}
        uploader.start()
        uploader.wait_for_commit()
        report["B, while A commits"] = timed(1, "b")
        report["A and B, while A commits"] = timed(2, "a", "b")
        uploader.stop()
        return report


def train(developer: DeveloperClient, model: str, data: bytes, plan: dict[str, Any]) -> None:
    developer.put_model(model, parse_plan({"selection": "first_come"} | plan))
    developer.put_program(model, data)
    developer.act(model, "start")


def enrolled(port: int, key: str, count: int, connections: int) -> list[str]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    asked = [Request.of("POST", "/v1/devices", headers, installation(index)) for index in range(count)]
    return [json.loads(body)["token"] for body in burst(port, asked, connections).bodies]


def check_in(token: str, *models: str) -> Request:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    body = {"models": [{"model": model, "examples": 100} for model in models]}
    return Request.of("POST", "/v1/checkins", headers, json.dumps(body).encode())


def row(measured: Measured, commits: Any) -> dict[str, Any]:
    if set(measured.statuses) != {200}:
        raise SystemExit(f"not all check-ins were answered: {measured.statuses}")
    return {
        "p50_ms": round(measured.percentile_ms(50), 1),
        "p99_ms": round(measured.percentile_ms(99), 1),
        "max_ms": round(measured.percentile_ms(100), 1),
        "commits": commits(),
    }


class Uploader(threading.Thread):
    """A phone of model A that uploads as soon as it may: A commits all the time."""

    def __init__(self, url: str, key: str, size: int) -> None:
        super().__init__(daemon=True)
        self.commits = 0
        self._http = httpx2.Client(base_url=url, timeout=120.0)
        body = {"installation_id": "uploader-of-a"}
        self._token = self._http.post("/v1/devices", json=body, headers=bearer(key)).json()["token"]
        self._body = encode_update(np.full(size, 0.01, np.float32), 10, 1.0)
        self._stopped = threading.Event()

    def run(self) -> None:
        ask = {"models": [{"model": "a", "examples": 100}]}
        while not self._stopped.is_set():
            reply = self._http.post("/v1/checkins", json=ask, headers=bearer(self._token)).json()
            for work in reply["assignments"]:
                headers = bearer(self._token) | {"Flsys-Assignment": work["token"]}
                self.commits += self._http.put(work["upload"]["url"], content=self._body, headers=headers).is_success
            if not reply["assignments"]:
                self._stopped.wait(0.2)

    def wait_for_commit(self) -> None:
        end = time.monotonic() + COMMIT_S
        while not self.commits:
            if time.monotonic() > end:
                raise SystemExit(f"no update of this model was counted for {COMMIT_S:g} s")
            time.sleep(0.05)

    def stop(self) -> None:
        self._stopped.set()
        self.join()
        self._http.close()


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


if __name__ == "__main__":
    main()
