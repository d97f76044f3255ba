"""What one step of a phone did."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "enrolled",
    "renewed",  # there is a new token
    "checked-in",  # `detail`: how many assignments it brought
    "downloaded",  # program and base version are on the phone
    "trained",  # the update is on the disk, not yet uploaded
    "interrupted",  # training stopped in an orderly way; it may go on later
    "uploaded",
    "evaluated",
    "given-back",  # `detail`: the reason
    "late",
    "refused",  # `detail`: what the cloud said
    "personalised",  # own parameters were made or compared again; `detail`: which answer now, or why there are none
    "refreshed",  # a newer version for inference is on the phone
    "waiting",  # nothing to do; `detail` stays on the phone
    "paused",
    "failed",  # will be tried again; `detail`: what failed
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One step's doing at `at`, and when the next step has something to do (`wake_at`). Instants are UTC seconds."""

    kind: Kind
    at: float
    wake_at: float
    model: str = ""
    assignment_id: str = ""
    detail: str = ""
    num_examples: int = 0
    loss: float | None = None
