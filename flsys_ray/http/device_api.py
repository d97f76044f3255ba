"""What phones call."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request, status
from fastapi.responses import Response

from flsys_ray.cloud import places
from flsys_ray.cloud.meter import DOWNLOAD_BYTES
from flsys_ray.cloud.service import Cloud
from flsys_ray.http.admission import take_in
from flsys_ray.http.callers import AssignmentToken, DeviceCall, EnrollerCall, ReaderCall, TheCloud
from flsys_ray.http.objects import FOR_EVER, REVALIDATE, Download, serve
from flsys_ray.wire.access import NonceReply
from flsys_ray.wire.schemas import (
    PROGRAM,
    SAFETENSORS,
    CheckInReply,
    CheckInRequest,
    EnrolReply,
    EnrolRequest,
    EvaluationReply,
    EvaluationRequest,
    GiveBackRequest,
    Name,
    Sha256,
    UpdateReply,
)

router = APIRouter(prefix="/v1", tags=["devices"])
AssignmentId = Annotated[str, Path(pattern=r"^[0-9]{8}-[0-9a-f]{20}(-t[1-9][0-9]{0,5}|-e)?$")]
Way = Literal["full", "half", "step"]
VersionNumber = Annotated[str, Path(pattern=r"^(latest|0|[1-9][0-9]{0,8})$")]


def _binary(media_type: str) -> dict[str, Any]:
    return {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}


def _file(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: _binary(media_type),
        206: {"description": "The range that was asked for", **_binary(media_type)},
        304: {"description": "The caller has it already (`If-None-Match`)"},
    }


async def _send(cloud: Cloud, request: Request, download: Download, labels: tuple[str, str]) -> Response:
    response = await asyncio.to_thread(serve, cloud.store, request, download)
    cloud.meter.record(DOWNLOAD_BYTES, len(response.body), *labels)
    if labels[1] in ("version", "full", "half", "step"):
        cloud.updates.sent.add(labels[0], len(response.body))
    return response


@router.post("/devices", status_code=status.HTTP_201_CREATED)
def enrol(cloud: TheCloud, app_id: EnrollerCall, body: EnrolRequest) -> EnrolReply:
    """Enrol an installed app as a device. Asking again gives the same device a fresh token.

    403: the device was revoked, or the app's devices attest and this one's evidence is not good.
    """
    return cloud.enrolment.enrol(app_id, body)


@router.post("/devices/nonce", status_code=status.HTTP_201_CREATED)
def make_nonce(cloud: TheCloud, app_id: EnrollerCall) -> NonceReply:
    """Get a nonce for the evidence that goes into an enrolment, where the app's phones attest."""
    return cloud.enrolment.nonce(app_id)


@router.post("/devices/token", status_code=status.HTTP_201_CREATED)
def renew_token(cloud: TheCloud, device: DeviceCall) -> EnrolReply:
    """Get another token for the present one, before it expires. 403: the device was revoked."""
    return cloud.enrolment.renew(device)


@router.post("/checkins")
async def check_in(cloud: TheCloud, device: DeviceCall, request: Request, body: CheckInRequest) -> CheckInReply:
    """Say what the device could do now; get work, and the time to come back."""
    with request.app.state.admission.check_in():
        return await cloud.check_in(device, body)


@router.get("/models/{model}/program/{sha256}", response_class=Response, responses=_file(PROGRAM))
async def get_program(cloud: TheCloud, app_id: ReaderCall, request: Request, model: Name, sha256: Sha256) -> Response:
    """Download a device program. It never changes; `Range` resumes."""
    found = cloud.find(app_id, model)
    download = Download(places.program(found, sha256), sha256, PROGRAM, FOR_EVER, {})
    return await _send(cloud, request, download, (found, "program"))


