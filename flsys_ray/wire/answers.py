"""The cloud's refusals, read: from `application/problem+json` back to the error that it was made of."""

import email.utils
import json
import time

import httpx2

from flsys_ray.errors import (
    FlsysError,
    Forbidden,
    InvalidInput,
    Late,
    NotFound,
    QuotaExceeded,
    TooLarge,
    TryLater,
    Unauthenticated,
    all_errors,
)
from flsys_ray.wire.schemas import PROBLEM

MAX_PROBLEM_BYTES = 64 * 1024


def error_of(response: httpx2.Response) -> FlsysError:
    """Return the error that an answer stands for; its body must have been read.

    A refusal that is not `application/problem+json` was not made by the cloud but by something in between: it passes.
    """
    status = response.status_code
    retry_after_s = _retry_after_s(response.headers)
    detail, code = _problem(response)
    if status == QuotaExceeded.status and code == QuotaExceeded.code:
        return QuotaExceeded(detail, retry_after_s)
    if status >= 500 or status == 429 or status < 400:
        return TryLater(f"the cloud answered {status}: {detail}", retry_after_s)
    if status == TooLarge.status:
        return TooLarge(f"the cloud answered {status}: {detail}")
    if not code:
        return TryLater(f"something between phone and cloud answered {status}: {detail}", retry_after_s)
    kinds = {kind.code: kind for kind in all_errors()}
    by_status = {kind.status: kind for kind in (Unauthenticated, Forbidden, NotFound, Late, InvalidInput)}
    kind = kinds.get(code)
    if kind is None or kind.status != status:
        kind = by_status.get(status, InvalidInput)
    return kind(detail)


def _problem(response: httpx2.Response) -> tuple[str, str]:
    """Return what an answer says and its stable code; no code if it is not a problem document."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if kind != PROBLEM or len(response.content) > MAX_PROBLEM_BYTES:
        return response.reason_phrase or "no reason given", ""
    try:
        found = json.loads(response.content)
        return str(found.get("detail") or found.get("title") or "")[:500], str(found["type"]).rsplit("/", 1)[-1]
    except (ValueError, KeyError, AttributeError, TypeError):
        return response.reason_phrase or "no reason given", ""


def _retry_after_s(headers: httpx2.Headers) -> float:
    """Return the seconds that `Retry-After` asks for (RFC 9110 section 10.2.3: seconds or a date), 0 without it."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(min(int(text), 86_400))
    try:
        return min(max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()), 86_400.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
