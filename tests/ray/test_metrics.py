"""The numbers of replicas and actors arrive where Prometheus fetches them."""

import re
import time

import httpx2
import numpy as np
import ray
from ray_cloud import OPERATOR_KEY, PARAMETERS, Up

from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.wire.tensors import encode_update

PLAN = {"pacing": {"name": "rounds", "cohort": 1, "deadline_s": 600}, "selection": "first_come"}
VISIBLE_S = 60.0
EXPECTED = {
    'ray_flsys_check_ins_total{model="measuring/measured",outcome="assigned"}': 1.0,
    'ray_flsys_check_ins_total{model="-",outcome="unknown-model"}': 1.0,
    'ray_flsys_updates_total{model="measuring/measured",outcome="counted"}': 1.0,
    'ray_flsys_rounds_total{model="measuring/measured",outcome="committed"}': 1.0,
    'ray_flsys_version{model="measuring/measured"}': 1.0,
    'ray_flsys_round_seconds_count{model="measuring/measured"}': 1.0,
    'ray_flsys_commit_seconds_count{model="measuring/measured"}': 1.0,
}


def test_what_happens_to_a_phone_is_seen_by_prometheus(up: Up, program: bytes) -> None:
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        key = operator.create_app("measuring").key
    with DeveloperClient(up.url, key) as developer:
        developer.put_model("measured", parse_plan(PLAN))
        developer.put_program("measured", program)
        developer.act("measured", "start")
    body = encode_update(np.full(PARAMETERS, 1e-3, np.float32), 5, 0.5)
    with httpx2.Client(base_url=up.url, timeout=60) as http:
        one_phone(http, key, body)
    expected = {**EXPECTED, 'ray_flsys_update_bytes_total{model="measuring/measured"}': float(len(body))}
    end, seen = time.monotonic() + VISIBLE_S, {}
    while not expected.items() <= seen.items() and time.monotonic() < end:
        seen = series()
        time.sleep(0.5)
    assert {name: seen.get(name) for name in expected} == expected


def one_phone(http: httpx2.Client, key: str, body: bytes) -> None:
    """Have one phone ask for a model that is there and one that is not, and upload."""
    enrolled = http.post("/v1/devices", json={"installation_id": "measured-phone"}, headers=bearer(key)).json()
    models = [{"model": name, "examples": 5} for name in ("measured", "no-such-model")]
    token = enrolled["token"]
    reply = http.post("/v1/checkins", json={"models": models}, headers=bearer(token)).json()
    [work] = reply["assignments"]
    headers = bearer(token) | {"Flsys-Assignment": work["token"]}
    assert http.put(work["upload"]["url"], content=body, headers=headers).status_code == 200


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def series() -> dict[str, float]:
    """Return our series as the nodes' endpoints give them, added up over processes, with our labels alone."""
    found: dict[str, float] = {}
    for node in ray.nodes():
        text = httpx2.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
        for name, labels, value in re.findall(r"^(ray_flsys_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
            own = sorted(re.findall(r'\b(?:model|outcome|what|le)="[^"]*"', labels))
            line = f"{name}{{{','.join(own)}}}"
            found[line] = found.get(line, 0.0) + float(value)
    return found
