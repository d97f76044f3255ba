"""Actors come up when they are needed and go when they are idle, and no call is lost on the way."""

import asyncio
import threading
import time
from pathlib import Path

import httpx2
import numpy as np
import ray
from ray.util import list_named_actors
from ray_cloud import OPERATOR_KEY, PARAMETERS, Up

from actors.hosts import NAMESPACE, RayHosts
from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.offers import CheckInAnswer, Offer
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import GivenBack
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import TryLater
from flsys_ray.storage.uri import open_store
from flsys_ray.wire.tensors import encode_update

EXAMPLE = [[0.1, -0.2, 0.3, 0.4]]
ALONE = {"pacing": {"name": "rounds", "cohort": 1, "deadline_s": 600}, "selection": "first_come"}
PLAN = {"pacing": {"name": "rounds", "cohort": 3, "quorum": 1, "deadline_s": 2}, "selection": "first_come"}


def with_actors() -> set[str]:
    """Return the models that have an actor."""
    names = (actor["name"] for actor in list_named_actors(all_namespaces=True) if actor["namespace"] == NAMESPACE)
    return {name.removeprefix("model:") for name in names if name.startswith("model:")}


def wait_until_gone(model: str, limit_s: float = 20.0) -> None:
    end = time.monotonic() + limit_s
    while model in with_actors():
        assert time.monotonic() < end, f"{model} still has an actor"
        threading.Event().wait(0.05)


def started(folder: Path, model: str, program: bytes) -> RayHosts:
    """Return hosts, with a short patience for idle actors, of a store in which a model trains."""
    hosts = RayHosts(str(folder), idle_s=1.0)
    store = open_store(str(folder))
    create_model(store, model, "acme", parse_plan(PLAN), time.time())
    store.put_new(places.program(model, sha256(program)), program)

    async def start() -> None:
        await hosts.model(model).put_program(sha256(program))
        assert model not in with_actors(), "a draft's program needs no actor"
        await hosts.model(model).act("start")

    asyncio.run(start())
    return hosts


def check_in(hosts: RayHosts, model: str, device: str) -> CheckInAnswer:
    return asyncio.run(hosts.model(model).check_in(device))


def test_thirty_drafts_start_no_process(up: Up, program: bytes) -> None:
    names = {f"draft-{number:02}" for number in range(30)}
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        app_key = operator.create_app("drafts").key
    with DeveloperClient(up.url, app_key) as developer:
        for name in sorted(names):
            assert developer.put_model(name, parse_plan(PLAN)).state == "draft"
            assert developer.put_program(name, program).program_sha256 == sha256(program)
        changed = developer.put_model("draft-00", parse_plan(PLAN | {"seed": 7}))
        assert changed.plan.seed == 7
        assert {info.model for info in developer.models()} == names
        assert developer.rounds("draft-00") == []
    assert not {f"drafts/{name}" for name in names} & with_actors()


def test_promoting_and_going_back_on_a_cluster(up: Up, program: bytes) -> None:
    """Through HTTP: inference with the promoted version, an older version again under a new number, and training on."""
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        key = operator.create_app("versions").key
    with DeveloperClient(up.url, key) as developer, httpx2.Client(base_url=up.url, timeout=60) as http:
        developer.put_model("moving", parse_plan(ALONE))
        developer.put_program("moving", program)
        developer.act("moving", "start")
        for number in range(3):
            train(http, key, f"one-{number}", 0.5)
        scores = [developer.infer("moving", EXAMPLE, number).scores for number in range(4)]
        assert len({str(each) for each in scores}) == 4
        assert developer.promote("moving", 1).serving == 1
        assert served(developer) == (1, scores[1])

        back = developer.rollback("moving", 2)
        assert (back.version, back.serving, back.state) == (4, 1, "training")
        assert developer.manifest("moving", 4).restored_from == 2
        assert developer.infer("moving", EXAMPLE, 4).scores == scores[2]
        train(http, key, "two", 0.5)
        assert developer.info("moving").version == 5
        assert developer.infer("moving", EXAMPLE, 5).scores == scores[3], "training goes on from version 2"
        assert served(developer) == (1, scores[1])
        assert developer.promote("moving", None).serving == 5
        assert served(developer) == (5, scores[3])


def served(developer: DeveloperClient) -> tuple[int, list[list[float]]]:
    reply = developer.infer("moving", EXAMPLE)
    return reply.version, reply.scores


def train(http: httpx2.Client, key: str, device: str, value: float) -> None:
    """Have a new device send the same update as all others: from minus `value` to `value` over the parameters."""
    own = {"Authorization": f"Bearer {key}"}
    enrolled = http.post("/v1/devices", json={"installation_id": f"device-{device}"}, headers=own).json()
    headers = {"Authorization": f"Bearer {enrolled['token']}"}
    body = {"models": [{"model": "moving", "examples": 5}]}
    [work] = http.post("/v1/checkins", json=body, headers=headers).json()["assignments"]
    delta = np.linspace(-value, value, PARAMETERS, dtype=np.float32)
    update = encode_update(delta, 5, 0.5)
    sent = http.put(work["upload"]["url"], content=update, headers=headers | {"Flsys-Assignment": work["token"]})
    assert sent.status_code == 200, sent.text


