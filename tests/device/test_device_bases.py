"""Compressed downloads on the phone: by steps, from half precision or in full, always the file that was announced."""

from pathlib import Path

import httpx2
import numpy as np
import pytest
from device_fakes import PARAMETERS, START, FakeCloud, FakeModel, SoftmaxProgram, fill, live, open_phone, sha
from device_kills import lines_of_a_life, lives_after_kills, places_in
from device_looks import bodies, broken_off, own_examples
from safetensors.numpy import load

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.public import half, step_to, stepped
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import VirtualClock
from flsys_ray.wire.public_forms import encode_half, encode_step
from flsys_ray.wire.schemas import HalfLink, StepLink, WeightsLink
from flsys_ray.wire.tensors import decode_vector, encode_vector

INT8, TOP_K = Int8(block=64), TopK(fraction=0.05)
MODEL = "/v1/models/har-wild/public"


class Publishing(FakeCloud):
    """A cloud whose model has a public form of each version, and steps between them."""

    def __init__(self, encoding: Encoding = INT8, rounds: int = 3, clock: VirtualClock | None = None) -> None:
        super().__init__(clock or VirtualClock(START + 10_000), FakeModel("har-wild", rounds=rounds))
        self.encoding = encoding
        self.forms: list[np.ndarray] = []
        self.steps: list[StepLink] = []
        self.after = lambda request: self.publish()
        self.publish()

    def publish(self) -> None:
        """Make the forms of versions that have none yet."""
        model = self.models["har-wild"]
        for number in range(len(self.forms), len(model.versions)):
            version = load(model.versions[number])["parameters"]
            public = half(version)
            if self.forms:
                before = self.forms[-1]
                parts = step_to(version, before, self.encoding, generator(0, "download", number))
                public = stepped(before, self.encoding, parts)
                url, digest = self._add("step", encode_step(self.encoding, parts))
                described = {"url": url, "sha256": digest, "encoding": self.encoding.name}
                self.steps.append(StepLink(before=sha(encode_vector("parameters", before)), **described))
            self.forms.append(public)
            url, digest = self._add("full", encode_vector("parameters", public))
            half_url, half_digest = self._add("half", encode_half(public))
            model.public[number] = WeightsLink(
                url=url, sha256=digest, half=HalfLink(url=half_url, sha256=half_digest), steps=self.steps[-3:]
            )

    def _add(self, way: str, body: bytes) -> tuple[str, str]:
        self.models["har-wild"].files[sha(body)] = body
        return f"{MODEL}/{way}/{sha(body)}", sha(body)

    def ways(self) -> list[str]:
        """Return which ways were downloaded, in order; ranges of one file are several."""
        return [request.url.path.split("/")[5] for request in self.calls(rf"GET {MODEL}/.*")]


def spoil(cloud: Publishing, way: str) -> None:
    """Have other bytes behind the addresses of a way."""
    model = cloud.models["har-wild"]
    links = {"half": [link.half for link in model.public.values()], "step": cloud.steps}[way]
    for link in links:
        model.files[link.sha256] = model.files[link.sha256][:-1] + b"x"


@pytest.mark.parametrize("encoding", [INT8, TOP_K], ids=["int8", "top_k"])
def test_the_first_is_had_in_half_precision_and_the_next_ones_by_a_step(tmp_path, encoding):
    cloud = Publishing(encoding)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
        program = SoftmaxProgram(next((tmp_path / "programs").iterdir()))
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 3
    assert cloud.ways() == ["half", "step", "step"]
    # It trains from the form, and tells of the difference to the form.
    x, y, _, _ = own_examples()
    for number, key in enumerate(cloud.models["har-wild"].assignments):
        rng = generator(0, "local-training", number, key)
        trained = program.train(cloud.forms[number], x, y, epochs=2, learning_rate=0.01, rng=rng)
        np.testing.assert_array_equal(load(bodies(cloud)[number])["delta"], trained.parameters - cloud.forms[number])
    link = cloud.models["har-wild"].public[2]
    kept = (tmp_path / "weights" / link.sha256).read_bytes()
    np.testing.assert_array_equal(decode_vector(kept, "parameters", PARAMETERS), cloud.forms[2])
    # Of the forms only the last one is kept, which the next step begins with.
    assert not any(
        (tmp_path / "weights" / cloud.models["har-wild"].public[number].sha256).exists() for number in (0, 1)
    )


