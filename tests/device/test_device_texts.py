"""Texts on the phone: the program's own tokenizer makes the numbers, in training and in inference alike."""

import hashlib
from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import START, FakeCloud, FakeModel, live, open_phone

from flsys_ray.device.clock import VirtualClock
from flsys_ray.errors import InvalidInput, NotFound, TryLater
from flsys_ray.programs.manifest import LeafEntry, Manifest, pack, read_manifest
from flsys_ray.programs.runner import Evaluated, Trained
from flsys_ray.tokenizer import ASSET, Tokenizer
from flsys_ray.wire.tensors import encode_vector

TOKENIZER = Tokenizer(buckets=1000, length=12, pairs=False)
CLASSES = ("negative", "positive")
GOOD, BAD = ("good", "lovely", "happy", "great"), ("bad", "awful", "sad", "late")


class BagOfWords:
    """Logistic regression on counts of ids, in numpy: each id has a weight."""

    def __init__(self, path: Path):
        self.manifest = read_manifest(path.read_bytes())

    def train(self, parameters, x, y, *, epochs, learning_rate, **_):
        current = parameters.copy()
        for _ in range(epochs * 20):
            error = self.infer(current, x)[:, 1] - y
            current -= np.float32(learning_rate) * (error @ self._counts(x) / len(y)).astype(np.float32)
        return Trained(current, 0.5, epochs, completed=True)

    def evaluate(self, parameters, x, y):
        scores = self.infer(parameters, x)
        return Evaluated(0.5 * len(y), int((scores.argmax(1) == y).sum()), len(y))

    def infer(self, parameters, x):
        positive = 1 / (1 + np.exp(-self._counts(x) @ parameters))
        return np.stack([1 - positive, positive], axis=1).astype(np.float32)

    def _counts(self, x):
        return np.stack([np.bincount(row[row > 0], minlength=TOKENIZER.buckets) for row in x]) * 1.0


def program(assets):
    leaves = (LeafEntry(name="weights", shape=(TOKENIZER.buckets,), offset=0, trainable=True),)
    body = b"\x00\x00\x00\x00TFL3 and so on"
    manifest = Manifest(
        name="sentiment", flatbuffer_sha256="0" * 64, parameters=TOKENIZER.buckets, slots=0, batch_size=8,
        input_shape=(TOKENIZER.length,), input_dtype="int32", classes=CLASSES, local_optimizer="sgd", layout=leaves,
    )  # fmt: skip
    return pack(body, manifest.model_copy(update={"flatbuffer_sha256": hashlib.sha256(body).hexdigest()}), assets)


@pytest.fixture
def cloud():
    start = [encode_vector("parameters", np.zeros(TOKENIZER.buckets, np.float32))]
    texts = FakeModel("sentiment", program=program({ASSET: TOKENIZER.to_json()}), versions=list(start))
    plain = FakeModel("plain", program=program({}), versions=list(start))
    return FakeCloud(VirtualClock(START), texts, plain)


def opened(folder, cloud):
    return open_phone(folder, cloud, load_program=BagOfWords, models=("sentiment", "plain"))


def test_texts_train_a_model_that_then_reads_texts(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        for number in range(40):
            for label, words in (("positive", GOOD), ("negative", BAD)):
                phone.add_text(
                    "sentiment", f"{words[number % 4]} day {chr(97 + number % 26)}{chr(97 + number // 4)} @home", label
                )
        assert phone.status().models[0].examples.training > 40
        phone.consent("sentiment", granted=True)
        live(phone, cloud)
        phone.refresh("sentiment")
        found = phone.infer_text("sentiment", "GOOOD day!", "@home awful :(", "")
    assert cloud.models["sentiment"].version == 3
    assert found.labels[:2] == ("positive", "negative")
    assert found.scores.shape == (3, 2)
    assert found.scores[2].tolist() == [0.5, 0.5]


def test_no_text_leaves_the_phone(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        for number in range(20):
            phone.add_text("sentiment", f"zanzibar {number}", CLASSES[number % 2])
        phone.consent("sentiment", granted=True)
        live(phone, cloud)
    assert cloud.calls("PUT .*/update")
    assert not [request for request in cloud.recorded if b"zanzibar" in request.content]
    ids = TOKENIZER.ids("zanzibar 1").tobytes()
    assert not [request for request in cloud.recorded if ids in request.content]


def test_the_first_text_fetches_the_program_and_later_ones_need_no_network(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        phone.add_text("sentiment", "so good", "positive")
        asked = len(cloud.recorded)
        phone.add_text("sentiment", "so bad", "negative")
        assert phone.infer_text("sentiment", "so good").labels == ("negative",)
        assert len(cloud.recorded) == asked


def test_a_repeated_text_is_on_one_side(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        for _ in range(10):
            phone.add_text("sentiment", "The same again!", "positive")
            phone.add_text("sentiment", "the SAME again!", "positive")
        counts = phone.status().models[0].examples
    assert sorted((counts.training, counts.held_out)) == [0, 20]


def test_a_model_without_a_tokenizer_takes_no_texts(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        with pytest.raises(InvalidInput, match="plain takes no texts: its program has no tokenizer"):
            phone.add_text("plain", "hello", "positive")
        with pytest.raises(InvalidInput, match="plain takes no texts"):
            phone.infer_text("plain", "hello")
        with pytest.raises(InvalidInput, match="not a model of this phone"):
            phone.add_text("other", "hello", "positive")


def test_without_a_program_the_caller_is_told(tmp_path, cloud):
    with opened(tmp_path, cloud) as phone:
        del cloud.models["sentiment"]
        with pytest.raises(NotFound):
            phone.add_text("sentiment", "hello", "positive")
        cloud.faults = [lambda request: httpx2.Response(503)] * 50
        with pytest.raises(TryLater):
            phone.infer_text("sentiment", "hello")
