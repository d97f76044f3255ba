"""A local rate that falls: the assignment carries the rate of its base version, and no word of how it falls."""

import numpy as np
import pytest
from cloud_world import PAIR, World
from tiny_program import PARAMETERS

from flsys_ray.wire.tensors import encode_update


def test_an_assignment_has_the_rate_of_its_version(world: World, key: str):
    world.training(key, plan=PAIR | {"local": {"learning_rate": 0.5, "learning_rate_decay": 0.5}})
    rates = []
    for _ in range(3):
        for name in ("one", "two"):
            token = world.device(key, name)
            work = world.work(token)
            rates.append(work["local"]["learning_rate"])
            assert "learning_rate_decay" not in work["local"]
            body = encode_update(np.full(PARAMETERS, 0.01, np.float32), 5, 1.0)
            assert world.upload(token, work, body).json()["status"] == "counted"
    assert rates == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.125, 0.125])
