"""Reads a Serve config as Ray does, and finds the keys that Ray would take without a word."""

from typing import Any

from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from serve_apps.cloud import Args

_INNER: dict[str, type[BaseModel]] = {
    "applications": ServeApplicationSchema,
    "deployments": DeploymentSchema,
    "http_options": HTTPOptionsSchema,
    "ray_actor_options": RayActorOptionsSchema,
    "autoscaling_config": AutoscalingConfig,
}
BUILDERS = {"serve_apps.cloud:build", "serve_apps.cluster:build"}


def flaws(config: dict[str, Any]) -> list[str]:
    """Return what is wrong with a Serve config of ours: unknown keys, arguments that `build` refuses, another cloud."""
    found = _unknown(config, ServeDeploySchema)
    if found:
        return found
    for application in ServeDeploySchema.model_validate(config).applications:
        Args.model_validate(application.args)
        if application.import_path not in BUILDERS:
            found.append(application.import_path)
        found += [deployment.name for deployment in application.deployments if deployment.name != "api"]
    return found


def _unknown(config: dict[str, Any], schema: type[BaseModel]) -> list[str]:
    found = [key for key in config if key not in schema.model_fields]
    for key, kind in _INNER.items():
        value = config.get(key)
        for part in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
            found += _unknown(part, kind)
    return found
