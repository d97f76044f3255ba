"""A fresh cloud in memory for every test; the device program in it is compiled once."""

from collections.abc import Iterator
from typing import Any

import pytest
from cloud_world import World, open_world
from tiny_program import PARAMETERS, tiny_program

from flsys_ray.programs.compile import CompiledProgram


@pytest.fixture(scope="session")
def tiny() -> CompiledProgram:
    return tiny_program()


@pytest.fixture
def world(tiny: CompiledProgram) -> Iterator[World]:
    yield from open_world(tiny.data, PARAMETERS)


@pytest.fixture
def key(world: World) -> str:
    """The key of the app `acme`."""
    return world.app()


@pytest.fixture(scope="module")
def shared_phone(tiny: CompiledProgram) -> Iterator[tuple[World, str, str, Any]]:
    """One cloud for a whole module: the world, an app's key, a device's token, and its assignment."""
    for world in open_world(tiny.data, PARAMETERS):
        key = world.app()
        world.training(key)
        token = world.device(key, "one")
        yield world, key, token, world.work(token)
