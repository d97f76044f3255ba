"""Transforms on the phone: drawn anew in each epoch, the same after a kill, and never of held-out examples."""

import numpy as np
from device_fakes import PARAMETERS, START, FakeCloud, FakeModel, SoftmaxProgram, fill, live, open_phone
from device_kills import lines_of_a_life, lives_after_kills, places_in
from device_looks import bodies, own_examples
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
    x, y, x_held, y_held = own_examples()
    key, entry = next(iter(cloud.models["har-wild"].assignments.items()))
    base = load(cloud.models["har-wild"].versions[0])["parameters"]
    seen = [augmented(TRANSFORMS, x, assignment_id=key, epoch=epoch) for epoch in range(2)]
    assert (seen[0] != seen[1]).any(axis=(1, 2)).all()
    rng = generator(0, "local-training", 0, key)
    expected = program.train(base, x, y, epochs=2, learning_rate=0.01, rng=rng, augment=lambda _, epoch: seen[epoch])
    np.testing.assert_array_equal(load(entry.bodies[0])["delta"], expected.parameters - base)
    # The held-out examples are as they were recorded.
    whole = program.evaluate(base, x_held, y_held)
    assert (entry.metrics.count, entry.metrics.correct) == (whole.examples, whole.correct)


def test_training_that_is_killed_and_begun_again_sees_the_same_windows(tmp_path):
    """A kill in the middle of training, at every tenth line of it."""
    filled, folder, cloud = tmp_path / "filled", tmp_path / "phone", augmenting()
    with open_phone(filled, cloud) as phone:
        fill(phone, count=60)
    cloud = augmenting()
    lines = lines_of_a_life(filled, folder, cloud)
    expected = bodies(cloud)
    assert load(expected[0])["delta"].size == PARAMETERS
    about = places_in(lines, "trainer.py", "augmenting.py")
    assert len(about) > 10
    for cloud, where in lives_after_kills(filled, folder, lines, about[:: max(1, len(about) // 10)], augmenting):
        assert bodies(cloud) == expected, where
