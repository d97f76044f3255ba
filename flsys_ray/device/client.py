"""The phone's HTTP client: the device API of DESIGN section 5, one method a call.

Every call may be repeated: connection errors, 5xx and 429 are tried again with full jitter (Brooker 2015, "Exponential
Backoff And Jitter") or after the time that `Retry-After` asks for. A wait longer than `patience_s` is not sat out here:
it is raised as `TryLater`, for the phone to come back. An answer that is not of this protocol (a captive portal's
page, say) counts as no answer. Tokens appear in request headers only, never in a message or a log.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import httpx2
import tenacity
from pydantic import ValidationError

from flsys_ray.core.rng import unit
from flsys_ray.device.attestation import Attest
from flsys_ray.errors import (
    InvalidInput,
    TryLater,
)
from flsys_ray.wire.access import NonceReply
from flsys_ray.wire.answers import error_of
from flsys_ray.wire.schemas import (
    ASSIGNMENT_HEADER,
    SAFETENSORS,
    AssignmentMessage,
    CheckInReply,
    CheckInRequest,
    EnrolReply,
    EnrolRequest,
    EvaluationReply,
    EvaluationRequest,
    GiveBackRequest,
    Message,
    UpdateReply,
)
from flsys_ray.wire.staged_schemas import StagedUpdate, UploadAddress

ATTEST_RETRY_S = 60.0
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
ALREADY_THERE = 412  # If-None-Match: an earlier attempt did it, whose answer was lost
_TIMEOUTS = {"timeout": TIMEOUT.as_dict()}

T = TypeVar("T")
M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a call is tried. Waits are drawn from [0, min(cap_s, base_s * 2^n)]."""

    attempts: int = 4
    base_s: float = 0.5
    cap_s: float = 8.0
    patience_s: float = 10.0


@dataclass(slots=True)
class Jitter:
    """Numbers in [0, 1): the n-th is a function of the seed and n."""

    seed: int
    drawn: int = 0

    def __call__(self) -> float:
        """Return the next number."""
        self.drawn += 1
        return unit(self.seed, "device-jitter", self.drawn)


@dataclass(slots=True)
class Traffic:
    """Bytes of bodies that this client sent and received."""

    up_bytes: int = 0
    down_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LatestVersion:
    """What the cloud says of a model's newest version, without its parameters."""

    version: int
    weights_sha256: str
    program_sha256: str


