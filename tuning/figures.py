"""What a trial reports: figures of each seed at each evaluated version, and their means.

Figures are of the whole run up to that version: rounds, seconds of virtual time, bytes of all devices, and the seconds
that devices trained. "To target" figures are the same ones at the first evaluated version that reached the target.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from flsys_ray.simulation.results import Row

Figures = dict[str, Any]
SCORES = ("accuracy", "macro_f1", "loss")
COSTS = ("rounds", "virtual_s", "bytes", "device_s", "wasted_device_s")
TO_TARGET = ("rounds_to_target", "virtual_s_to_target", "bytes_to_target", "device_s_to_target")


def curve_of(rows: Sequence[Row], seed: int, metric: str, target: float) -> list[Figures]:
    """Return the figures of one seed at each evaluated version: `version`, scores, costs, and costs to target.

    Costs to target are None as long as the target was not reached.
    """
    costs: dict[str, float] = dict.fromkeys(COSTS, 0.0)
    reached: Figures = dict.fromkeys(TO_TARGET)
    found: list[Figures] = []
    for row in rows:
        costs = _after(costs, row)
        if row.accuracy is None:
            continue
        if reached["rounds_to_target"] is None and getattr(row, metric) >= target:
            reached = {name: costs[name.removesuffix("_to_target")] for name in TO_TARGET}
        scores = {name: getattr(row, name) for name in SCORES}
        found.append({"seed": seed, "version": row.version, **scores, **costs, **reached})
    return found


def side_by_side(curves: Sequence[Sequence[Figures]]) -> list[list[Figures]]:
    """Return for each evaluated version the figures of all seeds; a seed that ended before has its last ones.

    Empty if one seed has none: a mean without it would be of other seeds.
    """
    if not all(curves):
        return []
    return [[curve[min(place, len(curve) - 1)] for curve in curves] for place in range(max(map(len, curves)))]


def mean_of(seeds: Sequence[Figures], metric: str) -> Figures:
    """Return the means over seeds, the metric's lowest and highest, and how many seeds reached the target.

    A cost to target that one seed lacks is None: the mean of those that reached it would flatter.
    """
    made: Figures = {name: statistics.fmean(figures[name] for figures in seeds) for name in (*SCORES, *COSTS)}
    for name in TO_TARGET:
        values = [figures[name] for figures in seeds]
        made[name] = None if None in values else statistics.fmean(values)
    scores = [figures[metric] for figures in seeds]
    reached = sum(figures["rounds_to_target"] is not None for figures in seeds)
    return made | {"lowest": min(scores), "highest": max(scores), "reached": reached}


def _after(costs: Mapping[str, float], row: Row) -> dict[str, float]:
    return {
        "rounds": costs["rounds"] + 1,
        "virtual_s": row.closed_s,
        "bytes": costs["bytes"] + row.download_bytes + row.upload_bytes,
        "device_s": costs["device_s"] + row.device_s,
        "wasted_device_s": costs["wasted_device_s"] + row.wasted_device_s,
    }
