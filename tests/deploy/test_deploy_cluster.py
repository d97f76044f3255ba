"""cluster.yaml: Ray's own schema, the keys that the schema lets pass, and what `ray up` would ask of EC2 (moto)."""

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from botocore.session import get_session
from botocore.validate import ParamValidator
from jsonschema import ValidationError
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME, TAG_RAY_NODE_KIND

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "cluster.yaml").read_text()
PROVIDER_KEYS = {"type", "region", "availability_zone", "cache_stopped_nodes", "use_internal_ips", "security_group"}
NODE_KEYS_OF_RAY = {"SubnetIds"}  # in a node_config, and not of EC2
VARIABLES = {
    "RAY_AUTH_MODE", "RAY_worker_niceness", "RAY_USAGE_STATS_ENABLED", "RAY_SERVE_ENABLE_HA_PROXY", "RAY_REDIS_ADDRESS",
    "RAY_REDIS_PASSWORD", "RAY_external_storage_namespace", "FLSYS_OPERATOR_KEY",
}  # fmt: skip


def flaws(text: str) -> list[str]:
    """Return what Ray's schema would let pass. Raises its `ValidationError` for what it would not."""
    config = yaml.safe_load(text)
    validate_config(prepare_config(copy.deepcopy(config)))
    provider, types = config["provider"], config["available_node_types"]
    found = [f"provider: {key}" for key in set(provider) - PROVIDER_KEYS]
    rules = {"GroupId": "sg-1", "IpPermissions": provider["security_group"]["IpPermissions"]}
    found += _ec2_flaws("AuthorizeSecurityGroupIngress", rules)
    for name, kind in types.items():
        node = {key: value for key, value in kind["node_config"].items() if key not in NODE_KEYS_OF_RAY}
        found += [f"{name}: {flaw}" for flaw in _ec2_flaws("RunInstances", {"MinCount": 1, "MaxCount": 1} | node)]
        found += [f"{name}: resource {key}" for key in set(kind["resources"]) - {"CPU", "memory"}]
    return found + [f"file_mounts: {place}" for place in config["file_mounts"].values() if not _is_there(place)]


def _ec2_flaws(operation: str, parameters: dict[str, Any]) -> list[str]:
    """Return what EC2's own description of its API says about a request."""
    report = ParamValidator().validate(parameters, _ec2().operation_model(operation).input_shape)
    return [report.generate_report()] if report.has_errors() else []


@lru_cache(maxsize=1)
def _ec2() -> Any:
    return get_session().get_service_model("ec2")


def _is_there(place: str) -> bool:
    """Whether a mounted file is in the repository, is made by `make wheel`, or is a key in the operator's home."""
    return place == "dist" or place.startswith("~/.") or (ROOT / place).is_file()


def commands() -> list[str]:
    config = yaml.safe_load(TEXT)
    return [
        command
        for key in ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
        for command in config[key]
    ]


def test_it_is_understood_to_the_last_key() -> None:
    assert flaws(TEXT) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("idle_timeout_minutes", "idle_timeout_minute"),
        ("head_node_type", "head_nod_type"),
        ("max_workers: 8\n    resources", "max_worker: 8\n    resources"),
        ("ssh_user", "ssh_usr"),
        ("min_workers: 1", "min_workers: 9"),
        ("GroupName", "GroupNam"),
        ("setup_commands:\n  - sudo", "setup_command:\n  - sudo"),
    ],
)
def test_a_typo_is_found_by_rays_schema(right: str, wrong: str) -> None:
    assert TEXT.replace(right, wrong, 1) != TEXT
    with pytest.raises((ValidationError, ValueError)):
        flaws(TEXT.replace(right, wrong, 1))


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("cache_stopped_nodes", "cache_stoped_nodes"),
        ("IpProtocol", "IpProtocl"),
        ("CidrIp:", "CidrIP:"),
        ("FromPort: 8000", "FromPort: '8000'"),
        ("InstanceType: m7i.large", "InstanceTyp: m7i.large"),
        ("VolumeSize", "VolumSize"),
        ("HttpTokens", "HttpToken"),
        ("Name: flsys-worker", "name: flsys-worker"),
        ("{CPU: 4}", "{CPUs: 4}"),
        ("constraints.txt: constraints.txt", "constraints.txt: constraint.txt"),
    ],
)
def test_a_typo_that_rays_schema_lets_pass_is_found(right: str, wrong: str) -> None:
    assert TEXT.replace(right, wrong, 1) != TEXT
    assert len(flaws(TEXT.replace(right, wrong, 1))) >= 1


def test_commands_are_shell_and_name_only_mounted_files() -> None:
    mounted = set(yaml.safe_load(TEXT)["file_mounts"])
    for command in commands():
        assert subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode == 0, command
        for place in re.findall(r"~/(flsys/[\w.]+|\.flsys/[\w.]+)", command):
            assert f"/home/ubuntu/{place}" in mounted, command