def test_an_idle_actor_leaves_and_comes_back_with_its_state(up: Up, program: bytes, tmp_path: Path) -> None:
    hosts = started(tmp_path, "sleeper", program)
    handle = hosts.model("sleeper")
    offer = check_in(hosts, "sleeper", "d-one").outcome
    assert isinstance(offer, Offer)
    pid = ray.get(hosts.actor("sleeper").pid.remote())
    wait_until_gone("sleeper")  # after its round's deadline: the only device vanished, and the round was closed
    asleep = asyncio.run(handle.info())
    assert "sleeper" not in with_actors(), "to look at a model does not wake it"
    assert (asleep.state, asleep.rounds_closed) == ("training", 1)
    assert [closed.counters.late for closed in asyncio.run(handle.rounds(0))] == [1]
    begun = time.monotonic()
    offer = check_in(hosts, "sleeper", "d-two").outcome
    assert time.monotonic() - begun < 10
    assert isinstance(offer, Offer)
    assert (offer.assignment.round, offer.assignment.version) == (1, 0)
    assert ray.get(hosts.actor("sleeper").pid.remote()) != pid
    awake = asyncio.run(handle.info())
    assert awake.open_round is not None
    assert awake.open_round.counters.assigned == 1


def test_a_round_that_has_a_cohort_keeps_its_actor_until_the_deadline(up: Up, program: bytes, tmp_path: Path) -> None:
    hosts = started(tmp_path, "busy", program)
    assert isinstance(check_in(hosts, "busy", "d-one").outcome, Offer)
    threading.Event().wait(1.6)
    assert "busy" in with_actors()
    wait_until_gone("busy")


def test_calls_during_passivation_all_succeed(up: Up, program: bytes, tmp_path: Path) -> None:
    """Calls at the very moments at which the actor leaves, through two replicas' worth of handles."""
    hosts = started(tmp_path, "flicker", program)
    others = RayHosts(str(tmp_path), idle_s=1.0)
    pids = set()

    async def burst(number: int) -> None:
        handles = [hosts.model("flicker"), others.model("flicker")]
        answers = await asyncio.gather(*(handle.check_in(f"d-{number}-{n}") for n in range(2) for handle in handles))
        given = [answer.outcome for answer in answers]
        assert all(isinstance(offer, Offer) for offer in given)
        # Two handles asked for each device: one assignment. Given back, it stops no one from leaving.
        assert len({offer.assignment.assignment_id for offer in given if isinstance(offer, Offer)}) == 2
        for offer in given[::2]:
            if isinstance(offer, Offer):
                assert isinstance(await handles[0].give_back(offer.assignment), GivenBack)

    for number in range(3):
        asyncio.run(burst(number))
        pids.add(ray.get(hosts.actor("flicker").pid.remote()))
        wait_until_gone("flicker")  # the very moment: the name is free, the handles are stale
    assert len(pids) == 3


def test_replicas_that_activate_at_once_share_one_actor(up: Up, program: bytes, tmp_path: Path) -> None:
    first = started(tmp_path, "shared", program)
    wait_until_gone("shared")
    replicas = [first, *(RayHosts(str(tmp_path), idle_s=1.0) for _ in range(5))]

    async def all_at_once() -> list[CheckInAnswer]:
        return await asyncio.gather(*(hosts.model("shared").check_in("d-one") for hosts in replicas))

    answers = asyncio.run(all_at_once())
    assert (
        len({answer.outcome.assignment.assignment_id for answer in answers if isinstance(answer.outcome, Offer)}) == 1
    )
    assert len({ray.get(hosts.actor("shared").pid.remote()) for hosts in replicas}) == 1


def test_too_many_waiting_calls_are_refused_at_once(up: Up, program: bytes, tmp_path: Path) -> None:
    started(tmp_path, "crowded", program)
    hosts = RayHosts(str(tmp_path), idle_s=1.0, pending_calls=4)
    wait_until_gone("crowded")  # the limit belongs to the actor that is made next

    async def crowd() -> list[object]:
        handle = hosts.model("crowded")
        await handle.check_in("d-first")
        return await asyncio.gather(*(handle.check_in(f"d-{n}") for n in range(40)), return_exceptions=True)

    answers = asyncio.run(crowd())
    refused = [answer for answer in answers if isinstance(answer, TryLater)]
    assert refused, "more than four calls waited"
    assert "too many calls" in refused[0].message
    assert len(refused) + sum(isinstance(answer, CheckInAnswer) for answer in answers) == 40
