"""What makes an update unusable, whoever sent it and however it came."""

import numpy as np

from flsys_ray.core.types import Update

MAX_ABS_LOSS = float(np.finfo(np.float32).max)  # losses weighted and summed in float64 then stay finite


def flaw_of(update: Update, size: int, max_abs_delta: float) -> str:
    """Return what is wrong with an update of a model of `size` parameters, or an empty text."""
    delta = update.delta
    if delta.shape != (size,) or delta.dtype != np.float32:
        return f"delta has shape {delta.shape} and dtype {delta.dtype}, expected ({size},) float32"
    if not (float(delta.min(initial=0.0)) >= -max_abs_delta and float(delta.max(initial=0.0)) <= max_abs_delta):
        return f"delta holds a value that is not finite or above {max_abs_delta:g}"
    if update.num_examples < 1:
        return f"num_examples is {update.num_examples}, expected at least 1"
    if update.num_steps < 1:
        return f"num_steps is {update.num_steps}, expected at least 1"
    return "" if abs(update.loss) <= MAX_ABS_LOSS else f"loss is {update.loss}, expected a finite float32"