@router.get("/models/{model}/versions/{number}", response_class=Response, responses=_file(SAFETENSORS))
async def get_version(
    cloud: TheCloud, app_id: ReaderCall, request: Request, model: Name, number: VersionNumber
) -> Response:
    """Download a version's parameters: by number it never changes; `latest` is the one that serves. `Range` resumes."""
    info = await cloud.version(app_id, model, None if number == "latest" else int(number))
    found = cloud.find(app_id, model)
    headers = {"Flsys-Version": str(info.version), "Flsys-Program": info.program_sha256}
    digest = info.weights_sha256
    cache = REVALIDATE if number == "latest" else FOR_EVER
    download = Download(places.weights(found, digest), digest, SAFETENSORS, cache, headers)
    return await _send(cloud, request, download, (found, "version"))


@router.get("/models/{model}/public/{way}/{sha256}", response_class=Response, responses=_file(SAFETENSORS))
async def get_public_form(
    cloud: TheCloud, app_id: ReaderCall, request: Request, model: Name, way: Way, sha256: Sha256
) -> Response:
    """Download what an assignment has in place of its version: in full, in half precision, or a step. Immutable."""
    found = cloud.find(app_id, model)
    download = Download(places.public(found, way, sha256), sha256, SAFETENSORS, FOR_EVER, {})
    return await _send(cloud, request, download, (found, way))


@router.get("/models/{model}/control/{sha256}", response_class=Response, responses=_file(SAFETENSORS))
async def get_control(cloud: TheCloud, app_id: ReaderCall, request: Request, model: Name, sha256: Sha256) -> Response:
    """Download the control that an assignment names: one float32 tensor `control`. Immutable; `Range` resumes."""
    found = cloud.find(app_id, model)
    download = Download(places.control(found, sha256), sha256, SAFETENSORS, FOR_EVER, {})
    return await _send(cloud, request, download, (found, "control"))


@router.get("/models/{model}/augmentation/{sha256}", response_class=Response, responses=_file(SAFETENSORS))
async def get_shared_set(
    cloud: TheCloud, app_id: ReaderCall, request: Request, model: Name, sha256: Sha256
) -> Response:
    """Download the shared set that an assignment names: tensors `x` and `y`. Immutable; `Range` resumes."""
    found = cloud.find(app_id, model)
    download = Download(places.shared(found, sha256), sha256, SAFETENSORS, FOR_EVER, {})
    return await _send(cloud, request, download, (found, "augmentation"))


@router.put(
    "/assignments/{assignment_id}/update", openapi_extra={"requestBody": {"required": True, **_binary(SAFETENSORS)}}
)
async def put_update(
    cloud: TheCloud, device: DeviceCall, request: Request, assignment_id: AssignmentId, token: AssignmentToken = ""
) -> UpdateReply:
    """Upload the update of an assignment: one float32 tensor `delta`, metadata `num_examples` and `loss`.

    If the assignment has a `control`, the file has a second float32 tensor of that name, and otherwise none.
    200 says that it is durable and counted. It may be repeated at any time and counts once. 410: the round is over.
    429: the app uploads too much; nothing was read, and the update is welcome after `Retry-After`.
    """
    ticket = cloud.credentials.check_assignment(token, device, assignment_id)
    return await take_in(cloud, request.app.state.admission, request, (device, ticket))


@router.delete("/assignments/{assignment_id}", status_code=status.HTTP_204_NO_CONTENT)
async def give_back(
    cloud: TheCloud,
    device: DeviceCall,
    assignment_id: AssignmentId,
    body: GiveBackRequest | None = None,
    token: AssignmentToken = "",
) -> None:
    """Give an assignment back, so that another device can have it."""
    ticket = cloud.credentials.check_assignment(token, device, assignment_id)
    await cloud.give_back(ticket)


@router.put("/assignments/{assignment_id}/evaluation")
async def put_evaluation(
    cloud: TheCloud,
    device: DeviceCall,
    assignment_id: AssignmentId,
    body: EvaluationRequest,
    token: AssignmentToken = "",
) -> EvaluationReply:
    """Say how the assignment's base version does on the device's held-out examples, before its update is uploaded."""
    ticket = cloud.credentials.check_assignment(token, device, assignment_id)
    return await cloud.evaluate(ticket, body)
