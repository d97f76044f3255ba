"""A made-up sensor source, for where no real data are at hand. SYNTHETIC: nothing about people follows from it.

Each user has an own gait, body, phone and habits, so that the data are naturally non-IID:

- *gait*: step rate, force, harmonics, the share of sway at half the step rate, how regular the steps are;
- *phone position*: pocket, hand or bag. It sets how the phone is turned while one walks, sits and stands, and how
  much of the motion arrives. In the pocket sitting and standing differ by posture (the thigh lies or hangs); in the
  hand and in a bag they hardly do, which no model can mend;
- *class mix*: shares of the activities from a Dirichlet distribution;
- *phone*: 20, 25 or 50 Hz, jitter of the clock, bias and noise of the sensor.

Walking and stairs share their form and differ in tempo, force and harmonics by little more than users differ. The
streams go through the resampler and cutter of real data. All numbers here are ours, chosen so that models learn the
classes of users whom they have not seen without becoming perfect (a test holds both); none is an estimate of anything.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.rng import generator
from flsys_ray.data.schema import CANONICAL_CLASSES, UserWindows, WindowsInfo, write_dataset
from flsys_ray.data.windows import STANDARD_GRAVITY_M_PER_S2, WindowSpec, cut_windows
from flsys_ray.errors import DataInvalid

NAME = "synthetic-har"
VERSION = 1
PAUSE_S = 60.0

_DOWN = np.array([0.0, 1.0, 0.0])  # the long side of the phone, upright in a pocket


@dataclass(frozen=True)
class Plan:
    """How much to make up.

    Attributes:
        users: how many people.
        minutes: of recording a person.
        seed: the same seed gives the same data.
        class_concentration: of the Dirichlet distribution of each user's class mix; small means one-sided users.
    """

    users: int = 48
    minutes: float = 12.0
    seed: int = 0
    class_concentration: float = 2.0

    def __post_init__(self) -> None:
        if self.users < 1 or not self.minutes > 0 or not self.class_concentration > 0:
            raise DataInvalid(f"synthetic data: users, minutes and concentration must be positive, not {self}")


@dataclass(frozen=True)
class Motion:
    """One activity's movement: tempo (steps/s), force (m/s^2), share of the second and third harmonic, shuffle."""

    tempo_hz: float
    force: float
    second: float
    third: float
    sway: float


MOTIONS = {
    "walking": Motion(1.88, 2.6, 0.45, 0.12, 0.32),
    "stairs": Motion(1.54, 2.8, 0.27, 0.28, 0.48),
    "jogging": Motion(2.60, 7.0, 0.30, 0.10, 0.20),
}
POSITIONS = ("pocket", "hand", "bag")


@dataclass(frozen=True)
class Person:
    """A made-up user and phone.

    Attributes:
        name: the user's name in the data.
        position: where the phone is carried.
        rate_hz: samples per second, nominally.
        tempo, force, second, third, sway: factors on `Motion`.
        unsteadiness: how much tempo and force wander.
        turn: rotation `[3, 3]` of the phone in its place.
        sitting_tilt: angle between sitting and standing, radians.
        bias: `[3]` m/s^2. noise: standard deviation, m/s^2. jitter: of the instants, share of a sample.
        mix: shares of the classes.
    """

    name: str
    position: str
    rate_hz: float
    tempo: float
    force: float
    second: float
    third: float
    sway: float
    unsteadiness: float
    turn: NDArray[np.float64]
    sitting_tilt: float
    bias: NDArray[np.float64]
    noise: float
    jitter: float
    mix: NDArray[np.float64]


@dataclass(frozen=True)
class Bout:
    """A piece of raw stream with one activity: instants `[T]` s from its start, acceleration `[T, 3]` m/s^2."""

    label: str
    instants_s: NDArray[np.float64]
    xyz: NDArray[np.float32]


