"""Who is calling: four kinds of credentials, and tokens for assignments.

- The **operator key** is random. The store holds its hash; `flsys up` sets it.
- An **app key** is `flsys_app_{name}_{secret}`, the secret a MAC of the name under the store's root: nothing to keep,
  nothing to leak from the app records, and asking twice gives the same key. Later generations are
  `flsys_app_{name}_{generation}_{secret}`; the app's record says which are good.
- An **enrolment key** (`flsys_enrol_...`) comes with each app key and opens enrolment alone: the one for phones.
- A **device token** is a signed statement (JWT, HS256) that a device of an app enrolled, for 30 days. It is renewed
  with itself, and may be revoked.
- An **assignment token** is a signed statement of an assignment: the cloud keeps no list of them. It is used beside the
  device's own token, so that a stolen one is worth nothing.

All comparisons take constant time. No key or token is ever part of a URL or a message.
"""

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from flsys_ray.cloud import places, tokens
from flsys_ray.cloud.apps import AppRecords
from flsys_ray.cloud.devices import Revocations
from flsys_ray.cloud.keys import TOKEN_LIFE_S, SigningKeys
from flsys_ray.cloud.looks import Looks
from flsys_ray.core.types import Assignment
from flsys_ray.errors import AlreadyExists, Changed, Forbidden, InvalidInput, Missing, NotFound, Unauthenticated
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.schemas import EnrolReply

DEVICE_TOKEN_LIFE_S = TOKEN_LIFE_S
NONCE_LIFE_S = 300.0
_OPERATOR_PREFIX = "flsys_operator_"
_APP_KEY = re.compile(r"flsys_(app|enrol)_([a-z0-9][a-z0-9-]{0,62})_(?:([1-9][0-9]{0,8})_)?([0-9a-f]{48})")
_NEEDS_DEVICE = "this call needs a device token"
AppKeyKind = Literal["app", "enrol"]


