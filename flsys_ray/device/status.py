"""What an app is told: the state of the phone, and the result of an inference."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.device.examples import ExampleCounts


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model on this phone. `work`: the state of its open assignment, None if it has none.

    `personal`: whether the phone's own parameters answer `infer`. Both accuracies are on its own held-out examples, as
    of the newest comparison; None before the first one.
    """

    model: str
    consent: bool
    version: int | None
    examples: ExampleCounts
    trainings: int
    last_trained_at: float | None
    work: str | None
    personal: bool = False
    personal_accuracy: float | None = None
    shared_accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class PhoneStatus:
    """The phone at this moment. Sizes are bytes; `bytes_up` and `bytes_down` count bodies since the installation."""

    device_id: str | None
    paused: bool
    models: tuple[ModelStatus, ...]
    example_bytes: int
    bytes_up: int
    bytes_down: int
    next_check_in_at: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Inference:
    """Scores [N, C] (probabilities), the class with the highest one for each of the N, and the version that said so.

    `personal`: it was that version as personalised on this phone, or an earlier one that is still better here.
    """

    model: str
    version: int
    scores: NDArray[np.float32]
    labels: tuple[str, ...]
    personal: bool = False
