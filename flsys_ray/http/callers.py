"""Who is calling, from the request's headers."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from flsys_ray.cloud.credentials import Device
from flsys_ray.cloud.service import Cloud
from flsys_ray.errors import Unauthenticated
from flsys_ray.wire.schemas import ASSIGNMENT_HEADER

_operator = HTTPBearer(scheme_name="operator key", auto_error=False)
_app = HTTPBearer(scheme_name="app key", auto_error=False)
_device = HTTPBearer(scheme_name="device token", auto_error=False)
Given = HTTPAuthorizationCredentials | None


async def get_cloud(request: Request) -> Cloud:
    """Return the cloud that this HTTP app stands in front of."""
    cloud: Cloud = request.app.state.cloud
    return cloud


TheCloud = Annotated[Cloud, Depends(get_cloud)]


def _operator_call(cloud: TheCloud, given: Annotated[Given, Depends(_operator)]) -> None:
    cloud.credentials.check_operator(_secret(given, "the operator's key"))


def _app_call(cloud: TheCloud, given: Annotated[Given, Depends(_app)]) -> str:
    return cloud.credentials.check_app(_secret(given, "an app key"))


def _enroller_call(cloud: TheCloud, given: Annotated[Given, Depends(_app)]) -> str:
    return cloud.credentials.check_enroller(_secret(given, "an app key or enrolment key"))


async def _device_call(cloud: TheCloud, given: Annotated[Given, Depends(_device)]) -> Device:
    return await cloud.credentials.device(_secret(given, "a device token"))


def _reader_call(cloud: TheCloud, given: Annotated[Given, Depends(_device)], _: Annotated[Given, Depends(_app)]) -> str:
    """Return the app that a device or an app key belongs to: both may read versions."""
    secret = _secret(given, "a device token or an app key")
    for check in _readers(cloud):
        try:
            return check(secret)
        except Unauthenticated:
            continue
    raise Unauthenticated("this call needs a device token or an app key")


def _readers(cloud: Cloud) -> tuple[Callable[[str], str], ...]:
    return (
        lambda secret: cloud.credentials.check_device(secret, cloud.clock()).app_id,
        cloud.credentials.check_app,
    )


def _secret(given: Given, what: str) -> str:
    if given is None:
        raise Unauthenticated(f"this call needs {what} in 'Authorization: Bearer'")
    return given.credentials


OperatorCall = Depends(_operator_call)
AppCall = Annotated[str, Depends(_app_call)]
EnrollerCall = Annotated[str, Depends(_enroller_call)]
DeviceCall = Annotated[Device, Depends(_device_call)]
ReaderCall = Annotated[str, Depends(_reader_call)]
AssignmentToken = Annotated[str, Header(alias=ASSIGNMENT_HEADER, description="the assignment's token")]
