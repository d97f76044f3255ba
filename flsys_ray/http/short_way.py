"""The two calls that phones make all the time, answered without the framework: check-ins and uploads.

FastAPI resolves dependencies, validates and serialises anew for each request: about as much time as the whole rest of a
check-in. What is here does the same for a request that is in order. Any other - a header that is missing, twice, or not
as usual, a body that does not validate - is handed on to FastAPI with what was read of it, so that refusals are worded
in one place. Both ways end in the same use cases and the same problem documents.

When a replica is full it says so here, before it looks at anything but the kind of call and the length of its body: who
calls, and what, is not known then. A refusal has to cost little, or refusing would be all that is done.
"""

import re
from collections.abc import Awaitable

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flsys_ray.cloud.service import Cloud
from flsys_ray.errors import FlsysError, TryLater
from flsys_ray.http import problems
from flsys_ray.http.admission import Admission, take_in
from flsys_ray.http.limits import JSON_BYTES, length_of, read_body
from flsys_ray.wire.schemas import ASSIGNMENT_HEADER, CheckInRequest

CHECK_INS = "/v1/checkins"
UPDATE = re.compile(r"/v1/assignments/([0-9]{8}-[0-9a-f]{20}(?:-t[1-9][0-9]{0,5}|-e)?)/update")
_CHECK_IN_BEGINS, _UPDATE_BEGINS = b"POST " + CHECK_INS.encode() + b" ", re.compile(f"PUT {UPDATE.pattern} ".encode())
_BEARER = "Bearer "
_AUTHORIZATION, _ASSIGNMENT = b"authorization", ASSIGNMENT_HEADER.lower().encode()
_TYPE, _LENGTH = b"content-type", b"content-length"


class ShortWay:
    """ASGI: answers check-ins and uploads; `app` answers everything else."""

    def __init__(self, cloud: Cloud, admission: Admission, app: ASGIApp) -> None:
        self._cloud = cloud
        self._admission = admission
        self._app = app

    def takes(self, scope: Scope) -> bool:
        """Return whether a request is one of the two calls."""
        if scope["type"] != "http":
            return False
        if scope["method"] == "POST":
            return bool(scope["path"] == CHECK_INS)
        return scope["method"] == "PUT" and UPDATE.fullmatch(scope["path"]) is not None

    @property
    def strained(self) -> bool:
        """Whether some of what it takes would be refused now."""
        return self._admission.strained

    def turned_away(self, begin: bytes) -> bytes | None:
        """Return the answer to a request that begins so if it would be refused for what is in hand, None if not."""
        try:
            if begin.startswith(_CHECK_IN_BEGINS):
                self._admission.check_room_for_check_in()
            elif _UPDATE_BEGINS.match(begin):
                self._admission.check_room(1)
        except TryLater as full:
            path = begin.split(b" ", 2)[1].decode("latin-1")
            return problems.refusal_bytes(path, full, self._cloud.meter)
        return None

    def is_late(self, lag_s: float) -> None:
        """Take note that the event loop is so late."""
        self._admission.is_late(lag_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request that it `takes`."""
        scope[problems.METER] = self._cloud.meter
        headers = _once(scope, (_AUTHORIZATION, _ASSIGNMENT, _TYPE, _LENGTH))
        try:
            self._check_room(scope["method"], headers)
        except TryLater as full:
            await problems.send_refusal(scope, send, full)
            return
        if headers is None or not headers[_AUTHORIZATION].startswith(_BEARER):
            await self._app(scope, receive, send)
        elif scope["method"] == "POST":
            await self._check_in(headers, scope, receive, send)
        else:
            await _answered(self._upload(headers, Request(scope, receive)), scope, receive, send)

    def _check_room(self, method: str, headers: dict[bytes, str] | None) -> None:
        if method == "POST":
            self._admission.check_room_for_check_in()
        elif headers is not None:
            self._admission.check_room(length_of(headers[_LENGTH]))

    async def _check_in(self, headers: dict[bytes, str], scope: Scope, receive: Receive, send: Send) -> None:
        if headers[_TYPE].partition(";")[0].strip().lower() != "application/json":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        body = b""
        try:
            body = await read_body(request, JSON_BYTES)
            asked = CheckInRequest.model_validate_json(body)
        except ValidationError:
            await self._app(scope, _again(body, receive), send)
            return
        except FlsysError as error:
            await (await problems.answer(request, error))(scope, receive, send)
            return

        async def answer() -> Response:
            with self._admission.check_in():
                device = await self._cloud.credentials.device(headers[_AUTHORIZATION][len(_BEARER) :])
                return _json(await self._cloud.check_in(device, asked))

        await _answered(answer(), scope, receive, send)

    async def _upload(self, headers: dict[bytes, str], request: Request) -> Response:
        cloud, found = self._cloud, UPDATE.fullmatch(request.scope["path"])
        assert found is not None
        with self._admission.arrival():
            device = await cloud.credentials.device(headers[_AUTHORIZATION][len(_BEARER) :])
        ticket = cloud.credentials.check_assignment(headers[_ASSIGNMENT], device, found[1])
        return _json(await take_in(cloud, self._admission, request, (device, ticket)))


async def _answered(answer: Awaitable[Response], scope: Scope, receive: Receive, send: Send) -> None:
    try:
        response = await answer
    except Exception as error:
        response = await problems.answer(Request(scope), error)
    await response(scope, receive, send)


def _json(reply: BaseModel) -> Response:
    return Response(reply.model_dump_json().encode(), media_type="application/json")


def _once(scope: Scope, names: tuple[bytes, ...]) -> dict[bytes, str] | None:
    """Return these headers' values, empty for one that is missing; None if one of them is there twice."""
    found = dict.fromkeys(names, "")
    for name, value in scope["headers"]:
        if name in found:
            if found[name]:
                return None
            found[name] = value.decode("latin-1")
    return found


def _again(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that begins with a body that has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return messages.pop() if messages else await receive()

    return replayed
