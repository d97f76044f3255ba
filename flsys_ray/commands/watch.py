"""`flsys watch`: the models as they move. A table that stays in place in a terminal, else a line for each change."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from flsys_ray.commands.options import AppKey, AsJson, OperatorKey, Url, console, print_table, split_names
from flsys_ray.commands.sources import CloudView, chosen, cloud_view
from flsys_ray.errors import TryLater
from flsys_ray.wire.developer_schemas import ModelInfo, RoundInfo

COLUMNS = (
    *("model", "state", "version", "round", "assigned", "counted", "at work", "given back", "late"),
    *("accuracy on phones", "loss", "bytes up"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One model, by the name that the key shows it under, and its last round that is over."""

    name: str
    info: ModelInfo
    last: RoundInfo | None

    def as_json(self) -> dict[str, Any]:
        """Return it as `--json` prints it."""
        return {
            "model": self.info.model_dump(mode="json", exclude={"plan"}),
            "last_round": self.last.model_dump(mode="json") if self.last else None,
        }


def watch(
    models: Annotated[str | None, typer.Option(help="Models, with commas; default: all that the key shows.")] = None,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    url: Url = None,
    app_key: AppKey = None,
    operator_key: OperatorKey = None,
    as_json: AsJson = False,
) -> None:
    """Watch models: version, round, cohort, accuracy, bytes. With the operator's key, the models of all apps.

    Ctrl-C ends it. A cloud that restarts is waited for.
    """
    names = split_names(models) if models is not None else None
    with cloud_view(url, app_key, operator_key) as view:
        looks = _looks(view, names, interval)
        if once:
            _print_once(_look(view, names, {}), as_json=as_json)
        elif console.is_terminal and not as_json:
            _watch_live(looks)
        else:
            _print_changes(looks, as_json=as_json)


def _looks(view: CloudView, names: tuple[str, ...] | None, interval_s: float) -> Iterator[list[Seen] | TryLater]:
    """Yield what there is to see, or that there was no answer, now and then."""
    known: dict[str, RoundInfo] = {}
    while True:
        try:
            yield _look(view, names, known)
        except TryLater as error:
            yield error
        time.sleep(interval_s)


def _look(view: CloudView, names: tuple[str, ...] | None, known: dict[str, RoundInfo]) -> list[Seen]:
    """Look once. `known` keeps each model's last round: it is asked for only when another one is over."""
    found = view.models()
    if names is not None:
        found = {name: found[name] for name in sorted({chosen(found, name) for name in names})}
    for name, info in found.items():
        last = known.get(name)
        if info.rounds_closed and (last is None or last.round != info.rounds_closed - 1):
            known.update((name, closed) for closed in view.rounds(name, info.rounds_closed - 1))
    return [Seen(name, info, known.get(name)) for name, info in found.items()]


def _print_once(seen: list[Seen], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([each.as_json() for each in seen], indent=2))
    else:
        print_table(_table(seen))


def _watch_live(looks: Iterator[list[Seen] | TryLater]) -> None:
    table = _table([])
    with Live(table, console=console, auto_refresh=False) as live:
        for look in looks:
            if isinstance(look, TryLater):
                live.update(Group(table, Text(f"no answer: {look.message}", style="red")), refresh=True)
            else:
                table = _table(look)
                live.update(table, refresh=True)


def _print_changes(looks: Iterator[list[Seen] | TryLater], *, as_json: bool) -> None:
    said: dict[str, str] = {}
    for look in looks:
        if isinstance(look, TryLater):
            lines = {"": json.dumps({"no_answer": look.message}) if as_json else f"no answer: {look.message}"}
        else:
            lines = {each.name: json.dumps(each.as_json()) if as_json else line(each) for each in look}
            said.pop("", None)
        for name, text in lines.items():
            if said.get(name) != text:
                print(text, flush=True)
        said.update(lines)


def line(seen: Seen) -> str:
    """Return one plain line on a model."""
    words = dict(zip(COLUMNS, _row(seen), strict=True))
    return " ".join([words.pop("model"), words.pop("state"), *(f"{name}={text}" for name, text in words.items())])


def _table(seen: list[Seen]) -> Table:
    table = Table()
    for number, name in enumerate(COLUMNS):
        table.add_column(name, justify="left" if number < 2 else "right")
    for each in seen:
        table.add_row(*_row(each))
    return table


def _row(seen: Seen) -> tuple[str, ...]:
    info, last = seen.info, seen.last
    open_round = info.open_round
    cohort: tuple[str, ...] = ("-",) * 5
    if open_round is not None:
        c = open_round.counters
        cohort = tuple(str(n) for n in (c.assigned, c.counted, c.pending, c.given_back, c.late))
    return (
        seen.name,
        info.state,
        "-" if info.version is None else str(info.version),
        "-" if open_round is None else str(open_round.round),
        *cohort,
        "-" if info.last_metrics is None else f"{info.last_metrics.accuracy:.3f}",
        "-" if last is None or last.mean_loss is None else f"{last.mean_loss:.3f}",
        "-" if open_round is None else str(open_round.update_bytes),
    )
