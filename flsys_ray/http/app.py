"""The app factory."""

from typing import Any

from fastapi import FastAPI, Request

import flsys_ray
from flsys_ray.cloud.inference import Inference
from flsys_ray.cloud.service import Cloud
from flsys_ray.http import access_api, dashboard, developer_api, device_api, problems
from flsys_ray.http.limits import JsonBodyLimit
from flsys_ray.wire.schemas import PROBLEM, Health, Problem

_PROBLEM = {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}}
_PROBLEMS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "Refused: `type` says why", "content": _PROBLEM},
    "5XX": {"description": "Not now: `Retry-After` says when", "content": _PROBLEM},
}


class _App(FastAPI):
    """Describes its problems under their own media type: `model=` would put them under that of the answers."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        document["components"]["schemas"].setdefault("Problem", Problem.model_json_schema())
        return document


def create_app(cloud: Cloud | None = None) -> FastAPI:
    """Return the HTTP surface of a cloud. Without one it only knows its own description (OpenAPI)."""
    app = _App(
        title="FLSys on Ray",
        version=flsys_ray.__version__,
        description="Mobile-cloud federated learning: what phones and third-party developers call.",
        responses=_PROBLEMS,
    )
    app.state.cloud = cloud
    app.state.inference = Inference(cloud) if cloud is not None else None
    problems.install(app)
    app.add_middleware(JsonBodyLimit)
    app.include_router(device_api.router)
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
