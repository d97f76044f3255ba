"""No key, token, nonce or evidence is in a log, a message or an address: a whole session over HTTP is listened to."""

import base64
import logging
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import pytest
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, problem
from served import served

from flsys_ray.core.rng import generator
from flsys_ray.developer import DeveloperClient
from flsys_ray.device.attestation import shared_secret
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone
from flsys_ray.errors import FlsysError

SECRET = "the-shared-secret-of-this-test-0123456789"
ONE = PAIR | {"pacing": {"name": "rounds", "cohort": 1, "deadline_s": 600}, "eligibility": {"min_examples": 1}}
LOGGERS = ("uvicorn", "uvicorn.access", "uvicorn.error", "uvicorn.asgi", "httpx2", "httpcore2", "flsys_ray", "asyncio")


class Listener(logging.Handler):
    """Keeps every record as it would be written, its arguments and its traceback too."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.names: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.names.add(record.name)
        self.lines.append(f"{logging.Formatter().format(record)} {record.args!r}")


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Listen to all loggers at DEBUG, also to one that a server in an earlier test has cut off (uvicorn does)."""
    found, loggers = Listener(), [logging.getLogger(name) for name in ("", *LOGGERS)]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.propagate = True
    logging.getLogger().addHandler(found)
    yield found
    logging.getLogger().removeHandler(found)
    for logger, (level, propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate


def in_any_form(secrets: set[str]) -> set[str]:
    """Return secrets as they are, and as logs might change them."""
    return {form for text in secrets for form in (text, text[8:], base64.b64encode(text.encode()).decode())}


def test_a_session_of_operator_developer_and_phone(world: World, listener, tmp_path: Path):
    kept: set[str] = {OPERATOR_KEY, SECRET}
    evidence: set[str] = set()

    def attest(installation_id: str, nonce: str) -> str:
        made = shared_secret(SECRET)(installation_id, nonce)
        evidence.update({nonce, made})
        return made

    with served(world.http.app, log_level="debug") as url:
        with DeveloperClient(url, OPERATOR_KEY) as operator:
            created = operator.create_app("acme")
            kept |= {created.key, created.enrol_key}
        with DeveloperClient(url, created.key) as developer:
            developer.set_attestation({"name": "shared_secret", "secret": SECRET})
            world.training(created.key, plan=ONE)
        config = PhoneConfig(url, created.enrol_key, models=("tiny",), attest=attest)
        with Phone(tmp_path / "phone", config, conditions=FixedConditions()) as phone:
            kept |= live(phone)
            shown = repr(phone.config) + repr(phone.status()) + repr(phone._identity)
        kept |= misuse(url, world, kept)
        with DeveloperClient(url, OPERATOR_KEY) as operator:
            kept.add(operator.new_app_key("acme", 2).key)
            operator.rotate_keys()
    keys = world.cloud.credentials.keys
    kept |= evidence | {keys.root.hex(), base64.b64encode(keys.root).decode()}
    assert {"uvicorn.access", "httpcore2.http11"} <= listener.names, "nothing was heard"
    text = "\n".join([*listener.lines, shown])
    for secret in in_any_form(kept):
        assert secret not in text


def live(phone: Phone) -> set[str]:
    """Have a phone do a round; return its tokens."""
    rng = generator(0, "secrets", 0)
    for number in range(40):
        phone.add_example("tiny", rng.normal(size=4).astype(np.float32), number % 3)
    phone.consent("tiny", granted=True)
    secrets, kinds = set(), []
    while "uploaded" not in kinds:
        kinds.append(phone.step().kind)
        assert len(kinds) < 20, kinds
        secrets |= {str(phone._database.setting("token"))}
        secrets |= {item.message.token for item in phone._journal.open_assignments()}
    phone._identity.renew()
    return (secrets | {str(phone._database.setting("token"))}) - {"None"}


def misuse(url: str, world: World, secrets: set[str]) -> set[str]:
    """Give every secret to calls that do not take it, and to the phone's and the developer's clients."""
    wrong = {secret + "-wrong" for secret in secrets}
    with httpx2.Client(base_url=url) as http:
        for secret in secrets | wrong:
            for path in ("/v1/overview", "/v1/models", "/v1/keys", "/v1/checkins"):
                reply = http.get(path, headers=bearer(secret, secret))
                assert secret not in reply.text + str(reply.headers)
            body = {"models": secret, secret: 1}
            reply = http.post(
                "/v1/devices", json={"installation_id": "12345678", "nonce": secret}, headers=bearer(secret)
            )
            assert secret not in reply.text or reply.status_code == 201
            http.post("/v1/checkins", json=body, headers=bearer(secret))
            with DeveloperClient(url, secret) as client, pytest.raises(FlsysError) as caught:
                client.retire_key("99")
            assert secret not in str(caught.value)
    return wrong


@pytest.mark.parametrize("name", ["token", "key", "api_key", "access_token", "Authorization", "Flsys-Assignment"])
def test_a_secret_in_an_address_opens_nothing_and_is_not_repeated(world: World, key, listener, name):
    """Who puts one there has told it to every proxy in between already: it is not taken, so nobody gets used to it."""
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    listener.lines.clear()
    for path, secret in (("/v1/models", key), ("/v1/overview", OPERATOR_KEY), ("/v1/models/tiny/versions/0", token)):
        found = problem(world.http.get(path, params={name: secret}), 401, "unauthenticated")
        assert secret not in str(found)
    address = work["upload"]["url"]
    reply = world.http.put(address, params={name: work["token"]}, content=world.body(), headers=bearer(token))
    problem(reply, 401, "unauthenticated")
    ours = [line for line in listener.lines if "flsys" in line and "HTTP Request" not in line and "GET" not in line]
    assert not any(secret in line for line in ours for secret in (key, token, OPERATOR_KEY, work["token"]))


def test_an_error_of_ours_logs_the_path_without_what_stands_behind_it(world: World, key, listener, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.cloud, "models", broken)
    reply = world.http.get("/v1/models", params={"token": key}, headers=bearer(key))
    assert reply.status_code == 500
    assert key not in reply.text
    ours = [line for line in listener.lines if line.startswith("unexpected error in GET /v1/models")]
    assert ours
    assert not any(key in line for line in ours)
