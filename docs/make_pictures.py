"""Draws `docs/pictures/demo.svg` from what `flsys demo --json` prints.

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
    """Draw accuracy and macro-F1 on held-out users by version."""
    versions = report["versions"]
    first, last = versions[0], versions[-1]
    numbers = [v["version"] for v in versions]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 3.6))
        close = abs(last["accuracy"] - last["macro_f1"]) < 0.08
        up = 7 if last["accuracy"] >= last["macro_f1"] else -7
        lines = (("accuracy", "accuracy", LINE, up), ("macro_f1", "macro-F1", SECOND, -up))
        for key, name, colour, shift in lines:
            values = [v[key] for v in versions]
            axes.plot(numbers, values, color=colour, linewidth=2.2, marker="o", markersize=4.5, clip_on=False)
            label = f"{name} {values[-1]:.2f}"
            axes.annotate(
                label,
                (numbers[-1], values[-1]),
                (9, shift if close else 0),
                textcoords="offset points",
                color=colour,
                va="center",
            )
        axes.set_xlim(0, max(1, numbers[-1]))
        axes.set_ylim(0, 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_xlabel("version")
        axes.grid(axis="y", color=GRID, linewidth=0.8)
        axes.tick_params(length=0)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(GRID)
        title = f"HAR-Wild on {first['users']} users whose data no phone trained on"
        figure.text(0.02, 0.94, title, fontsize=13, fontweight="bold")
        below = (
            f"{report['source']} data {report['data']}, {last['examples']} windows; {report['phones']} phones, "
            f"{report['updates']} updates, {report['seconds']:.0f} s on one machine"
        )
        figure.text(0.02, 0.875, below, fontsize=10, color=FAINT)
        figure.subplots_adjust(left=0.06, right=0.84, top=0.82, bottom=0.14)
        metadata = {"Date": None} if target.suffix == ".svg" else None
        figure.savefig(target, dpi=110, metadata=metadata, facecolor="white")
        pyplot.close(figure)


if __name__ == "__main__":
    given = [Path(name) for name in sys.argv[1:3]]
    source, drawn = given if len(given) == 2 else (PICTURES / "demo.json", PICTURES / "demo.svg")
    draw(json.loads(source.read_text()), drawn)
