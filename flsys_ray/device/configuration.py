"""What an app decides about taking part, and what many phones of one process may share."""

from dataclasses import dataclass, field

import httpx2

from flsys_ray.device.attestation import Attest
from flsys_ray.device.client import RetryPolicy
from flsys_ray.device.download import FileCache
from flsys_ray.device.participation import Habits
from flsys_ray.device.trainer import Programs
from flsys_ray.errors import InvalidInput

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PhoneConfig:
    """What an app decides about taking part.

    Attributes:
        url: the cloud's address.
        app_key: the app's enrolment key. (The developer's own key enrols too; do not ship it with an app.)
        models: the models that this app trains and uses.
        sensor_models: those of them that are fed by `add_samples`.
        database_cap_bytes: the most that examples may take; the oldest go first.
        program_cap_bytes: the most that cached programs may take.
        attest: gives the evidence that the app's `attestation` asks for; None: it asks for none.
        seed: makes the jitter of waits; None: another one each time.
    """

    url: str
    app_key: str = field(repr=False)
    models: tuple[str, ...]
    sensor_models: tuple[str, ...] = ()
    database_cap_bytes: int = 64 * MEBIBYTE
    program_cap_bytes: int = 64 * MEBIBYTE
    habits: Habits = field(default_factory=Habits)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    attest: Attest | None = field(default=None, repr=False)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not self.models or len(set(self.models)) != len(self.models):
            raise InvalidInput(f"a phone needs at least one model, and each once, not {self.models}")
        if unknown := [model for model in self.sensor_models if model not in self.models]:
            raise InvalidInput(f"sensor_models names {', '.join(unknown)}, which `models` does not")
        if not self.url.startswith(("http://", "https://")):
            raise InvalidInput(f"the cloud's address must be an http(s) URL, not {self.url!r}")


@dataclass(frozen=True, slots=True)
class Shared:
    """What many phones of one process may have in common. `transport` reaches the cloud in another way than by network.

    `program_files` holds programs for all of them; without it each phone has its own.
    """

    http: httpx2.Client | None = None
    transport: httpx2.BaseTransport | None = None
    program_files: FileCache | None = None
    programs: Programs = field(default_factory=Programs)
