"""Draws `docs/pictures/demo.svg` from what `flsys demo --json` prints: both models' curves.

python docs/make_pictures.py                        from docs/pictures/demo.json
python docs/make_pictures.py demo.json demo.svg     from and to other files; a name in .png gives a PNG
"""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

PICTURES = Path(__file__).parent / "pictures"
INK, FAINT, GRID, LINE, SECOND = "#1f2328", "#59636e", "#d1d9e0", "#0969da", "#bf5b04"
STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "svg.hashsalt": "flsys",
    "svg.fonttype": "path",
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
}


def draw(report: dict[str, Any], target: Path) -> None:
    """Draw each model's macro-F1 on held-out users over time."""
    models = report["models"]
    end_s = max(version["at_s"] for model in models for version in model["versions"])
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 3.8))
        last = [model["versions"][-1]["macro_f1"] for model in models]
        for model, colour in zip(models, (LINE, SECOND), strict=True):
            shift = 0.0 if max(last) - min(last) > 0.08 else 7.0
            _curve(axes, model, colour, shift if model["versions"][-1]["macro_f1"] == max(last) else -shift)
        _frame(axes, end_s)
        title = f"Two models, two apps, the same {report['phones']} phones at the same time"
        figure.text(0.02, 0.94, title, fontsize=13, fontweight="bold")
        lines = [
            "macro-F1 on people whose data no phone holds; dashed: always the most frequent class",
            "; ".join(_about(model) for model in models),
        ]
        for number, text in enumerate(lines):
            figure.text(0.02, 0.885 - 0.05 * number, text, fontsize=9.5, color=FAINT)
        figure.subplots_adjust(left=0.06, right=0.83, top=0.79, bottom=0.14)
        metadata = {"Date": None} if target.suffix == ".svg" else None
        figure.savefig(target, dpi=110, metadata=metadata, facecolor="white")
        pyplot.close(figure)


def _curve(axes: Any, model: dict[str, Any], colour: str, shift: float) -> None:
    versions = model["versions"]
    seconds, scores = [v["at_s"] for v in versions], [v["macro_f1"] for v in versions]
    axes.plot(seconds, scores, color=colour, linewidth=2.2, marker="o", markersize=4.5, clip_on=False)
    axes.axhline(model["commonest"]["macro_f1"], color=colour, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.annotate(
        f"{model['model']} {scores[-1]:.2f}",
        (seconds[-1], scores[-1]),
        (9, shift),
        textcoords="offset points",
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _frame(axes: Any, end_s: float) -> None:
    axes.set_xlim(0, end_s)
    axes.set_ylim(0, 1)
    axes.set_xlabel("seconds")
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.tick_params(length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _about(model: dict[str, Any]) -> str:
    first, plan = model["versions"][0], model["plan"]
    how = f"{plan['pacing']['name']}, {plan['aggregation']['name']}"
    return f"{model['model']}: {how}, {first['data']} ({first['source']})"


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:3]]
    source, drawn = given if len(given) == 2 else (PICTURES / "demo.json", PICTURES / "demo.svg")
    draw(json.loads(source.read_text()), drawn)