@dataclass(frozen=True, slots=True)
class Device:
    """An enrolled device, as its token says: `born` is when it enrolled, `generation` how often it was revoked."""

    device_id: str
    app_id: str
    generation: int = field(default=0, compare=False)
    born: float = field(default=0.0, compare=False)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What an assignment token says: the assignment, and the program and plan that its update is checked against."""

    assignment: Assignment
    program_sha256: str
    plan_sha256: str


class Credentials:
    """Makes and checks them. All replicas on one store share its keys; `clock` gives UTC seconds."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._apps = AppRecords(store)
        self.keys = SigningKeys(store)
        self.revocations = Revocations(store)
        self._looks: Looks[None] = Looks()

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

    def app_key(self, app_id: str, generation: int = 1, *, kind: AppKeyKind = "app") -> str:
        """Return a key of an app: of its developer, or (`enrol`) of its phones."""
        return f"flsys_{kind}_{app_id}_{self._app_secret(kind, app_id, generation)}"

    def check_app(self, key: str) -> str:
        """Return the app whose developer's key this is. Raises `Unauthenticated`."""
        return self._check_app(key, ("app",), "this call needs an app key")

    def check_enroller(self, key: str) -> str:
        """Return the app that this key may enrol devices of. Raises `Unauthenticated`."""
        return self._check_app(key, ("app", "enrol"), "this call needs an app key or enrolment key")

    def _check_app(self, key: str, kinds: tuple[AppKeyKind, ...], refusal: str) -> str:
        match = _APP_KEY.fullmatch(key)
        if match is None or match[1] not in kinds:
            raise Unauthenticated(refusal)
        kind: AppKeyKind = "app" if match[1] == "app" else "enrol"
        app_id, generation = match[2], int(match[3] or 1)
        expected, given = self._app_secret(kind, app_id, generation), key[match.end(2) + 1 :]
        if not hmac.compare_digest(given.encode(), expected.encode()):
            raise Unauthenticated(refusal)
        try:
            good = generation in self._apps.read(app_id).keys
        except (NotFound, InvalidInput):
            good = False
        if not good:
            raise Unauthenticated(refusal)
        return app_id

    def _app_secret(self, kind: AppKeyKind, app_id: str, generation: int) -> str:
        if generation == 1:
            return self._mac(kind, app_id)
        return f"{generation}_{self._mac(kind, app_id, str(generation))}"

    # Devices -----------------------------------------------------------------------------------------------------

    def device_id(self, app_id: str, installation_id: str) -> str:
        """Return the id of an installed app. The same installation is the same device."""
        return f"d-{self._mac('device', app_id, installation_id)[:24]}"

    def device_token(self, device: Device, now: float) -> EnrolReply:
        """Return a fresh token of a device. Looks at the store as `check_device` does: no retired key may sign."""
        self.keys.look(now)
        expires_at = int(now + DEVICE_TOKEN_LIFE_S)
        claims = {
            "kind": "device",
            "sub": device.device_id,
            "app": device.app_id,
            "gen": device.generation,
            "born": device.born,
            "exp": expires_at,
        }
        return EnrolReply(device_id=device.device_id, token=self._signed(claims, now), expires_at=float(expires_at))

    def check_device(self, token: str, now: float) -> Device:
        """Return the device whose token this is. Looks at the store where what is known is older than `FRESH_S`.

        Raises `Unauthenticated` if it is not genuine, has expired, or is revoked.
        """
        self.keys.look(now)
        if not self.keys.knows(token, now):
            self.keys.look_again(now)
        device = self._device(token, now)
        if self.revocations.refuses(device.app_id, device.device_id, device.generation, device.born, now):
            raise _revoked()
        return device

    async def device(self, token: str) -> Device:
        """Return what `check_device` does. A look at the store is made in a thread, one for all calls that wait for it.

        What that look says is used though it took longer than `FRESH_S`: looking again would take as long.
        """
        if not self._knows_keys(token, self._clock()):
            await self._looks.share("keys", lambda: self.keys.look_again(self._clock()))
        device = self._device(token, self._clock())
        app_id, generation = device.app_id, device.generation
        if not self.revocations.is_fresh(app_id, self._clock()):
            await self._looks.share(("revoked", app_id), lambda: self.revocations.look(app_id, self._clock()))
        if self.revocations.refuses_as_known(app_id, device.device_id, generation, device.born):
            raise _revoked()
        return device

    def _knows_keys(self, token: str, now: float) -> bool:
        return self.keys.is_fresh(now) and self.keys.knows(token, now)

    def _device(self, token: str, now: float) -> Device:
        claims = self._claims(token, "device", _NEEDS_DEVICE, now)
        expires_at = float(claims["exp"])
        if now >= expires_at:
            raise Unauthenticated("the device token has expired: enrol again")
        born = float(claims.get("born", expires_at - DEVICE_TOKEN_LIFE_S))  # tokens of before do not say it
        return Device(str(claims["sub"]), str(claims["app"]), int(claims.get("gen", 0)), born)

    # Nonces ------------------------------------------------------------------------------------------------------

    def nonce(self, app_id: str, now: float) -> str:
        """Return a nonce for an enrolment of an app. Looks at the store as `check_device` does."""
        self.keys.look(now)
        return self._signed({"kind": "nonce", "app": app_id, "iat": now, "jti": secrets.token_hex(8)}, now)

    def check_nonce(self, nonce: str, app_id: str, now: float) -> float:
        """Return when a nonce was made. Raises `Forbidden` if it is none of ours for this app, or too old."""
        self.keys.look(now)
        try:
            claims = self._claims(nonce, "nonce", "", now)
        except Unauthenticated:
            claims = {}
        if claims.get("app") != app_id:
            raise Forbidden("the nonce is not one of `POST /v1/devices/nonce` for this app")
        made_at = float(claims["iat"])
        if now >= made_at + NONCE_LIFE_S:
            raise Forbidden(f"the nonce is older than {NONCE_LIFE_S:g} s: ask for another one")
        return made_at

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
            },
            self._clock(),
        )

    def check_assignment(self, token: str, device: Device, assignment_id: str) -> Ticket:
        """Return the ticket in an assignment token.

        Raises:
            Unauthenticated: the token is missing or not genuine.
            Forbidden: it is another device's, or of another assignment than the call's.
        """
        claims = self._claims(
            token, "assignment", "this call needs the assignment's token in Flsys-Assignment", self._clock()
        )
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
        return hmac.new(self.keys.root, message, hashlib.sha256).hexdigest()[:48]

    def _signed(self, claims: Mapping[str, Any], now: float) -> str:
        kid, key = self.keys.signer(now)
        return tokens.signed(claims, kid, key)

    def _claims(
        self, token: str, kind: Literal["device", "assignment", "nonce"], refusal: str, now: float
    ) -> dict[str, Any]:
        claims = tokens.claims(token, self.keys.by_header(now))
        if claims is None or claims.get("kind") != kind:
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


def _revoked() -> Unauthenticated:
    return Unauthenticated("this device token was revoked: enrol again")


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
