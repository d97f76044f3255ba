"""What a simulation reports: a row for each round that closed, and a summary."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.simulation.training import Answers


@dataclass(slots=True)
class Row:
    """How one round ended. Times are virtual, seconds from the beginning of the simulation.

    Attributes:
        version: the committed version; None if the round closed without one.
        assigned, counted, late, given_back: the cohort, as the coordinator counts it.
        check_ins: devices that asked, since the round before.
        download_bytes, upload_bytes: of versions and updates, since the round before.
        device_s, wasted_device_s: seconds that devices trained since the round before, and those of them whose update
            was lost, late or unusable.
        mean_staleness: of the updates in the version.
        accuracy, macro_f1, loss: of the version on the examples of held-out users; None where it was not evaluated.
    """

    model: str
    round: int
    version: int | None
    opened_s: float
    closed_s: float
    assigned: int
    counted: int
    late: int
    given_back: int
    num_examples: int
    training_loss: float | None
    delta_norm: float | None
    check_ins: int
    download_bytes: int
    upload_bytes: int
    device_s: float
    wasted_device_s: float
    mean_staleness: float | None
    accuracy: float | None = None
    macro_f1: float | None = None
    loss: float | None = None

    def judge(self, answers: Answers, truth: NDArray[np.int32]) -> None:
        """Set how the version does on the held-out examples."""
        self.accuracy, self.macro_f1, self.loss = scores(answers, truth)


@dataclass(slots=True)
class Tally:
    """What happened to one model since the last row."""

    check_ins: int = 0
    download_bytes: int = 0
    upload_bytes: int = 0
    device_s: float = 0.0
    wasted_device_s: float = 0.0


def scores(answers: Answers, truth: NDArray[np.int32]) -> tuple[float, float, float]:
    """Return accuracy, macro-F1 (the mean over classes that occur of 2 TP / (2 TP + FP + FN)), and mean loss."""
    each = []
    for label in np.unique(truth):
        hits = np.sum((truth == label) & (answers.chosen == label))
        each.append(2 * hits / (np.sum(truth == label) + np.sum(answers.chosen == label)))
    accuracy = float(np.mean(answers.chosen == truth))
    return accuracy, float(np.mean(each)), answers.loss_sum / len(truth)


@dataclass(slots=True)
class Outcome:
    """What a simulation gave.

    `versions` are each model's last one, `digests` their hash (sha256 of the float32), `parameters` [P] their values.
    """

    rows: list[Row]
    seed: int
    devices: int
    virtual_s: float
    trainings: int
    versions: dict[str, int]
    digests: dict[str, str]
    wall_s: float = 0.0
    ended: str = "finished"
    settings: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Vector] = field(default_factory=dict, repr=False)

    def summary(self) -> dict[str, Any]:
        """Return plain data: everything but rows and parameters, and the last row that was evaluated of each model."""
        made = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("rows", "parameters")}
        judged = {row.model: asdict(row) for row in self.rows if row.accuracy is not None}
        totals = {
            name: float(sum(getattr(row, name) for row in self.rows))
            for name in ("assigned", "counted", "late", "download_bytes", "upload_bytes", "device_s", "wasted_device_s")
        }
        per_s = self.trainings / self.wall_s if self.wall_s else None
        return {**made, "trainings_per_s": per_s, "totals": totals, "last": judged}


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write the rows as Parquet, whole or not at all."""
    schema = pa.schema([(f.name, _type(f.type)) for f in fields(Row)])
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=schema)
    part = path.with_name(path.name + ".part")
    pq.write_table(table, part)
    os.replace(part, path)


def write_summary(outcome: Outcome, path: Path) -> None:
    """Write the summary as JSON."""
    path.write_text(json.dumps(outcome.summary(), indent=2) + "\n")


def _type(kind: Any) -> pa.DataType:
    arrow = {str: pa.string(), int: pa.int64(), float: pa.float64()}
    return next(arrow[one] for one in (kind, *get_args(kind)) if one in arrow)
