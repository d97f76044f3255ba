"""Who is calling: three kinds of credentials, and tokens for assignments.

- The **operator key** is random. The store holds its hash; `flsys up` sets it.
- An **app key** is `flsys_app_{name}_{secret}`, the secret a MAC of the name under the signing key: nothing to keep,
  nothing to leak from the app records, and asking twice gives the same key.
- A **device token** is a signed statement (JWT, HS256) that a device of an app enrolled, for 30 days.
- An **assignment token** is a signed statement of an assignment: the cloud keeps no list of them. It is used beside the
  device's own token, so that a stolen one is worth nothing.

All comparisons take constant time. No key or token is ever part of a URL or a message.
"""

import base64
import hashlib
import hmac
import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import jwt

from flsys_ray.cloud import places
from flsys_ray.core.types import Assignment
from flsys_ray.errors import AlreadyExists, Changed, Forbidden, Missing, Unauthenticated
from flsys_ray.storage.base import ObjectStore, check_key
from flsys_ray.wire.schemas import EnrolReply

DEVICE_TOKEN_LIFE_S = 30 * 86400.0
_ALGORITHM = "HS256"
_APP_PREFIX = "flsys_app_"
_OPERATOR_PREFIX = "flsys_operator_"


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device, as its token says."""

    device_id: str
    app_id: str


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an assignment token says: the assignment, and the program and plan that its update is checked against."""

    assignment: Assignment
    program_sha256: str
    plan_sha256: str


class Credentials:
    """Makes and checks them. All replicas on one store share its signing key."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._signing = _signing_key(store)

    # Operator ----------------------------------------------------------------------------------------------------

    def check_operator(self, key: str) -> None:
        """Raises `Unauthenticated` unless this is the operator's key."""
        try:
            record = json.loads(self._store.get(places.OPERATOR_KEY).body)
        except Missing:
            record = {"key_sha256": ""}
        if not hmac.compare_digest(_hash(key), str(record["key_sha256"])):
            raise Unauthenticated("this call needs the operator's key")

    # Apps --------------------------------------------------------------------------------------------------------

    def app_key(self, app_id: str) -> str:
        """Return the key of an app."""
        return f"{_APP_PREFIX}{app_id}_{self._mac('app', app_id)}"

    def check_app(self, key: str) -> str:
        """Return the app whose key this is. Raises `Unauthenticated`."""
        app_id, _, secret = key.removeprefix(_APP_PREFIX).rpartition("_")
        genuine = hmac.compare_digest(secret.encode(), self._mac("app", app_id).encode())
        if not (key.startswith(_APP_PREFIX) and genuine and self._registered(app_id)):
            raise Unauthenticated("this call needs an app key")
        return app_id

    def _registered(self, app_id: str) -> bool:
        try:
            self._store.get(check_key(places.app(app_id)), 0, 0)
        except Missing:
            return False
        return True

    # Devices -----------------------------------------------------------------------------------------------------

    def enrol(self, app_id: str, installation_id: str, now: float) -> EnrolReply:
        """Return the identity of an installed app. The same installation is the same device."""
        device_id = f"d-{self._mac('device', app_id, installation_id)[:24]}"
        expires_at = now + DEVICE_TOKEN_LIFE_S
        claims = {"kind": "device", "sub": device_id, "app": app_id, "exp": int(expires_at)}
        return EnrolReply(device_id=device_id, token=self._signed(claims), expires_at=float(int(expires_at)))

    def check_device(self, token: str, now: float) -> Device:
        """Return the device whose token this is. Raises `Unauthenticated` if it is not genuine or has expired."""
        claims = self._claims(token, "device", "this call needs a device token")
        if now >= float(claims["exp"]):
            raise Unauthenticated("the device token has expired: enrol again")
        return Device(str(claims["sub"]), str(claims["app"]))

    # Assignments -------------------------------------------------------------------------------------------------

    def assignment_token(self, ticket: Ticket) -> str:
        """Return the token of an assignment. It does not expire: after its deadline the answer is "late"."""
        work = ticket.assignment
        return self._signed(
            {
                "kind": "assignment",
                "sub": work.device_id,
                "aid": work.assignment_id,
                "model": work.model,
                "round": work.round,
                "version": work.version,
                "deadline": work.deadline,
                "program": ticket.program_sha256,
                "plan": ticket.plan_sha256,
            }
        )

    def check_assignment(self, token: str, device: Device, assignment_id: str) -> Ticket:
        """Return the ticket in an assignment token.

        Raises:
            Unauthenticated: the token is missing or not genuine.
            Forbidden: it is another device's, or of another assignment than the call's.
        """
        claims = self._claims(token, "assignment", "this call needs the assignment's token in Flsys-Assignment")
        if claims["sub"] != device.device_id:
            raise Forbidden("this assignment was given to another device")
        if claims["aid"] != assignment_id:
            raise Forbidden("this token is of another assignment")
        assignment = Assignment(
            assignment_id=str(claims["aid"]),
            model=str(claims["model"]),
            round=int(claims["round"]),
            version=int(claims["version"]),
            device_id=str(claims["sub"]),
            deadline=float(claims["deadline"]),
        )
        return Ticket(assignment, str(claims["program"]), str(claims["plan"]))

    # Inside ------------------------------------------------------------------------------------------------------

    def _mac(self, *parts: str) -> str:
        message = json.dumps(parts).encode()
        return hmac.new(self._signing, message, hashlib.sha256).hexdigest()[:48]

    def _signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self._signing, algorithm=_ALGORITHM)

    def _claims(self, token: str, kind: Literal["device", "assignment"], refusal: str) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token, self._signing, algorithms=[_ALGORITHM], options={"verify_exp": False}
            )
        except jwt.InvalidTokenError:
            raise Unauthenticated(refusal) from None
        if claims.get("kind") != kind:
            raise Unauthenticated(refusal)
        return claims


def new_operator_key() -> str:
    """Return a random operator key."""
    return _OPERATOR_PREFIX + secrets.token_urlsafe(32)


def set_operator_key(store: ObjectStore, key: str) -> None:
    """Make this the operator's key. May be repeated."""
    body = json.dumps({"key_sha256": _hash(key)}).encode()
    while True:
        try:
            present = store.get(places.OPERATOR_KEY)
            if present.body != body:
                store.swap(places.OPERATOR_KEY, body, present.etag)
            return
        except Missing:
            try:
                store.put_new(places.OPERATOR_KEY, body)
                return
            except AlreadyExists:
                continue
        except Changed:
            continue


def _signing_key(store: ObjectStore) -> bytes:
    """Return the store's signing key, made by whoever comes first."""
    fresh = json.dumps({"key": base64.b64encode(secrets.token_bytes(32)).decode()}).encode()
    try:
        store.put_new(places.SIGNING_KEY, fresh)
    except AlreadyExists:
        fresh = store.get(places.SIGNING_KEY).body
    return base64.b64decode(json.loads(fresh)["key"])


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