def test_options_of_ray_and_serve_exist() -> None:
    from ray.scripts.scripts import start, stop
    from ray.serve.scripts import deploy

    known = {"ray start": start, "ray stop": stop, "serve deploy": deploy}
    seen = set()
    for command in commands():
        for program, verb, rest in re.findall(r"bin/(ray|serve) (start|stop|deploy)([^;&]*)", command):
            seen.add(f"{program} {verb}")
            options = {option for parameter in known[f"{program} {verb}"].params for option in parameter.opts}
            given = {word.partition("=")[0] for word in shlex.split(rest) if word.startswith("--")}
            assert given <= options, command
    assert seen == set(known)


def test_the_environment_of_nodes_has_known_names_and_no_secret() -> None:
    lines = (ROOT / "deploy/aws/ray.env").read_text().splitlines()
    pairs = [line.removeprefix("# ").removeprefix("export ").split("=", 1) for line in lines if "export " in line]
    assert {name for name, _ in pairs} == VARIABLES
    secrets = {name: value for name, value in pairs if name.endswith(("KEY", "PASSWORD"))}
    assert all(re.fullmatch(r'"\$\(cat ~/\.flsys/[\w.]+\)"', value) for value in secrets.values())
    assert ["RAY_AUTH_MODE", "token"] in pairs


def test_the_extras_and_the_python_of_the_nodes_fit_the_package() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extras] = {match for command in commands() for match in re.findall(r"\.whl\)\[([\w,]+)\]", command)}
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert project["requires-python"] == ">=3.11"  # Ubuntu 24.04 has Python 3.12


def test_phones_reach_the_port_that_serve_listens_on() -> None:
    serve = yaml.safe_load((ROOT / "deploy/aws/serve.yaml").read_text())
    [rule] = yaml.safe_load(TEXT)["provider"]["security_group"]["IpPermissions"]
    assert rule["FromPort"] == rule["ToPort"] == serve["http_options"]["port"]
    assert all(entry["CidrIp"] != "0.0.0.0/0" for entry in rule["IpRanges"])


# What EC2 would be asked ------------------------------------------------------------------------------------------


@pytest.fixture
def account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS account in memory, with the roles made from the files in deploy/aws as docs/operations.md says."""
    (tmp_path / ".ssh").mkdir()
    for name, value in {"HOME": str(tmp_path), "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        iam = boto3.client("iam")
        trust = (ROOT / "deploy/aws/ec2-trust.json").read_text()
        for role in ("flsys-head", "flsys-worker"):
            iam.create_role(RoleName=role, AssumeRolePolicyDocument=trust)
            iam.create_instance_profile(InstanceProfileName=role)
            iam.add_role_to_instance_profile(InstanceProfileName=role, RoleName=role)
            for policy in ("store", "head") if role == "flsys-head" else ("store",):
                document = (ROOT / f"deploy/aws/{policy}-policy.json").read_text()
                iam.put_role_policy(RoleName=role, PolicyName=f"flsys-{policy}", PolicyDocument=document)
        yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("account")
def test_ray_starts_a_head_and_a_worker_with_their_roles_from_the_file() -> None:
    config = bootstrap_aws(prepare_config(yaml.safe_load(TEXT)))
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    for kind in ("head", "worker"):
        tags = {TAG_RAY_NODE_KIND: kind, TAG_RAY_CLUSTER_NAME: "flsys"}
        provider.create_node(config["available_node_types"][kind]["node_config"], tags, 1)
    ec2 = boto3.client("ec2")
    nodes = [node for group in ec2.describe_instances()["Reservations"] for node in group["Instances"]]
    assert sorted(node["InstanceType"] for node in nodes) == ["m7i.large", "m7i.xlarge"]
    profiles = {node["InstanceType"]: node["IamInstanceProfile"]["Arn"].rpartition("/")[2] for node in nodes}
    assert profiles == {"m7i.large": "flsys-head", "m7i.xlarge": "flsys-worker"}
    for node in nodes:
        assert {"Key": TAG_RAY_CLUSTER_NAME, "Value": "flsys"} in node["Tags"]
        assert [group["GroupName"] for group in node["SecurityGroups"]] == ["flsys-ray"]
    [group] = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": ["flsys-ray"]}])["SecurityGroups"]
    open_to_all = {
        rule.get("FromPort") for rule in group["IpPermissions"] for r in rule["IpRanges"] if r["CidrIp"] == "0.0.0.0/0"
    }
    assert open_to_all == {22}, "Ray opens SSH, and nothing else is open to the world"


def test_the_policy_lets_the_head_start_the_workers_of_this_file_only() -> None:
    config = yaml.safe_load(TEXT)
    policy = json.loads((ROOT / "deploy/aws/head-policy.json").read_text())
    [start] = [s for s in policy["Statement"] if s["Sid"] == "StartNodesOfThisCluster"]
    worker = config["available_node_types"]["worker"]["node_config"]
    assert start["Condition"]["StringEquals"] == {
        f"aws:RequestTag/{TAG_RAY_CLUSTER_NAME}": config["cluster_name"],
        "ec2:InstanceType": worker["InstanceType"],
    }
    [passing] = [s for s in policy["Statement"] if s["Action"] == "iam:PassRole"]
    assert passing["Resource"].endswith(f":role/{worker['IamInstanceProfile']['Name']}")
