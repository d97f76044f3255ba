"""The searches in Ray Tune's terms."""

from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler

from tuning.space import Dimension, Listed, LogUniform, RandInt
from tuning.stage import Stage
from tuning.sweep import AshaSearch
from tuning.trial import NUMBER, SCORE


def tune_config(stage: Stage, workers: int) -> tune.TuneConfig:
    """Return how Tune searches: `workers` trials at a time, in processes that are used again."""
    sweep, search, scheduler = stage.sweep, None, None
    if sweep.search.name == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        search = OptunaSearch(_distributions(sweep.space), metric=SCORE, mode="max", seed=sweep.seed)
    if isinstance(sweep.search, AshaSearch):
        scheduler = AsyncHyperBandScheduler(
            time_attr="version",
            max_t=sweep.rounds,
            grace_period=min(sweep.search.grace, sweep.rounds),
            reduction_factor=sweep.search.reduction,
        )
    return tune.TuneConfig(
        metric=SCORE,
        mode="max",
        search_alg=search,
        scheduler=scheduler,
        num_samples=1 if stage.configurations is not None else sweep.trials or 1,
        max_concurrent_trials=workers,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: f"trial-{trial.trial_id}",
    )


def param_space(stage: Stage) -> dict[str, Any]:
    """Return what Tune draws from: the numbers of the configurations, in order; nothing for a search of its own."""
    if stage.configurations is None:
        return {}
    return {NUMBER: tune.grid_search(list(range(len(stage.configurations))))}


def _distributions(space: Mapping[str, Dimension]) -> dict[str, Any]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, dimension in space.items():
        if isinstance(dimension, Listed):
            found[name] = CategoricalDistribution(dimension.values())
        elif isinstance(dimension, RandInt):
            found[name] = IntDistribution(*dimension.randint)
        else:
            low, high = dimension.probes()
            found[name] = FloatDistribution(float(low), float(high), log=isinstance(dimension, LogUniform))
    return found