def person(user: str, seed: int, class_concentration: float = 2.0) -> Person:
    """Make up a user; the same name and seed are the same person."""
    rng = generator(seed, "synthetic-person", 0, user)
    position = str(rng.choice(POSITIONS, p=(0.6, 0.2, 0.2)))
    tilt = {"pocket": rng.normal(1.25, 0.2), "hand": rng.normal(0.35, 0.15), "bag": rng.normal(0.50, 0.25)}
    return Person(
        name=user,
        position=position,
        rate_hz=float(rng.choice((20.0, 25.0, 50.0))),
        tempo=float(rng.normal(1.0, 0.05)),
        force=float(np.exp(rng.normal(0.0, 0.18))) * {"pocket": 1.0, "hand": 0.7, "bag": 0.8}[position],
        second=float(np.exp(rng.normal(0.0, 0.20))),
        third=float(np.exp(rng.normal(0.0, 0.20))),
        sway=float(np.exp(rng.normal(0.0, 0.20))),
        unsteadiness=float(rng.uniform(0.02, 0.06)),
        turn=_small_turn(rng, 0.25) @ _flips(rng),
        sitting_tilt=float(tilt[position]),
        bias=rng.normal(0.0, 0.15, 3),
        noise=float(rng.uniform(0.05, 0.25)),
        jitter=float(rng.uniform(0.02, 0.15)),
        mix=rng.dirichlet(np.full(len(CANONICAL_CLASSES), class_concentration)),
    )


def bout(who: Person, label: str, duration_s: float, rng: np.random.Generator) -> Bout:
    """Make up one uninterrupted piece of one activity as the phone's sensor would deliver it."""
    count = max(2, int(duration_s * who.rate_hz))
    ticks = np.arange(count) + np.clip(rng.normal(0, who.jitter, count), -0.4, 0.4)
    instants: NDArray[np.float64] = np.round((ticks - ticks[0]) / who.rate_hz, 4)
    body = _gait(who, MOTIONS[label], instants, rng) if label in MOTIONS else _rest(label, instants, rng)
    tilt = who.sitting_tilt if label == "sitting" else 0.0
    pose = _about_x(tilt + rng.normal(0.0, 0.12)) @ _small_turn(rng, 0.12)
    xyz = body @ (who.turn @ pose).T + who.bias + rng.normal(0, who.noise, (count, 3))
    return Bout(label, instants, xyz.astype(np.float32))


def bouts(who: Person, seed: int, minutes: float | None = None) -> Iterator[Bout]:
    """Yield a user's bouts of 20 to 90 s in a mix of activities: for about so many minutes, or for ever."""
    rng = generator(seed, "synthetic-bouts", 0, who.name)
    left_s = np.inf if minutes is None else minutes * 60.0
    while left_s > 0:
        duration_s = min(float(rng.uniform(20.0, 90.0)), max(left_s, 10.0))
        yield bout(who, str(rng.choice(CANONICAL_CLASSES, p=who.mix)), duration_s, rng)
        left_s -= duration_s


def synthetic_stream(user: str, seed: int) -> Iterator[tuple[float, tuple[float, float, float], str]]:
    """Yield raw samples for ever: instant (s, from 0), acceleration (m/s^2, Android sign), label.

    For demonstrations of a live collector. The phone samples at its own rate, with jitter and pauses between bouts.

    >>> instant_s, xyz, label = next(synthetic_stream("ada", seed=1))
    >>> instant_s, len(xyz), label in CANONICAL_CLASSES
    (0.0, 3, True)
    """
    offset_s = 0.0
    for piece in bouts(person(user, seed), seed):
        for instant_s, (x, y, z) in zip(piece.instants_s.tolist(), piece.xyz.tolist(), strict=True):
            yield offset_s + instant_s, (x, y, z), piece.label
        offset_s += float(piece.instants_s[-1]) + PAUSE_S


def user_names(count: int) -> tuple[str, ...]:
    """Return names that sort by number and show that nobody bears them: synthetic-0001 ..."""
    return tuple(f"synthetic-{number:04d}" for number in range(1, count + 1))


