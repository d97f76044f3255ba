"""What makes an update unusable, whoever sent it and however it came."""

import math

import numpy as np

from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Update

MAX_ABS_LOSS = float(np.finfo(np.float32).max)  # losses weighted and summed in float64 then stay finite


def flaw_of(update: Update, size: int, plan: TrainingPlan) -> str:
    """Return what is wrong with an update of a model of `size` parameters, or an empty text."""
    max_abs, control = plan.limits.max_abs_delta, update.control
    flaw = _flaw_of_vector("delta", update.delta, size, max_abs)
    flaw = flaw or flaw_of_norm(update.delta, plan)
    if flaw:
        return flaw
    if plan.aggregation.carries_control and control is None:
        return f"control is missing: {plan.aggregation.name} asks for it"
    if control is not None and not plan.aggregation.carries_control:
        return f"control is not asked for by {plan.aggregation.name}"
    if control is not None and (flaw := _flaw_of_vector("control", control, size, max_abs)):
        return flaw
    if update.num_examples < 1:
        return f"num_examples is {update.num_examples}, expected at least 1"
    if update.num_steps < 1:
        return f"num_steps is {update.num_steps}, expected at least 1"
    return "" if abs(update.loss) <= MAX_ABS_LOSS else f"loss is {update.loss}, expected a finite float32"


def flaw_of_norm(delta: Vector, plan: TrainingPlan) -> str:
    """Return that a delta is longer than the plan allows, or an empty text. A control has no such bound."""
    longest = plan.limits.max_norm
    if longest is None:
        return ""
    norm = math.sqrt(float(np.einsum("i,i->", delta, delta, dtype=np.float64)))  # squares of float32 would overflow
    return "" if norm <= longest else f"delta has the L2 norm {norm:g}, the plan's limits.max_norm is {longest:g}"


def _flaw_of_vector(name: str, vector: Vector, size: int, max_abs: float) -> str:
    if vector.shape != (size,) or vector.dtype != np.float32:
        return f"{name} has shape {vector.shape} and dtype {vector.dtype}, expected ({size},) float32"
    if not (float(vector.min(initial=0.0)) >= -max_abs and float(vector.max(initial=0.0)) <= max_abs):
        return f"{name} holds a value that is not finite or above {max_abs:g}"
    return ""
