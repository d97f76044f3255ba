"""Ids of models and assignments: functions of what they are about, so that a restart changes none."""

import hashlib

_TURN = "-t"  # no hexadecimal digit
_EVALUATION = "-e"


def model_id(app_id: str, name: str) -> str:
    """Return the id of an app's model: two apps may give the same name. Neither of both can hold a slash."""
    return f"{app_id}/{name}"


def model_name(model: str) -> str:
    """Return the name that a model's app knows it by."""
    return model.rpartition("/")[2]


def assignment_id(model: str, round_: int, device_id: str, turn: int = 0) -> str:
    """Return the id of a device's assignment in a round.

    `turn` counts a device's assignments in one round, from 0: only where work outlives its round can there be more.
    """
    name = hashlib.blake2b(f"{model}\x1f{device_id}".encode(), digest_size=10).hexdigest()
    return f"{round_:08d}-{name}" + (f"{_TURN}{turn}" if turn else "")


def evaluation_id(model: str, version: int, device_id: str) -> str:
    """Return the id of a device's evaluation assignment of a version: no training assignment has it."""
    return assignment_id(model, version, device_id) + _EVALUATION


def is_evaluation(key: str) -> bool:
    """Return whether an id is that of an evaluation assignment."""
    return key.endswith(_EVALUATION)


def is_turn_of(key: str, first: str) -> bool:
    """Return whether an id is that of the same device and round as `first`, an id of turn 0."""
    return key.partition(_TURN)[0] == first


def round_of(key: str) -> int:
    """Return the round that an assignment's id names."""
    return int(key.partition("-")[0])
