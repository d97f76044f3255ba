"""One recorded sequence, played through every layer: the same answers, and versions that are equal to the bit."""

import asyncio
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cloud_fakes import Clock
from cloud_world import open_world
from drivers import BareDriver, Driver, HostsDriver, HttpDriver, Step, device_id, fixed_store
from tiny_program import PARAMETERS, tiny_program

from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.core.plan import TrainingPlan, parse_plan

NAMES = tuple("abcdefgh")


def bare(plan: TrainingPlan) -> Iterator[Driver]:
    yield BareDriver(tiny_program().data, plan)


def local_hosts(plan: TrainingPlan) -> Iterator[Driver]:
    clock, store = Clock(), fixed_store()
    with asyncio.Runner() as runner:
        hosts = LocalHosts(store, clock)
        yield HostsDriver(store, hosts, clock, clock.advance, runner).open(tiny_program().data, plan)


def restarted_hosts(plan: TrainingPlan) -> Iterator[Driver]:
    """Durable models that are dropped from memory before every call: nothing but the store is left."""
    clock, store = Clock(), fixed_store()

    class Forgetful:
        def model(self, name):
            return LocalHosts(store, clock).model(name)

    with asyncio.Runner() as runner:
        yield HostsDriver(store, Forgetful(), clock, clock.advance, runner).open(tiny_program().data, plan)


def http(plan: TrainingPlan) -> Iterator[Driver]:
    for world in open_world(tiny_program().data, PARAMETERS, fixed_store()):
        yield HttpDriver(world).open(plan)


# A Ray driver is `HostsDriver(store, RayHosts(uri), time.time, time.sleep, runner)` on `open_store(uri)`, after
# `fix_signing_key`. Its clock cannot be set: it plays TIMELESS only.
OPENED: dict[str, Callable[[TrainingPlan], Iterator[Driver]]] = {
    "local hosts": local_hosts,
    "http": http,
}


def plan(selection: str) -> TrainingPlan:
    return parse_plan(
        {
            "pacing": {"name": "rounds", "cohort": 3, "quorum": 2, "over_selection": 1.5, "deadline_s": 60},
            "selection": selection,
            "server_optimizer": {"name": "adam", "learning_rate": 0.05},
            "limits": {"max_examples": 200},
            "seed": 7,
        }
    )


def recorded(seed: int, rounds: int, *, waits: bool) -> list[Step]:
    """Return what devices did in some rounds: too many of them, repeats, work given back, late uploads."""
    rng = np.random.default_rng(seed)
    steps: list[Step] = []
    for round_ in range(rounds):
        order = [NAMES[i] for i in rng.permutation(len(NAMES))]
        steps += [Step("check_in", name) for name in order]
        if round_ == 0:
            steps.append(Step("check_in", order[0]))
        steps.append(Step("give_back", order[0]))
        steps.append(Step("check_in", order[-1]))
        enough = 1 if waits and round_ % 3 == 1 else 2 if waits and round_ % 3 == 2 else 4
        for name in order[1 : 1 + enough]:
            steps.append(Step("upload", name, seed=int(rng.integers(2**31))))
            if waits:
                steps.append(Step("wait", seconds=float(rng.uniform(0, 5))))
            if name == order[1]:
                repeat = Step("upload", name, seed=int(rng.integers(2**31)))
                steps += [repeat, Step("give_back", name), Step("check_in", name)]
        steps.append(Step("upload", order[1], seed=int(rng.integers(2**31))))
        if waits:
            steps.append(Step("wait", seconds=61))
        steps.append(Step("upload", order[0], seed=1))
    return steps


def played(open_driver: Callable[[TrainingPlan], Iterator[Driver]], how: TrainingPlan, steps: list[Step]):
    """Return what each step was told, and the versions; steps on work that a device never got are left out."""
    for driver in open_driver(how):
        said, has_work = [], set()
        for step in steps:
            if step.verb in ("upload", "give_back") and step.device not in has_work:
                continue
            said.append((step.verb, step.device, driver.play(step)))
            if said[-1][2].startswith("round ") and step.verb == "check_in":
                has_work.add(step.device)
        return said, driver.versions()
    raise AssertionError("no driver")


TIMELESS = ("first_come", recorded(1, 5, waits=False))
TIMED = ("first_come", recorded(2, 7, waits=True))
LOTTERY = ("uniform", recorded(3, 6, waits=True))


@pytest.mark.parametrize("layer", OPENED)
@pytest.mark.parametrize("sequence", [TIMELESS, TIMED, LOTTERY], ids=["timeless", "timed", "lottery"])
def test_every_layer_says_the_same_and_commits_the_same_bits(layer, sequence):
    selection, steps = sequence
    said, versions = played(OPENED[layer], plan(selection), steps)
    expected_said, expected = played(bare, plan(selection), steps)
    assert said == expected_said
    assert [version.hex() for version in versions] == [version.hex() for version in expected]


def test_a_restart_before_every_call_changes_no_bit():
    """It forgets who was assigned and not heard of yet, so that more devices may get work; the sums are the same."""
    _, versions = played(restarted_hosts, plan("first_come"), TIMELESS[1])
    _, expected = played(bare, plan("first_come"), TIMELESS[1])
    assert [version.hex() for version in versions] == [version.hex() for version in expected]


def test_the_sequences_hold_what_they_are_meant_to():
    said, versions = played(bare, plan("first_come"), TIMELESS[1])
    answers = {answer for _, _, answer in said}
    assert {"counted", "duplicate", "late", "back", "conflict", "already-contributed", "round-full"} <= answers
    assert len(versions) == 6
    said, versions = played(bare, plan("first_come"), TIMED[1])
    rounds = {answer.split()[1] for _, _, answer in said if answer.startswith("round ")}
    assert len(rounds) == 7
    assert len(versions) == 6  # two rounds missed their quorum
    said, versions = played(bare, plan("uniform"), LOTTERY[1])
    assert "not-selected" in {answer for _, _, answer in said}
    assert len(versions) > 2
    assert len(set(versions)) == len(versions)


def test_devices_have_the_same_ids_in_every_layer():
    for world in open_world(tiny_program().data, PARAMETERS, fixed_store()):
        key = world.app()
        body = {"installation_id": "installation-a"}
        reply = world.http.post("/v1/devices", json=body, headers={"Authorization": f"Bearer {key}"})
        assert reply.json()["device_id"] == device_id("a")
