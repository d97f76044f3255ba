"""What needs no network: logistic regression and a random forest on features made by hand, trained on pooled examples.

Windows: of the three axes, the magnitude, and the motion along and across gravity (as HAR-Wild sees them): mean,
deviation, least, quartiles, largest, and of the last three the energy in bands and the strongest frequency. Texts:
weights of words and pairs of words (TF-IDF). A network that does not beat these is not good enough.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from flsys_ray.data.dataset import TextDataset

RATE_HZ = 20.0
BANDS_HZ = (0.3, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 10.0)
TREES = 200


def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features [N, F] of windows [N, T, 3] in m/s^2."""
    gravity = x.mean(axis=1, keepdims=True)
    down = gravity / np.maximum(np.linalg.norm(gravity, axis=2, keepdims=True), 1e-6)
    motion = x - gravity
    along = (motion * down).sum(axis=2)
    across = np.linalg.norm(motion - along[..., None] * down, axis=2)
    free = np.stack([along, across, np.linalg.norm(x, axis=2)], axis=2)
    made = [_moments(np.concatenate([x, free], axis=2)), *_spectrum(free)]
    return np.concatenate([*made, *_relations(x)], axis=1).astype(np.float32)


def _moments(channels: NDArray[Any]) -> NDArray[Any]:
    quantiles = np.quantile(channels, (0, 0.25, 0.5, 0.75, 1), axis=1)
    steps = np.abs(np.diff(channels, axis=1)).mean(axis=1)
    return np.concatenate([channels.mean(axis=1), channels.std(axis=1), steps, *quantiles], axis=1)


def _spectrum(channels: NDArray[Any]) -> list[NDArray[Any]]:
    """Return the logarithm of the energy in each band, and where the strongest frequency lies."""
    power = np.abs(np.fft.rfft(channels - channels.mean(axis=1, keepdims=True), axis=1)) ** 2
    hz = np.fft.rfftfreq(channels.shape[1], 1 / RATE_HZ)
    bands = [power[:, (hz >= low) & (hz < high)].sum(axis=1) for low, high in pairwise(BANDS_HZ)]
    return [np.log1p(np.concatenate(bands, axis=1)), hz[power.argmax(axis=1)]]


def _relations(x: NDArray[Any]) -> list[NDArray[Any]]:
    """Return how the axes move together: their covariances."""
    motion = x - x.mean(axis=1, keepdims=True)
    pairs = ((0, 1), (0, 2), (1, 2))
    return [np.stack([(motion[..., a] * motion[..., b]).mean(axis=1) for a, b in pairs], axis=1)]


def words(dataset: TextDataset, users: tuple[str, ...]) -> list[str]:
    """Return the texts of users, in the order of their examples."""
    return [text for user in users for text in dataset.texts(user)]


Classifier = Callable[[Any, NDArray[np.int32], Any, int], NDArray[np.int32]]


def logistic_regression(x: Any, y: NDArray[np.int32], judged: Any, seed: int) -> NDArray[np.int32]:
    """Return its answers on `judged`."""
    model = LogisticRegression(max_iter=1000, class_weight="balanced", random_state=seed)
    if isinstance(x, list):
        model = make_pipeline(_vectorizer(), model)
    else:
        model, x, judged = make_pipeline(StandardScaler(), model), features(x), features(judged)
    return np.asarray(model.fit(x, y).predict(judged), np.int32)


def random_forest(x: Any, y: NDArray[np.int32], judged: Any, seed: int) -> NDArray[np.int32]:
    """Return its answers on `judged`."""
    model = RandomForestClassifier(TREES, class_weight="balanced", min_samples_leaf=2, n_jobs=1, random_state=seed)
    if isinstance(x, list):
        model = make_pipeline(_vectorizer(), model)
    else:
        x, judged = features(x), features(judged)
    return np.asarray(model.fit(x, y).predict(judged), np.int32)


def _vectorizer() -> TfidfVectorizer:
    return TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)


CLASSICAL: dict[str, Classifier] = {"logistic regression": logistic_regression, "random forest": random_forest}
