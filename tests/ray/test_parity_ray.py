"""The recorded sequence of `tests/parity` through real model actors: the same answers, and the same bits."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import test_parity_asynchronous as asynchronous
from drivers import MODEL, BareDriver, Driver, HostsDriver, fix_signing_key
from ray_cloud import Up
from sequences import TIMELESS, plan, played

from actors.hosts import RayHosts
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.storage.uri import open_store

SEQUENCES = {
    "rounds": (plan(TIMELESS[0]), TIMELESS[1], 6),
    "buffered": (asynchronous.planned(asynchronous.BUFFERED | {"deadline_s": 3600}), asynchronous.TIMELESS, 9),
    "late updates": (asynchronous.planned(asynchronous.LATE | {"deadline_s": 3600}), asynchronous.TIMELESS, 9),
}


@pytest.mark.parametrize("pacing", SEQUENCES)
def test_model_actors_say_the_same_and_commit_the_same_bits(
    up: Up, program: bytes, tmp_path: Path, pacing: str
) -> None:
    """An actor's clock cannot be set, so these sequences are those in which no time passes."""
    store = open_store(str(tmp_path))
    fix_signing_key(store)

    def actors(how: TrainingPlan) -> Iterator[Driver]:
        with asyncio.Runner() as runner:
            hosts = RayHosts(str(tmp_path))
            try:
                yield HostsDriver(store, hosts, time.time, time.sleep, runner).open(program, how)
            finally:
                ray.kill(hosts.actor(MODEL))  # the next sequence has a model of this name in another store

    def bare(how: TrainingPlan) -> Iterator[Driver]:
        yield BareDriver(program, how)

    how, steps, least = SEQUENCES[pacing]
    said, versions = played(actors, how, steps)
    expected_said, expected = played(bare, how, steps)
    assert said == expected_said
    assert [version.hex() for version in versions] == [version.hex() for version in expected]
    assert len(versions) >= least
