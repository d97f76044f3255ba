"""Rules of each kind through every layer: held in memory, read from the store, folded again - the same bits."""

import pytest
from sequences import TIMELESS, plan, played
from test_parity_one_sequence import bare, http, local_hosts, restarted_hosts

from flsys_ray.core.plan import TrainingPlan, parse_plan

RULES = {
    "a fold": "fednova",
    "order statistics": "trimmed_mean",
    "distances": {"name": "multi_krum", "f": 0},
    "iterations": {"name": "geometric_median", "iterations": 3},
    "losses": "q_fedavg",
    "a control": {"name": "scaffold", "devices": 8},
    "a wrapped fold": {"name": "clipping", "norm": 0.5},
    "wrapped and read": {"name": "zeroing", "norm": 3.0, "inner": {"name": "clipping", "inner": "coordinate_median"}},
}


def planned(rule) -> TrainingPlan:
    base = plan("first_come").model_dump(mode="json")
    return parse_plan(base | {"aggregation": rule, "pacing": base["pacing"] | {"quorum": 3}})


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_layer_commits_the_same_bits(rule):
    said, expected = played(bare, planned(rule), TIMELESS[1])
    assert len(set(expected)) >= 5
    for layer in (local_hosts, http):
        assert played(layer, planned(rule), TIMELESS[1]) == (said, expected)
    assert played(restarted_hosts, planned(rule), TIMELESS[1])[1] == expected
