"""What a phone calls that puts its update into the store by itself: before, and afterwards."""

from fastapi import APIRouter, BackgroundTasks, Request, status

from flsys_ray.cloud.credentials import Device
from flsys_ray.cloud.service import Cloud
from flsys_ray.http.callers import AssignmentToken, DeviceCall, TheCloud
from flsys_ray.http.device_api import AssignmentId
from flsys_ray.wire.schemas import UpdateReply
from flsys_ray.wire.staged_schemas import StagedUpdate, UploadAddress

router = APIRouter(prefix="/v1", tags=["devices"])


@router.post("/assignments/{assignment_id}/staged", status_code=status.HTTP_201_CREATED)
async def make_address(
    cloud: TheCloud,
    device: DeviceCall,
    afterwards: BackgroundTasks,
    assignment_id: AssignmentId,
    body: StagedUpdate,
    token: AssignmentToken = "",
) -> UploadAddress:
    """Get an address at which to put the assignment's update: of just this size and hash, once.

    It counts when it is announced. 404: this cloud's store takes no updates from phones.
    """
    ticket = cloud.credentials.check_assignment(token, device, assignment_id)
    cloud.staging.check(ticket, body)
    await _admit(cloud, device)
    address = cloud.staging.address(ticket, body)
    afterwards.add_task(cloud.staging.sweep_now_and_then)
    cloud.quotas.count_upload(device.app_id, body.size_bytes)
    return address


@router.put("/assignments/{assignment_id}/staged")
async def announce(
    cloud: TheCloud,
    device: DeviceCall,
    request: Request,
    assignment_id: AssignmentId,
    body: StagedUpdate,
    token: AssignmentToken = "",
) -> UpdateReply:
    """Say that the update was put there. The answers are those of an upload; 409: it is not there, upload it.

    200 says that it is durable under its final name and counted. It may be repeated at any time and counts once.
    """
    admission, size = request.app.state.admission, body.size_bytes
    ticket = cloud.credentials.check_assignment(token, device, assignment_id)
    cloud.staging.check(ticket, body)
    admission.check_room(size)
    await _admit(cloud, device)
    with admission.body() as came, admission.upload(size):
        came(size)
        reply = await cloud.staging.take_in(ticket, body)
    if reply.duplicate:  # its address was counted; that it is read again is not
        cloud.quotas.count_upload(device.app_id, size)
    return reply


async def _admit(cloud: Cloud, device: Device) -> None:
    """Raises `QuotaExceeded` if the device's app uploads too much."""
    await cloud.quotas.ready(device.app_id)
    cloud.quotas.admit_upload(device.app_id)