def user_windows(plan: Plan, spec: WindowSpec | None = None) -> Iterator[UserWindows]:
    """Yield each user's windows; each bout is a session."""
    spec = spec or WindowSpec()
    for name in user_names(plan.users):
        who = person(name, plan.seed, plan.class_concentration)
        yield UserWindows(
            name,
            [
                (f"bout-{number:04d}", cut_windows(b.instants_s, b.xyz, [b.label] * len(b.xyz), spec))
                for number, b in enumerate(bouts(who, plan.seed, plan.minutes), start=1)
            ],
        )


def write(target: Path, plan: Plan, name: str = NAME) -> WindowsInfo:
    """Write the data set into the folder `target`."""
    return write_dataset(target, draft(name), user_windows(plan))


def draft(name: str = NAME, spec: WindowSpec | None = None) -> WindowsInfo:
    """Return the card of synthetic data."""
    spec = spec or WindowSpec()
    return WindowsInfo(
        name=name,
        title="SYNTHETIC sensor data (made up by a formula; no real person)",
        source="synthetic",
        rate_hz=spec.rate_hz,
        window_s=spec.window_s,
        stride_s=spec.stride_s,
        licence="same as this software",
        citation="none: figures on these data say nothing about real phones",
        home="flsys_ray/data/synthetic.py",
        recipe_version=VERSION,
    )


def _gait(who: Person, motion: Motion, instants: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Acceleration `[T, 3]` of the body, gravity in it: bounce along the body, push ahead, sway aside."""
    tempo = motion.tempo_hz * who.tempo * rng.normal(1.0, 0.03)
    force = motion.force * who.force * np.exp(rng.normal(0.0, 0.1))
    phase = 2 * np.pi * (tempo * instants + _wander(instants, who.unsteadiness, rng)) + rng.uniform(0, 2 * np.pi)
    strength = force * (1.0 + 2.0 * _wander(instants, who.unsteadiness, rng))
    offsets = rng.normal(0.0, 0.3, 4)
    second, third = motion.second * who.second, motion.third * who.third
    bounce = np.sin(phase) + second * np.sin(2 * phase + offsets[0]) + third * np.sin(3 * phase + offsets[1])
    push = 0.5 * np.sin(phase + 1.2 + offsets[2]) + 0.4 * second * np.sin(2 * phase + 0.4)
    sway = motion.sway * who.sway * np.sin(0.5 * phase + offsets[3])
    body = np.stack([strength * sway, strength * bounce, strength * push], axis=1)
    return body + STANDARD_GRAVITY_M_PER_S2 * _DOWN


def _rest(label: str, instants: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Acceleration `[T, 3]` of somebody who stays in place: small shifts, a little more of them when standing."""
    size = rng.uniform(0.05, 0.35) if label == "standing" else rng.uniform(0.03, 0.25)
    shifts = np.stack([_wander(instants, size, rng) for _ in range(3)], axis=1)
    return shifts + STANDARD_GRAVITY_M_PER_S2 * _DOWN


def _wander(instants: NDArray[np.float64], size: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A slow random curve about zero with about this standard deviation: a few sines below 0.6 Hz."""
    rates_hz, phases = rng.uniform(0.05, 0.6, 4), rng.uniform(0, 2 * np.pi, 4)
    curve = np.sin(2 * np.pi * instants[:, None] * rates_hz + phases).sum(axis=1)
    return np.asarray(size * curve / np.sqrt(2.0))


def _about_x(angle: float) -> NDArray[np.float64]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def _small_turn(rng: np.random.Generator, size: float) -> NDArray[np.float64]:
    """A rotation `[3, 3]` about a random axis by a normal angle (Rodrigues' formula)."""
    axis = rng.normal(size=3)
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    angle = rng.normal(0.0, size)
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)


def _flips(rng: np.random.Generator) -> NDArray[np.float64]:
    """One of the four ways to put a phone into a place; most people have one that they like."""
    ways = [
        (1.0, 1.0, 1.0),
        (-1.0, 1.0, -1.0),
        (-1.0, -1.0, 1.0),
        (1.0, -1.0, -1.0),
    ]  # as is; face out; head down; both
    return np.asarray(np.diag(ways[rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))]))
