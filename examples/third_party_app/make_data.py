"""Makes readings.csv up: what sensors on six washing machines would read. The same file each time.

python make_data.py > readings.csv
"""

import random

MEANS = {"idle": (0.1, 0.1, 0.0), "wash": (0.8, 0.5, 1.6), "spin": (2.2, 1.0, 0.7)}
SPREAD = 0.25


def lines() -> list[str]:
    """Return the file's lines: each machine's readings are shifted by its own place and floor."""
    draw = random.Random(0)
    made = ["owner,shake_m_s2,hum,power_kw,state"]
    for owner in range(6):
        shift = [draw.gauss(0.0, SPREAD) for _ in range(3)]
        for _ in range(15):
            for state, means in MEANS.items():
                values = [mean + by + draw.gauss(0.0, SPREAD) for mean, by in zip(means, shift, strict=True)]
                made.append(f"owner-{owner}," + ",".join(f"{value:.2f}" for value in values) + f",{state}")
    return made


if __name__ == "__main__":
    print("\n".join(lines()))
