"""Inference in the cloud: a version's parameters run through the model's own device program, as a phone would."""

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from flsys_ray.cloud.service import Cloud
from flsys_ray.cloud.versions import load_parameters, load_program
from flsys_ray.core.layout import Vector
from flsys_ray.errors import InvalidInput
from flsys_ray.wire.developer_schemas import InferReply, InferRequest

if TYPE_CHECKING:
    from flsys_ray.programs.runner import Program


class Inference:
    """Runs models for developers. Keeps the programs and versions that were used last."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._program = lru_cache(maxsize=16)(self._load_program)
        self._parameters = lru_cache(maxsize=16)(self._load_parameters)

    async def infer(self, app_id: str, model: str, request: InferRequest) -> InferReply:
        """Return the scores of some examples.

        Raises:
            InvalidInput: `instances` does not have the program's input shape.
            NotFound: no such model or version.
        """
        info = await self._cloud.version(app_id, model, request.version)
        found = self._cloud.find(app_id, model)
        program = self._program(found, info.program_sha256)
        x = _examples(request, program.manifest.input_shape, program.manifest.input_dtype)
        parameters = self._parameters(found, info.weights_sha256, program.manifest.parameters)
        scores = await asyncio.to_thread(program.infer, parameters, x)
        if not np.isfinite(scores).all():
            raise InvalidInput(f"instances: version {info.version} of {model!r} gives scores that are not finite")
        classes = list(program.manifest.classes)
        return InferReply(
            model=model,
            version=info.version,
            classes=classes,
            scores=scores.astype(float).tolist(),
            labels=[classes[best] for best in scores.argmax(axis=1)],
        )

    def _load_program(self, model: str, program_sha256: str) -> "Program":
        from flsys_ray.programs.runner import Program

        return Program.load(load_program(self._cloud.store, model, program_sha256))

    def _load_parameters(self, model: str, weights_sha256: str, size: int) -> Vector:
        return load_parameters(self._cloud.store, model, weights_sha256, size)


def _examples(request: InferRequest, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    try:
        x = np.array(request.instances, dtype=np.float64)
    except ValueError:
        raise InvalidInput("instances: the lists are not all of the same length") from None
    if x.shape[1:] != shape:
        raise InvalidInput(f"instances: each has shape {x.shape[1:]}, the model takes {shape}")
    if dtype == "int32" and not (np.abs(x) <= np.iinfo(np.int32).max).all():
        raise InvalidInput("instances: a value is not a finite int32")
    if not (np.abs(x) <= np.finfo(np.float32).max).all():
        raise InvalidInput("instances: a value is not a finite float32")
    return x.astype(dtype)
