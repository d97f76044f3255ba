"""Errors as `application/problem+json` (RFC 9457): one table, from the error tree to the answer."""

import json
import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope, Send

from flsys_ray.cloud.meter import NO_METER, REFUSALS, Meter
from flsys_ray.core.plan import parse_plan
from flsys_ray.errors import (
    FlsysError,
    InvalidInput,
    NotFound,
    PlanInvalid,
    RangeUnsatisfiable,
    StoreRefusal,
    TooLarge,
    TryLater,
    Unauthenticated,
)
from flsys_ray.wire.schemas import PROBLEM, Problem

METER = "flsys.meter"  # in a request's scope: where its refusal is counted
TYPE_BASE = "https://flsys-ray.dev/problems/"
_log = logging.getLogger("flsys_ray.http")
_PLAIN = {400: InvalidInput, 404: NotFound, 413: TooLarge, 416: RangeUnsatisfiable, 422: InvalidInput, 503: TryLater}
_MAX_DETAIL = 2000
_MAX_FIELDS = 20


def install(app: FastAPI) -> None:
    """Have every error of an app answered as a problem."""
    app.add_exception_handler(FlsysError, _flsys_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


async def answer(request: Request, error: Exception) -> Response:
    """Return the problem document of any error."""
    if isinstance(error, FlsysError):
        return await _flsys_error(request, error)
    return await (_http_error if isinstance(error, HTTPException) else _bug)(request, error)


async def send_refusal(scope: Scope, send: Send, error: TryLater) -> None:
    """Send the problem document of a refusal, as `answer` does, at a tenth of the time.

    A caller that waits for "100 Continue" may send its body all the same, or not: the connection ends.
    """
    headers, body = _refusal(scope["path"], error, scope.get(METER, NO_METER))
    if any(name == b"expect" for name, _ in scope["headers"]):
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def refusal_bytes(path: str, error: TryLater, meter: Meter) -> bytes:
    """Return the whole HTTP response of a refusal, after which the connection ends."""
    headers, body = _refusal(path, error, meter)
    lines = [b"HTTP/1.1 %d Refused" % error.status, b"connection: close"]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _refusal(path: str, error: TryLater, meter: Meter) -> tuple[list[tuple[bytes, bytes]], bytes]:
    meter.record(REFUSALS, 1, error.code)
    document = {
        "type": TYPE_BASE + error.code,
        "title": error.title,
        "status": error.status,
        "detail": error.message,
        "instance": path,
        "retry_after_s": error.retry_after_s,
    }
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    headers = [
        (b"retry-after", str(math.ceil(error.retry_after_s)).encode()),
        (b"content-length", str(len(body)).encode()),
        (b"content-type", PROBLEM.encode()),
    ]
    return headers, body


async def _flsys_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlsysError)
    if isinstance(error, StoreRefusal) or type(error) is FlsysError:
        return await _bug(request, error)
    headers, retry_after_s = {}, None
    if isinstance(error, TryLater):
        retry_after_s = error.retry_after_s
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    fields = list(error.fields) if isinstance(error, PlanInvalid) else None
    return _answer(request, type(error), error.message, fields=fields, retry_after_s=retry_after_s, headers=headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problems = error.errors()
    if problems and all(tuple(problem["loc"][:2]) == ("body", "plan") for problem in problems):
        try:
            parse_plan(error.body["plan"])  # says it in the words, and with the fields, of YAML and Python
        except PlanInvalid as invalid:
            return await _flsys_error(request, invalid)
    if problems and problems[0]["type"] == "json_invalid":
        return _answer(request, InvalidInput, f"the body is not JSON: {problems[0]['ctx']['error']}")
    if any(problem["loc"] == ("body",) for problem in problems) and not _says_json(request):
        return _answer(request, InvalidInput, "the body must be JSON, with 'Content-Type: application/json'")
    places = [".".join(str(part) for part in problem["loc"]).removeprefix("body.") for problem in problems]
    detail = "; ".join(f"{place}: {problem['msg']}" for place, problem in zip(places, problems, strict=True))
    return _answer(request, InvalidInput, detail, fields=places)


def _says_json(request: Request) -> bool:
    return "json" in request.headers.get("content-type", "")


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _PLAIN.get(error.status_code)
    if kind is not None:
        return _answer(request, kind, str(error.detail), headers=dict(error.headers or {}))
    _count(request, f"http-{error.status_code}")
    problem = Problem(type="about:blank", title=str(error.detail), status=error.status_code, detail=str(error.detail))
    return _problem(problem, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    return _answer(request, FlsysError, "The request could not be served. The operator's log says why.")


def _answer(
    request: Request,
    kind: type[FlsysError],
    detail: str,
    *,
    fields: list[str] | None = None,
    retry_after_s: float | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    _count(request, kind.code)
    problem = Problem(
        type=TYPE_BASE + kind.code,
        title=kind.title,
        status=kind.status,
        detail=detail if len(detail) <= _MAX_DETAIL else detail[:_MAX_DETAIL] + " ...",
        instance=request.url.path,
        fields=[field[:100] for field in fields[:_MAX_FIELDS]] if fields else None,
        retry_after_s=retry_after_s,
    )
    return _problem(problem, headers or {})


def _count(request: Request, reason: str) -> None:
    meter: Meter = request.scope.get(METER, NO_METER)
    meter.record(REFUSALS, 1, reason)


def _problem(problem: Problem, headers: dict[str, str]) -> Response:
    body = problem.model_dump(exclude_none=True)
    return JSONResponse(body, status_code=problem.status, media_type=PROBLEM, headers=headers)
