"""What one upload weighs in each encoding, for both built-in models, and how far it is from what was sent.

    python benchmarks/compression.py

Bytes are those of the whole file. The error is `|decoded - delta| / |delta|` of a normal delta of `--seed`: real ones
are less even, and what top_k leaves out is in the next update. What an encoding does to accuracy:
`benchmarks/federated_accuracy.py --plan '{compression: int8}'`.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse

import numpy as np

from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.rng import generator
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.runner import Program
from flsys_ray.wire.tensors import decode_range, encode_compressed

ENCODINGS = (FLOAT32, Float16(), Int8(), Int8(block=64), TopK(), TopK(fraction=0.01))
MODELS = ("har-wild", "sentiment")


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of an upload.")
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    print("| model | parameters | encoding | bytes | of float32 | relative error |")
    print("|---|---|---|---|---|---|")
    for model in MODELS:
        size = Program.load(compile_builtin(get(model)).data).manifest.parameters
        delta = generator(seed, "delta").normal(0, 0.01, size).astype(np.float32)
        whole = 0
        for encoding in ENCODINGS:
            rng = generator(seed, "rounding")
            body = encode_compressed(encoding, encoding.encode(delta, rng), 100, 0.5, 10)
            whole = whole or len(body)
            lost = decode_range(body, 0, size) - delta
            error = float(np.linalg.norm(lost) / np.linalg.norm(delta))
            fields = {key: value for key, value in encoding.model_dump().items() if key != "name"}
            name = f"`{encoding.name}`" + "".join(f" {key} {value}" for key, value in fields.items())
            print(f"| {model} | {size} | {name} | {len(body)} | {100 * len(body) / whole:.1f} % | {error:.4f} |")


if __name__ == "__main__":
    main()
