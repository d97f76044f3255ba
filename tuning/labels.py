"""Short words for the values of a configuration, for pictures and tables that people read."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuning.space import Value


def short(value: Value) -> str:
    """Return a value in few words: `rotation 15` for {"name": "rotation", "max_degrees": 15}; `none` for []."""
    if not isinstance(value, str):
        return f"{value:g}"
    try:
        return _words(json.loads(value))
    except ValueError:
        return value


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "name"}
        name = [str(value["name"])] if "name" in value else []
        return " ".join(
            [*name, *(f"{_words(item)}" if name else f"{key} {_words(item)}" for key, item in rest.items())]
        )
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " + ".join(map(_words, value)) or "none"
    return json.dumps(value) if isinstance(value, bool) or value is None else str(value)


def leaves(names: Sequence[str]) -> dict[str, str]:
    """Return each field's shortest name: its last part, or all of it where two would be called the same."""
    last = [name.rpartition(".")[2] for name in names]
    return {name: part if last.count(part) == 1 else name for name, part in zip(names, last, strict=True)}


def titled(configuration: Mapping[str, Value]) -> str:
    """Return a configuration in one short line."""
    names = leaves(list(configuration))
    if len(configuration) == 1:
        return short(next(iter(configuration.values())))
    return ", ".join(f"{names[name]} {short(value)}" for name, value in configuration.items())


def time_unit(seconds: Sequence[float]) -> tuple[float, str]:
    """Return the unit, in seconds, in which times of such length are told, and its name."""
    longest = max(seconds, default=0.0)
    return (1.0, "seconds") if longest < 600 else (60.0, "minutes") if longest < 7200 else (3600.0, "hours")
