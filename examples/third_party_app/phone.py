"""The app on one phone: it keeps its owner's readings, trains on them, and runs what all phones made together.

python phone.py OWNER FOLDER        with FLSYS_URL and FLSYS_APP_KEY set
"""

import csv
import os
import sys
import time
from pathlib import Path

import numpy as np

from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone

owner, folder = sys.argv[1:]
with (Path(__file__).parent / "readings.csv").open(newline="") as file:
    rows = [(np.array(row[1:4], np.float32), row[4]) for row in csv.reader(file) if row[0] == owner]
config = PhoneConfig(os.environ["FLSYS_URL"], os.environ["FLSYS_APP_KEY"], models=("washer",))
with Phone(Path(folder), config, conditions=FixedConditions()) as phone:  # a machine on mains with nothing else to do
    phone.consent("washer", granted=True)  # the app has asked its user
    for readings, state in rows:
        phone.add_example("washer", readings, state)
    while phone.refresh("washer") < 5:  # an app has no such end: it calls `phone.run` in a thread
        time.sleep(max(0.0, phone.step().wake_at - time.time()))
    found = phone.infer("washer", rows[0][0][np.newaxis])
    print(f"{owner}: version {found.version} says {found.labels[0]!r}, it was {rows[0][1]!r}")
