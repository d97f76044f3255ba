"""The cloud as a Serve application: `create_app` in replicas, models in actors. See `cloud.yaml`."""

import time

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from actors.hosts import RayHosts
from actors.metrics import RayMeter
from flsys_ray.cloud.service import Cloud
from flsys_ray.http.app import create_app
from flsys_ray.storage.uri import open_store


class Args(BaseModel):
    """What a deployment may be told. `store` must be reachable from every node."""

    model_config = ConfigDict(extra="forbid")

    store: str
    replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(64, ge=1)


def build(args: Args) -> Application:
    """Return the application."""
    store = args.store

    def app() -> FastAPI:
        return create_app(Cloud(open_store(store), RayHosts(store), time.time, meter=RayMeter()))

    deployment = serve.deployment(
        name="api",
        num_replicas=args.replicas,
        max_ongoing_requests=args.max_ongoing_requests,
        ray_actor_options={"num_cpus": 0.1},
    )
    bound: Application = deployment(serve.ingress(app)()).bind()
    return bound
