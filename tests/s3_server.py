"""An S3 for tests: moto's application behind a gate that does what S3 does and moto does not, and that can fail.

What the gate adds: requests go one by one, however many ask; `If-Match` counts when an upload in parts ends; a
body that broke off is no object; a signed address must be used as it was signed (AWS Signature Version 4, query form);
a body has the SHA-256 that its header says.

`Gate.faults` strike the requests that come next, in order. An answer that is too late waits until its client has hung
up: nobody sleeps.
"""

import base64
import contextlib
import hashlib
import hmac
import io
import socket
import struct
import threading
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote

import pytest
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from flsys_ray.storage.s3 import make_client
from flsys_ray.storage.s3_place import parse_place

BUCKET = "flsys-test"
KEY_ID, SECRET = "test-key-id", "test-secret"
ENVIRONMENT = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}
FAULTS = (
    *("500-before", "500-after", "503-before", "503-after", "429-before", "409-before"),
    *("reset-before", "reset-after", "late-before", "late-after", "truncated", "garbled"),
)
CODES = {"500": "InternalError", "503": "SlowDown", "429": "TooManyRequests", "409": "ConditionalRequestConflict"}


class Quiet(MotoRequestHandler):
    """No line a request."""

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - werkzeug's name
        pass


class Gate:
    """A WSGI application in front of moto's."""

    def __init__(self) -> None:
        self.faults: list[str | None] = []
        self.seen: list[tuple[str, str]] = []
        self.max_keys: int | None = None
        self.deaf_to: tuple[str, ...] = ()  # headers that a gateway loses
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._step = threading.Lock()
        self._turn = threading.Lock()

    def __call__(self, environ, start_response):
        length = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(length) if length else None
        if body is not None and len(body) < length:
            return answer(start_response, 400, "IncompleteBody")
        if body is not None:
            environ["wsgi.input"] = io.BytesIO(body)
        with self._turn:
            self.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
            fault = self.faults.pop(0) if self.faults else None
        kind, _, when = (fault or "").partition("-")
        if when == "before":
            return fail(kind, environ, start_response)
        status, headers, content = self._done(environ)
        if when == "after":
            return fail(kind, environ, start_response)
        if fault == "truncated":
            headers = [(n, v) for n, v in headers if n.lower() != "content-length"]
            headers.append(("Content-Length", str(max(1, len(content)))))
            content = content[: len(content) // 2]
        if fault == "garbled" and environ["REQUEST_METHOD"] == "GET" and content:
            content = bytes([content[0] ^ 1]) + content[1:]
        start_response(status, headers)
        return [content]

    def _done(self, environ):
        """Let moto answer, one request at a time: on S3 a write is atomic, and a read sees all of it or none."""
        if self.max_keys and "list-type=2" in environ.get("QUERY_STRING", ""):
            environ["QUERY_STRING"] += f"&max-keys={self.max_keys}"
        if broken_signature(environ) is not None:
            return "403 Forbidden", [("Content-Type", "application/xml")], error_body("SignatureDoesNotMatch")
        for header in self.deaf_to:
            environ.pop(key(header), None)
        if broken_checksum(environ):
            return "400 Bad Request", [("Content-Type", "application/xml")], error_body("BadDigest")
        with self._step:
            if "uploadId=" in environ.get("QUERY_STRING", "") and environ.get("HTTP_IF_MATCH"):
                found = self._etag(environ)
                if found is None:
                    return "404 Not Found", [("Content-Type", "application/xml")], error_body("NoSuchKey")
                if found != environ["HTTP_IF_MATCH"].strip('"'):
                    return (
                        "412 Precondition Failed",
                        [("Content-Type", "application/xml")],
                        error_body("PreconditionFailed"),
                    )
            return self._ask(environ)

    def _ask(self, environ):
        told = []

        def start_response(status, headers, exc_info=None):
            told[:] = [status, list(headers)]
            return lambda data: None

        chunks = self._moto(environ, start_response)
        content = b"".join(chunks)
        close = getattr(chunks, "close", None)
        if close:
            close()
        return told[0], told[1], content

    def _etag(self, environ):
        kept = {
            k: v for k, v in environ.items() if not k.startswith("HTTP_IF_") and not k.startswith("werkzeug.request")
        }
        asked = kept | {"REQUEST_METHOD": "HEAD", "QUERY_STRING": "", "CONTENT_LENGTH": "0", "wsgi.input": io.BytesIO()}
        status, headers, _ = self._ask(asked)
        found = {name.lower(): value for name, value in headers}
        return found["etag"].strip('"') if status.startswith("200") else None


def fail(kind, environ, start_response):
    connection = environ["werkzeug.socket"]
    if kind == "late":
        with contextlib.suppress(OSError):
            connection.recv(1)  # returns when the client has hung up
        kind = "reset"
    if kind == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError  # werkzeug takes it for a client that went away
    return answer(start_response, int(kind), CODES[kind])


def answer(start_response, status, code):
    body = error_body(code)
    start_response(f"{status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


def error_body(code):
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told to</Message></Error>".encode()


def broken_signature(environ):
    """Return what is wrong with a signed address, or None. The rules: AWS Signature Version 4, query parameters."""
    query = parse_qsl(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    given = dict(query)
    if "X-Amz-Signature" not in given:
        return None
    names = given["X-Amz-SignedHeaders"].split(";")
    headers = {name: environ.get(key(name)) for name in names}
    if None in headers.values():
        return "a signed header is missing"
    rest = sorted((quote(k, safe="-_.~"), quote(v, safe="-_.~")) for k, v in query if k != "X-Amz-Signature")
    canonical = "\n".join(
        [
            environ["REQUEST_METHOD"],
            quote(environ["PATH_INFO"], safe="/-_.~"),
            "&".join(f"{k}={v}" for k, v in rest),
            *(f"{name}:{headers[name].strip()}" for name in names),
            "",
            given["X-Amz-SignedHeaders"],
            "UNSIGNED-PAYLOAD",
        ]
    )
    scope = given["X-Amz-Credential"].partition("/")[2]
    text = "\n".join(["AWS4-HMAC-SHA256", given["X-Amz-Date"], scope, hashlib.sha256(canonical.encode()).hexdigest()])
    secret = f"AWS4{SECRET}".encode()
    for word in scope.split("/"):
        secret = hmac.digest(secret, word.encode(), "sha256")
    good = hmac.new(secret, text.encode(), "sha256").hexdigest()
    return None if hmac.compare_digest(good, given["X-Amz-Signature"]) else "the signature does not match"


def broken_checksum(environ):
    """Return whether a body is another one than its SHA-256 says; moto does not look."""
    wanted = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
    if wanted is None or not isinstance(environ["wsgi.input"], io.BytesIO):
        return False
    return wanted != base64.b64encode(hashlib.sha256(environ["wsgi.input"].getvalue()).digest()).decode()


def key(header):
    name = header.upper().replace("-", "_")
    return name if name in ("CONTENT_LENGTH", "CONTENT_TYPE") else f"HTTP_{name}"


def below(uri: str, name: str) -> str:
    """Return the URI of a store under another one's prefix."""
    place, question, options = uri.partition("?")
    return f"{place.rstrip('/')}/{name}{question}{options}"


class S3Server:
    """The server, on a port of its own. `uri()` names a prefix that nobody else has."""

    def __init__(self) -> None:
        self.gate = Gate()
        self._server = make_server("127.0.0.1", 0, self.gate, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def uri(self, prefix: str = "", **options: object) -> str:
        given = {"endpoint_url": self.endpoint, "region": "us-east-1"} | options
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"s3://{BUCKET}/{prefix or uuid.uuid4().hex}?{query}"

    def settle(self) -> None:
        """Wait for every connection that was opened before one that has been answered. Each has a thread of its own."""
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join()

    @contextlib.contextmanager
    def running(self) -> Iterator["S3Server"]:
        import boto3

        self._thread.start()
        try:
            client = boto3.client(
                "s3",
                endpoint_url=self.endpoint,
                region_name="us-east-1",
                aws_access_key_id=KEY_ID,
                aws_secret_access_key=SECRET,
            )
            client.create_bucket(Bucket=BUCKET)
            client.close()
            yield self
        finally:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@contextlib.contextmanager
def s3_with_keys() -> Iterator[S3Server]:
    """A server that runs, and its keys in the environment."""
    with pytest.MonkeyPatch.context() as patch, S3Server().running() as server:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield server


@contextlib.contextmanager
def client_of(server: S3Server, **options: object) -> Iterator[Any]:
    """A client of a server, with the options of a store's URI."""
    client = make_client(parse_place(server.uri(**options)))
    yield client
    client.close()
