"""An object store on S3, or on what speaks its language (MinIO, R2): conditional writes are its only coordination.

*A call's own write.* A write that timed out, or that was answered with an error of the server, may have happened; the
repeat is then refused because of the first try. So every call writes an id of its own into the object's metadata, and
who is refused after a try in doubt looks whose object is there. If that cannot tell (another writer has replaced it
since), the answer is `StoreUnavailable`: it may have happened, or not. botocore would repeat requests by itself: that
is turned off.

*Etags.* S3's ETag is a hash of the content. If A became B and A again, who read the first A could replace the second.
So `swap` appends 16 random bytes to the body and says so in the metadata; `get` leaves them out. Objects that are never
swapped are stored as they are.
"""

import functools
import random
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import boto3
from botocore.config import Config

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing, StoreRefusal, StoreUnavailable
from flsys_ray.storage.base import ObjectStore, PresignedPut, StoredObject, check_key, check_prefix
from flsys_ray.storage.s3_faults import BOTO_ERRORS, Passing, Refused, sort_out
from flsys_ray.storage.s3_place import S3Place

_T = TypeVar("_T")
_WRITE = "flsys-write"
_REPLACED = "flsys-replaced"
_TAIL = "flsys-tail"
_TAIL_BYTES = 16
_CHECKSUMS = ("ChecksumCRC32", "ChecksumCRC32C", "ChecksumCRC64NVME", "ChecksumSHA1", "ChecksumSHA256")
_ETAG = re.compile(r"[A-Za-z0-9-]{1,100}")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
MAX_EXPIRY_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class _Write:
    """One call of `put_new` or `swap`, the same in all its tries. `refusal`: what it raises if its condition fails."""

    key: str
    body: bytes
    metadata: dict[str, str]
    condition: dict[str, str]
    refusal: StoreRefusal


def make_client(place: S3Place) -> Any:
    """Return a boto3 client that sends each request once and checks the checksums of what it reads."""
    in_path = place.path_style or "." in place.bucket  # no certificate is for a host's name with such a bucket
    config = Config(
        connect_timeout=place.connect_timeout_s,
        read_timeout=place.read_timeout_s,
        max_pool_connections=place.connections,
        retries={"mode": "standard", "total_max_attempts": 1},
        signature_version="s3v4",
        s3={"addressing_style": "path" if in_path else "virtual"},
    )
    try:
        session = boto3.session.Session()
        region = place.region or session.region_name or "us-east-1"
        return session.client("s3", endpoint_url=place.endpoint_url, region_name=region, config=config)
    except BOTO_ERRORS as error:
        raise sort_out(error, place) from error


