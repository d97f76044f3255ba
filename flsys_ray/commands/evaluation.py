"""How versions do on users that never trained: with the device program, as a phone would run it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import InvalidInput
from flsys_ray.programs.manifest import read_tokenizer
from flsys_ray.programs.runner import Program
from flsys_ray.wire.developer_schemas import ModelInfo


@dataclass(frozen=True, slots=True)
class Result:
    """One version on the held-out users. `macro_f1` is the mean over classes that occur."""

    model: str
    version: int
    data: str
    source: str
    users: int
    examples: int
    loss: float
    accuracy: float
    macro_f1: float

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {name: getattr(self, name) for name in self.__slots__}

    def line(self) -> str:
        """Return one line for people."""
        return (
            f"{self.model} v{self.version}: accuracy {self.accuracy:.3f}, macro-F1 {self.macro_f1:.3f}, "
            f"loss {self.loss:.3f} on {self.users} held-out users "
            f"({self.examples} examples, {self.source} data {self.data})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """The held-out users' examples, x [N, ...] and y [N], and the program to run."""

    model: str
    program: Program
    dataset: Dataset
    users: tuple[str, ...]
    x: NDArray[Any]
    y: NDArray[np.int32]

    @classmethod
    def load(cls, cloud: DeveloperClient, info: ModelInfo, data: str, fraction: float, seed: int) -> "HeldOut":
        """Fetch a model's program, and the held-out users' examples of its classes."""
        body = cloud.program(info.model, str(info.program_sha256))
        program = Program.load(body)
        dataset = open_dataset(data).fit(program.manifest.classes, read_tokenizer(body))
        users = dataset.users if fraction >= 1 else split_users(dataset.users, fraction, seed)[1]
        parts = [dataset.examples(user) for user in users]
        if not any(len(part.y) for part in parts):
            raise InvalidInput(f"data set {data}: its held-out users have no example of the model's classes")
        x = np.concatenate([part.x for part in parts])
        y = np.concatenate([part.y for part in parts])
        return cls(info.model, program, dataset, users, x, y)

    def evaluate(self, cloud: DeveloperClient, version: int) -> Result:
        """Evaluate one version."""
        parameters = cloud.parameters(self.model, version, self.program.manifest.parameters)
        scores = self.program.infer(parameters, self.x)
        chosen = scores.argmax(axis=1)
        loss = -np.log(np.maximum(scores[np.arange(len(self.y)), self.y], 1e-7)).mean()
        return Result(
            model=self.model,
            version=version,
            data=self.dataset.name,
            source=self.dataset.source,
            users=len(self.users),
            examples=len(self.y),
            loss=float(loss),
            accuracy=float((chosen == self.y).mean()),
            macro_f1=macro_f1(self.y, chosen),
        )


def macro_f1(truth: NDArray[np.int32], chosen: NDArray[Any]) -> float:
    """Return the mean over the classes in `truth` of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in np.unique(truth):
        hits = np.sum((truth == label) & (chosen == label))
        scores.append(2 * hits / (np.sum(truth == label) + np.sum(chosen == label)))
    return float(np.mean(scores))
