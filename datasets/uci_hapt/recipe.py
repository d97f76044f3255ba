"""UCI HAPT: the raw stream behind UCI HAR, 30 users, from the owner's text files."""

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
PAUSE_S = 60.0  # between two experiments of a user, as the files have no clock
ACTIVITIES = (
    "walking",
    "upstairs",
    "downstairs",
    "sitting",
    "standing",
    "lying",
    "stand_to_sit",
    "sit_to_stand",
    "sit_to_lie",
    "lie_to_sit",
    "stand_to_lie",
    "lie_to_stand",
)  # activity_labels.txt, 1 to 12
TEST = ("02", "04", "09", "10", "12", "13", "18", "20", "24")  # Test/subject_id_test.txt
LABELS = {name: pa.int32() for name in ("experiment", "user", "activity", "first", "last")}
AXES = {name: pa.float64() for name in ("x", "y", "z")}


def read_owner(folder: Path) -> Iterator[Recording]:
    """Read `RawData/acc_exp<NN>_user<NN>.txt` and `RawData/labels.txt` (samples count from 1, both ends included)."""
    labels = [parsed_csv(m, LABELS, header=False, delimiter=" ") for m in members(folder, r"Raw-?Data/labels\.txt")]
    if not labels:
        raise DataInvalid("uci_hapt: no RawData/labels.txt here, nor in a zip file")
    spans = labels[0].to_pylist()
    found = []
    for member in members(folder, r"Raw-?Data/acc_exp\d+_user\d+\.txt"):
        experiment, user = re.findall(r"exp(\d+)_user(\d+)", member.path)[0]
        xyz = stacked(parsed_csv(member, AXES, header=False, delimiter=" "), ("x", "y", "z"))
        activities: list[str | None] = [None] * len(xyz)
        for span in spans:
            if span["experiment"] == int(experiment):
                first, last = span["first"] - 1, min(span["last"], len(xyz))
                activities[first:last] = [ACTIVITIES[span["activity"] - 1]] * (last - first)
        found.append(Recording(user, f"exp{experiment}", np.arange(len(xyz)) / RATE_HZ, xyz, activities))
    if not found:
        raise DataInvalid("uci_hapt: RawData holds no acc_exp<NN>_user<NN>.txt")
    yield from sorted(found, key=lambda recording: (recording.user, recording.session))


RECIPE = Recipe(
    title="Smartphone-Based Recognition of Human Activities and Postural Transitions 2.1 (UCI HAPT, accelerometer)",
    home="https://archive.ics.uci.edu/dataset/341",
    licence="the owner's README: as is, no commercial use; UCI's page is said to list CC BY 4.0 (not checked)",
    citation=(
        "Reyes-Ortiz, Oneto, Sama, Parra, Anguita: Transition-Aware Human Activity Recognition Using Smartphones. "
        "Neurocomputing 171:754-767, 2016"
    ),
    version=2,
    classes={
        "walking": "walking",
        "upstairs": "upstairs",
        "downstairs": "downstairs",
        "sitting": "sitting",
        "standing": "standing",
        "lying": "lying",
    },
    unit="g",
    sign="android",
    samples_file="hapt.parquet",
    downloads=(
        Download(
            "https://archive.ics.uci.edu/static/public/341/"
            "smartphone+based+recognition+of+human+activities+and+postural+transitions.zip",
            "uci_hapt.zip",
            # As several independent public projects pin it; not fetched by us.
            sha256="4ac4ae064227c07045a99551876b54d204837e995e298b6488559e209b3deb09",
        ),
    ),
    read_owner=read_owner,
    split={"test": TEST, "train": tuple(f"{n:02d}" for n in range(1, 31) if f"{n:02d}" not in TEST)},
)
