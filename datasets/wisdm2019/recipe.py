"""WISDM 2019: the phone's accelerometer of 51 users, from the owner's text files."""

import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from flsys_ray.data.archive import Member, members, parsed_csv, stacked
from flsys_ray.data.fetch import Download
from flsys_ray.data.recipe import Recipe, Recording, sessions_by_activity
from flsys_ray.errors import DataInvalid

# activity_key.txt of the owner; the other letters are 12 activities of the hands.
LETTERS = {"A": "walking", "B": "jogging", "C": "stairs", "D": "sitting", "E": "standing", "M": "kicking_ball"}
FILE = r"raw/phone/accel/data_\d+_accel_phone\.txt"
COLUMNS = {
    "user": pa.string(),
    "letter": pa.string(),
    "timestamp_ns": pa.int64(),
    "x": pa.float32(),
    "y": pa.float32(),
    "z": pa.float32(),
}


def read_owner(folder: Path) -> Iterator[Recording]:
    """Read `raw/phone/accel/data_<user>_accel_phone.txt`; each line is `user,letter,ns,x,y,z;`."""
    found = False
    for member in members(folder, FILE):
        found = True
        lines = Member(member.path, re.sub(rb"\s*;\s*", b"\n", member.read))
        table = parsed_csv(lines, COLUMNS, header=False)
        user = re.findall(r"data_(\d+)_", member.path)[0]
        activities = [LETTERS.get(letter) for letter in table["letter"].to_pylist()]
        instants_s = table["timestamp_ns"].to_numpy() * 1e-9
        yield from sessions_by_activity(user, instants_s, stacked(table, ("x", "y", "z")), activities)
    if not found:
        raise DataInvalid("wisdm2019: no raw/phone/accel/data_<user>_accel_phone.txt here, nor in a zip file")


RECIPE = Recipe(
    title="WISDM Smartphone and Smartwatch Activity and Biometrics Dataset (phone accelerometer)",
    home="https://archive.ics.uci.edu/dataset/507",
    licence="none stated in the owner's README; UCI's page is said to list CC BY 4.0 (not checked)",
    citation=(
        "Weiss, Yoneda, Hayajneh: Smartphone and Smartwatch-Based Biometrics Using Activities of Daily Living. "
        "IEEE Access 7:133190-133202, 2019"
    ),
    version=1,
    classes={name: name for name in LETTERS.values()},
    unit="m/s^2",
    sign="android",
    samples_file="phone.parquet",
    downloads=(
        Download(
            "https://archive.ics.uci.edu/static/public/507/"
            "wisdm+smartphone+and+smartwatch+activity+and+biometrics+dataset.zip",
            "wisdm2019.zip",
        ),
    ),
    read_owner=read_owner,
)
