"""What goes wrong between us and S3, sorted by what it means. Loads botocore.

Refused      the condition of the request did not hold (412), or there is no such object (404)
Passing      try again; `in_doubt`: the request may have had its effect all the same
otherwise    `StoreUnavailable` at once: no second try mends a bucket that is not there, or credentials
"""

from typing import Any

from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from flsys_ray.errors import FlsysError, StoreFull, StoreUnavailable
from flsys_ray.storage.s3_place import S3Place

OPERATOR_S = 60.0
"""When to ask again about what an operator has to mend."""

BOTO_ERRORS = (boto.ClientError, boto.BotoCoreError, ResponseParserError)
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"}
_NO_CREDENTIALS = (
    boto.NoCredentialsError,
    boto.PartialCredentialsError,
    boto.CredentialRetrievalError,
    boto.TokenRetrievalError,
    boto.NoAuthTokenError,
    boto.ProfileNotFound,
    boto.SSOError,
    boto.LoginError,
)
_PASSING = (
    boto.ConnectionError,
    boto.HTTPClientError,
    boto.ResponseStreamingError,
    boto.IncompleteReadError,
    boto.ChecksumError,
    boto.FlexibleChecksumError,
    ResponseParserError,
)
_PASSING_CODES = {
    "RequestTimeout",
    "SlowDown",
    "InternalError",
    "BadDigest",
    "IncompleteBody",
    "XAmzContentChecksumMismatch",
}


class Refused(Exception):
    """The request had no effect, and its caller knows why. `status` is 404, 412 or 416; `code` is S3's word."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(status, code)
        self.status = status
        self.code = code


class Passing(Exception):
    """It may go better next time. `in_doubt`: nobody knows whether the request was carried out."""

    def __init__(self, reason: str, *, in_doubt: bool) -> None:
        super().__init__(reason, in_doubt)
        self.reason = reason
        self.in_doubt = in_doubt


def sort_out(error: Exception, place: S3Place) -> Exception:
    """Return what an exception of boto3 means."""
    if isinstance(error, boto.ClientError):
        return _answer(error, place)
    if isinstance(error, _NO_CREDENTIALS):
        return _operator(place, "no usable AWS credentials: see the AWS configuration or environment")
    if isinstance(error, _PASSING):
        return Passing(type(error).__name__, in_doubt=True)
    return _operator(place, type(error).__name__)


def _answer(error: Any, place: S3Place) -> Exception:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code == "NoSuchBucket":
        return _operator(place, f"there is no bucket {place.bucket!r}")
    if code in _EXPIRED:
        return _operator(place, "the AWS credentials have expired")
    if status in (404, 412, 416):
        return Refused(status, code)
    if status == 409:  # ConditionalRequestConflict, OperationAborted: another write was under way
        return Passing(f"{_word(code)} (409)", in_doubt=False)
    if status == 507:
        return StoreFull(f"store {place.name}: no space left", OPERATOR_S)
    if status == 429 or status >= 500 or code in _PASSING_CODES:
        return Passing(f"{code or 'error'} ({status})", in_doubt=True)
    if status in (401, 403):
        return _operator(place, f"access denied ({_word(code)}): see its policy and the AWS credentials")
    if status in (301, 307, 400) and code in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "301",
        "IllegalLocationConstraintException",
    ):
        return _operator(place, "the bucket is in another region: give region=")
    return _operator(place, f"refused with {status} {_word(code)}")


def _operator(place: S3Place, what: str) -> FlsysError:
    return StoreUnavailable(f"store {place.name}: {what}", OPERATOR_S)


def _word(code: str) -> str:
    return code if code.isalnum() and len(code) < 60 else "error"
