"""Transforms on the phone: drawn anew in each epoch, the same after a kill, and never of held-out examples."""

import shutil

import numpy as np
from device_fakes import PARAMETERS, START, FakeCloud, FakeModel, SoftmaxProgram, fill, live, open_phone, windows
from device_kills import KILLED, live_in_child
from safetensors.numpy import load

from flsys_ray.augmentation.base import augmented
from flsys_ray.augmentation.jitter import Jitter
from flsys_ray.augmentation.rotation import Rotation
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import VirtualClock
from flsys_ray.wire.schemas import AugmentationMessage

TRANSFORMS = (Rotation(max_degrees=20), Jitter(share=0.5))
ASKED = AugmentationMessage(transforms=[transform.model_dump(mode="json") for transform in TRANSFORMS])


def augmenting(rounds: int = 1) -> FakeCloud:
    return FakeCloud(VirtualClock(START + 10_000), FakeModel("har-wild", rounds=rounds, augmentation=ASKED))


def test_a_phone_trains_on_windows_that_are_drawn_anew_in_each_epoch(tmp_path):
    cloud = augmenting()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
        program = SoftmaxProgram(next((tmp_path / "programs").iterdir()))
        x, y, start_s = (np.array(column) for column in zip(*windows(120), strict=True))
    key, entry = next(iter(cloud.models["har-wild"].assignments.items()))
    blocks = {block: number for number, block in enumerate(dict.fromkeys(start_s // 30))}
    held = np.array([blocks[block] % 5 == 4 for block in start_s // 30])
    base = load(cloud.models["har-wild"].versions[0])["parameters"]
    seen = [augmented(TRANSFORMS, x[~held], assignment_id=key, epoch=epoch) for epoch in range(2)]
    assert (seen[0] != seen[1]).any(axis=(1, 2)).all()
    rng = generator(0, "local-training", 0, key)
    expected = program.train(
        base, x[~held], y[~held], epochs=2, learning_rate=0.01, rng=rng, augment=lambda _, epoch: seen[epoch]
    )
    np.testing.assert_array_equal(load(entry.bodies[0])["delta"], expected.parameters - base)
    # The held-out examples are as they were recorded.
    whole = program.evaluate(base, x[held], y[held])
    assert (entry.metrics.count, entry.metrics.correct) == (whole.examples, whole.correct)


def test_training_that_is_killed_and_begun_again_sees_the_same_windows(tmp_path):
    """A kill in the middle of training, at every tenth line of it."""
    filled, folder, cloud = tmp_path / "filled", tmp_path / "phone", augmenting()
    with open_phone(filled, cloud) as phone:
        fill(phone, count=60)
    shutil.copytree(filled, folder)
    cloud = augmenting()
    status, lines = live_in_child(folder, cloud, trace=True)
    assert status == 0
    assert isinstance(lines, list)
    expected = [entry.bodies[0] for entry in cloud.models["har-wild"].assignments.values()]
    assert load(expected[0])["delta"].size == PARAMETERS
    shutil.rmtree(folder)
    about = [n for n, at in enumerate(lines, 1) if at.split(":")[0] in ("trainer.py", "augmenting.py")]
    assert len(about) > 10
    for number in about[:: max(1, len(about) // 10)]:
        cloud = augmenting()
        shutil.copytree(filled, folder)
        assert live_in_child(folder, cloud, kill_at=number)[0] == KILLED
        assert live_in_child(folder, cloud)[0] == 0
        assert [entry.bodies[0] for entry in cloud.models["har-wild"].assignments.values()] == expected
        shutil.rmtree(folder)