class S3Store(ObjectStore):
    """Objects under a prefix of a bucket. `pause` waits between tries; `client` is one of `make_client`."""

    def __init__(self, place: S3Place, client: Any = None, pause: Callable[[float], None] = time.sleep) -> None:
        self.place = place
        self._client = client or make_client(place)
        self._pause = pause

    def put_new(self, key: str, body: bytes) -> str:
        """Create an object: one PUT, or an upload in parts. Keys that are folders of others pass: see `base`."""
        metadata = {_WRITE: uuid.uuid4().hex}
        refusal = AlreadyExists(f"store: {key} exists")
        return self._write(_Write(check_key(key), bytes(body), metadata, {"IfNoneMatch": "*"}, refusal))

    def swap(self, key: str, body: bytes, etag: str) -> str:
        """Replace an object: one PUT of the body and a tail that no other object has."""
        check_key(key)
        refusal = Changed(f"store: {key} is not the object that was read")
        if not _ETAG.fullmatch(etag):
            self._head(key)
            raise refusal
        write = uuid.uuid4()
        metadata = {_WRITE: write.hex, _REPLACED: etag, _TAIL: str(_TAIL_BYTES)}
        return self._write(_Write(key, bytes(body) + write.bytes, metadata, {"IfMatch": f'"{etag}"'}, refusal))

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        """Read an object or a range: one GET, or a HEAD for no bytes.

        S3's checksum is checked where it is of these bytes: on whole objects that went up in one piece.
        """
        check_key(key)
        try:
            if end is not None and end <= start:
                raise Refused(416, "InvalidRange")
            return self._repeat(lambda: self._read(key, start, end))
        except Refused as refused:
            if refused.status == 416:
                return self._nothing_of(key)
            raise Missing(f"store: {key} does not exist") from None

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """List a page of keys after the other. What is no key (a folder's mark that a console made) is left out."""
        root = self.place.prefix
        last = root + after if after else ""
        while True:
            page = self._page(root + check_prefix(prefix), last)
            for found in page.get("Contents", ()):
                last = found["Key"]
                key = last.removeprefix(root)
                if key > after and _is_key(key):
                    yield key
            if not page.get("IsTruncated"):
                return

    def remove(self, key: str) -> None:
        """Remove an object: one DELETE. In a versioned bucket its bytes stay, as a version that is not current."""
        check_key(key)
        try:
            self._repeat(lambda: self._call("delete_object", **self._at(key)))
        except Refused:
            return

    @property
    def presigns(self) -> bool:
        """Whether the store's URI says so: phones must reach the endpoint."""
        return self.place.presigned

    def presigned_put(self, key: str, size: int, expires_s: float, sha256: str | None = None) -> PresignedPut:
        """Return an address by which a phone creates an object of `size` bytes, once, within `expires_s` seconds.

        Signed are the length, `If-None-Match: *` and, if `sha256` (base64) is given, the content's checksum: S3 refuses
        what does not fit. It ends with the credentials that signed it, if they end earlier. Nothing is asked of S3.
        """
        if not 0 < expires_s <= MAX_EXPIRY_S or size < 0:
            raise InvalidInput(f"store: an upload has a size, and lasts {MAX_EXPIRY_S} s at most")
        bound = {"IfNoneMatch": "*", "ContentLength": size} | ({"ChecksumSHA256": sha256} if sha256 else {})
        try:
            url = self._client.generate_presigned_url(
                "put_object", Params=self._at(check_key(key)) | bound, ExpiresIn=int(expires_s)
            )
        except BOTO_ERRORS as error:
            raise sort_out(error, self.place) from error
        headers = {"If-None-Match": "*", "Content-Length": str(size)}
        return PresignedPut(url, headers | ({"x-amz-checksum-sha256": sha256} if sha256 else {}))

    # Writing -----------------------------------------------------------------------------------------------------

    def _write(self, write: _Write) -> str:
        """Write until it is known what became of it."""
        send = self._in_parts if len(write.body) > self.place.multipart_bytes else self._in_one
        in_doubt = False

        def attempt() -> str:
            nonlocal in_doubt
            try:
                return send(write)
            except Passing as passing:
                in_doubt = in_doubt or passing.in_doubt
                raise

        try:
            return self._repeat(attempt)
        except Refused as refused:
            if refused.status == 404:
                raise Missing(f"store: {write.key} does not exist") from None
        if not in_doubt:
            raise write.refusal
        return self._settle(write)

    def _settle(self, write: _Write) -> str:
        """Return the etag of a write that was refused because of its own first try, or raise what became of it."""
        try:
            found = self._head(write.key)
        except Missing:
            raise StoreUnavailable(f"store {self.place.name}: {write.key} was removed meanwhile", 1.0) from None
        if found["Metadata"].get(_WRITE) == write.metadata[_WRITE]:
            return _etag(found)
        replaced = found["Metadata"].get(_REPLACED)
        if replaced in (None, write.metadata.get(_REPLACED)):  # what is there has the place that this one wanted
            raise write.refusal
        raise StoreUnavailable(f"store {self.place.name}: {write.key} was replaced before it was known by whom", 1.0)

    def _in_one(self, write: _Write) -> str:
        where = self._at(write.key)
        return _etag(self._call("put_object", **where, Body=write.body, Metadata=write.metadata, **write.condition))

    def _in_parts(self, write: _Write) -> str:
        """Upload in parts. The last step is the conditional one; if a step fails, the parts are given up."""
        try:
            upload = self._call("create_multipart_upload", **self._at(write.key), Metadata=write.metadata)["UploadId"]
        except Passing as passing:
            raise Passing(passing.reason, in_doubt=False) from None
        where = self._at(write.key) | {"UploadId": upload}
        try:
            parts = {"Parts": self._parts(where, write.body)}
            return _etag(self._call("complete_multipart_upload", **where, MultipartUpload=parts, **write.condition))
        except (Passing, Refused, StoreUnavailable) as error:
            self._abort(where)
            if isinstance(error, Refused) and error.code == "NoSuchUpload":
                raise Passing("the upload is gone", in_doubt=True) from None
            raise

    def _parts(self, where: dict[str, Any], body: bytes) -> tuple[dict[str, Any], ...]:
        size, view = self.place.multipart_bytes, memoryview(body)
        parts = []
        for number, start in enumerate(range(0, len(body), size), start=1):
            part = bytes(view[start : start + size])
            send = functools.partial(self._call, "upload_part", **where, PartNumber=number, Body=part)
            sent = self._repeat(send)
            checksums = {name: value for name, value in sent.items() if name in _CHECKSUMS}
            parts.append({"PartNumber": number, "ETag": sent["ETag"]} | checksums)
        return tuple(parts)

    def _abort(self, where: dict[str, Any]) -> None:
        try:
            self._call("abort_multipart_upload", **where)
        except (Passing, Refused, StoreUnavailable):
            return  # the bucket's lifecycle rule removes what is left: see docs/stores.md

    # Reading -----------------------------------------------------------------------------------------------------

    def _read(self, key: str, start: int, end: int | None) -> StoredObject:
        whole = start == 0 and end is None
        wanted = {} if whole else {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
        found = self._call("get_object", **self._at(key), **wanted)
        try:
            body = found["Body"].read()
        except BOTO_ERRORS as error:
            raise sort_out(error, self.place) from error
        finally:
            found["Body"].close()
        total = int(found["ContentRange"].rpartition("/")[2]) if "ContentRange" in found else len(body)
        size = total - _tail(found)
        if "ContentRange" not in found:
            body = body[start:end]
        return StoredObject(body[: max(0, size - start)], size, _etag(found))

    def _nothing_of(self, key: str) -> StoredObject:
        found = self._head(key)
        return StoredObject(b"", int(found["ContentLength"]) - _tail(found), _etag(found))

    def _head(self, key: str) -> Any:
        try:
            return self._repeat(lambda: self._call("head_object", **self._at(key)))
        except Refused:
            raise Missing(f"store: {key} does not exist") from None

    def _page(self, prefix: str, after: str) -> Any:
        start = {"StartAfter": after} if after else {}
        try:
            return self._repeat(lambda: self._call("list_objects_v2", Bucket=self.place.bucket, Prefix=prefix, **start))
        except Refused as refused:
            raise StoreUnavailable(f"store {self.place.name}: cannot be listed ({refused.status})") from None

    # Asking ------------------------------------------------------------------------------------------------------

    def _at(self, key: str) -> dict[str, Any]:
        return {"Bucket": self.place.bucket, "Key": self.place.prefix + key}

    def _call(self, operation: str, **request: Any) -> Any:
        try:
            return getattr(self._client, operation)(**request)
        except BOTO_ERRORS as error:
            raise sort_out(error, self.place) from error

    def _repeat(self, attempt: Callable[[], _T]) -> _T:
        """Try again after passing faults, with pauses drawn from 0 to a bound that doubles (full jitter).

        The pauses' source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
        """
        until = time.monotonic() + self.place.total_s
        for number in range(self.place.tries):
            try:
                return attempt()
            except Passing as passing:
                reason = passing.reason
                pause = random.uniform(0.0, min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2**number))
                if number + 1 == self.place.tries or time.monotonic() + pause > until:
                    break
                self._pause(pause)
        raise StoreUnavailable(f"store {self.place.name}: {reason}, after {number + 1} tries", _LONGEST_PAUSE_S)


def _etag(answer: Any) -> str:
    return str(answer["ETag"]).strip('"')


def _tail(answer: Any) -> int:
    return int(answer["Metadata"].get(_TAIL, 0))


def _is_key(key: str) -> bool:
    try:
        return bool(check_key(key))
    except InvalidInput:
        return False
