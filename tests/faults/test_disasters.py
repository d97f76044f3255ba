"""The whole cloud in disasters, by the thousand; and the simulator itself: it is repeatable, and finds planted bugs.

More of it by `make soak SEEDS=100000`.
"""

import pytest
from invariants import Broken, look_at
from plants import PLANTS
from soak import CHUNK, play_all
from story import played

from flsys_ray.errors import FlsysError
from flsys_ray.wire.developer_schemas import VersionInfo

RUNS = 1200
FEW, MANY = 40, 200


@pytest.mark.parametrize("first", range(0, RUNS, CHUNK))
def test_whatever_happens_no_promise_is_broken(first):
    tally = play_all(range(first, first + CHUNK))
    assert tally.runs == CHUNK
    assert tally.broken == {}


def test_every_kind_of_fault_strikes_and_every_promise_is_looked_at():
    tally = play_all(range(FEW))
    assert min(tally.struck.values()) > 0
    assert len(tally.struck) == 15
    assert len(tally.facts) >= 14
    assert tally.facts["versions are the same to the bit"] > 5 * FEW


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 7])
def test_a_seed_plays_the_same_run_again(seed):
    assert what_happened(seed) == what_happened(seed)


def what_happened(seed: int) -> list[object]:
    with played(seed) as story:
        infos = [VersionInfo.model_validate_json(story.store.get(key).body) for key in story.store.list("models/")
                 if f"{story.model_id}/versions/" in key]  # fmt: skip
        numbers = [info.version for info in infos]  # one more may have come since the story looked
        assert numbers == list(range(len(numbers)))
        assert len(numbers) > story.last_version > 0
        return [story.room.struck, sorted(story.told.counted), story.loop.time(), *infos]


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_bug_is_found(name):
    """Within some runs, or the simulator is blind there."""
    found = None
    with PLANTS[name]():
        for seed in range(MANY):
            try:
                with played(seed) as story:
                    look_at(story)
            except (Broken, FlsysError, KeyError) as error:  # a KeyError: an update that a rule reads again is gone
                found = f"seed {seed}: {error!r}"
                break
    assert found
