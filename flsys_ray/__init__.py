"""FLSys on Ray: a mobile-cloud federated learning platform.

Importing this package starts nothing and loads neither Ray nor TensorFlow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flsys_ray.programs.compile import compile as compile  # noqa: A004 # the verb that users know

__all__ = ["compile"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load `compile` (and with it TensorFlow) when it is first asked for."""
    if name == "compile":
        from flsys_ray.programs.compile import compile as compile_model

        return compile_model
    raise AttributeError(f"module 'flsys_ray' has no attribute {name!r}")
