"""One recorded sequence, played through every layer: the same answers, and versions that are equal to the bit."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from cloud_fakes import Clock
from cloud_world import open_world
from drivers import BareDriver, Driver, HostsDriver, HttpDriver, device_id, fixed_store
from sequences import LOTTERY, TIMED, TIMELESS, plan, played
from tiny_program import PARAMETERS, tiny_program

from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.core.plan import TrainingPlan


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


# Model actors on Ray are the layer of `tests/ray/test_parity_ray.py`.
OPENED: dict[str, Callable[[TrainingPlan], Iterator[Driver]]] = {
    "local hosts": local_hosts,
    "http": http,
}


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
