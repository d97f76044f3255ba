"""Updates as they lie in the store: whole when they are counted, and later a range of parameters at a time."""

from collections.abc import Sequence

import numpy as np

from flsys_ray.cloud import places
from flsys_ray.cloud.versions import sha256
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.ids import round_of
from flsys_ray.core.layout import Vector
from flsys_ray.core.types import Assignment, Update
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.container import data_offset
from flsys_ray.wire.tensors import DecodedUpdate, decode_range, encoding_of


def to_update(work: Assignment, decoded: DecodedUpdate, body: bytes) -> Update:
    """Return a decoded update of an assignment, with the hash of its bytes and their number."""
    return Update(
        assignment=work,
        delta=decoded.delta,
        num_examples=decoded.num_examples,
        loss=decoded.loss,
        sha256=sha256(body),
        num_steps=decoded.num_steps,
        num_bytes=len(body),
        control=decoded.control,
        train_s=decoded.train_s,
        labels=decoded.labels,
    )


class StoredUpdates:
    """An `UpdateReader` of one model. It holds one place an update of the cohort that was read last, and no numbers.

    Of a float32 delta a block's own bytes are read. One in another encoding is read whole for each block, and only
    the block of it is decoded.

    NOTE(production): rows are read one after the other. A store with a long way to it wants some requests in flight.
    """

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model
        self._places: dict[str, tuple[str, int | None]] = {}

    def block(self, keys: Sequence[str], start: int, stop: int) -> Vector:
        """Return elements `start:stop` of the deltas of `keys`. Raises `KeyError` for one that is not in the store."""
        self._locate(keys)
        rows = np.empty((len(keys), stop - start), dtype=np.float32)
        for row, key in zip(rows, keys, strict=True):
            place, offset = self._places[key]
            if offset is None:
                row[:] = decode_range(self._store.get(place).body, start, stop)
            else:
                body = self._store.get(place, offset + 4 * start, offset + 4 * stop).body
                row[:] = np.frombuffer(body, dtype="<f4")
        return rows

    def _locate(self, keys: Sequence[str]) -> None:
        """Find the objects, and where the numbers begin in each, None if it is not float32: once a cohort."""
        if all(key in self._places for key in keys):
            return
        wanted, self._places = set(keys), {}
        for round_ in sorted({round_of(key) for key in keys}):
            for place in self._store.list(places.updates(self._model, round_)):
                key = places.owner_of(place)[0]
                if key in wanted:
                    self._places[key] = (place, self._offset(place))

    def _offset(self, place: str) -> int | None:
        head = self._store.get(place, 0, 8).body
        offset = data_offset(head)
        return offset if encoding_of(head + self._store.get(place, 8, offset).body) == FLOAT32 else None
