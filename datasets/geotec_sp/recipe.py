"""GEOTEC, the phones of "smartphones and smartwatches for HAR": 23 users, from the owner's CSV files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from flsys_ray.data.archive import members, parsed_csv, stacked
from flsys_ray.data.fetch import Download
from flsys_ray.data.recipe import Recipe, Recording
from flsys_ray.data.windows import WindowSpec
from flsys_ray.errors import DataInvalid

COMMIT = "673a2cc426707706c8a2578951b6b61b88777d78"
COLUMNS = {
    "x_acc": pa.float64(),
    "y_acc": pa.float64(),
    "z_acc": pa.float64(),
    "timestamp": pa.int64(),
    "label": pa.string(),
}


def read_owner(folder: Path) -> Iterator[Recording]:
    """Read `DATA/s<NN>/s<NN>_<execution>_sp.csv`; timestamps are UNIX milliseconds."""
    found = []
    for member in members(folder, r"DATA/s\d+/s\d+_\d+_sp\.csv"):
        table = parsed_csv(member, COLUMNS, header=True)
        user, execution = re.findall(r"(s\d+)_(\d+)_sp\.csv", member.path)[0]
        activities = [label.lower() for label in table["label"].to_pylist()]
        xyz = stacked(table, ("x_acc", "y_acc", "z_acc"))
        found.append(Recording(user, execution, table["timestamp"].to_numpy() * 1e-3, xyz, activities))
    if not found:
        raise DataInvalid("geotec_sp: no DATA/s<NN>/s<NN>_<execution>_sp.csv here, nor in a zip file")
    yield from sorted(found, key=lambda recording: (recording.user, recording.session))


RECIPE = Recipe(
    title="GEOTEC inertial measurements of smartphones for HAR (timed up-and-go, windows of 1 s)",
    home="https://github.com/GeoTecINIT/sp-sw-har-dataset",
    licence="CC BY 4.0",
    citation=(
        "Matey-Sanz, Casteleyn, Granell: Dataset of inertial measurements of smartphones and smartwatches for human "
        "activity recognition. Data in Brief 51:109809, 2023, doi 10.1016/j.dib.2023.109809"
    ),
    version=1,
    classes={
        "walking": "walking",
        "seated": "sitting",
        "turning": "turning",
        "sitting_down": "sitting_down",
        "standing_up": "standing_up",
    },
    unit="m/s^2",
    sign="android",
    samples_file="phone.parquet",
    downloads=(
        Download(f"https://codeload.github.com/GeoTecINIT/sp-sw-har-dataset/zip/{COMMIT}", "sp-sw-har-dataset.zip"),
    ),
    read_owner=read_owner,
    spec=WindowSpec(window_s=1.0, stride_s=0.5),  # no stretch of one activity lasts 5 s
)
