"""What devices begin with is what the cloud has phones begin with: the same public forms, and the same bytes."""

import numpy as np
import pytest

from flsys_ray.cloud import places
from flsys_ray.cloud.public_forms import public_form
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.simulation.downloads import Downloads
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.public_forms import decode_half

SIZE = 3000


def versions(count: int) -> list[Version]:
    rng = np.random.default_rng(0)
    steps = rng.normal(0, 0.01, (count, SIZE)).astype(np.float32)
    return [Version(number, vector, OptimizerState()) for number, vector in enumerate(np.cumsum(steps, 0))]


@pytest.mark.parametrize(
    "encoding", [{"name": "int8"}, {"name": "top_k", "fraction": 0.05}, {"name": "float16"}], ids=lambda e: e["name"]
)
def test_bases_and_bytes_are_those_of_the_cloud(encoding):
    plan = parse_plan({"download": encoding, "seed": 3})
    store, before, downloads = MemoryStore(), None, Downloads(plan.download, plan.seed)
    for version in versions(9):
        made = public_form(store, "app/m", version, plan, before)
        for place, body in made.files.items():
            store.put_new(place, body)
        before = made.form
        half = made.files[places.public("app/m", "half", made.form.half_sha256)]
        downloads.add(version, 0)
        base = downloads.bases[version.number]
        assert np.array_equal(base.parameters, decode_half(half, SIZE))
        assert base.whole_bytes == len(half)
        assert base.steps == tuple(step.size_bytes for step in made.form.steps)
    assert len(base.steps) == {"int8": 1, "top_k": 4, "float16": 0}[encoding["name"]]
    assert not np.array_equal(base.parameters, version.parameters)


def test_a_device_takes_the_steps_from_what_it_holds_if_they_are_fewer_bytes_than_the_whole():
    downloads = Downloads(parse_plan({"download": {"name": "top_k", "fraction": 0.05}}).download, 0)
    for version in versions(9):
        downloads.add(version, 0)
    base = downloads.bases[8]
    for held, expected in [(7, base.steps[-1]), (4, sum(base.steps)), (3, base.whole_bytes), (8, base.whole_bytes)]:
        downloads.held[5] = held
        assert downloads.num_bytes(5, 8) == expected
    assert downloads.num_bytes(6, 8) == base.whole_bytes
    assert sum(base.steps) < base.whole_bytes


def test_versions_as_they_are_and_the_oldest_that_is_kept():
    downloads = Downloads(parse_plan({}).download, 0)
    for version in versions(6):
        downloads.add(version, version.number - 2)
        assert downloads.bases[version.number].parameters is version.parameters
        assert downloads.num_bytes(1, version.number) == 4 * SIZE
    assert sorted(downloads.bases) == [3, 4, 5]
