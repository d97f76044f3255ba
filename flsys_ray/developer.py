"""The developer's client: what a third-party developer calls, as Python.

cloud = DeveloperClient("http://127.0.0.1:8000", app_key)
cloud.put_model("steps", TrainingPlan())
cloud.put_program("steps", program.data)
cloud.act("steps", "start")
"""

from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import httpx2
from pydantic import BaseModel

from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.errors import TryLater
from flsys_ray.wire.access import AppKeys, AttestationReply, RevokeTokensReply, SigningKeysReply
from flsys_ray.wire.answers import error_of
from flsys_ray.wire.developer_schemas import (
    AppCreated,
    CreateApp,
    InferReply,
    ModelInfo,
    ModelsReply,
    OverviewReply,
    Quotas,
    RoundInfo,
    RoundsReply,
    VersionEvaluation,
    VersionInfo,
    VersionsReply,
)
from flsys_ray.wire.schemas import PROGRAM, SAFETENSORS
from flsys_ray.wire.tensors import decode_vector

M = TypeVar("M", bound=BaseModel)
Action = Literal["start", "pause", "resume", "stop", "archive"]


class DeveloperClient:
    """Calls with one key: an app's, or the operator's for `create_app`. Use it as a context manager, or `close` it.

    Every method raises the error of `flsys_ray.errors` that the cloud answered with, `TryLater` if it did not answer.
    """

    def __init__(self, url: str, key: str, *, transport: httpx2.BaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=url, headers=headers, timeout=60.0, transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create_app(self, name: str, quotas: Quotas | None = None) -> AppCreated:
        """Register an app (operator's key). Asking again gives the same app key; quotas replace those that it had."""
        return self._json(AppCreated, "POST", "/v1/apps", json=CreateApp(name=name, quotas=quotas).model_dump())

    def new_app_key(self, name: str, generation: int) -> AppKeys:
        """Make an app's next generation of keys (operator's key); those of before stay good until they are revoked."""
        return self._json(AppKeys, "PUT", f"/v1/apps/{name}/keys/{generation}")

    def revoke_app_key(self, name: str, generation: int) -> None:
        """Revoke an app's keys of a generation (operator's key)."""
        self._send("DELETE", f"/v1/apps/{name}/keys/{generation}")

    def signing_keys(self) -> SigningKeysReply:
        """List the keys that sign tokens (operator's key)."""
        return self._json(SigningKeysReply, "GET", "/v1/keys")

    def rotate_keys(self, *, retire_old: bool = False) -> SigningKeysReply:
        """Make a new signing key (operator's key)."""
        return self._json(SigningKeysReply, "POST", "/v1/keys", json={"retire_old": retire_old})

    def retire_key(self, kid: str) -> SigningKeysReply:
        """Retire a signing key at once (operator's key)."""
        return self._json(SigningKeysReply, "DELETE", f"/v1/keys/{kid}")

    def revoke_device(self, device_id: str) -> None:
        """Refuse a device's tokens, and its enrolment until it is readmitted."""
        self._send("DELETE", f"/v1/devices/{device_id}")

    def readmit_device(self, device_id: str) -> None:
        """Let a revoked device enrol again."""
        self._send("POST", f"/v1/devices/{device_id}/readmit")

    def revoke_tokens(self, issued_before: float | None = None) -> RevokeTokensReply:
        """Refuse the tokens of all the app's devices that enrolled before an instant, None: now."""
        return self._json(RevokeTokensReply, "POST", "/v1/devices/revoke", json={"issued_before": issued_before})

    def set_attestation(self, attestation: str | dict[str, Any]) -> AttestationReply:
        """Have the app's devices attest: a verifier's name, or a mapping with its name and fields."""
        return self._json(AttestationReply, "PUT", "/v1/attestation", json={"attestation": attestation})

    def put_model(self, model: str, plan: TrainingPlan) -> ModelInfo:
        """Create a model, or give it a new plan from the next round on."""
        return self._json(ModelInfo, "PUT", f"/v1/models/{model}", json={"plan": plan.model_dump(mode="json")})

    def put_program(self, model: str, program: bytes) -> ModelInfo:
        """Give a model its device program."""
        path = f"/v1/models/{model}/program"
        return self._json(ModelInfo, "PUT", path, content=program, headers={"Content-Type": PROGRAM})

    def put_shared(self, model: str, body: bytes) -> ModelInfo:
        """Give a model its shared set (`wire.shared_sets.encode_shared_set`): the plan says which share is mixed in."""
        path, headers = f"/v1/models/{model}/augmentation", {"Content-Type": SAFETENSORS}
        return self._json(ModelInfo, "PUT", path, content=body, headers=headers)

    def shared_set(self, model: str, sha256: str) -> bytes:
        """Download a shared set."""
        return self._send("GET", f"/v1/models/{model}/augmentation/{sha256}")

    def act(self, model: str, action: Action) -> ModelInfo:
        """Start, pause, resume, stop or archive a model."""
        return self._json(ModelInfo, "POST", f"/v1/models/{model}/{action}")

    def promote(self, model: str, version: int | None) -> ModelInfo:
        """Pin the version that inference uses, in the cloud and on phones; None: the newest again."""
        return self._json(ModelInfo, "POST", f"/v1/models/{model}/promote", json={"version": version})

    def rollback(self, model: str, version: int) -> ModelInfo:
        """Make the next version of an older one's parameters, and go on from there. The open round is given up."""
        return self._json(ModelInfo, "POST", f"/v1/models/{model}/rollback", json={"version": version})

    def models(self, *, archived: bool = False) -> list[ModelInfo]:
        """List the app's models; archived ones only if they are asked for."""
        return self._json(ModelsReply, "GET", "/v1/models", params={"archived": archived}).models

    def info(self, model: str) -> ModelInfo:
        """Look at a model."""
        return self._json(ModelInfo, "GET", f"/v1/models/{model}")

    def rounds(self, model: str, since: int = 0) -> list[RoundInfo]:
        """List the rounds that are over, from number `since` on."""
        return self._json(RoundsReply, "GET", f"/v1/models/{model}/rounds", params={"since": since}).rounds

    def evaluation(self, model: str, version: int | None = None) -> VersionEvaluation:
        """Look at what evaluation assignments found about a version; None: the one that serves."""
        number = "latest" if version is None else str(version)
        return self._json(VersionEvaluation, "GET", f"/v1/models/{model}/versions/{number}/evaluation")

    def overview(self) -> list[ModelInfo]:
        """List the models of all apps (operator's key)."""
        return self._json(OverviewReply, "GET", "/v1/overview").models

    def overview_rounds(self, app_id: str, model: str, since: int = 0) -> list[RoundInfo]:
        """List the rounds of any app's model that are over, from number `since` on (operator's key)."""
        return self._json(RoundsReply, "GET", f"/v1/overview/{app_id}/{model}/rounds", params={"since": since}).rounds

    def versions(self, model: str) -> list[int]:
        """List the versions."""
        return self._json(VersionsReply, "GET", f"/v1/models/{model}/versions").versions

    def manifest(self, model: str, version: int) -> VersionInfo:
        """Look at what made a version."""
        return self._json(VersionInfo, "GET", f"/v1/models/{model}/versions/{version}/manifest")

    def program(self, model: str, sha256: str) -> bytes:
        """Download a device program."""
        return self._send("GET", f"/v1/models/{model}/program/{sha256}")

    def parameters(self, model: str, version: int, size: int) -> Vector:
        """Download a version's parameters, float32 [size]."""
        return decode_vector(self._send("GET", f"/v1/models/{model}/versions/{version}"), "parameters", size)

    def infer(self, model: str, instances: list[Any], version: int | None = None) -> InferReply:
        """Run a version (None: the one that serves) on examples in the cloud."""
        body = {"instances": instances, "version": version}
        return self._json(InferReply, "POST", f"/v1/models/{model}/infer", json=body)

    def _json(self, kind: type[M], method: str, path: str, **request: Any) -> M:
        return kind.model_validate_json(self._send(method, path, **request))

    def _send(self, method: str, path: str, **request: Any) -> bytes:
        try:
            response = self._http.request(method, path, **request)
        except httpx2.RequestError as error:
            raise TryLater(f"{self._http.base_url}: no answer ({type(error).__name__}): is the cloud up?") from None
        if response.is_error:
            raise error_of(response)
        return response.content
