"""From a Keras model to a federated, trained, served one: what a third-party developer writes.

python developer.py        with FLSYS_URL and FLSYS_APP_KEY set; then start the phones
"""

import csv
import os
import time
from pathlib import Path

import keras

import flsys_ray
from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient

READINGS = Path(__file__).parent / "readings.csv"
STATES = ["idle", "wash", "spin"]
HELD_OUT = ("owner-4", "owner-5")  # no phone holds their rows: what the model does on people it never saw

model = keras.Sequential(
    [
        keras.Input((3,)),
        keras.layers.Dense(16, activation="relu"),
        keras.layers.Dense(len(STATES), activation="softmax"),
    ]
)
plan = parse_plan(
    {
        "pacing": {"name": "rounds", "cohort": 3, "deadline_s": 30},
        "local": {"epochs": 5, "learning_rate": 0.1},
        "stopping": {"versions": 5},
    }
)


def accuracy(cloud: DeveloperClient, version: int) -> float:
    """Return the share of the held-out rows that a version, run in the cloud, gets right."""
    with READINGS.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] in HELD_OUT]
    found = cloud.infer("washer", [[float(value) for value in row[1:4]] for row in rows], version)
    return sum(label == row[4] for label, row in zip(found.labels, rows, strict=True)) / len(rows)


program = flsys_ray.compile(model, classes=STATES, batch_size=8, name="washer")
with DeveloperClient(os.environ["FLSYS_URL"], os.environ["FLSYS_APP_KEY"]) as cloud:
    cloud.put_model("washer", plan)
    cloud.put_program("washer", program.data)
    info = cloud.act("washer", "start")
    print("training: start the phones", flush=True)
    while info.state != "finished":
        time.sleep(1)
        info = cloud.info("washer")
    for version in (0, info.version):
        print(f"version {version}: accuracy {accuracy(cloud, version):.2f}")
