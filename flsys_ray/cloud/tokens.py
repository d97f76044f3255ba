"""Signed statements as JSON web tokens (RFC 7519), in the one form that the cloud makes: HS256, with the key's id.

A token must begin with the very header that a key in use writes. So there is no algorithm to choose, the id in a header
only finds a key, and nothing of a token is read before its signature is checked. Any JWT library reads these tokens.
"""

import base64
import binascii
import hmac
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

_SIGNATURE_BYTES = 43  # 32 bytes in base64 without padding
HEADER_OF_BEFORE = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")  # when there was one key


@lru_cache(maxsize=64)
def header(kid: str) -> bytes:
    """Return the first part of the tokens that the key of this id signs."""
    text = json.dumps({"alg": "HS256", "kid": kid, "typ": "JWT"}, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=")


def signed(claims: Mapping[str, Any], kid: str, key: bytes) -> str:
    """Return a token that says `claims`, under a key that both sides hold."""
    body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).rstrip(b"=")
    said = header(kid) + b"." + body
    return (said + b"." + _signature(said, key)).decode()


def header_of(token: str) -> bytes:
    """Return what a token begins with: it is not checked."""
    return token.partition(".")[0].encode("utf-8", "replace")


def claims(token: str, keys: Mapping[bytes, bytes]) -> dict[str, Any] | None:
    """Return what a token says, None unless one of `keys` (by header) signed it. Comparing takes constant time."""
    key = keys.get(header_of(token))
    if key is None or not token.isascii():
        return None
    said, _, signature = token.encode().rpartition(b".")
    if len(signature) != _SIGNATURE_BYTES or not hmac.compare_digest(signature, _signature(said, key)):
        return None
    body = said.partition(b".")[2]
    try:
        found = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except (binascii.Error, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _signature(said: bytes, key: bytes) -> bytes:
    return base64.urlsafe_b64encode(hmac.digest(key, said, "sha256")).rstrip(b"=")
