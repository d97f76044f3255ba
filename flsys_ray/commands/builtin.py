"""Compiles built-in models."""

import os

from flsys_ray.models import base


def compile_builtin(name: str, classes: tuple[str, ...] | None = None) -> bytes:
    """Return the program file of a built-in model. Loads TensorFlow (the extra `keras`)."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start talks of processors and missing GPUs
    import flsys_ray

    model = base.get(name)
    chosen = classes or model.classes
    program = flsys_ray.compile(
        model.build(chosen),
        classes=chosen,
        batch_size=model.batch_size,
        local_optimizer=model.local_optimizer,
        name=model.name,
        assets=dict(model.assets()),
    )
    data: bytes = program.data
    return data
