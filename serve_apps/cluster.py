"""The cloud where nobody runs `flsys up`: what a Serve config deploys to a cluster (`serve deploy`, KubeRay).

The operator's key comes from the environment of the nodes, `FLSYS_OPERATOR_KEY`: a Serve config is no place for it.
"""

import os

from ray.serve import Application

from flsys_ray.cloud.credentials import set_operator_key
from flsys_ray.errors import InvalidInput
from flsys_ray.storage.uri import open_store
from serve_apps import cloud
from serve_apps.cloud import Args

KEY_VARIABLE = "FLSYS_OPERATOR_KEY"


def build(args: Args) -> Application:
    """Set the operator's key and return the application. Raises `InvalidInput` without a key: nobody could use it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise InvalidInput(f"{KEY_VARIABLE} is not set on this node: the cloud would have no operator")
    set_operator_key(open_store(args.store), key)
    return cloud.build(args)
