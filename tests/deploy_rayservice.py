"""The part of a RayService that we use, with every other key forbidden.

Written after the field references of KubeRay v1.6 and of Kubernetes' Pod:
https://docs.ray.io/en/master/cluster/kubernetes/references/api.html
https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/pod-v1/
A key that is right there and missing here fails: add it. It is no substitute for the API server.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|Ki|Mi|Gi|Ti)?$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Metadata(_Part):
    name: Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class SecretKey(_Part):
    name: Name
    key: str


class ValueFrom(_Part):
    secret_key_ref: SecretKey


class Redis(_Part):
    value_from: ValueFrom


class Variable(_Part):
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    value: str | None = None
    value_from: ValueFrom | None = None


class Port(_Part):
    container_port: int = Field(ge=1, le=65535)
    name: Name


class Resources(_Part):
    requests: dict[Literal["cpu", "memory"], Quantity]
    limits: dict[Literal["cpu", "memory"], Quantity]


class Capabilities(_Part):
    drop: list[Literal["ALL"]]


class ContainerSecurity(_Part):
    allow_privilege_escalation: Literal[False]
    capabilities: Capabilities


class Container(_Part):
    name: Name
    image: str
    security_context: ContainerSecurity
    env: list[Variable]
    ports: list[Port]
    resources: Resources


class Seccomp(_Part):
    type: Literal["RuntimeDefault"]


class PodSecurity(_Part):
    run_as_non_root: Literal[True]
    run_as_user: int = Field(ge=1)
    fs_group: int = Field(ge=1)
    seccomp_profile: Seccomp


class PodSpec(_Part):
    service_account_name: Name
    security_context: PodSecurity
    termination_grace_period_seconds: int = Field(30, ge=0)
    containers: list[Container] = Field(min_length=1)


class TemplateMetadata(_Part):
    labels: dict[str, str]


class Template(_Part):
    metadata: TemplateMetadata
    spec: PodSpec


class Head(_Part):
    ray_start_params: dict[str, str]
    template: Template


class Workers(_Part):
    group_name: Name
    replicas: int = Field(ge=0)
    min_replicas: int = Field(ge=0)
    max_replicas: int = Field(ge=1)
    ray_start_params: dict[str, str]
    template: Template


class Authentication(_Part):
    mode: Literal["token", "disabled"]


class GcsFaultTolerance(_Part):
    redis_address: str
    redis_password: Redis


class Autoscaler(_Part):
    idle_timeout_seconds: int = Field(ge=1)
    upscaling_mode: Literal["Default", "Aggressive", "Conservative"]


class RayCluster(_Part):
    ray_version: str
    auth_options: Authentication
    gcs_fault_tolerance_options: GcsFaultTolerance | None = None
    enable_in_tree_autoscaling: bool
    autoscaler_options: Autoscaler
    head_group_spec: Head
    worker_group_specs: list[Workers] = Field(min_length=1)


class Spec(_Part):
    serve_config_v2: str = Field(alias="serveConfigV2")
    ray_cluster_config: RayCluster


class RayService(_Part):
    """The resource."""

    api_version: Literal["ray.io/v1"]
    kind: Literal["RayService"]
    metadata: Metadata
    spec: Spec

    def pods(self) -> list[PodSpec]:
        """Return the specs of the head's and the workers' pods."""
        cluster = self.spec.ray_cluster_config
        return [cluster.head_group_spec.template.spec, *(w.template.spec for w in cluster.worker_group_specs)]


class ServiceAccount(_Part):
    """The account of the pods."""

    api_version: Literal["v1"]
    kind: Literal["ServiceAccount"]
    metadata: Metadata


def read(documents: list[dict[str, Any]]) -> tuple[ServiceAccount, RayService]:
    """Read the file's two documents. Raises pydantic's `ValidationError`."""
    account, service = documents
    return ServiceAccount.model_validate(account), RayService.model_validate(service)
