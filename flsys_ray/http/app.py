"""The app factory."""

from typing import Any

from fastapi import FastAPI, Request
from starlette.types import Lifespan, Receive, Scope, Send

import flsys_ray
from flsys_ray.cloud.inference import Inference
from flsys_ray.cloud.service import Cloud
from flsys_ray.http import access_api, dashboard, developer_api, device_api, problems, staged_api
from flsys_ray.http.admission import Admission, Bounds
from flsys_ray.http.limits import JsonBodyLimit
from flsys_ray.http.short_way import ShortWay
from flsys_ray.wire.developer_schemas import Health
from flsys_ray.wire.schemas import PROBLEM, Problem

_PROBLEM = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused: `type` says why", "content": _PROBLEM},
    "5XX": {"description": "Not now: `Retry-After` says when", "content": _PROBLEM},
}


class App(FastAPI):
    """Describes its problems under their own media type: `model=` would put them under that of the answers.

    `short_way`, once it is set, answers the calls that it takes.
    """

    short_way: ShortWay | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if self.short_way is not None and self.short_way.takes(scope):
            await self.short_way(scope, receive, send)
        else:
            if (cloud := self.state.cloud) is not None:
                scope[problems.METER] = cloud.meter
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Return the description of the whole surface."""
        document = super().openapi()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document


def create_app(
    cloud: Cloud | None = None, bounds: Bounds | None = None, lifespan: Lifespan[FastAPI] | None = None
) -> App:
    """Return the HTTP surface of a cloud. Without one it only knows its own description (OpenAPI)."""
    admission = Admission(bounds)
    app = App(
        title="FLSys on Ray",
        version=flsys_ray.__version__,
        description="Mobile-cloud federated learning: what phones and third-party developers call.",
        responses=_PROBLEMS,
        lifespan=lifespan,
    )
    app.state.cloud = cloud
    app.state.admission = admission
    app.short_way = ShortWay(cloud, admission, super(App, app).__call__) if cloud is not None else None
    app.state.inference = Inference(cloud) if cloud is not None else None
    problems.install(app)
    app.add_middleware(JsonBodyLimit)
    app.include_router(device_api.router)
    app.include_router(staged_api.router)
    app.include_router(developer_api.router)
    app.include_router(access_api.devices)
    app.include_router(access_api.operators)
    app.include_router(dashboard.router)

    @app.get("/healthz", tags=["operators"])
    async def healthz() -> Health:
        """Alive."""
        return Health()

    @app.get("/readyz", tags=["operators"])
    async def readyz(request: Request) -> Health:
        """Ready: the store answers."""
        next(iter(request.app.state.cloud.store.list("secrets/")), None)
        return Health()

    return app
