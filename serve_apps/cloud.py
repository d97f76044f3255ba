"""The cloud as a Serve application: `create_app` in replicas, models in actors. See `cloud.yaml`."""

import time
from typing import TYPE_CHECKING

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from actors.hosts import RayHosts
from actors.metrics import RayMeter
from actors.model_actor import IDLE_S
from flsys_ray.cloud.checkins import Terms
from flsys_ray.cloud.service import Cloud
from flsys_ray.cloud.store_format import check_format
from flsys_ray.core.pacing.steering import Steering
from flsys_ray.core.scheduling.base import SCHEDULERS, Scheduler
from flsys_ray.http.app import create_app
from flsys_ray.storage.uri import open_store
from serve_apps.front import open_way
from serve_apps.listener import Address, listening

if TYPE_CHECKING:
    AnyScheduler = Scheduler
else:
    AnyScheduler = SCHEDULERS.union("contention_aware")


BUSY_S = 5.0


class Listen(BaseModel):
    """An address of every node at which its replicas listen themselves, beside Serve's ingress."""

    model_config = ConfigDict(extra="forbid")

    host: str = "127.0.0.1"
    port: int = Field(ge=1, le=65535)


class Args(BaseModel):
    """What a deployment may be told. `store` must be reachable from every node."""

    model_config = ConfigDict(extra="forbid")

    store: str
    replicas: int = Field(1, ge=1)
    max_ongoing_requests: int = Field(64, ge=1)
    max_queued_requests: int = Field(256, ge=1, description="at each proxy or replica; more are refused at once")
    listen: Listen | None = None
    idle_s: float = Field(
        IDLE_S, ge=1, description="a model without calls and without work is passivated after so long"
    )
    scheduling: AnyScheduler = Field("contention_aware", validate_default=True)
    assignments_per_check_in: int = Field(1, ge=1, le=100)
    checkins_per_s: float = Field(
        Steering().per_s, gt=0, description="of an app's devices that get no work, at each replica"
    )


def build(args: Args) -> Application:
    """Return the application."""
    store, idle_s = args.store, args.idle_s
    terms = Terms(args.scheduling, args.assignments_per_check_in, steering=Steering(args.checkins_per_s))

    def app() -> FastAPI:
        lifespan = listening(Address(args.listen.host, args.listen.port)) if args.listen is not None else None
        opened = open_store(store)
        check_format(opened, store)  # a cluster that a newer version has upgraded meanwhile
        cloud = Cloud(opened, RayHosts(store, idle_s), time.time, terms, meter=RayMeter())
        made = create_app(cloud, lifespan=lifespan)
        if made.short_way is not None:
            open_way(made.short_way)
        return made

    deployment = serve.deployment(
        name="api",
        num_replicas=args.replicas,
        max_ongoing_requests=args.max_ongoing_requests,
        max_queued_requests=args.max_queued_requests,
        backpressure_config={"retry_after_s": BUSY_S},
        ray_actor_options={"num_cpus": 0.1},
    )
    bound: Application = deployment(serve.ingress(app)()).bind()
    return bound
