"""The report of a sweep: one HTML file that needs no other."""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template

from tuning.figures import Figures
from tuning.labels import leaves, short, time_unit
from tuning.plots import METRICS
from tuning.records import Record, best_of, front_of, ranked
from tuning.space import Listed
from tuning.sweep import Sweep
from tuning.tables import FRONT_COSTS

TEMPLATE = Path(__file__).with_name("report.html")


@dataclass(frozen=True, slots=True)
class Findings:
    """What a sweep has found.

    Attributes:
        sweep: with the model named.
        records: all trials.
        users: how many `training`, `validation` and `test` users there are.
        test: of the best plan on the test users: means over seeds, and `lowest` and `highest`.
        plan: the best plan, as YAML.
    """

    sweep: Sweep
    records: Sequence[Record]
    users: Mapping[str, int]
    test: Figures
    plan: str


def write_report(found: Findings, pictures: Sequence[Path], path: Path) -> None:
    """Write the report with its pictures (SVG files `curves`, `parallel`, `pareto`), whole or not at all."""
    sweep, records = found.sweep, found.records
    metric = METRICS[sweep.metric]
    best = best_of(records, sweep.metric)
    drawn = {picture.stem: _inline(picture) for picture in pictures}
    spread = len(sweep.seeds) > 1
    text = Template(TEMPLATE.read_text()).substitute(
        drawn,
        title=escape(f"{sweep.builtin} on {sweep.data}"),
        about=escape(_about(found)),
        big=_big(best, found),
        honest=escape(_honest(metric)),
        table=_table(records, sweep, best),
        legend=escape(_legend(sweep, metric)),
        metric=escape(metric),
        bars="Bars: the lowest and the highest seed." if spread else "",
        plan=escape(found.plan),
    )
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _about(found: Findings) -> str:
    sweep, users = found.sweep, found.users
    seeds = ", ".join(map(str, sweep.seeds))
    return (
        f"{len(found.records)} trials ({sweep.search.name} search) of {sweep.rounds} versions, seeds {seeds}. Users: "
        f"{users['training']} train, {users['validation']} choose the best, {users['test']} test it."
    )


def _big(best: Record, found: Findings) -> str:
    name = found.sweep.metric
    metric, chosen = METRICS[name], best.last(name)
    return "".join(
        f"<div><span>{value}</span>{escape(words)}</div>"
        for value, words in (
            (_spread(found.test, name), f"{metric} of the best plan on test users"),
            (_spread(chosen, name), f"{metric} of it on validation users"),
            (f"{best.number}", "is the best trial"),
        )
    )


def _spread(figures: Figures, metric: str) -> str:
    mean = f"{figures[metric]:.3f}"
    if figures["lowest"] == figures["highest"]:
        return mean
    return f'{mean} <small class="faint">{figures["lowest"]:.3f} to {figures["highest"]:.3f}</small>'


def _honest(metric: str) -> str:
    return (
        f"The trials were compared by {metric} on validation users, so the best one's figure there is too good: of "
        "many trials the luckiest is ahead. Test users had no part in the choice; theirs is the figure to quote. For "
        "it the best plan was trained anew, with the validation users among the training users."
    )


def _legend(sweep: Sweep, metric: str) -> str:
    seeds = "Means over seeds; in brackets the lowest and the highest. " if len(sweep.seeds) > 1 else ""
    return (
        f"{seeds}Target: {metric} {sweep.target:g}; a dash: not every seed reached it. Front: no trial has more "
        f"{metric} for as few bytes and as little virtual time. Grey: not trained to the end."
    )


def _costs(records: Sequence[Record], sweep: Sweep) -> list[tuple[str, float, str]]:
    """Return the columns of costs: figure, unit, and words."""
    last = [record.last(sweep.metric) for record in records if record.reports]
    columns = [("rounds_to_target", 1.0, "rounds to target")]
    for name, words in (("virtual_s_to_target", "{} to target"), ("device_s_to_target", "device-{} to target")):
        unit, unit_name = time_unit([figures[name] for figures in last if figures[name] is not None])
        columns.append((name, unit, words.format(unit_name)))
    return [*columns, ("bytes_to_target", 1e6, "MB to target"), ("bytes", 1e6, "MB in all")]


def _table(records: Sequence[Record], sweep: Sweep, best: Record) -> str:
    names, costs = leaves(list(sweep.space)), _costs(records, sweep)
    heads = ["trial", *names.values(), METRICS[sweep.metric], *(words for _, _, words in costs)]
    wordy = {number for number, name in enumerate(names, 1) if isinstance(sweep.space[name], Listed)}
    wordy |= {len(names) + 1, len(heads) + 1, len(heads) + 2}
    front = {record.number for record in front_of(records, sweep.metric, FRONT_COSTS)}
    lines = [_cells("th", [*heads, "versions", "front", ""], wordy, "")]
    for record in ranked(records, sweep.metric):
        kind = "best" if record is best else "" if record.status == "finished" else "out"
        on_front = "yes" if record.number in front else ""
        lines.append(_cells("td", [*_row(record, sweep, costs), on_front, _end(record)], wordy, kind))
    return f"<table>{''.join(lines)}</table>"


def _row(record: Record, sweep: Sweep, costs: Sequence[tuple[str, float, str]]) -> list[str]:
    row = [f"{record.number}", *(short(record.configuration[name]) for name in sweep.space)]
    if not record.reports:
        return [*row, *([""] * (len(costs) + 2))]
    figures = record.last(sweep.metric)
    score = f"{figures[sweep.metric]:.3f}"
    if len(sweep.seeds) > 1:
        score += f" ({figures['lowest']:.3f} to {figures['highest']:.3f})"
    told = ["-" if figures[name] is None else f"{figures[name] / unit:.1f}" for name, unit, _ in costs]
    return [*row, score, *told, f"{record.reports[-1][0]['version']}"]


def _end(record: Record) -> str:
    ended = "" if record.status in ("finished", "ended early") else record.status
    return f"{ended}: {record.problem}" if record.problem else ended


def _cells(tag: str, cells: Sequence[str], wordy: Collection[int], kind: str) -> str:
    inner = "".join(
        f"<{tag}{' class=words' if number in wordy else ''}>{escape(cell)}</{tag}>" for number, cell in enumerate(cells)
    )
    return f'<tr class="{kind}">{inner}</tr>' if kind else f"<tr>{inner}</tr>"


def _inline(picture: Path) -> str:
    """Return the SVG element of a file, without what stands before it."""
    text = picture.read_text()
    return text[text.index("<svg") :]
