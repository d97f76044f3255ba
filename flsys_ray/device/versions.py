"""Programs and versions on the phone: fetched by hash, and the newest version at hand for inference."""

from dataclasses import dataclass
from pathlib import Path

from flsys_ray.device.bases import Bases
from flsys_ray.device.clock import Clock
from flsys_ray.device.download import FileCache
from flsys_ray.device.identity import Identity
from flsys_ray.device.journal import HeldVersion, Journal
from flsys_ray.device.trainer import DeviceProgram, Programs
from flsys_ray.errors import InvalidInput, NotFound
from flsys_ray.programs.manifest import Manifest
from flsys_ray.tokenizer import Tokenizer
from flsys_ray.wire.schemas import AssignmentMessage, ControlLink, SharedSetLink


@dataclass(frozen=True, slots=True)
class Loaded:
    """A program ready to run and the bytes of a version (safetensors)."""

    program: DeviceProgram
    weights: bytes


@dataclass(frozen=True, slots=True)
class Versions:
    """Two caches of files: programs (kept while there is room), and what is kept while it is in use.

    The second has weights, controls and shared sets.
    """

    identity: Identity
    journal: Journal
    clock: Clock
    program_files: FileCache
    weight_files: FileCache
    programs: Programs

    def has(self, message: AssignmentMessage) -> bool:
        """Whether all files of an assignment are on the phone."""
        extras = all(self.weight_files.path(link.sha256) is not None for link in message.extras)
        return extras and self._path(message.program.sha256, message.weights.sha256) is not None

    def holds(self, held: HeldVersion) -> bool:
        """Whether both files of a version are on the phone: its program may have been evicted."""
        return self._path(held.program_sha256, held.weights_sha256) is not None

    def fetch(self, message: AssignmentMessage) -> None:
        """Download what an assignment needs; its base version becomes the newest at hand if it is, and serves."""
        program = self._fetch_program(message.program.url, message.program.sha256)
        if message.weights.smaller:
            size = self.programs.get(message.program.sha256, program).manifest.parameters
            Bases(self.weight_files, self._fetch_weights).have(message.weights, size)
        else:
            self._fetch_weights(message.weights.url, message.weights.sha256)
        for link in message.extras:
            self._fetch_weights(link.url, link.sha256)
        if message.kind == "train":
            self.journal.keep("shared", message.model, message.shared.sha256 if message.shared is not None else None)
            self.journal.keep("public", message.model, message.weights.sha256 if message.weights.smaller else None)
        if message.serving and self._is_newer(message):
            self._hold(message.model, message.version, message.weights.sha256, message.program.sha256)

    def _is_newer(self, message: AssignmentMessage) -> bool:
        """Return whether an assignment's base is newer than the version at hand; a public form not, if as old."""
        held = self.journal.held(message.model)
        if held is None or held.version != message.version:
            return held is None or held.version < message.version
        return not message.weights.smaller

    def refresh(self, model: str) -> bool:
        """Have the newest version on the phone; return whether it is another one than before.

        Raises:
            NotFound: the cloud has no such model, or no version of it yet.
            TryLater: the cloud cannot be reached.
        """
        client = self.identity.client
        latest = self.identity.call(lambda token: client.latest(token, model))
        base = f"/v1/models/{model}"
        program_url = f"{base}/program/{latest.program_sha256}"
        weights_url = f"{base}/versions/{latest.version}"
        self._fetch_program(program_url, latest.program_sha256)
        self._fetch_weights(weights_url, latest.weights_sha256)
        held = self.journal.held(model)
        self._hold(model, latest.version, latest.weights_sha256, latest.program_sha256)
        return held is None or held.weights_sha256 != latest.weights_sha256

    def load(self, program_sha256: str, weights_sha256: str) -> Loaded:
        """Return a program and a version that are on the phone. Raises `NotFound` if a file is gone."""
        found = self._path(program_sha256, weights_sha256)
        if found is None:
            raise NotFound("the program or the version is not on this phone: refresh")
        program, weights = found
        return Loaded(self.programs.get(program_sha256, program), weights.read_bytes())

    def read(self, link: ControlLink | SharedSetLink) -> bytes:
        """Return the bytes of one of an assignment's `extras`. Raises `NotFound` if the file is gone."""
        path = self.weight_files.path(link.sha256)
        if path is None:
            raise NotFound("a file of the assignment is not on this phone any more")
        return path.read_bytes()

    def manifest(self, program_sha256: str) -> Manifest | None:
        """Return what a program says of itself, None if it is not on the phone."""
        path = self.program_files.path(program_sha256)
        return self.programs.get(program_sha256, path).manifest if path else None

    def tokenizer(self, model: str, program_sha256: str) -> Tokenizer:
        """Return the tokenizer of a model's program.

        Raises:
            NotFound: the program is not on the phone.
            InvalidInput: the model takes no texts.
        """
        path = self.program_files.path(program_sha256)
        if path is None:
            raise NotFound("the program is not on this phone: refresh")
        found = self.programs.tokenizer(program_sha256, path)
        if found is None:
            raise InvalidInput(f"{model} takes no texts: its program has no tokenizer")
        return found

    def erase(self) -> None:
        """Delete all versions and shared sets. Programs stay: they hold nothing of the user."""
        self.weight_files.trim(keep=set(), cap_bytes=0)

    def tidy(self) -> None:
        """Delete what neither open work nor inference needs, and no model's next assignment is likely to."""
        self.weight_files.trim(keep=self.journal.weights_in_use(), cap_bytes=0)

    def _hold(self, model: str, version: int, weights_sha256: str, program_sha256: str) -> None:
        self.journal.hold(model, HeldVersion(version, weights_sha256, program_sha256, self.clock.now()))
        self.tidy()

    def _path(self, program_sha256: str, weights_sha256: str) -> tuple[Path, Path] | None:
        program, weights = self.program_files.path(program_sha256), self.weight_files.path(weights_sha256)
        return (program, weights) if program and weights else None

    def _fetch_program(self, url: str, sha256: str) -> Path:
        client = self.identity.client
        return self.identity.call(lambda token: self.program_files.fetch(client, token, url, sha256))

    def _fetch_weights(self, url: str, sha256: str) -> Path:
        client = self.identity.client
        return self.identity.call(lambda token: self.weight_files.fetch(client, token, url, sha256))
