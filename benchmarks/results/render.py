"""Write `docs/results.md` and its pictures from the lines of results.

    python benchmarks/results/render.py [--results docs/results/results.jsonl] [--out docs/results.md]

The text around the tables is `page.md` beside this file: each line `{{name}}` there becomes a table. The short table of
README.md, between `<!-- results -->` and `<!-- results end -->`, is written with the page of the repository itself.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from experiments import QUICK, TASKS, all_trials, quick_trials
from run import RESULTS, read
from tasks import Task

PAGE = Path(__file__).with_name("page.md")
OUT = Path(__file__).parents[2] / "docs/results.md"
README = Path(__file__).parents[2] / "README.md"
PLACE = re.compile(r"(<!-- results -->\n).*?(<!-- results end -->)", re.DOTALL)
Line = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write docs/results.md from the lines of results.")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    lines = known(read(options.results))
    options.out.write_text(page(lines))
    if options.out == OUT:
        README.write_text(PLACE.sub(lambda found: f"{found[1]}\n{verdict(lines)}\n\n{found[2]}", README.read_text()))
    draw(lines, options.out.parent / "pictures")


def known(lines: Mapping[str, Line]) -> list[Line]:
    """Return the lines that belong to a trial of today's table, in its order."""
    trials = {trial.key: trial.configuration() for trial in (*all_trials(), *quick_trials())}
    return [lines[key] for key, given in trials.items() if key in lines and lines[key]["configuration"] == given]


def page(lines: Sequence[Line]) -> str:
    """Return the page."""
    text = PAGE.read_text()
    for name, table in TABLES.items():
        text = text.replace("{{" + name + "}}", table(lines))
    return text


def of_table(lines: Sequence[Line], table: str, **fields: str) -> dict[str, list[Line]]:
    """Return a table's lines by row, in the order of the trials."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        given = line["configuration"]
        if given["table"] == table and all(_field(given, name) == value for name, value in fields.items()):
            found.setdefault(given["row"], []).append(line)
    return found


def _field(configuration: Mapping[str, Any], name: str) -> str:
    return str(configuration["task"]["name"] if name == "task" else configuration[name])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Return a mean in per cent, with the lowest and the highest value."""
    percent = [100 * value for value in values]
    if len(percent) == 1:
        return f"{percent[0]:.{digits}f}"
    return f"{np.mean(percent):.{digits}f} ({min(percent):.{digits}f} to {max(percent):.{digits}f})"


def headline(lines: Sequence[Line]) -> str:
    """Return one table a task."""
    parts = []
    for task in (*TASKS.values(), QUICK):
        rows = of_table(lines, "headline", task=task.name)
        if not rows:
            continue
        goal = "" if task.goal is None else f"; goal, federated: {METRICS[task.metric]} {100 * task.goal:.1f}"
        table = [f"**{task.title}** ({len(task.classes)} classes{goal})", "", *_heading("method", "folds")]
        table += [_row(name, found) for name in METHODS if (found := rows.get(name))]
        parts.append("\n".join(table))
    return "\n\n".join(parts)


METHODS = ("logistic regression", "random forest", "centralised", "one user alone", "federated")
METRICS = {"accuracy": "accuracy", "macro_f1": "macro-F1"}


def _heading(name: str, count: str, *more: str) -> list[str]:
    titles = [name, "accuracy, %", "macro-F1, %", *more, count]
    return ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]


def _row(name: str, found: Sequence[Line], *more: str) -> str:
    cells = [name, spread([one["accuracy"] for one in found]), spread([one["macro_f1"] for one in found])]
    return "| " + " | ".join([*cells, *more, str(len(found))]) + " |"


def simple(
    table: str, *more: tuple[str, Callable[[Sequence[Line]], str]], base: str | None = None
) -> Callable[[Sequence[Line]], str]:
    """Return a function that makes a table of accuracy, macro-F1 and other columns.

    `base` is what the plan that all small tables change is called in this one; None: it has no row.
    """

    def made(lines: Sequence[Line]) -> str:
        rows = of_table(lines, table)
        if not rows:
            return "Not run yet."
        plain = of_table(lines, "label skew").get("all classes", [])
        named = ({base: plain} if base and plain else {}) | rows
        text = _heading("", "runs", *(title for title, _ in more))
        return "\n".join(
            [*text, *(_row(name, found, *(cell(found) for _, cell in more)) for name, found in named.items())]
        )

    return made


def mean_of(name: str, unit: float, digits: int) -> Callable[[Sequence[Line]], str]:
    """Return a column: the mean of a field of the lines, in this unit."""
    return lambda found: f"{np.mean([one[name] for one in found]) / unit:.{digits}f}"


def compression(lines: Sequence[Line]) -> str:
    """Return the table of encodings, with differences from float32 on the same fold with the same seed."""
    rows = of_table(lines, "compression")
    natural = of_table(lines, "label skew").get("all classes", []) + rows.pop("float32", [])
    if not natural:
        return "Not run yet."
    rows = {"float32": natural, **rows}
    plain = {_place(one): one["accuracy"] for one in natural}
    megabytes = mean_of("upload_bytes", 1e6, 1)
    text = _heading("", "runs", "upload, MB", "less float32, points")
    for name, found in rows.items():
        less = [100 * (one["accuracy"] - plain[_place(one)]) for one in found if _place(one) in plain]
        text.append(_row(name, found, megabytes(found), "" if name == "float32" else paired(less)))
    return "\n".join(text)


