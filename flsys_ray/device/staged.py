"""An update on its way into the cloud: straight into the cloud's store where the assignment offers that, or through it.

Each step may be repeated, and the whole: the address takes one object, the announcement counts once. Whatever goes
wrong with the address, the cloud itself still takes the update; what the cloud refuses is not sent a second time.
"""

import hashlib

from flsys_ray.device.client import CloudClient
from flsys_ray.errors import Conflict, FlsysError, Late, NotFound, TryLater, Unauthenticated
from flsys_ray.wire.schemas import AssignmentMessage, UpdateReply
from flsys_ray.wire.staged_schemas import StagedUpdate


def send_update(client: CloudClient, token: str, message: AssignmentMessage, body: bytes) -> UpdateReply:
    """Send the bytes of an update. Raises what `CloudClient.upload` does."""
    if message.upload.staged is not None:
        update = StagedUpdate(size_bytes=len(body), sha256=hashlib.sha256(body).hexdigest())
        if _put(client, token, message, (update, body)):
            try:
                return client.announce(token, message, update)
            except (Conflict, NotFound):  # it is not there after all
                pass
    return client.upload(token, message, body)


def _put(client: CloudClient, token: str, message: AssignmentMessage, what: tuple[StagedUpdate, bytes]) -> bool:
    """Return whether an update is in the store, or was perhaps counted already: its announcement tells."""
    update, body = what
    try:
        address = client.address(token, message, update)
    except (TryLater, Unauthenticated):
        raise
    except Late:
        return True
    except FlsysError:
        return False
    try:
        client.put_at(address, body)
    except FlsysError:
        return False
    return True
