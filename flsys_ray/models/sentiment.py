"""SA: is a short text positive or negative? Sized for phones.

The mean of learnt word vectors, and a small network on it (a deep averaging network: Iyyer, Manjunatha, Boyd-Graber,
Daumé III, "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015). Purpose and family
are the paper's (arXiv 2111.09445); buckets, widths and lengths are our own choice.

Words are hashed, so no vocabulary has to be made from somebody's texts. Of tables of one size, many narrow
vectors did better than few wide ones: words that share a bucket cost more than dimensions (docs/sentiment.md).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from flsys_ray.models.base import BuiltinModel
from flsys_ray.tokenizer import ASSET, Tokenizer

CLASSES = ("negative", "positive")
TOKENIZER = Tokenizer(buckets=8192, length=40, pairs=False)
WIDTH, HIDDEN = 16, 16


def build(classes: Sequence[str] = CLASSES) -> Any:
    """Return the Keras model: input int32 [40], ids of `TOKENIZER` (0: padding), output softmax over `classes`."""
    import keras
    from keras import layers

    ids = keras.Input((TOKENIZER.length,), dtype="int32", name="ids")
    start = keras.initializers.RandomUniform(-0.25, 0.25)
    words = layers.Embedding(
        TOKENIZER.buckets, WIDTH, mask_zero=True, embeddings_initializer=start, name="words"
    )(ids)  # fmt: skip
    mean = layers.GlobalAveragePooling1D(name="mean")(words)
    hidden = layers.Dense(HIDDEN, activation="relu", name="hidden")(mean)
    scores = layers.Dense(len(classes), activation="softmax", name="scores")(hidden)
    return keras.Model(ids, scores, name="sentiment")


def assets() -> Mapping[str, bytes]:
    """Return the tokenizer, which is part of the program and so of its hash."""
    return {ASSET: TOKENIZER.to_json()}


MODEL = BuiltinModel(
    name="sentiment",
    summary="sentiment of short texts, 40 words",
    classes=CLASSES,
    input_shape=(TOKENIZER.length,),
    input_dtype="int32",
    input_meaning="ids of the program's tokenizer.json, 0 behind the last",
    build=build,
    plan={
        "pacing": {"name": "rounds", "cohort": 50, "deadline_s": 60},
        "server_optimizer": {"name": "adam", "learning_rate": 0.03},
        "local": {"epochs": 3, "learning_rate": 1.0},
        "limits": {"max_norm": 64.0},
        "eligibility": {"min_examples": 1},
    },
    batch_size=8,
    assets=assets,
)
