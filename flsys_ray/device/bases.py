"""The file of weights that an assignment begins with, had in the smallest way that this phone can go.

From the parameters that it holds by steps, from half precision, or as it is: all three give the same file, and its hash
is checked whichever it was. Whatever goes wrong with a smaller way, the next larger one is taken.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flsys_ray.compression.public import stepped
from flsys_ray.core.layout import Vector
from flsys_ray.device.download import FileCache
from flsys_ray.errors import FlsysError, TryLater, Unauthenticated
from flsys_ray.wire.public_forms import decode_half, decode_step
from flsys_ray.wire.schemas import HalfLink, StepLink, WeightsLink
from flsys_ray.wire.tensors import decode_vector, encode_vector, knows_encoding

Fetch = Callable[[str, str], Path]


@dataclass(frozen=True, slots=True)
class Bases:
    """Makes files of weights. `fetch` downloads a file into `files`, by its address and hash."""

    files: FileCache
    fetch: Fetch

    def have(self, link: WeightsLink, size: int) -> None:
        """Have the file of an assignment's weights, of `size` = P parameters, on the phone.

        Raises:
            TryLater, Unauthenticated: the cloud cannot be reached now; what has arrived of a smaller way is kept.
            FlsysError: the file as it is cannot be had either.
        """
        if self.files.path(link.sha256) is not None:
            return
        for way in (self._by_steps, self._from_half):
            try:
                if (public := way(link, size)) is not None and self._keep(link, public):
                    return
            except (TryLater, Unauthenticated):
                raise
            except FlsysError:  # gone, or not what was announced
                continue
        self.fetch(link.url, link.sha256)

    def _by_steps(self, link: WeightsLink, size: int) -> Vector | None:
        """Return where the steps from the nearest parameters on this phone lead, None if it cannot go all of them."""
        for first in range(len(link.steps) - 1, -1, -1):
            if not knows_encoding(link.steps[first].encoding):
                return None
            here = self.files.path(link.steps[first].before)
            if here is not None:
                return self._along(decode_vector(here.read_bytes(), "parameters", size), link.steps[first:])
        return None

    def _along(self, public: Vector, steps: Sequence[StepLink]) -> Vector:
        for step in steps:
            encoding, parts = decode_step(self._body(step), public.size)
            public = stepped(public, encoding, parts)
        return public

    def _from_half(self, link: WeightsLink, size: int) -> Vector | None:
        return None if link.half is None else decode_half(self._body(link.half), size)

    def _body(self, link: HalfLink | StepLink) -> bytes:
        return self.fetch(link.url, link.sha256).read_bytes()

    def _keep(self, link: WeightsLink, public: Vector) -> bool:
        """Write the file if it is the one that was announced; return whether it is."""
        return self.files.add(link.sha256, encode_vector("parameters", public))