def _place(line: Line) -> tuple[int, int]:
    return line["configuration"]["fold"], line["configuration"]["seed"]


def paired(differences: Sequence[float]) -> str:
    """Return the mean of differences, its standard error, and the lowest and the highest."""
    mean = f"{np.mean(differences):+.1f}"
    if len(differences) == 1:
        return mean
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    return f"{mean} +- {error:.1f} ({min(differences):+.1f} to {max(differences):+.1f})"


def personal(lines: Sequence[Line]) -> str:
    """Return the table of users' own later data."""
    found = of_table(lines, "personal").get("own later data, rate falls", [])
    if not found:
        return "Not run yet."
    ways = found[0]["later"]["new"].keys()
    text = ["| " + " | ".join(["users", *ways, "folds"]) + " |", "|" + "---|" * (len(ways) + 2)]
    for kind in ("trained with it", "new"):
        cells = [spread([one["later"][kind][way] for one in found]) for way in ways]
        text.append("| " + " | ".join([kind, *cells, str(len(found))]) + " |")
    return "\n".join(text)


def verdict(lines: Sequence[Line]) -> str:
    """Return which goals are reached. Methods are compared on the folds that federated training has lines of."""
    titles = [
        "task",
        "goal",
        "federated",
        "on fold 0",
        "reached",
        "centralised less federated",
        "best classical",
        "folds",
    ]
    said = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    for task in TASKS.values():
        rows = {name: _by_fold(found, task) for name, found in of_table(lines, "headline", task=task.name).items()}
        folds = rows.get("federated", {})
        if not folds or task.goal is None:
            continue
        means = {
            name: float(np.mean([found[fold] for fold in folds]))
            for name, found in rows.items()
            if folds.keys() <= found.keys()
        }
        best = max((means[name] for name in METHODS[:2] if name in means), default=None)
        gap = f"{means['centralised'] - means['federated']:+.1f}" if "centralised" in means else "not run"
        reached = "yes" if means["federated"] >= 100 * task.goal else "**no**"
        cells = [
            f"{100 * task.goal:.1f}",
            f"{means['federated']:.1f}",
            f"{folds[0]:.1f}" if 0 in folds else "",
            reached,
            gap,
        ]
        cells += ["not run" if best is None else f"{best:.1f}", str(len(folds))]
        said.append(f"| {task.title}, {METRICS[task.metric]} | " + " | ".join(cells) + " |")
    return "\n".join(said)


def _by_fold(found: Sequence[Line], task: Task) -> dict[int, float]:
    return {one["configuration"]["fold"]: 100 * one[task.metric] for one in found}


TABLES: dict[str, Callable[[Sequence[Line]], str]] = {
    "headline": headline,
    "verdict": verdict,
    "label skew": simple("label skew"),
    "compression": compression,
    "drop-out": simple("drop-out", ("trainings", mean_of("trainings", 1, 0)), base="0 %"),
    "augmentation": simple("augmentation", base="none"),
    "pacing": simple(
        "pacing", ("virtual minutes", mean_of("virtual_s", 60, 1)), ("device minutes", mean_of("device_s", 60, 1))
    ),
    "selection": simple(
        "selection", ("virtual minutes", mean_of("virtual_s", 60, 1)), ("device minutes", mean_of("device_s", 60, 1))
    ),
    "personal": personal,
}


def draw(lines: Sequence[Line], folder: Path) -> None:
    """Draw the curves of the headline, and of rounds beside a buffer."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "results"
    folder.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for task in TASKS.values():
        _curve(axes[0], of_table(lines, "headline", task=task.name).get("federated", []), 0, 1, task)
    axes[0].set(
        xlabel="version", ylabel="goal's metric, %", title="Federated, mean over folds judged at the same versions"
    )
    for name, found in of_table(lines, "pacing").items():
        _curve(axes[1], found, 1, 60, TASKS["hapt"], name)
    axes[1].set(xlabel="virtual minutes", title="Rounds and a buffer (HAPT, under traces)")
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize=8)
    figure.savefig(folder / "results.svg", metadata={"Date": None})
    plt.close(figure)


def _curve(axis: Any, found: Sequence[Line], x: int, unit: float, task: Any, label: str | None = None) -> None:
    curves = [one["curve"] for one in found if one.get("curve")]
    if not curves:
        return
    places = [tuple(point[0] for point in curve) for curve in curves]
    usual = max(places, key=places.count)  # curves that were judged at other versions are not drawn
    means = np.mean([curve for curve, at in zip(curves, places, strict=True) if at == usual], axis=0)
    axis.plot(means[:, x] / unit, 100 * means[:, 2 if task.metric == "accuracy" else 3], label=label or task.title)


if __name__ == "__main__":
    main()
