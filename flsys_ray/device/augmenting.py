"""What an assignment asks of the training examples: transforms, drawn anew for each epoch."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from flsys_ray.augmentation.base import Transform, augmented, parse_transform
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.schemas import AssignmentMessage

Augment = Callable[[NDArray[Any], int], NDArray[Any]]


def transforms_of(message: AssignmentMessage) -> tuple[Transform, ...] | None:
    """Return an assignment's transforms; None if it asks for what this phone cannot do: it must not train without."""
    asked = message.augmentation.transforms if message.augmentation is not None else []
    found = [parse_transform(one) for one in asked]
    known = tuple(one for one in found if one is not None)
    return known if len(known) == len(found) else None


def augmenting(message: AssignmentMessage, manifest: Manifest) -> Augment | None:
    """Return what makes the examples x of an epoch, None if they stay as they are.

    Raises `ValueError` for a transform that is unknown or does not fit the program: the cloud gives out neither.
    """
    transforms = transforms_of(message)
    if transforms is None:
        raise ValueError(f"{message.model}: this phone does not know the transforms of {message.assignment_id}")
    if not transforms:
        return None
    for transform in transforms:
        if misfit := transform.misfit(manifest.input_shape, manifest.input_dtype):
            raise ValueError(f"{message.model}: {misfit}")
    return lambda x, epoch: augmented(transforms, x, assignment_id=message.assignment_id, epoch=epoch)
