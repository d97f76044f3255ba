"""Evaluation assignments on the phone: what it never trained on, class by class; nothing but counts leaves."""

import numpy as np
import pytest
from device_fakes import PARAMETERS, FakeCloud, FakeModel, fill, live, open_phone, problem

from flsys_ray.wire.tensors import encode_vector


class Evaluates(FakeCloud):
    """A cloud whose assignments are all of the kind `evaluate`."""

    def _offer(self, model, device):
        offer = super()._offer(model, device)
        entry = next((e for e in model.assignments.values() if e.device == device), None)
        if offer is None or entry.metrics is not None:
            return None
        return offer.model_copy(update={"kind": "evaluate"})


@pytest.fixture
def cloud(clock) -> FakeCloud:
    vector = np.zeros(PARAMETERS, np.float32)
    vector[-1] = 1.0  # says "running" of everything
    return Evaluates(clock, FakeModel("har-wild", versions=[encode_vector("parameters", vector)]))


def reported(cloud):
    return next(iter(cloud.models["har-wild"].assignments.values())).metrics


def test_all_examples_of_a_phone_that_never_trained(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        kinds = live(phone, cloud, 60)
        assert phone.status().models[0].trainings == 0
        assert list(phone._journal.endings().values()) == ["done"]
    assert kinds[:4] == ["enrolled", "checked-in", "downloaded", "evaluated"]
    metrics = reported(cloud)
    assert metrics.count == 120
    assert [(each.label, each.count, each.correct) for each in metrics.per_class] == [
        (0, 48, 0),
        (1, 48, 0),
        (2, 24, 24),
    ]
    assert metrics.correct == 24
    assert not cloud.calls("PUT .*/update")


def test_the_held_out_part_of_one_that_did(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        phone._database.write("UPDATE models SET trainings = 1")
        held_out = phone.status().models[0].examples.held_out
        live(phone, cloud, 60)
    assert reported(cloud).count == held_out < 120


def test_it_is_repeated_until_the_cloud_takes_it(tmp_path, cloud):
    faults = [None] * 4 + [lambda request: problem(503, "try-later", "busy")] * 9
    cloud.faults = faults
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        kinds = live(phone, cloud, 600)
        assert list(phone._journal.endings().values()) == ["done"]
    assert "failed" in kinds
    assert reported(cloud).count == 120


@pytest.mark.parametrize(("status", "code", "ending"), [(410, "late", "late"), (422, "invalid-input", "refused")])
def test_a_refusal_ends_it(tmp_path, cloud, status, code, ending):
    cloud.faults = [None] * 4 + [lambda request: problem(status, code, "no")]
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        kinds = live(phone, cloud, 20)
        assert list(phone._journal.endings().values()) == [ending]
    assert ending in kinds


def test_without_consent_it_is_given_back(tmp_path, cloud):
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        while phone.step().kind != "downloaded":
            pass
        phone.consent("har-wild", granted=False)
        assert phone.step().detail == "withdrawn"
    assert reported(cloud) is None
