"""What the sentiment model's size and words are worth, and whether a free lexicon adds to it: on pooled examples.

    python benchmarks/sentiment_variants.py [--data airline_tweets] [--splits 0,1,2] [--epochs 8]

Macro-F1 on held-out users. With `pip install vaderSentiment` (MIT licence, 7,500 words rated by people) each table is
tried with one more column too, which starts from the mean rating of the words in each bucket.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import flsys_ray
from flsys_ray.commands.evaluation import macro_f1
from flsys_ray.core.rng import generator
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.models.sentiment import CLASSES
from flsys_ray.programs.runner import Program
from flsys_ray.tokenizer import Tokenizer

VARIANTS = ((2048, 64, False), (4096, 32, False), (8192, 16, False), (8192, 16, True), (16384, 8, False))
HELD_OUT, LEARNING_RATE = 0.2, 0.003


def main() -> None:
    parser = argparse.ArgumentParser(description="Variants of the sentiment model, trained on pooled examples.")
    parser.add_argument("--data", default="airline_tweets")
    parser.add_argument("--splits", default="0,1,2", help="seeds of the splits by user")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    splits = [int(split) for split in options.splits.split(",")]
    print("| buckets | width | pairs | lexicon | macro-F1 |\n|---|---|---|---|---|")
    for buckets, width, pairs in VARIANTS:
        tokenizer = Tokenizer(buckets=buckets, length=80 if pairs else 40, pairs=pairs)
        dataset = open_dataset(options.data).fit(CLASSES, tokenizer)
        for ratings in (None, lexicon(tokenizer)):
            if ratings is None or not pairs:
                program = Program.load(compiled(tokenizer, width, ratings))
                found = [score(program, dataset, split, options.epochs) for split in splits]
                with_lexicon = "no" if ratings is None else "yes"
                cells = f"{buckets} | {width} | {'yes' if pairs else 'no'} | {with_lexicon}"
                print(f"| {cells} | {np.mean(found):.3f} ({min(found):.3f} to {max(found):.3f}) |", flush=True)
            if importlib.util.find_spec("vaderSentiment") is None:
                break


def lexicon(tokenizer: Tokenizer) -> NDArray[np.float32] | None:
    """Return the mean rating of each bucket's words, [buckets, 1], within -1 and 1; None if it is not installed."""
    spec = importlib.util.find_spec("vaderSentiment")
    if spec is None or not spec.submodule_search_locations:
        return None
    single = Tokenizer(tokenizer.buckets, length=2, pairs=False)
    sums, counts = np.zeros(tokenizer.buckets), np.zeros(tokenizer.buckets)
    file = Path(spec.submodule_search_locations[0]) / "vader_lexicon.txt"
    for line in file.read_text(encoding="utf-8").splitlines():
        word, rating, *_ = line.split("\t")
        first, second = single.ids(word)
        if first and not second:
            sums[first] += float(rating) / 4
            counts[first] += 1
    return (sums / np.maximum(counts, 1)).astype(np.float32)[:, None]


def compiled(tokenizer: Tokenizer, width: int, ratings: NDArray[np.float32] | None) -> bytes:
    """Return the program of a variant, with Adam as the local optimizer."""
    import keras
    from keras import layers

    ids = keras.Input((tokenizer.length,), dtype="int32")
    start = keras.initializers.RandomUniform(-0.25, 0.25)
    tables: list[tuple[int, Any]] = [(width, start)]
    if ratings is not None:
        tables.append((1, keras.initializers.Constant(ratings)))
    means = [
        layers.GlobalAveragePooling1D()(
            layers.Embedding(tokenizer.buckets, size, mask_zero=True, embeddings_initializer=begin)(ids)
        )
        for size, begin in tables
    ]
    mean = keras.ops.concatenate(means, axis=-1) if len(means) > 1 else means[0]
    hidden = layers.Dense(16, activation="relu")(mean)
    model = keras.Model(ids, layers.Dense(len(CLASSES), activation="softmax")(hidden))
    return flsys_ray.compile(model, classes=CLASSES, batch_size=32, local_optimizer="adam", name="variant").data


def score(program: Program, dataset: Dataset, split: int, epochs: int) -> float:
    """Train on the training users' examples in one place; return the macro-F1 on the held-out users."""
    (x, y), (held_x, held_y) = (pooled(dataset, users) for users in split_users(dataset.users, HELD_OUT, split))
    rng = generator(split, "pooled")
    trained = program.train(program.init(split), x, y, epochs=epochs, learning_rate=LEARNING_RATE, rng=rng)
    return macro_f1(held_y, program.infer(trained.parameters, held_x).argmax(axis=1))


def pooled(dataset: Dataset, users: tuple[str, ...]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return all examples of some users."""
    parts = [dataset.examples(user) for user in users]
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


if __name__ == "__main__":
    main()
