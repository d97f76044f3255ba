"""MotionSense: 24 users, iPhone in the front pocket, from the owner's CSV files."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from flsys_ray.data.archive import members, parsed_csv, stacked
from flsys_ray.data.fetch import Download
from flsys_ray.data.recipe import Recipe, Recording
from flsys_ray.errors import DataInvalid

RATE_HZ = 50.0
ACTIVITIES = {
    "dws": "downstairs",
    "ups": "upstairs",
    "wlk": "walking",
    "jog": "jogging",
    "sit": "sitting",
    "std": "standing",
}
FILE = r"A_DeviceMotion_data/(?:dws|ups|wlk|jog|sit|std)_\d+/sub_\d+\.csv"
PARTS = ("gravity", "userAcceleration")
COLUMNS = {f"{part}.{axis}": pa.float64() for part in PARTS for axis in "xyz"}


def read_owner(folder: Path) -> Iterator[Recording]:
    """Read `A_DeviceMotion_data/<activity>_<trial>/sub_<n>.csv`; acceleration is `gravity` + `userAcceleration`."""
    found = []
    for member in members(folder, FILE):
        table = parsed_csv(member, COLUMNS, header=True)
        gravity, own = (stacked(table, (f"{part}.x", f"{part}.y", f"{part}.z")) for part in PARTS)
        trial, code, number = re.findall(r"((\w{3})_\d+)/sub_(\d+)\.csv", member.path)[0]
        instants_s = np.arange(len(own)) / RATE_HZ  # the files have no clock
        user = f"{int(number):02d}"
        found.append(Recording(user, trial, instants_s, gravity + own, [ACTIVITIES[code]] * len(own)))
    if not found:
        raise DataInvalid("motionsense: no A_DeviceMotion_data/<activity>_<trial>/sub_<n>.csv here, nor in a zip file")
    yield from sorted(found, key=lambda recording: (recording.user, recording.session))


RECIPE = Recipe(
    title="MotionSense (iPhone 6s in the front pocket, acceleration)",
    home="https://github.com/mmalekzadeh/motion-sense",
    licence="MIT (the owner's repository); asks for the citation",
    citation=(
        "Malekzadeh, Clegg, Cavallaro, Haddadi: Mobile Sensor Data Anonymization. "
        "IoTDI 2019, doi 10.1145/3302505.3310068"
    ),
    version=2,
    classes={
        "walking": "walking",
        "jogging": "jogging",
        "upstairs": "upstairs",
        "downstairs": "downstairs",
        "sitting": "sitting",
        "standing": "standing",
    },
    unit="g",
    sign="ios",
    samples_file="motionsense.parquet",
    downloads=(
        Download(
            "https://github.com/mmalekzadeh/motion-sense/raw/master/data/A_DeviceMotion_data.zip",
            "A_DeviceMotion_data.zip",
        ),
    ),
    read_owner=read_owner,
)
