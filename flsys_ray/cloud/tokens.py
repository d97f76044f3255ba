"""Signed statements as JSON web tokens (RFC 7519), in the one form that the cloud makes: HS256, one header.

Every call of a phone carries one or two. A general library parses and validates the header and every claim anew, which
takes about five times as long; here a token must begin with the very header that `signed` writes, so there is no
algorithm to choose, and nothing in it is read before its signature is checked. Any JWT library reads these tokens.
"""

import base64
import binascii
import hmac
import json
from typing import Any

_HEADER = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=") + b"."
_SIGNATURE_BYTES = 43  # 32 bytes in base64 without padding


def signed(claims: dict[str, Any], key: bytes) -> str:
    """Return a token that says `claims`, under a key that both sides hold."""
    body = base64.urlsafe_b64encode(json.dumps(claims, separators=(",", ":")).encode()).rstrip(b"=")
    return (_HEADER + body + b"." + _signature(_HEADER + body, key)).decode()


def claims(token: str, key: bytes) -> dict[str, Any] | None:
    """Return what a token says, None unless it is one of `signed` under this key. Takes constant time for a length."""
    if not token.isascii():
        return None
    said, _, signature = token.encode().rpartition(b".")
    if len(signature) != _SIGNATURE_BYTES or not hmac.compare_digest(signature, _signature(said, key)):
        return None
    if not said.startswith(_HEADER):
        return None
    body = said[len(_HEADER) :]
    try:
        found = json.loads(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)))
    except (binascii.Error, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _signature(said: bytes, key: bytes) -> bytes:
    return base64.urlsafe_b64encode(hmac.digest(key, said, "sha256")).rstrip(b"=")
