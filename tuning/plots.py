"""Three pictures of a sweep: curves, parallel coordinates, and the metric against bytes and virtual time.

The best finished trials have colours, the same in all pictures; the others are grey. Bands and bars reach from the
lowest to the highest seed.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import MaxNLocator

from tuning.labels import leaves, short, time_unit, titled
from tuning.records import Record, finished_of, front_of, ranked
from tuning.space import Listed, LogUniform, Value
from tuning.sweep import Sweep

INK, FAINT, GRID, GREY = "#1f2328", "#59636e", "#d1d9e0", "#c3cad1"
COLOURS = ("#0969da", "#bf5b04", "#1a7f37", "#8250df", "#cf222e", "#6e7781")
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "svg.hashsalt": "flsys",
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": GRID,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}
LABEL_LETTERS = 90
WIDTH = 9.4
APART = 0.045  # of the height of an axis, between two numbers beside it


def draw_all(records: Sequence[Record], sweep: Sweep, folder: Path) -> list[Path]:
    """Draw the pictures of trials that reported into a folder. Returns the files."""
    shown = [record for record in ranked(records, sweep.metric) if record.reports]
    colours = {record.number: colour for record, colour in zip(shown, COLOURS, strict=False)}
    files = []
    with pyplot.rc_context(STYLE):
        for name, draw in (("curves", _curves), ("parallel", _parallel), ("pareto", _pareto)):
            figure = draw(shown, sweep, colours)
            files.append(folder / f"{name}.svg")
            figure.savefig(files[-1], metadata={"Date": None}, facecolor="white", bbox_inches="tight", pad_inches=0.12)
            pyplot.close(figure)
    return files


def _curves(records: Sequence[Record], sweep: Sweep, colours: dict[int, str]) -> Any:
    figure, axes = pyplot.subplots(figsize=(WIDTH, 3.9))
    for record in reversed(records):
        colour, known = colours.get(record.number, GREY), record.number in colours
        versions = [report[0]["version"] for report in record.reports]
        scores = [[figures[sweep.metric] for figures in report] for report in record.reports]
        means = [statistics.fmean(each) for each in scores]
        label = f"{record.number}: {_cut(titled(record.configuration))}" if known else None
        axes.plot(versions, means, color=colour, linewidth=2 if known else 1, label=label, zorder=3 if known else 2)
        if known and len(scores[0]) > 1 and len(records) <= len(COLOURS):
            axes.fill_between(versions, list(map(min, scores)), list(map(max, scores)), color=colour, alpha=0.12, lw=0)
        if record.status == "ended early":
            axes.plot(versions[-1:], means[-1:], marker="x", color=colour, markersize=5, zorder=4)
    axes.axhline(sweep.target, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(f"target {sweep.target:g}", (0, sweep.target), (2, 3), xycoords=("axes fraction", "data"),
                  textcoords="offset points", color=FAINT, fontsize=9)  # fmt: skip
    _frame(axes, "version", f"{METRICS[sweep.metric]} on validation users")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    handles, labels = axes.get_legend_handles_labels()
    columns = 3 if max(map(len, labels), default=0) < LABEL_LETTERS / 3 else 1
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False, fontsize=9,
                ncols=columns)  # fmt: skip
    return figure


def _parallel(records: Sequence[Record], sweep: Sweep, colours: dict[int, str]) -> Any:
    names = list(sweep.space)
    figure, axes = pyplot.subplots(figsize=(max(WIDTH, 2.0 * (len(names) + 1)), 3.9))
    finished = finished_of(records)
    scores = {record.number: record.last(sweep.metric)[sweep.metric] for record in finished}
    low, high = (min(scores.values()), max(scores.values())) if scores else (0.0, 1.0)
    ends: dict[int, float] = {}
    for record in reversed(finished):
        places = [_place(sweep.space[name], record.configuration[name]) for name in names]
        places.append((scores[record.number] - low) / (high - low) if high > low else 0.5)
        colour = colours.get(record.number, GREY)
        known = record.number in colours
        axes.plot(range(len(places)), places, color=colour, linewidth=2 if known else 1, zorder=3 if known else 2)
        ends[record.number] = places[-1]
    known_ends = {number: place for number, place in ends.items() if number in colours}
    for number, place in _apart(known_ends).items():
        axes.annotate(f"{number}", (len(names), place), (6, 0), textcoords="offset points", color=colours[number],
                      va="center", fontsize=9)  # fmt: skip
    box = {"facecolor": "white", "alpha": 0.8, "lw": 0, "pad": 0.8}
    for number, name in enumerate(names):
        axes.axvline(number, color=GRID, linewidth=1, zorder=1)
        for place, label in _ticks(sweep.space[name]):
            axes.annotate(_cut(label, 22), (number, place), (4, 0), textcoords="offset points", fontsize=8.5,
                          va="center", color=FAINT, zorder=5, bbox=box)  # fmt: skip
    axes.axvline(len(names), color=FAINT, linewidth=1, zorder=1)
    for place, value in ((0.0, low), (1.0, high)):
        axes.annotate(f"{value:.3f}", (len(names), place), (28, 0), textcoords="offset points", va="center", fontsize=9)
    short_names = leaves(names)
    axes.set_xticks(range(len(names) + 1), [*(short_names[name] for name in names), METRICS[sweep.metric]])
    axes.set_yticks([])
    axes.set_ylim(-0.06, 1.06)
    axes.set_xlim(-0.1, len(names) + 0.25)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _pareto(records: Sequence[Record], sweep: Sweep, colours: dict[int, str]) -> Any:
    figure, both = pyplot.subplots(1, 2, figsize=(WIDTH, 3.9), sharey=True)
    finished = finished_of(records)
    unit_s, name = time_unit([record.last(sweep.metric)["virtual_s"] for record in finished])
    kinds = (("bytes", 1e6, "MB down and up, all devices"), ("virtual_s", unit_s, f"{name} of virtual time"))
    for axes, (cost, unit, words) in zip(both, kinds, strict=True):
        for record in reversed(finished):
            _dot(axes, record, sweep.metric, (cost, unit), colours.get(record.number, GREY))
        front = [record.last(sweep.metric) for record in front_of(records, sweep.metric, (cost,))]
        axes.plot(
            [figures[cost] / unit for figures in front],
            [figures[sweep.metric] for figures in front],
            color=FAINT, linewidth=1, linestyle=(0, (4, 3)), drawstyle="steps-post", zorder=1,
        )  # fmt: skip
        _frame(axes, words, f"{METRICS[sweep.metric]} on validation users" if axes is both[0] else "")
        axes.margins(x=0.12)
    figure.subplots_adjust(wspace=0.08)
    return figure


def _dot(axes: Any, record: Record, metric: str, cost: tuple[str, float], colour: str) -> None:
    figures = record.last(metric)
    at, score = figures[cost[0]] / cost[1], figures[metric]
    bar = [[score - figures["lowest"]], [figures["highest"] - score]]
    axes.errorbar([at], [score], yerr=bar, fmt="o", color=colour, markersize=6, elinewidth=1, zorder=3)
    axes.annotate(f"{record.number}", (at, score), (7, 4), textcoords="offset points", color=colour, fontsize=9)


def _frame(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.spines["left"].set_visible(False)
    axes.set_axisbelow(True)


def _place(dimension: Any, value: Value) -> float:
    """Return where a value lies on its axis, in [0, 1]."""
    if isinstance(dimension, Listed):
        values = dimension.values()
        return values.index(str(value)) / (len(values) - 1) if len(values) > 1 else 0.5
    low, high = dimension.probes()
    if isinstance(dimension, LogUniform):
        low, high, value = math.log(low), math.log(high), math.log(float(value))
    return float((float(value) - low) / (high - low))


def _apart(places: Mapping[int, float]) -> dict[int, float]:
    """Move labels up where they would cover the one below."""
    moved: dict[int, float] = {}
    lowest = -math.inf
    for number, place in sorted(places.items(), key=lambda item: item[1]):
        lowest = moved[number] = max(place, lowest + APART)
    return moved


def _ticks(dimension: Any) -> list[tuple[float, str]]:
    return [(_place(dimension, value), short(value)) for value in dimension.probes()]


def _cut(text: str, letters: int = LABEL_LETTERS) -> str:
    return text if len(text) <= letters else f"{text[: letters - 3]}..."
