"""What an upload and a download weigh in each encoding, for both built-in models, and how far they are from the truth.

    python benchmarks/compression.py

Bytes are those of the whole file. The error is `|decoded - delta| / |delta|` of a normal delta of `--seed`: real ones
are less even, and what top_k leaves out is in the next update. Of downloads it is `|public - version| / |version|`
after 20 versions, each such a delta from the one before. What an encoding does to accuracy:
`benchmarks/federated_accuracy.py --plan '{compression: int8}'`, and `{download: int8}`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse

import numpy as np

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.layout import Vector
from flsys_ray.core.rng import generator
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.runner import Program
from flsys_ray.wire.public_forms import encode_half, form_after
from flsys_ray.wire.tensors import decode_range, encode_compressed, encode_vector

ENCODINGS = (FLOAT32, Float16(), Int8(), Int8(block=64), TopK(), TopK(fraction=0.01))
MODELS = ("har-wild", "sentiment")


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of uploads and downloads.")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    first = {model: Program.load(compile_builtin(get(model)).data).init(seed) for model in MODELS}
    print("| model | parameters | encoding | bytes | of float32 | relative error |")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        size = first[model].size
        delta = generator(seed, "delta").normal(0, 0.01, size).astype(np.float32)
        whole = 0
        for encoding in ENCODINGS:
            rng = generator(seed, "rounding")
            body = encode_compressed(encoding, encoding.encode(delta, rng), 100, 0.5, 10)
            whole = whole or len(body)
            lost = decode_range(body, 0, size) - delta
            error = float(np.linalg.norm(lost) / np.linalg.norm(delta))
            print(f"| {model} | {size} | {_name(encoding)} | {len(body)} | {_share(len(body), whole)} | {error:.4f} |")
    print("\n| model | `download` | whole | of float32 | a step | of float32 | relative error |")
    print("|---|---|---|---|---|---|---|")
    for model in MODELS:
        for encoding in ENCODINGS[1:]:
            print(f"| {model} | {_name(encoding)} | {_downloads(first[model], encoding, seed)} |")


def _downloads(version: Vector, encoding: Encoding, seed: int) -> str:
    """Return the bytes of a form and of a step, and how far the form of a version is from it after 20 of them."""
    rng, full = generator(seed, "versions"), len(encode_vector("parameters", version))
    public, step = form_after(version, None, encoding, rng)
    for number in range(20):
        version = version + rng.normal(0, 0.01, version.size).astype(np.float32)
        public, step = form_after(version, public, encoding, generator(seed, "download", number))
    error = float(np.linalg.norm(public - version) / np.linalg.norm(version))
    whole = len(encode_half(public))
    steps = "- | -" if step is None else f"{len(step)} | {_share(len(step), full)}"
    return f"{whole} | {_share(whole, full)} | {steps} | {error:.5f}"


def _name(encoding: Encoding) -> str:
    fields = {key: value for key, value in encoding.model_dump().items() if key != "name"}
    return f"`{encoding.name}`" + "".join(f" {key} {value}" for key, value in fields.items())


def _share(size: int, whole: int) -> str:
    return f"{100 * size / whole:.1f} %"


if __name__ == "__main__":
    main()
