"""The models that come with the platform, one file a model. See `base.py` for how they are found.

Importing this package, and listing its models, does not load TensorFlow.
"""

from flsys_ray.models.base import BuiltinModel, all_models, get

__all__ = ["BuiltinModel", "all_models", "get"]
