"""The tables of a sweep: `trials.parquet`, a row a trial, and `curves.parquet`, a row a trial, seed and version."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tuning.figures import COSTS, SCORES, TO_TARGET
from tuning.records import Record, best_of, finished_of, front_of
from tuning.space import Listed, RandInt
from tuning.sweep import Sweep

FRONT_COSTS = ("bytes", "virtual_s")


def write_tables(records: Sequence[Record], sweep: Sweep, folder: Path) -> None:
    """Write both tables. A file is replaced whole or not at all."""
    _write(trial_table(records, sweep), folder / "trials.parquet")
    _write(curve_table(records), folder / "curves.parquet")


def trial_table(records: Sequence[Record], sweep: Sweep) -> pa.Table:
    """Return a row a trial: number, status, the fields of its configuration, means over seeds at its last version.

    `lowest` and `highest` are the metric's, over seeds; `reached`: the seeds that reached the target. `front`: no
    finished trial has as much of the metric for as few bytes and as little virtual time.
    """
    metric = sweep.metric
    front = {record.number for record in front_of(records, metric, FRONT_COSTS)}
    best = best_of(records, metric).number if finished_of(records) else None
    rows = [_row(record, metric, front, best) for record in records]
    schema = [("trial", pa.int64()), ("status", pa.string())]
    schema += [(name, _type(dimension)) for name, dimension in sweep.space.items()]
    schema += [("versions", pa.int64()), ("seeds", pa.int64())]
    schema += [(name, pa.float64()) for name in (*SCORES, "lowest", "highest", *COSTS)]
    schema += [("reached", pa.int64())] + [(name, pa.float64()) for name in TO_TARGET]
    schema += [("front", pa.bool_()), ("best", pa.bool_()), ("wall_s", pa.float64()), ("problem", pa.string())]
    return pa.Table.from_pylist(rows, schema=pa.schema(schema))


def curve_table(records: Sequence[Record]) -> pa.Table:
    """Return a row a trial, seed and evaluated version: scores, and costs up to there."""
    names = ("seed", "version", *SCORES, *COSTS)
    rows = [
        {"trial": record.number, **{name: figures[name] for name in names}}
        for record in records
        for seed in range(len(record.reports[0]) if record.reports else 0)
        for figures in (report[seed] for report in record.reports)
    ]
    whole = [(name, pa.int64()) for name in ("trial", "seed", "version")]
    return pa.Table.from_pylist(rows, schema=pa.schema(whole + [(name, pa.float64()) for name in (*SCORES, *COSTS)]))


def _row(record: Record, metric: str, front: set[int], best: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"trial": record.number, "status": record.status, **record.configuration}
    if record.reports:
        versions = [figures["version"] for figures in record.reports[-1]]
        row |= {"versions": None if None in versions else min(versions), "seeds": len(versions)}
        row |= record.last(metric)
    flags = {"front": record.number in front, "best": record.number == best}
    return row | flags | {"wall_s": record.wall_s, "problem": record.problem}


def _type(dimension: Any) -> pa.DataType:
    if isinstance(dimension, Listed):
        return pa.string()
    return pa.int64() if isinstance(dimension, RandInt) else pa.float64()


def _write(table: pa.Table, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)