@dataclass(frozen=True)
class CloudClient:
    """Calls of one phone. The HTTP connection pool may be shared between phones.

    Attributes:
        http: has the cloud's address as its `base_url`, and any transport.
        wait: lets seconds pass between two attempts.
        jitter: gives numbers in [0, 1).
    """

    http: httpx2.Client
    wait: Callable[[float], None]
    jitter: Callable[[], float]
    retry: RetryPolicy = RetryPolicy()
    traffic: Traffic = field(default_factory=Traffic)

    def enrol(self, app_key: str, installation_id: str, attest: Attest | None = None) -> EnrolReply:
        """Take part as a device; with `attest`, prove what it is.

        Raises `Unauthenticated` for a wrong key, `Forbidden` if the device is revoked or its evidence is not good.
        """
        return self._attempts(lambda: self._enrol(app_key, installation_id, attest))

    def renew(self, token: str) -> EnrolReply:
        """Get another token for the present one. Raises `Unauthenticated`, `Forbidden` if the device is revoked."""
        return self._attempts(lambda: _parse(EnrolReply, self.send("POST", "/v1/devices/token", token, {})))

    def check_in(self, token: str, request: CheckInRequest) -> CheckInReply:
        """Say what the device could do now."""
        return self._message("POST /v1/checkins", token, CheckInReply, request)

    def upload(self, token: str, assignment: AssignmentMessage, body: bytes) -> UpdateReply:
        """Upload the bytes of an update. Raises `Late`, `TooLarge`, `UpdateUnusable`, `Forbidden`, `NotFound`."""
        headers = {**_about(assignment), "Content-Type": SAFETENSORS}
        return self._attempts(lambda: self._put_update(token, assignment.upload.url, headers, body))

    def address(self, token: str, assignment: AssignmentMessage, update: StagedUpdate) -> UploadAddress:
        """Ask where an update may be put, if the assignment offers it. Raises `Late`, `TooLarge`, `NotFound` ..."""
        return self._message(f"POST {assignment.upload.staged}", token, UploadAddress, update, _about(assignment))

    def put_at(self, address: UploadAddress, body: bytes) -> None:
        """Put an update at an address of the cloud's store. No token goes there. Raises `InvalidInput`, `TryLater`."""
        self._attempts(lambda: self._put_at(address, body))

    def announce(self, token: str, assignment: AssignmentMessage, update: StagedUpdate) -> UpdateReply:
        """Say that an update was put at its address. Raises what `upload` does, and `Conflict` if it is not there."""
        return self._message(f"PUT {assignment.upload.staged}", token, UpdateReply, update, _about(assignment))

    def give_back(self, token: str, assignment: AssignmentMessage, request: GiveBackRequest) -> None:
        """Give an assignment back."""
        path = f"/v1/assignments/{assignment.assignment_id}"
        headers, body = _about(assignment), _json(request)
        self._attempts(lambda: self.send("DELETE", path, token, headers, body))

    def evaluation(self, token: str, assignment: AssignmentMessage, request: EvaluationRequest) -> EvaluationReply:
        """Report how the base version does on the held-out examples."""
        route = f"PUT /v1/assignments/{assignment.assignment_id}/evaluation"
        return self._message(route, token, EvaluationReply, request, _about(assignment))

    def latest(self, token: str, model: str) -> LatestVersion:
        """Return the newest version's number and hashes. One byte of it is asked for, no more."""
        return self._attempts(lambda: self._latest(token, f"/v1/models/{model}/versions/latest"))

    def with_retries(self, call: Callable[[], T]) -> T:
        """Run a call of `stream` or `send` with this client's retries."""
        return self._attempts(call)

    def send(self, method: str, path: str, token: str, headers: Mapping[str, str], body: bytes = b"") -> bytes:
        """Make one attempt at one request; return the body of its 2xx answer, raise the error of any other."""
        request = self._request(method, path, token, headers, body)
        try:
            response = self.http.send(request)
        except httpx2.RequestError as error:
            raise _unreachable(error) from error
        self.traffic.up_bytes += len(body)
        self.traffic.down_bytes += len(response.content)
        if not response.is_success:
            raise error_of(response)
        return response.content

    def stream(self, path: str, token: str, headers: Mapping[str, str]) -> httpx2.Response:
        """Make one attempt at a GET; return the open answer, whatever its status. The caller closes it."""
        request = self._request("GET", path, token, {"Accept-Encoding": "identity", **headers})
        try:
            return self.http.send(request, stream=True)
        except httpx2.RequestError as error:
            raise _unreachable(error) from error

    def _request(
        self, method: str, path: str, token: str, headers: Mapping[str, str], body: bytes = b""
    ) -> httpx2.Request:
        # A token must not follow an address to another host.
        if not path.startswith("/") or path.startswith("//"):
            raise InvalidInput(f"the cloud sent the address {path[:80]!r}: expected one relative to the cloud, '/...'")
        full = {"Authorization": f"Bearer {token}", **headers}
        return self.http.build_request(method, path, headers=full, content=body or None, timeout=TIMEOUT)

    def _message(
        self,
        route: str,
        token: str,
        kind: type[M],
        request: Message,
        headers: Mapping[str, str] | None = None,
    ) -> M:
        method, path = route.split(" ", 1)
        full = {"Content-Type": "application/json", **(headers or {})}
        return self._attempts(lambda: _parse(kind, self.send(method, path, token, full, _json(request))))

    def _enrol(self, app_key: str, installation_id: str, attest: Attest | None) -> EnrolReply:
        # Evidence is good once: an attempt whose answer was lost is followed by one with another nonce.
        request = EnrolRequest(installation_id=installation_id)
        if attest is not None:
            found = _parse(NonceReply, self.send("POST", "/v1/devices/nonce", app_key, {}))
            try:
                evidence = attest(installation_id, found.nonce)
            except Exception as error:  # the app's own code, and a platform service that may be away
                raise TryLater(f"the app gave no evidence ({type(error).__name__})", ATTEST_RETRY_S) from error
            request = EnrolRequest(installation_id=installation_id, nonce=found.nonce, attestation=evidence)
        headers = {"Content-Type": "application/json"}
        return _parse(EnrolReply, self.send("POST", "/v1/devices", app_key, headers, _json(request)))

    def _put_update(self, token: str, url: str, headers: Mapping[str, str], body: bytes) -> UpdateReply:
        return _parse(UpdateReply, self.send("PUT", url, token, headers, body))

    def _put_at(self, address: UploadAddress, body: bytes) -> None:
        try:
            url = httpx2.URL(address.url)
        except httpx2.InvalidURL:
            raise InvalidInput("the cloud sent an address for an update that is none") from None
        if url.scheme not in ("https", self.http.base_url.scheme):  # not less safe than the way to the cloud
            raise InvalidInput(f"the cloud sent an address for an update that begins with {url.scheme[:10]!r}")
        request = httpx2.Request("PUT", url, headers=address.headers, content=body, extensions=_TIMEOUTS)
        try:
            response = self.http.send(request)
        except httpx2.RequestError as error:
            raise TryLater(f"the cloud's store cannot be reached ({type(error).__name__})", 0.0) from error
        self.traffic.up_bytes += len(body)
        self.traffic.down_bytes += len(response.content)
        status = response.status_code
        if status >= 500 or status == 429:
            raise TryLater(f"the cloud's store answered {status}", 0.0)
        if not response.is_success and status != ALREADY_THERE:
            raise InvalidInput(f"the cloud's store answered {status}")

    def _latest(self, token: str, path: str) -> LatestVersion:
        response = self.stream(path, token, {"Range": "bytes=0-0"})
        try:
            if response.status_code not in (200, 206):
                response.read()
                raise error_of(response)
            names = ("Flsys-Version", "Flsys-Sha256", "Flsys-Program")
            version, weights, program = (response.headers.get(name, "") for name in names)
            if not (version.isdigit() and len(weights) == 64 and len(program) == 64):
                raise TryLater("the answer about the newest version does not come from the cloud")
            return LatestVersion(int(version), weights, program)
        except httpx2.RequestError as error:
            raise _unreachable(error) from error
        finally:
            response.close()

    def _attempts(self, call: Callable[[], T]) -> T:
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.retry.attempts),
            wait=lambda state: self._pause_s(state),
            retry=tenacity.retry_if_exception(self._worth_repeating),
            sleep=self.wait,
            reraise=True,
        )
        return retrying(call)

    def _worth_repeating(self, error: BaseException) -> bool:
        return isinstance(error, TryLater) and error.retry_after_s <= self.retry.patience_s

    def _pause_s(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked_s = error.retry_after_s if isinstance(error, TryLater) else 0.0
        drawn_s = self.jitter() * min(self.retry.cap_s, self.retry.base_s * 2.0 ** (state.attempt_number - 1))
        return asked_s + drawn_s


def _parse(kind: type[M], body: bytes) -> M:
    # An older phone must understand a newer cloud: fields that it does not know are left out, not refused.
    try:
        return kind.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        raise TryLater(f"an answer that is no {kind.__name__} came from the cloud's address") from error


def _json(message: Message) -> bytes:
    return message.model_dump_json(exclude_none=True).encode()


def _about(assignment: AssignmentMessage) -> dict[str, str]:
    return {ASSIGNMENT_HEADER: assignment.token, "Content-Type": "application/json"}


def _unreachable(error: httpx2.RequestError) -> TryLater:
    return TryLater(f"the cloud cannot be reached ({type(error).__name__})", 0.0)
