"""The policies of deploy/aws: exactly what the store calls, on one prefix of one bucket."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.session import get_session

from flsys_ray.storage.s3_place import parse_place

ROOT = Path(__file__).parents[2]
STORE_POLICY = (ROOT / "deploy/aws/store-policy.json").read_text()
HEAD_POLICY = (ROOT / "deploy/aws/head-policy.json").read_text()
# Which permission an operation of S3 needs: "Required permissions for Amazon S3 API operations", Amazon S3 User Guide.
PERMISSIONS = {
    "put_object": "s3:PutObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_objects_v2": "s3:ListBucket",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
    "copy_object": "s3:PutObject",
}
REMOVABLE = ("staged/*",)  # everything else is made once, and stays
# EC2 has no resources to name for these: "Actions, resources, and condition keys for Amazon EC2", AWS.
NO_RESOURCE = {"ec2:DescribeInstances", "ec2:DescribeInstanceTypes", "ec2:DescribeImages"}


def operations() -> set[str]:
    """Return the operations of S3 that the store's source names, as attributes or as words."""
    client = get_session().create_client(
        "s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    known = set(client.meta.method_to_api_mapping)
    found = set()
    for file in (ROOT / "flsys_ray/storage").glob("s3*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            word = (
                node.attr if isinstance(node, ast.Attribute) else node.value if isinstance(node, ast.Constant) else None
            )
            if word in known:
                found.add(str(word))
    return found


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def store_flaws(text: str) -> list[str]:
    """Return where the store's policy allows other than what the store does to what its URI names."""
    policy = json.loads(text)
    place = parse_place(
        yaml.safe_load((ROOT / "deploy/aws/serve.yaml").read_text())["applications"][0]["args"]["store"]
    )
    needed = {PERMISSIONS[operation] for operation in operations()}
    allowed = {action for statement in policy["Statement"] for action in listed(statement["Action"])}
    found = [f"action {action}" for action in needed ^ allowed]
    for statement in policy["Statement"]:
        if set(statement) - {"Sid", "Effect", "Action", "Resource", "Condition"} or statement["Effect"] != "Allow":
            found.append(f"statement {statement['Sid']}")
        keys = statement["Action"] == "s3:ListBucket"
        below = REMOVABLE if "s3:DeleteObject" in listed(statement["Action"]) else ("*",)
        objects = [f"arn:aws:s3:::{place.bucket}/{place.prefix}{part}" for part in below]
        wanted = [f"arn:aws:s3:::{place.bucket}"] if keys else objects
        found += [f"resource {resource}" for resource in set(listed(statement["Resource"])) ^ set(wanted)]
        expected = {"StringLikeIfExists": {"s3:prefix": f"{place.prefix}*"}} if keys else None
        if statement.get("Condition") != expected:
            found.append(f"condition of {statement['Sid']}")
    return found


def head_flaws(text: str) -> list[str]:
    """Return resources that are all of something, or not of the one account and region."""
    found = []
    for statement in json.loads(text)["Statement"]:
        actions, conditions = set(listed(statement["Action"])), statement.get("Condition", {})
        if any("*" in action for action in actions):
            found.append(f"actions of {statement['Sid']}")
        for resource in listed(statement["Resource"]):
            if resource == "*" and not actions <= NO_RESOURCE:
                found.append(f"resource of {statement['Sid']}")
            if resource != "*" and not re.fullmatch(
                r"arn:aws:(ec2:us-east-1|ssm:us-east-1|iam:):(123456789012)?:\S+", resource
            ):
                found.append(resource)
        if (
            not actions <= NO_RESOURCE | {"ssm:GetParameters"}
            and statement["Sid"] != "WithWhatTheyNeed"
            and not conditions
        ):
            found.append(f"no condition in {statement['Sid']}")
    return found


def test_the_stores_policy_is_what_the_store_does() -> None:
    assert {"put_object", "get_object", "head_object", "list_objects_v2"} <= operations()
    assert store_flaws(STORE_POLICY) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("s3:GetObject", "s3:GetObjct"),
        ('"s3:PutObject", ', ""),
        ("s3:AbortMultipartUpload", "s3:*"),
        ('"s3:PutObject"', '"s3:PutObject", "s3:DeleteObject"'),
        ("store/staged/*", "store/*"),
        ('"s3:DeleteObject"', '"s3:PutObject"'),
        ("flsys-example/store/*", "flsys-example/*"),
        ("flsys-example/store/*", "flsys-exmple/store/*"),
        ('"arn:aws:s3:::flsys-example"', '"*"'),
        ('"s3:prefix": "store/*"', '"s3:prefix": "*"'),
        ("StringLikeIfExists", "StringLik"),
        ('"Effect": "Allow"', '"Effect": "Alow"'),
    ],
)
def test_a_change_of_the_stores_policy_is_found(right: str, wrong: str) -> None:
    assert right in STORE_POLICY
    assert store_flaws(STORE_POLICY.replace(right, wrong, 1))


def test_the_heads_policy_names_what_it_is_about() -> None:
    assert head_flaws(HEAD_POLICY) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ('"ec2:RunInstances"', '"ec2:*"'),
        ('"arn:aws:iam::123456789012:role/flsys-worker"', '"*"'),
        ("us-east-1:123456789012:volume", "us-east-2:123456789012:volume"),
        ('"Condition": {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "flsys"}}', '"Condition": {}'),
    ],
)
def test_a_change_of_the_heads_policy_is_found(right: str, wrong: str) -> None:
    assert right in HEAD_POLICY
    assert head_flaws(HEAD_POLICY.replace(right, wrong, 1))


def test_one_bucket_one_account_one_region_in_all_files() -> None:
    """An operator replaces each of these names in all files at once: docs/operations.md says how."""
    files = [ROOT / "cluster.yaml", *(ROOT / "deploy").rglob("*.*")]
    text = "\n".join(file.read_text() for file in files)
    assert set(re.findall(r"(?:s3://|arn:aws:s3:::)([\w.-]+)", text)) == {"flsys-example"}
    assert set(re.findall(r"\b\d{12}\b", text)) == {"123456789012"}
    assert set(re.findall(r"\b(?:us|eu|ap|sa|ca|af|me)-[a-z]+-\d\b", text)) == {"us-east-1"}
