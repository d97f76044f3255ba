"""Where a store on S3 is, and how patient it is: what `s3://bucket/prefix?option=value` says. Loads no boto3.

    endpoint_url       another service than AWS: https://ACCOUNT.r2.cloudflarestorage.com, http://minio:9000
    region             default: that of the AWS configuration
    path_style         true: the bucket is in the path, not in the host's name; default: where an endpoint is given
    connect_timeout_s  seconds until a connection stands
    read_timeout_s     seconds without a byte of an answer
    connections        connections that are kept open: threads that use the store at once
    tries              how often one request is sent at most
    total_s            seconds after which no further try begins
    presigned          true: phones may be sent to the bucket to put their updates there; default: false
    multipart_bytes    a larger object goes up in parts of this size; S3 allows no part but the last below 5 MiB

Credentials come from the usual AWS chain: environment, shared files, container or instance role. Never from here: a
store's URI stands in process lists and logs.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from flsys_ray.errors import InvalidInput
from flsys_ray.storage.base import check_key

MIN_PART_BYTES = 5 * 2**20
MAX_PREFIX_LENGTH = 256
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_REGION = re.compile(r"[a-z0-9-]{1,40}")
_SECRET = re.compile(r"key|secret|token|password|credential|profile|session", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class S3Place:
    """A bucket, a prefix in it (empty, or ending with `/`), and the options above."""

    bucket: str
    prefix: str = ""
    endpoint_url: str | None = None
    region: str | None = None
    path_style: bool = False
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 20.0
    connections: int = 50
    tries: int = 6
    total_s: float = 40.0
    multipart_bytes: int = 32 * 2**20
    presigned: bool = False

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"s3://{self.bucket}/{self.prefix}"


def parse_place(uri: str) -> S3Place:
    """Read a store's URI. Raises `InvalidInput`, which names what is wrong and never repeats a credential."""
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise InvalidInput("store: an s3: URI holds no credentials: put them into the AWS configuration or environment")
    if not _BUCKET.fullmatch(parts.netloc):
        raise InvalidInput(f"store: {parts.netloc[:80]!r} is not the name of a bucket: use s3://bucket/prefix")
    if parts.fragment:
        raise InvalidInput("store: an s3: URI has no part behind '#'")
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        options[name] = _option(name, value)
    options.setdefault("path_style", "endpoint_url" in options)
    return S3Place(parts.netloc, _prefix(parts.path), **options)


def _prefix(path: str) -> str:
    prefix = path.strip("/")
    if not prefix:
        return ""
    if len(prefix) > MAX_PREFIX_LENGTH:
        raise InvalidInput(f"store: a prefix has at most {MAX_PREFIX_LENGTH} characters")
    return check_key(prefix) + "/"


def _option(name: str, value: str) -> Any:
    if name not in _READERS:
        if _SECRET.search(name):
            raise InvalidInput(f"store: {name!r} in an s3: URI: credentials come from the AWS configuration only")
        raise InvalidInput(f"store: unknown option {name[:40]!r}: an s3: URI takes {', '.join(_READERS)}")
    try:
        return _READERS[name](value)
    except ValueError:
        raise InvalidInput(f"store: option {name!r} of an s3: URI has no such value") from None


def _endpoint(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise ValueError
    return value


def _region(value: str) -> str:
    if not _REGION.fullmatch(value):
        raise ValueError
    return value


def _truth(value: str) -> bool:
    return {"true": True, "false": False}[value] if value in ("true", "false") else _refuse()


def _seconds(value: str) -> float:
    return float(value) if 0 < float(value) <= 3600 else _refuse()


def _count(value: str) -> int:
    return int(value) if 1 <= int(value) <= 1000 else _refuse()


def _part(value: str) -> int:
    return int(value) if MIN_PART_BYTES <= int(value) <= 2**32 else _refuse()


def _refuse() -> Any:
    raise ValueError


_READERS: dict[str, Callable[[str], Any]] = {
    "endpoint_url": _endpoint,
    "region": _region,
    "path_style": _truth,
    "connect_timeout_s": _seconds,
    "read_timeout_s": _seconds,
    "connections": _count,
    "tries": _count,
    "total_s": _seconds,
    "multipart_bytes": _part,
    "presigned": _truth,
}
