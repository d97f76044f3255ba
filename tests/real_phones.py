"""Two real phones that train a model of the test cloud over HTTP, one of them killed before each of its steps."""

from pathlib import Path

import numpy as np
from cloud_fakes import START
from cloud_world import World
from served import served

from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone

MOST_STEPS = 200


def taking_part(folder: Path, config: PhoneConfig, clock: VirtualClock, seed: int) -> Phone:
    """Return a phone whose examples are mostly of one class, another one for each seed."""
    phone = Phone(folder, config, conditions=FixedConditions(), clock=clock)
    rng = np.random.default_rng(seed)
    for number in range(60):
        phone.add_example("tiny", rng.normal(seed, 1, 4).astype(np.float32), seed, at_s=1e9 + 40.0 * number)
    phone.consent("tiny", granted=True)
    return phone


def two_phones_train(world: World, key: str, folder: Path) -> list[str]:
    """Train until the model is finished; the first phone is made anew from its folder each time. Return the kinds."""
    with served(world.http.app) as url:
        config, clock = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5), VirtualClock(START)
        phones = [taking_part(folder / str(seed), config, clock, seed) for seed in range(2)]
        kinds: list[str] = []
        while world.info(key)["state"] == "training" and len(kinds) < MOST_STEPS:
            phones[0].close()
            phones[0] = Phone(folder / "0", config, conditions=FixedConditions(), clock=clock)
            kinds += [phone.step().kind for phone in phones]
            clock.wait(0.5)
        for phone in phones:
            phone.close()
    return kinds
