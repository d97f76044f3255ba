"""What is deployed: a Serve config that is understood to the last key, and processes that never load TensorFlow."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel, ValidationError

CONFIG = Path(__file__).parents[2] / "serve_apps" / "cloud.yaml"


def test_the_serve_config_is_understood_to_the_last_key() -> None:
    from ray.serve.schema import ServeDeploySchema

    from serve_apps.cloud import Args

    config = yaml.safe_load(CONFIG.read_text())
    read = ServeDeploySchema.model_validate(config)
    assert unknown_keys(config, ServeDeploySchema) == []
    (application,) = read.applications
    assert application.import_path == "serve_apps.cloud:build"
    assert Args.model_validate(application.args).store


def test_a_misspelt_key_is_found() -> None:
    """Serve itself takes `num_replcas` without a word."""
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(CONFIG.read_text())
    config["applications"][0]["rout_prefix"] = "/"
    assert unknown_keys(config, ServeDeploySchema) == ["rout_prefix"]


def test_a_misspelt_argument_is_refused() -> None:
    from serve_apps.cloud import Args

    with pytest.raises(ValidationError, match="replcas"):
        Args.model_validate({"store": "a-folder", "replcas": 2})


def test_the_operator_chooses_how_devices_are_shared() -> None:
    from serve_apps.cloud import Args

    assert Args.model_validate({"store": "a-folder"}).scheduling.name == "contention_aware"
    args = Args.model_validate({"store": "a-folder", "scheduling": {"starving_s": 60}, "assignments_per_check_in": 2})
    assert args.scheduling.model_dump()["starving_s"] == 60
    assert Args.model_validate({"store": "a-folder", "scheduling": "random"}).scheduling.name == "random"
    with pytest.raises(ValidationError, match="starving"):
        Args.model_validate({"store": "a-folder", "scheduling": {"starving": 60}})


@pytest.mark.parametrize("module", ["actors.model_actor", "actors.hosts", "serve_apps.cloud", "flsys_ray.http.app"])
def test_no_process_of_the_cloud_loads_tensorflow(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'tensorflow', 'keras', 'boto3'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def unknown_keys(config: dict[str, object], schema: type[BaseModel]) -> list[str]:
    """Return the keys of a config that its schema does not have, applications and deployments included."""
    from ray.serve.schema import DeploymentSchema, HTTPOptionsSchema, ServeApplicationSchema

    inner = {"applications": ServeApplicationSchema, "deployments": DeploymentSchema, "http_options": HTTPOptionsSchema}
    found = [key for key in config if key not in schema.model_fields]
    for key, kind in inner.items():
        value = config.get(key)
        for part in value if isinstance(value, list) else [value] if isinstance(value, dict) else []:
            found += unknown_keys(part, kind)
    return found
