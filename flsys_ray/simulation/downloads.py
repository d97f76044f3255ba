"""What devices download and begin with: versions as they are, or their public forms (`compression.public`)."""

from dataclasses import dataclass, field

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.layout import Vector
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Version
from flsys_ray.wire.public_forms import encode_half, form_after, worth


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """What devices train from in place of a version: parameters float32 [P], and what it takes to have them.

    `whole_bytes` for a device that has nothing; `steps` are the bytes of the last steps that lead there from the bases
    of the versions before, oldest first.
    """

    parameters: Vector
    whole_bytes: int
    steps: tuple[int, ...] = ()


@dataclass(slots=True)
class Downloads:
    """One model's bases by the number of their version, and which one each device had last.

    Attributes:
        encoding, seed: the plan's.
    """

    encoding: Encoding
    seed: int
    bases: dict[int, Base] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)

    def add(self, version: Version, oldest: int) -> None:
        """Take in a version that comes after the last one, and let go of those before number `oldest`."""
        self.bases[version.number] = self._base(version)
        self.bases = {number: base for number, base in self.bases.items() if number >= oldest}

    def num_bytes(self, device: int, number: int) -> int:
        """Return what a device downloads to begin with a version, of which it may hold an earlier one."""
        base = self.bases[number]
        behind = number - self.held.get(device, number)
        return sum(base.steps[-behind:]) if 0 < behind <= len(base.steps) else base.whole_bytes

    def _base(self, version: Version) -> Base:
        if self.encoding == FLOAT32:
            return Base(version.parameters, version.parameters.nbytes)
        before = self.bases.get(version.number - 1)
        rng = generator(self.seed, "download", version.number)
        earlier = None if before is None else before.parameters
        public, step = form_after(version.parameters, earlier, self.encoding, rng)
        whole = len(encode_half(public))
        steps = () if before is None or step is None else (*before.steps, len(step))
        return Base(public, whole, steps[len(steps) - worth(steps, whole) :])
