"""Who may call: what developers decide about their devices, and operators about keys."""

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Path, status

from flsys_ray.cloud.attestation.base import VERIFIERS, Attestation
from flsys_ray.http.callers import AppCall, OperatorCall, TheCloud
from flsys_ray.wire.access import (
    AppKeys,
    AttestationReply,
    DeviceId,
    KeyId,
    RevokeTokensReply,
    RevokeTokensRequest,
    RotateKeysRequest,
    SigningKeysReply,
)
from flsys_ray.wire.schemas import Message, Name

if TYPE_CHECKING:
    AnyAttestation = Attestation
else:
    AnyAttestation = VERIFIERS.union("none")

devices = APIRouter(prefix="/v1", tags=["developers"])
operators = APIRouter(prefix="/v1", tags=["operators"], dependencies=[OperatorCall])
Generation = Annotated[int, Path(ge=1, lt=10**9)]


class AttestationRequest(Message):
    """How an app's phones are to prove, when they enrol, that they are its own."""

    attestation: AnyAttestation


# Developers ------------------------------------------------------------------------------------------------------


@devices.post("/devices/revoke")
def revoke_tokens(cloud: TheCloud, app_id: AppCall, body: RevokeTokensRequest) -> RevokeTokensReply:
    """Refuse the tokens of all the app's devices that enrolled before an instant. They may enrol again."""
    return RevokeTokensReply(issued_before=cloud.enrolment.revoke_all(app_id, body.issued_before))


@devices.delete("/devices/{device_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke_device(cloud: TheCloud, app_id: AppCall, device_id: DeviceId) -> None:
    """Revoke a device: its tokens are refused within seconds, and so is its enrolment, until it is readmitted."""
    cloud.enrolment.revoke(app_id, device_id)


@devices.post("/devices/{device_id}/readmit", status_code=status.HTTP_204_NO_CONTENT)
def readmit_device(cloud: TheCloud, app_id: AppCall, device_id: DeviceId) -> None:
    """Let a revoked device enrol again."""
    cloud.enrolment.readmit(app_id, device_id)


@devices.get("/attestation")
def get_attestation(cloud: TheCloud, app_id: AppCall) -> AttestationReply:
    """Look at how the app's phones attest: the name, without its secrets."""
    return AttestationReply(attestation=cloud.access.attestation(app_id))


@devices.put("/attestation")
def put_attestation(cloud: TheCloud, app_id: AppCall, body: AttestationRequest) -> AttestationReply:
    """Have the app's phones attest from their next enrolment on."""
    cloud.access.set_attestation(app_id, body.attestation)
    return AttestationReply(attestation=body.attestation.name)


# Operators -------------------------------------------------------------------------------------------------------


@operators.put("/apps/{app}/keys/{generation}")
def put_app_key(cloud: TheCloud, app: Name, generation: Generation) -> AppKeys:
    """Make an app's next generation of keys. Those of before stay good until they are revoked."""
    return cloud.access.new_app_key(app, generation)


@operators.delete("/apps/{app}/keys/{generation}", status_code=status.HTTP_204_NO_CONTENT)
def delete_app_key(cloud: TheCloud, app: Name, generation: Generation) -> None:
    """Revoke an app's keys of a generation."""
    cloud.access.revoke_app_key(app, generation)


@operators.put("/apps/{app}/attestation")
def put_attestation_of(cloud: TheCloud, app: Name, body: AttestationRequest) -> AttestationReply:
    """Have an app's phones attest from their next enrolment on."""
    cloud.access.set_attestation(app, body.attestation)
    return AttestationReply(attestation=body.attestation.name)


@operators.post("/apps/{app}/devices/revoke")
def revoke_tokens_of(cloud: TheCloud, app: Name, body: RevokeTokensRequest) -> RevokeTokensReply:
    """Refuse the tokens of all devices of an app that enrolled before an instant. They may enrol again."""
    return RevokeTokensReply(issued_before=cloud.enrolment.revoke_all(app, body.issued_before))


@operators.delete("/apps/{app}/devices/{device_id}", status_code=status.HTTP_204_NO_CONTENT)
def revoke_device_of(cloud: TheCloud, app: Name, device_id: DeviceId) -> None:
    """Revoke a device of an app, as its developer can."""
    cloud.enrolment.revoke(app, device_id)


@operators.post("/apps/{app}/devices/{device_id}/readmit", status_code=status.HTTP_204_NO_CONTENT)
def readmit_device_of(cloud: TheCloud, app: Name, device_id: DeviceId) -> None:
    """Let a revoked device of an app enrol again."""
    cloud.enrolment.readmit(app, device_id)


@operators.get("/keys")
def get_keys(cloud: TheCloud) -> SigningKeysReply:
    """List the signing keys in use."""
    return cloud.access.signing_keys()


@operators.post("/keys", status_code=status.HTTP_201_CREATED)
def rotate_keys(cloud: TheCloud, body: RotateKeysRequest) -> SigningKeysReply:
    """Make a new signing key. The others verify until no token of theirs can be valid, or until they are retired."""
    return cloud.access.rotate(retire_old=body.retire_old)


@operators.delete("/keys/{kid}")
def retire_key(cloud: TheCloud, kid: KeyId) -> SigningKeysReply:
    """Retire a signing key at once: what it signed is refused, and its devices enrol again."""
    return cloud.access.retire(kid)