def test_a_phone_that_was_away_goes_several_steps_at_once(tmp_path):
    cloud = Publishing(TOP_K, rounds=4)
    model = cloud.models["har-wild"]
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, most=6)
        assert cloud.ways() == ["half"]
        for number in range(2):  # others trained meanwhile
            moved = load(model.versions[-1])["parameters"] + np.float32(0.01 * (number + 1))
            model.versions.append(encode_vector("parameters", moved))
            cloud.publish()
        live(phone, cloud, most=6)
    assert cloud.ways()[1:4] == ["step", "step", "step"]
    assert "full" not in cloud.ways()


@pytest.mark.parametrize(
    ("spoilt", "expected"),
    [
        (["step"], ["half", "step", "step", "half"]),
        (["half"], ["half", "half", "full", "step"]),
        (["half", "step"], ["half", "half", "full", "step", "step", "half", "half", "full"]),
    ],
    ids=["step", "half", "both"],
)
def test_what_is_not_what_was_announced_is_never_trained_on(tmp_path, spoilt, expected):
    """A file with another hash is asked for twice, and then the next larger way is taken."""
    cloud = Publishing(rounds=2)
    publish = cloud.publish

    def publish_spoilt() -> None:
        if len(cloud.forms) < len(cloud.models["har-wild"].versions):
            publish()
            for way in spoilt:
                spoil(cloud, way)

    cloud.after = lambda request: publish_spoilt()
    for way in spoilt:
        spoil(cloud, way)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 2
    assert cloud.ways() == expected


def test_steps_that_lead_elsewhere_are_noticed(tmp_path):
    """Each file is what was announced, but the parameters behind them are not."""
    cloud = Publishing(rounds=2)
    publish = cloud.publish

    def publish_astray() -> None:
        if len(cloud.forms) < len(cloud.models["har-wild"].versions):
            publish()
            model, number = cloud.models["har-wild"], len(cloud.forms) - 1
            parts = step_to(cloud.forms[-1] + 1, cloud.forms[-2], INT8, generator(1, "download"))
            url, digest = cloud._add("step", encode_step(INT8, parts))
            astray = cloud.steps[-1].model_copy(update={"url": url, "sha256": digest})
            model.public[number] = model.public[number].model_copy(update={"steps": [astray]})

    cloud.after = lambda request: publish_astray()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.ways() == ["half", "step", "half"]
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 2


def test_a_step_in_an_encoding_of_a_later_release_is_not_downloaded(tmp_path):
    cloud = Publishing(rounds=2)
    publish = cloud.publish

    def publish_later() -> None:
        publish()
        for number, link in cloud.models["har-wild"].public.items():
            later = [step.model_copy(update={"encoding": "of-a-later-release"}) for step in link.steps]
            cloud.models["har-wild"].public[number] = link.model_copy(update={"steps": later})

    cloud.after = lambda request: publish_later()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.ways() == ["half", "half"]
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 2


def test_a_phone_of_before_takes_the_file_in_full(tmp_path):
    """It does not read the fields of smaller ways: as if they were not there."""
    cloud = Publishing(rounds=2)
    publish = cloud.publish

    def publish_plainly() -> None:
        publish()
        public = cloud.models["har-wild"].public
        for number, link in public.items():
            public[number] = WeightsLink(url=link.url, sha256=link.sha256)

    cloud.after = lambda request: publish_plainly()
    publish_plainly()
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.ways() == ["full", "full"]
    assert cloud.models["har-wild"].outcomes() == ["counted"] * 2


