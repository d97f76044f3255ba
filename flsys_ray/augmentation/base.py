"""What a transform is: a window that could have been recorded, made of one that was.

Um, Pfister, Pichler, Endo, Lang, Hirche, Fietzek, Kulic, "Data Augmentation of Wearable Sensor Data for Parkinson's
Disease Monitoring using Convolutional Neural Networks", ICMI 2017 (arXiv 1706.00527), section 3, describes those that
are here. The label stays as it is: whether a transform keeps the meaning of a class is for the plan's author to judge.

Transforms are drawn anew for each epoch and example, from (assignment, epoch, example): training that was killed and
begun again sees the same windows.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from flsys_ray.core.registry import Extension, Registry
from flsys_ray.core.rng import generator

Window = NDArray[np.float32]


class Transform(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters. `share` is the part of the examples that it changes."""

    share: float = Field(1.0, gt=0, le=1, description="each example is changed with this probability, in each epoch")

    def misfit(self, shape: Sequence[int], dtype: str) -> str:
        """Return why it cannot be applied to inputs of this shape and dtype, or an empty text."""
        if dtype == "float32" and len(shape) == 2:
            return ""
        return f"{self.name} changes sensor windows, float32 [samples, axes], and no {dtype} {list(shape)}"

    @abstractmethod
    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Return a new window of the same shape, float32 and finite. `rng` is all the randomness that it uses."""


def augmented(
    transforms: Sequence[Transform], x: NDArray[Any], *, assignment_id: str, epoch: int, first: int = 0
) -> NDArray[Any]:
    """Return examples x [N, T, C] as one epoch of an assignment sees them: a new array, one transform after the other.

    `first` is the number of the first example: its draws depend on the assignment, the epoch and that number alone.
    """
    changed = np.array(x)
    for number, window in enumerate(x, first):
        rng = generator(0, "augmentation", epoch, f"{assignment_id}\x1f{number}")
        for transform in transforms:
            if rng.random() < transform.share:
                window = transform.apply(window, rng)
        changed[number - first] = window
    return changed


TRANSFORMS: Registry[Transform] = Registry(Transform, __package__)


@lru_cache(maxsize=1)
def _any_transform() -> TypeAdapter[Any]:
    return TypeAdapter(TRANSFORMS.union("jitter"))


def parse_transform(value: object) -> Transform | None:
    """Return the transform that a mapping describes, None if there is none like that here."""
    try:
        found: Transform = _any_transform().validate_python(value)
    except ValidationError:
        return None
    return found
