"""HAR-Wild for phones that all lie alike: on a belt, or in one pocket of one cut.

`har_wild` with what it leaves out on purpose: the three axes beside the channels that do not depend on how the phone
lies, and the signs of the direction of gravity. Where phones lie alike, up and down the stairs and postures differ in
these. Where they do not, federated averaging fails with them (`docs/har_wild.md`). Small rotations of the training
windows, which the plan asks for, keep it from leaning on how exactly one user wears the phone.
"""

from collections.abc import Sequence
from typing import Any

from flsys_ray.models import har_wild
from flsys_ray.models.base import BuiltinModel


def build(classes: Sequence[str] = har_wild.CLASSES) -> Any:
    """Return the Keras model: input [100, 3] in m/s^2 (Android's sign), output softmax over `classes`."""
    return har_wild.build(classes, axes=True)


MODEL = BuiltinModel(
    name="har-wild-axes",
    summary="har-wild for phones that are all carried in one way, 5 s windows",
    classes=har_wild.CLASSES,
    input_shape=har_wild.MODEL.input_shape,
    input_dtype="float32",
    input_meaning=har_wild.MODEL.input_meaning,
    build=build,
    plan=dict(har_wild.MODEL.plan) | {"augmentation": {"transforms": [{"name": "rotation", "max_degrees": 20}]}},
)
