"""The recorded sequence of `tests/parity` through real model actors: the same answers, and the same bits."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from drivers import BareDriver, Driver, HostsDriver, fix_signing_key
from ray_cloud import Up
from sequences import TIMELESS, plan, played

from actors.hosts import RayHosts
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.storage.uri import open_store


def test_model_actors_say_the_same_and_commit_the_same_bits(up: Up, program: bytes, tmp_path: Path) -> None:
    """An actor's clock cannot be set, so this sequence is the one in which no time passes."""
    store = open_store(str(tmp_path))
    fix_signing_key(store)

    def actors(how: TrainingPlan) -> Iterator[Driver]:
        with asyncio.Runner() as runner:
            hosts = RayHosts(str(tmp_path))
            yield HostsDriver(store, hosts, time.time, time.sleep, runner).open(program, how)

    def bare(how: TrainingPlan) -> Iterator[Driver]:
        yield BareDriver(program, how)

    selection, steps = TIMELESS
    said, versions = played(actors, plan(selection), steps)
    expected_said, expected = played(bare, plan(selection), steps)
    assert said == expected_said
    assert [version.hex() for version in versions] == [version.hex() for version in expected]
    assert len(versions) == 6
