"""Serve configs and the RayService: every key is one that its reader knows, and they agree with each other."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy_rayservice import read
from deploy_serve_config import flaws
from pydantic import ValidationError

from flsys_ray.errors import InvalidInput, Unauthenticated
from flsys_ray.storage.memory import MemoryStore
from serve_apps import cluster
from serve_apps.cloud import Args

ROOT = Path(__file__).parents[2]
RAYSERVICE = ROOT / "deploy/k8s/rayservice.yaml"
CONFIGS = [ROOT / "serve_apps/cloud.yaml", ROOT / "deploy/aws/serve.yaml"]
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)


def documents() -> list[Any]:
    return list(yaml.safe_load_all(RAYSERVICE.read_text()))


def changed(path: str, value: Any = None, *, rename: str = "") -> list[Any]:
    """Return the documents of the RayService with one place changed: `spec.rayClusterConfig. ... .0.image`, say."""
    found = copy.deepcopy(documents())
    *parents, last = path.split(".")
    place = found[1]
    for step in parents:
        place = place[int(step) if step.isdigit() else step]
    if rename:
        place[rename] = place.pop(last)
    else:
        place[last] = value
    return found


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.parent.name)
def test_serve_configs_are_understood_to_the_last_key(path: Path) -> None:
    assert flaws(yaml.safe_load(path.read_text())) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("route_prefix", "rout_prefix"),
        ("proxy_location", "proxy_locaton"),
        ("  host:", "  hots:"),
        ("num_cpus", "num_cpu"),
        ("target_ongoing_requests", "target_ongoing_request"),
        ("max_ongoing_requests: 64", "max_ongoing_request: 64"),
        ("name: api", "name: ap"),
        ("serve_apps.cluster", "serve_apps.clutser"),
    ],
)
def test_a_typo_in_a_serve_config_is_found(right: str, wrong: str) -> None:
    text = (ROOT / "deploy/aws/serve.yaml").read_text()
    assert right in text
    [found] = flaws(yaml.safe_load(text.replace(right, wrong)))
    assert found in wrong + ":build"


def test_a_typo_in_an_argument_is_found() -> None:
    text = (ROOT / "deploy/aws/serve.yaml").read_text().replace("replicas: 2", "replcas: 2", 1)
    with pytest.raises(ValidationError, match="replcas"):
        flaws(yaml.safe_load(text))


def test_the_rayservice_is_understood_to_the_last_key() -> None:
    _, service = read(documents())
    assert flaws(yaml.safe_load(service.spec.serve_config_v2)) == []


def test_aws_and_kubernetes_serve_the_same() -> None:
    _, service = read(documents())
    assert yaml.safe_load(service.spec.serve_config_v2) == yaml.safe_load((ROOT / "deploy/aws/serve.yaml").read_text())


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        ("spec.serveConfigV2", "serveConfigv2"),
        ("spec.rayClusterConfig.authOptions", "authOption"),
        ("spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress", "redisAdress"),
        ("spec.rayClusterConfig.headGroupSpec.rayStartParams", "rayStartParam"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", "maxReplica"),
        ("spec.rayClusterConfig.workerGroupSpecs.0.template.spec.containers.0.resources", "resource"),
        ("spec.rayClusterConfig.headGroupSpec.template.spec.securityContext.runAsNonRoot", "runAsNonroot"),
    ],
)
def test_a_typo_in_the_rayservice_is_found(path: str, typo: str) -> None:
    with pytest.raises(ValidationError, match=typo):
        read(changed(path, rename=typo))


def test_a_number_where_kubernetes_wants_a_string_is_found() -> None:
    with pytest.raises(ValidationError, match="num-cpus"):
        read(changed("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", 0))


def test_versions_agree() -> None:
    import tomllib

    assert RAY is not None
    _, service = read(documents())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert service.spec.ray_cluster_config.ray_version == RAY[1]
    assert {c.image for pod in service.pods() for c in pod.containers} == {f"flsys-ray:{version}"}


def test_all_pods_have_the_operators_key_from_a_secret_and_the_account() -> None:
    account, service = read(documents())
    for pod in service.pods():
        assert pod.service_account_name == account.metadata.name
        for container in pod.containers:
            variables = {variable.name: variable for variable in container.env}
            assert variables[cluster.KEY_VARIABLE].value is None
            assert variables[cluster.KEY_VARIABLE].value_from is not None


def test_the_ports_of_the_pods_are_those_that_ray_and_serve_listen_on() -> None:
    _, service = read(documents())
    spec = service.spec.ray_cluster_config
    serve_port = yaml.safe_load(service.spec.serve_config_v2)["http_options"]["port"]
    for group in [spec.head_group_spec, *spec.worker_group_specs]:
        ports = {port.name: port.container_port for c in group.template.spec.containers for port in c.ports}
        assert ports["serve"] == serve_port
        assert ports["metrics"] == int(group.ray_start_params["metrics-export-port"])


def test_workers_have_the_cores_that_ray_is_told() -> None:
    _, service = read(documents())
    for group in service.spec.ray_cluster_config.worker_group_specs:
        [container] = group.template.spec.containers
        assert container.resources.requests["cpu"] == group.ray_start_params["num-cpus"]
        assert group.min_replicas <= group.replicas <= group.max_replicas


# The builder that these configs name ------------------------------------------------------------------------------


def test_the_builder_sets_the_operators_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from flsys_ray.cloud.credentials import Credentials

    store = MemoryStore()
    monkeypatch.setattr(cluster, "open_store", lambda uri: store)
    monkeypatch.setenv(cluster.KEY_VARIABLE, "flsys_operator_first\n")
    cluster.build(Args(store="memory:"))
    Credentials(store).check_operator("flsys_operator_first")
    monkeypatch.setenv(cluster.KEY_VARIABLE, "flsys_operator_second")
    cluster.build(Args(store="memory:"))
    Credentials(store).check_operator("flsys_operator_second")
    with pytest.raises(Unauthenticated):
        Credentials(store).check_operator("flsys_operator_first")


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_without_a_key_nothing_is_deployed(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(cluster.KEY_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(cluster.KEY_VARIABLE, value)
    with pytest.raises(InvalidInput, match="FLSYS_OPERATOR_KEY"):
        cluster.build(Args(store="memory:"))
