"""The shared set on the wire: examples of which each phone mixes a share into its own, as many of each class.

Zhao, Li, Lai, Suda, Civin, Chandra, "Federated Learning with Non-IID Data", 2018 (arXiv 1806.00582), section 4: a set
with a uniform distribution over classes is shared between all devices. It is one safetensors file with the tensors `x`
[N, ...], in the shape and dtype of the program's input, and `y` int32 [N], indices of the program's classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.errors import DataInvalid, UpdateUnusable
from flsys_ray.wire.container import Tensor, read_tensors
from flsys_ray.wire.tensors import encode_tensors

MAX_SHARED_BYTES = 32 * 1024 * 1024
_DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4")}


@dataclass(frozen=True, slots=True, eq=False)
class SharedSet:
    """Examples x [N, ...] float32 or int32, and y int32 [N]: as many of each class."""

    x: NDArray[Any]
    y: NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class InputForm:
    """What examples of a program look like: the shape of one x, its dtype, and the names of the classes."""

    shape: tuple[int, ...]
    dtype: str
    classes: Sequence[str]


def encode_shared_set(examples: SharedSet) -> bytes:
    """Return the bytes of a shared set. Same set, same bytes."""
    kind = _DTYPES["I32" if np.issubdtype(examples.x.dtype, np.integer) else "F32"]
    x, y = np.ascontiguousarray(examples.x, kind), np.ascontiguousarray(examples.y, "<i4")
    return encode_tensors({"x": x, "y": y}, None)


def decode_shared_set(body: bytes, form: InputForm) -> SharedSet:
    """Return the set in `body` (read-only views), checked.

    Raises:
        DataInvalid: not safetensors, another name, dtype or shape, a value that is not finite, a class that the
            program does not have, or not as many examples of each class.
    """
    try:
        tensors = {tensor.name: tensor for tensor in read_tensors(body)}
    except UpdateUnusable as error:
        raise DataInvalid(f"shared set: {error.message}") from None
    if sorted(tensors) != ["x", "y"]:
        raise DataInvalid(f"shared set: expected the tensors 'x' and 'y', found {sorted(tensors)[:5]}")
    y = _array(tensors["y"], "int32", ())
    x = _array(tensors["x"], form.dtype, form.shape)
    if len(x) != len(y):
        raise DataInvalid(f"shared set: 'x' has {len(x)} examples and 'y' {len(y)}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x.reshape(len(x), -1)).all(axis=1))[0])
        raise DataInvalid(f"shared set: 'x' holds a value that is not finite, in example {bad}")
    _check_uniform(y, form.classes)
    return SharedSet(x, y)


def _array(tensor: Tensor, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    kind = _DTYPES.get(tensor.dtype)
    if kind is None or kind.name != dtype:
        raise DataInvalid(f"shared set: {tensor.name!r} has dtype {tensor.dtype}, the program takes {dtype}")
    found = tensor.shape
    if len(found) != 1 + len(shape) or found[1:] != shape:
        raise DataInvalid(f"shared set: {tensor.name!r} has shape {[*found]}, the program takes {['N', *shape]}")
    return tensor.as_array(kind)


def _check_uniform(y: NDArray[np.int32], classes: Sequence[str]) -> None:
    if y.size and (int(y.min()) < 0 or int(y.max()) >= len(classes)):
        raise DataInvalid(f"shared set: 'y' lies in {y.min()} .. {y.max()}, the program has {len(classes)} classes")
    counts = np.bincount(y, minlength=len(classes))
    fewest, most = int(counts.argmin()), int(counts.argmax())
    if counts[fewest] != counts[most]:
        raise DataInvalid(
            f"shared set: it must have as many examples of each class, and has {counts[most]} of "
            f"{classes[most]!r} and {counts[fewest]} of {classes[fewest]!r}"
        )
    if y.size == 0:
        raise DataInvalid("shared set: it is empty")
