"""Examples in the local database: a size cap with oldest-first eviction, and an own held-out part.

The held-out part is fixed when an example arrives: every fifth block of `BLOCK_S` seconds of a session is held out. An
example that reaches over into a block of the other kind (a window that overlaps its neighbours) belongs to neither
part, so that training and held-out examples never share a sample. Examples without a time of their own fall on one
side by the hash of their content: a repeated text cannot be on both.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flsys_ray.device.database import Database, Value
from flsys_ray.errors import InvalidInput

BLOCK_S = 30.0
HELD_OUT_EVERY = 5
ROW_OVERHEAD_BYTES = 128

Part = Literal["training", "held-out"]
_PARTS: dict[Part, int] = {"training": 0, "held-out": 1}


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example on the phone.

    `x` is float32 or int32 in the program's input shape. Its class is `y` (an index) or `label` (a name of the
    manifest's `classes`); with neither it cannot be trained on. `start_s` is None for an example without a time.
    """

    x: NDArray[Any]
    y: int | None = None
    label: str | None = None
    start_s: float | None = None
    duration_s: float = 0.0
    session: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Examples of one part: `x` [N, ...] and `y` int32 [N], oldest first."""

    x: NDArray[Any]
    y: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class ExampleCounts:
    """How many examples of a model the phone holds. `new`: training examples that came after the last training."""

    training: int = 0
    held_out: int = 0
    unlabelled: int = 0
    new: int = 0


@dataclass(frozen=True, slots=True)
class ExampleStore:
    """The examples of all models in one database, together at most `cap_bytes`."""

    database: Database
    cap_bytes: int

    def add(
        self, model: str, examples: Sequence[Example], now: float, settings: Mapping[str, Value] | None = None
    ) -> None:
        """Store examples and `settings` (a source's position, say) in one transaction, then evict the oldest.

        Raises:
            InvalidInput: an `x` that is neither float32 nor int32, that is not finite, or larger than the cap.
        """
        rows = [self._row(model, example, now) for example in examples]
        with self.database.transaction():
            for row, example in zip(rows, examples, strict=True):
                held_out = self._held_out(model, example)
                self.database.write(
                    "INSERT INTO examples"
                    " (model, x, dtype, shape, y, label, created_at, start_s, session, bytes, held_out)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (*row, held_out),
                )
            self._evict()
            self.database.set_settings(settings or {})

    def label(self, model: str, start_s: float, end_s: float, label: str) -> int:
        """Name the class of examples in [start_s, end_s] that have none; return how many."""
        return self.database.write(
            "UPDATE examples SET label = ? WHERE model = ? AND y IS NULL AND label IS NULL AND start_s BETWEEN ? AND ?",
            (label, model, start_s, end_s),
        )

    def counts(self, model: str) -> ExampleCounts:
        """Return how many examples of `model` there are."""
        query = """
            SELECT count(*) FILTER (WHERE held_out = 0 AND known), count(*) FILTER (WHERE held_out = 1 AND known),
                   count(*) FILTER (WHERE NOT known),
                   count(*) FILTER (WHERE held_out = 0 AND known AND id > last)
            FROM (SELECT held_out, id, (y IS NOT NULL OR label IS NOT NULL) AS known,
                         coalesce((SELECT last_trained_id FROM models WHERE model = ?1), 0) AS last
                  FROM examples WHERE model = ?1)"""
        found = self.database.row(query, (model,))
        return ExampleCounts(*(int(value or 0) for value in found)) if found else ExampleCounts()

    def batch(self, model: str, part: Part, classes: Sequence[str], shape: tuple[int, ...]) -> Batch | None:
        """Return the examples of one part that have a class of `classes` and `shape`; None if there are none."""
        index = {name: number for number, name in enumerate(classes)}
        xs, ys = [], []
        for x, dtype, y, label in self.database.rows(
            "SELECT x, dtype, y, label FROM examples WHERE model = ? AND held_out = ? AND shape = ?"
            " AND (y IS NOT NULL OR label IS NOT NULL) ORDER BY id",
            (model, _PARTS[part], json.dumps(shape)),
        ):
            number = y if isinstance(y, int) else index.get(str(label), -1)
            if 0 <= number < len(classes) and isinstance(x, bytes):
                xs.append(np.frombuffer(x, dtype=str(dtype)).reshape(shape))
                ys.append(number)
        return Batch(np.stack(xs), np.asarray(ys, np.int32)) if xs else None

    def newest_id(self, model: str) -> int:
        """Return the number of the newest example of `model`, 0 if there is none."""
        found = self.database.row("SELECT max(id) FROM examples WHERE model = ?", (model,))
        return int(found[0] or 0) if found else 0

    def total_bytes(self) -> int:
        """Return the size of all examples, which `cap_bytes` limits."""
        found = self.database.row("SELECT bytes FROM totals")
        return int(found[0] or 0) if found else 0

    def erase(self, model: str | None = None) -> None:
        """Delete the examples of one model, or all of them."""
        with self.database.transaction():
            for table in ("examples", "blocks"):
                self.database.write(f"DELETE FROM {table} WHERE ?1 IS NULL OR model = ?1", (model,))

    def _row(self, model: str, example: Example, now: float) -> tuple[Value, ...]:
        x = np.ascontiguousarray(example.x)
        if x.dtype not in (np.float32, np.int32):
            raise InvalidInput(f"example for {model}: x has dtype {x.dtype}, expected float32 or int32")
        if not np.isfinite(x).all():
            raise InvalidInput(f"example for {model}: x holds a value that is not finite")
        size = x.nbytes + ROW_OVERHEAD_BYTES
        if size > self.cap_bytes:
            raise InvalidInput(f"example for {model}: {size} bytes exceed the database's cap of {self.cap_bytes}")
        shape = json.dumps(x.shape)
        y = None if example.y is None else int(example.y)
        return (model, x.tobytes(), str(x.dtype), shape, y, example.label, now, example.start_s, example.session, size)

    def _held_out(self, model: str, example: Example) -> int | None:
        if example.start_s is None:
            digest = hashlib.blake2b(np.ascontiguousarray(example.x).tobytes(), digest_size=8).digest()
            return int(int.from_bytes(digest) % HELD_OUT_EVERY == 0)
        first = int(example.start_s // BLOCK_S)
        # The end belongs to the next example: a window that ends on a border does not reach over it.
        last = max(first, -int(-(example.start_s + example.duration_s) // BLOCK_S) - 1)
        kinds = {self._block(model, example.session, block) for block in range(first, last + 1)}
        return kinds.pop() if len(kinds) == 1 else None

    def _block(self, model: str, session: str, block: int) -> int:
        key = (model, session, block)
        found = self.database.row("SELECT held_out FROM blocks WHERE model = ? AND session = ? AND block = ?", key)
        if found is None:
            count = self.database.row("SELECT count(*) FROM blocks WHERE model = ?", (model,))
            number = int(count[0] or 0) if count else 0
            found = (int(number % HELD_OUT_EVERY == HELD_OUT_EVERY - 1),)
            self.database.write("INSERT INTO blocks VALUES (?, ?, ?, ?)", (*key, found[0]))
        return int(found[0] or 0)

    def _evict(self) -> None:
        excess = self.total_bytes() - self.cap_bytes
        while excess > 0:
            oldest = self.database.rows("SELECT id, bytes FROM examples ORDER BY id LIMIT 256")
            last = 0
            for number, size in oldest:
                last, excess = int(number or 0), excess - int(size or 0)
                if excess <= 0:
                    break
            self.database.write("DELETE FROM examples WHERE id <= ?", (last,))
