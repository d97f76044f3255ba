"""Configurations of a sweep, and the plan that each of them makes. All are checked before anything starts."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from flsys_ray.cloud.versions import check_fit
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.errors import InvalidInput, PlanInvalid
from flsys_ray.models.base import get
from tuning.space import Configuration, Grid, Value, combinations, count, draw, meant
from tuning.sweep import Sweep

TRIES = 100


def plan_of(sweep: Sweep, configuration: Configuration, seed: int) -> TrainingPlan:
    """Return the plan of a configuration and a seed, for a sweep whose model is named.

    Raises:
        InvalidInput: it makes no plan; the message names the fields and their values.
    """
    made = deepcopy(sweep.plan) if sweep.plan is not None else get(str(sweep.builtin)).default_plan()
    made["seed"] = seed
    try:
        _set(made, ["stopping", "versions"], sweep.rounds)
        for name in sorted(configuration, key=lambda name: name.count(".")):  # a section before what is in it
            _set(made, name.split("."), meant(sweep.space[name], configuration[name]))
        return parse_plan(made)
    except PlanInvalid as error:
        raise InvalidInput(f"sweep: {told(configuration)}: {error.message}") from error


def told(configuration: Configuration) -> str:
    """Return a configuration in one line."""
    return ", ".join(f"{name} = {value}" for name, value in configuration.items()) or "the plan as it is"


def fixed_configurations(sweep: Sweep) -> list[dict[str, Value]]:
    """Return all configurations, in order, of a search that does not learn. Each is different.

    Raises:
        InvalidInput: there are not so many different ones.
    """
    grids = {name: dimension for name, dimension in sweep.space.items() if isinstance(dimension, Grid)}
    if sweep.search.name == "grid":
        return list(combinations(sweep.space))
    rest = {name: dimension for name, dimension in sweep.space.items() if name not in grids}
    crossed = list(combinations(grids))
    draws = _different(sweep, rest) if rest else [{}]
    return [{name: {**drawn, **cell}[name] for name in sweep.space} for drawn in draws for cell in crossed]


def _different(sweep: Sweep, space: Mapping[str, Any]) -> list[dict[str, Value]]:
    trials, there_are = sweep.trials or 0, count(space)
    found: dict[tuple[Value, ...], dict[str, Value]] = {}
    for number in range(TRIES * trials):
        drawn = draw(space, sweep.seed, number)
        found.setdefault(tuple(drawn.values()), drawn)
        if len(found) == min(trials, there_are or trials):
            break
    if len(found) < trials:
        raise InvalidInput(
            f"sweep: trials: {trials} different draws are asked for, and {', '.join(space)} allow {len(found)}: "
            "lower `trials`, or use the search grid"
        )
    return list(found.values())


def check(sweep: Sweep, configurations: Sequence[Configuration], program: bytes | None = None) -> None:
    """Raise `InvalidInput` if a plan of the sweep is none, or not for the program, naming the fields and values.

    For a search that learns, the configurations are not known yet: then the base plan is checked, alone and with each
    of the fields' values (a range's ends).
    """
    for configuration in configurations or _probes(sweep):
        plan = plan_of(sweep, configuration, sweep.seeds[0])
        if plan.augmentation.share > 0 and sweep.shared is None and sweep.shared_part is None:
            raise InvalidInput(
                f"sweep: {told(configuration)}: augmentation.share = {plan.augmentation.share:g} needs a shared set: "
                "say `shared` or `shared_part`"
            )
        if program is not None:
            _check_fit(plan, configuration, program)


def _check_fit(plan: TrainingPlan, configuration: Configuration, program: bytes) -> None:
    try:
        check_fit(plan, program)
    except PlanInvalid as error:
        raise InvalidInput(f"sweep: {told(configuration)}: {error.message}") from error


def _probes(sweep: Sweep) -> list[dict[str, Value]]:
    alone = [name for name in sweep.space if not any(name.startswith(f"{other}.") for other in sweep.space)]
    return [{}, *({name: value} for name in alone for value in sweep.space[name].probes())]


def _set(plan: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a field; a section that is only a name becomes one with fields. Raises `InvalidInput` if it is no section."""
    section = plan
    for part in path[:-1]:
        inner = section.get(part)
        if not isinstance(inner, dict | str | None):
            raise InvalidInput(f"sweep: plan: {part}: {inner!r} is no section, and {'.'.join(path)} is to be set")
        if not isinstance(inner, dict):
            section[part] = inner = {"name": inner} if isinstance(inner, str) else {}
        section = inner
    section[path[-1]] = deepcopy(value)