def test_a_smaller_way_that_is_gone_is_no_trouble(tmp_path):
    cloud = Publishing(rounds=1)
    link = cloud.models["har-wild"].public[0]
    del cloud.models["har-wild"].files[link.half.sha256]
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert cloud.ways() == ["half", "full"]
    assert cloud.models["har-wild"].outcomes() == ["counted"]


def test_a_download_of_a_smaller_way_that_breaks_off_is_continued(tmp_path):
    cloud = Publishing(rounds=1)

    def broken(request: httpx2.Request) -> httpx2.Response | None:
        return broken_off(cloud, request, 500)

    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        cloud.faults = [lambda request: None] * 3 + [broken]
        live(phone, cloud)
    ranges = [request.headers.get("Range") for request in cloud.calls(rf"GET {MODEL}/half/.*")]
    assert ranges == [None, "bytes=500-"]
    assert cloud.models["har-wild"].outcomes() == ["counted"]


@pytest.mark.parametrize("cloud_of", [Publishing, FakeCloud], ids=["public form", "version itself"])
def test_a_program_that_this_phone_cannot_load_ends_its_assignment_and_not_the_phone(tmp_path, cloud_of):
    cloud = cloud_of(clock=VirtualClock(START + 10_000))

    def too_new(path: Path) -> SoftmaxProgram:
        raise ValueError("an operator of a later runtime")

    with open_phone(tmp_path, cloud, load_program=too_new) as phone:
        fill(phone)
        live(phone, cloud, most=6)
    assert cloud.models["har-wild"].outcomes() == ["given-back"]


@pytest.mark.parametrize("end", ["withdrawal", "erasure", "refresh"])
def test_the_form_goes_with_consent_and_erasure_and_stays_over_a_refresh(tmp_path, end):
    cloud = Publishing(rounds=2)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, most=6)
        digest = cloud.models["har-wild"].public[0].sha256
        if end == "refresh":
            assert phone.refresh("har-wild") == 1
            assert (tmp_path / "weights" / digest).exists()
            live(phone, cloud)
            assert cloud.ways() == ["half", "step"]
        elif end == "erasure":
            phone.erase()
            assert not (tmp_path / "weights" / digest).exists()
        else:
            phone.refresh("har-wild")
            phone.consent("har-wild", granted=False)
            assert not (tmp_path / "weights" / digest).exists()


def test_an_exact_version_at_hand_infers_rather_than_the_form_of_the_same_one(tmp_path):
    cloud = Publishing(rounds=2)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud, most=6)
        phone.refresh("har-wild")
        live(phone, cloud, most=3)
        held = phone._journal.held("har-wild")
    assert (held.version, held.weights_sha256) == (1, sha(cloud.models["har-wild"].versions[1]))
    assert cloud.ways() == ["half", "step"]


def test_killed_at_any_line_the_same_updates_are_sent(tmp_path):
    filled, folder = tmp_path / "filled", tmp_path / "phone"
    with open_phone(filled, Publishing()) as phone:
        fill(phone, count=60)
    cloud = Publishing(rounds=2)
    lines = lines_of_a_life(filled, folder, cloud)
    expected = bodies(cloud)
    assert (len(expected), cloud.ways()) == (2, ["half", "step"])
    about = places_in(lines, "bases.py", "versions.py", "download.py")
    assert len(about) > 60
    numbers = about[:: len(about) // 15]
    for cloud, where in lives_after_kills(filled, folder, lines, numbers, lambda: Publishing(rounds=2)):
        assert bodies(cloud) == expected, where
        assert "full" not in cloud.ways(), where


def test_folders_of_phones_hold_no_file_under_a_wrong_name(tmp_path: Path):
    cloud = Publishing(TOP_K)
    with open_phone(tmp_path, cloud) as phone:
        fill(phone)
        live(phone, cloud)
    assert all(sha(path.read_bytes()) == path.name for path in (tmp_path / "weights").iterdir())
