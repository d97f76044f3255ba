"""The cloud where nobody runs `flsys up`: what a Serve config deploys to a cluster (`serve deploy`, KubeRay).

The operator's key comes from the environment of the nodes, `FLSYS_OPERATOR_KEY`: a Serve config is no place for it.
"""

import os

from ray.serve import Application

from flsys_ray.cloud.credentials import set_operator_key
from flsys_ray.cloud.store_format import prepare
from flsys_ray.errors import InvalidInput
from flsys_ray.storage.uri import open_store
from serve_apps import cloud
from serve_apps.cloud import Args

KEY_VARIABLE = "FLSYS_OPERATOR_KEY"


def build(args: Args) -> Application:
    """Set the operator's key and return the application.

    Raises:
        InvalidInput: there is no key, so that nobody could use the cloud, or none can be started on this store.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key:
        raise InvalidInput(f"{KEY_VARIABLE} is not set on this node: the cloud would have no operator")
    store = open_store(args.store)
    prepare(store, args.store)
    set_operator_key(store, key)
    return cloud.build(args)
