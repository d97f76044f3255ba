"""`kill -9` of a model's actor in the middle of a round, under uploads: nothing counted is lost or counted twice."""

import os
import signal
import threading
import time
from dataclasses import dataclass, field

import httpx2
import numpy as np
import ray
from ray_cloud import OPERATOR_KEY, PARAMETERS, Up

from actors.hosts import NAMESPACE, actor_name
from flsys_ray.cloud.journal import Journal
from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import TryLater
from flsys_ray.storage.local import LocalStore
from flsys_ray.wire.developer_schemas import ModelInfo
from flsys_ray.wire.schemas import AssignmentMessage
from flsys_ray.wire.tensors import encode_update

KILLS = 5
PHONES = 12
PLAN = {"pacing": {"name": "rounds", "cohort": 8, "quorum": 1, "deadline_s": 5}, "selection": "first_come"}


@dataclass
class Ledger:
    """What phones were told: the assignments whose upload was answered `200 counted`, and when."""

    counted: dict[str, int] = field(default_factory=dict)
    answers: list[int] = field(default_factory=list)


class UploadingPhone(threading.Thread):
    """Checks in and uploads, over and over, and repeats every upload until it has an answer."""

    def __init__(self, url: str, app_key: str, number: int, ledger: Ledger, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._http = httpx2.Client(base_url=url, timeout=30.0)
        self._app_key, self._number, self._ledger, self._stopped = app_key, number, ledger, stop

    def run(self) -> None:
        enrolled = self._until_answered(
            "POST", "/v1/devices", self._app_key, json={"installation_id": f"uploading-phone-{self._number}"}
        ).json()
        while not self._stopped.is_set():
            body = {"models": [{"model": "survivor", "examples": 5}]}
            reply = self._until_answered("POST", "/v1/checkins", enrolled["token"], json=body).json()
            for given in reply["assignments"]:
                self._work(enrolled["token"], AssignmentMessage.model_validate(given))
            self._stopped.wait(0.05)
        self._http.close()

    def _work(self, token: str, work: AssignmentMessage) -> None:
        delta = np.full(PARAMETERS, 1e-3 * (self._number + 1), np.float32)
        body = encode_update(delta, self._number + 1, 0.5)
        answer = self._until_answered("PUT", work.upload.url, token, content=body, assignment=work.token)
        self._ledger.answers.append(answer.status_code)
        if answer.status_code == 200:
            self._ledger.counted[work.assignment_id] = work.round

    def _until_answered(
        self, method: str, path: str, token: str, assignment: str = "", **body: object
    ) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {token}", "Flsys-Assignment": assignment}
        for _ in range(600):
            try:
                answer = self._http.request(method, path, headers=headers, **body)  # type: ignore[arg-type]
                if answer.status_code < 500:
                    return answer
                self._ledger.answers.append(answer.status_code)
            except httpx2.RequestError:
                self._ledger.answers.append(0)
            self._stopped.wait(0.1)
        raise AssertionError("no answer in a minute")


def test_no_counted_update_is_lost_or_doubled_when_the_actor_is_killed(up: Up, program: bytes) -> None:
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        app_key = operator.create_app("survival").key
    ledger, stop = Ledger(), threading.Event()
    with DeveloperClient(up.url, app_key) as developer:
        developer.put_model("survivor", parse_plan(PLAN))
        developer.put_program("survivor", program)
        developer.act("survivor", "start")
        phones = [UploadingPhone(up.url, app_key, number, ledger, stop) for number in range(PHONES)]
        for phone in phones:
            phone.start()
        pids = [_kill_in_mid_round(ledger) for _ in range(KILLS)]
        stop.set()
        for phone in phones:
            phone.join(120)
            assert not phone.is_alive()
        open_round = _info(developer).open_round

    assert len(set(pids)) == KILLS, "each kill must hit a process that Ray started anew"
    assert open_round is not None
    committed = _assignments_in_manifests(up)
    assert len(committed) == len(set(committed)), "an update is in two versions"
    lost = {
        assignment: round_
        for assignment, round_ in ledger.counted.items()
        if round_ < open_round.round and assignment not in committed
    }
    assert not lost, f"counted and then lost: {lost}"
    in_open_round = [a for a, round_ in ledger.counted.items() if round_ == open_round.round]
    assert open_round.counters.counted >= len(in_open_round)
    assert len(ledger.counted) > KILLS * 3, "the phones hardly uploaded: the test shows nothing"


def _info(developer: DeveloperClient) -> ModelInfo:
    """Look at the model, however long its actor takes to come back after the last kill: "try later" is an answer."""
    end = time.monotonic() + 60
    while True:
        try:
            return developer.info("survivor")
        except TryLater as error:
            if time.monotonic() > end:
                raise
            threading.Event().wait(min(1.0, error.retry_after_s))


def _kill_in_mid_round(ledger: Ledger) -> int:
    """Kill the actor's process once some more updates have been counted. Returns its process id."""
    enough = len(ledger.counted) + 5
    end = time.monotonic() + 60
    while len(ledger.counted) < enough:
        assert time.monotonic() < end, f"no update counted for a minute; answers so far: {ledger.answers[-20:]}"
        threading.Event().wait(0.02)
    pid: int = ray.get(ray.get_actor(actor_name("survival/survivor"), namespace=NAMESPACE).pid.remote(), timeout=60)
    os.kill(pid, signal.SIGKILL)
    return pid


def _assignments_in_manifests(up: Up) -> list[str]:
    journal = Journal(LocalStore(up.store), "survival/survivor")
    entries = list(journal.entries())
    numbers = [entry.head.version.number for entry in entries if entry.head.version is not None]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(numbers[-1] + 1)), "versions must rise by one"
    return [line.assignment_id for entry in entries for line in entry.updates]
