"""`flsys tensorboard`: rounds as TensorBoard event files, one run folder a model."""

import os
import struct
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from flsys_ray.commands.options import AppKey, OperatorKey, Url, console, split_names
from flsys_ray.commands.sources import Rounds, StoreView, chosen, cloud_view
from flsys_ray.errors import InvalidInput, TryLater
from flsys_ray.storage.uri import open_store
from flsys_ray.wire.developer_schemas import RoundInfo

FILE = "events.out.tfevents.0000000000.flsys"
ROUND = "round/number"


def tensorboard(
    logdir: Annotated[Path, typer.Option(file_okay=False, help="The folder for `tensorboard --logdir`.")],
    store: Annotated[str | None, typer.Option(help="Read this store instead of asking a cloud.")] = None,
    models: Annotated[str | None, typer.Option(help="Models, with commas; default: all that the key shows.")] = None,
    every: Annotated[float | None, typer.Option(min=0.1, help="Look again every so many seconds; else once.")] = None,
    url: Url = None,
    app_key: AppKey = None,
    operator_key: OperatorKey = None,
) -> None:
    """Write rounds as TensorBoard event files: accuracy, loss, updates, time and bytes by version.

    It may be run again at any time, and killed at any time: it goes on behind the last round that is in the file.
    """
    from tensorboardX.proto import event_pb2  # noqa: F401  (says what is missing before anything else is wrong)

    names = split_names(models) if models is not None else None
    source: AbstractContextManager[Rounds]
    source = nullcontext(StoreView(open_store(store))) if store else cloud_view(url, app_key, operator_key)
    with source as rounds:
        while True:
            try:
                _write(rounds, names, logdir)
            except TryLater as error:
                if every is None:
                    raise
                console.print(f"no answer: {error.message}")
            if every is None:
                return
            time.sleep(every)


def _write(source: Rounds, names: tuple[str, ...] | None, logdir: Path) -> None:
    closed = source.closed()
    for model in closed if names is None else [chosen(closed, name) for name in names]:
        with EventFile(logdir / model) as file:
            if file.rounds > closed[model]:
                raise InvalidInput(
                    f"{logdir / model} has round {file.rounds - 1} already: of another cloud? Choose another"
                )
            new = source.rounds(model, file.rounds) if file.rounds < closed[model] else []
            for each in new:
                file.add(each)
        if new:
            console.print(f"{model}: {len(new)} rounds, {file.rounds} in all")


def scalars(closed: RoundInfo) -> Iterator[tuple[str, float]]:
    """Yield what a curve is drawn of. On phones: of the version that the round began with."""
    counters = closed.counters
    yield ROUND, closed.round
    yield "round/updates", counters.counted
    yield "round/assigned", counters.assigned
    yield "round/late", counters.late
    yield "round/given_back", counters.given_back
    yield "round/examples", closed.num_examples
    yield "round/seconds", closed.closed_at - closed.opened_at
    yield "round/update_bytes", closed.update_bytes
    if closed.mean_loss is not None:
        yield "training/loss", closed.mean_loss
    if closed.delta_norm is not None:
        yield "training/delta_norm", closed.delta_norm
    if closed.evaluation is not None:
        yield "phones/accuracy", closed.evaluation.accuracy
        yield "phones/loss", closed.evaluation.loss


class EventFile:
    """A model's event file: one record a round, written at once, so that a round is in it or is not."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / FILE
        self._file = os.fdopen(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644), "r+b")
        self.rounds = 0
        whole = self._read()
        self._file.truncate(whole)  # half a record: the writer was killed there
        self._file.seek(whole)
        if whole == 0:
            self._append({"wall_time": 0.0, "file_version": "brain.Event:2"})

    def __enter__(self) -> "EventFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, closed: RoundInfo) -> None:
        """Append a round."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(closed)]
        self._append({"wall_time": closed.closed_at, "step": closed.version, "summary": Summary(value=values)})
        self.rounds = closed.round + 1

    def _append(self, event: dict[str, Any]) -> None:
        from tensorboardX.proto.event_pb2 import Event

        data = Event(**event).SerializeToString()
        header = struct.pack("<Q", len(data))
        self._file.write(header + _checksum(header) + data + _checksum(data))
        self._file.flush()

    def _read(self) -> int:
        """Read what is there; return the end of the last whole record."""
        from tensorboardX.proto.event_pb2 import Event

        whole = 0
        while True:
            header, check = self._file.read(8), self._file.read(4)
            if len(check) < 4 or check != _checksum(header):
                return whole
            data, check = self._file.read(struct.unpack("<Q", header)[0]), self._file.read(4)
            if check != _checksum(data):
                return whole
            whole = self._file.tell()
            for value in Event.FromString(data).summary.value:
                if value.tag == ROUND:
                    self.rounds = int(value.simple_value) + 1


def _checksum(data: bytes) -> bytes:
    from tensorboardX.record_writer import masked_crc32c

    return struct.pack("<I", masked_crc32c(data))
