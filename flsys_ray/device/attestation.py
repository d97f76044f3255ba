"""What a phone sends to prove that it is its app's own: a function of the installation id and the cloud's nonce."""

import hmac
from collections.abc import Callable

from flsys_ray.wire.access import statement

Attest = Callable[[str, str], str]
"""`attest(installation_id, nonce)` returns the evidence as text: asked for anew at every attempt to enrol."""


def shared_secret(secret: str) -> Attest:
    """Return how a phone attests that knows the app's shared secret (`attestation: shared_secret`)."""
    key = secret.encode("utf-8", "surrogatepass")
    return lambda installation_id, nonce: hmac.digest(key, statement(nonce, installation_id), "sha256").hex()
