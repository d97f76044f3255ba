"""The API that an app on the phone calls.

    with Phone(folder, PhoneConfig(url, app_key, models=("har-wild",)), conditions=LinuxConditions()) as phone:
        phone.consent("har-wild", granted=True)
        phone.add_samples(timestamps_s, xyz, label="walking")
        threading.Thread(target=phone.run, args=(stop,)).start()
        phone.infer("har-wild", window).labels

Nothing is trained before the user has consented: there is no default. Raw data go into the local database and never
out of it. A phone may be killed at any moment: opened again on the same folder, it goes on.
"""

import contextlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from flsys_ray.data.windows import WindowCutter
from flsys_ray.device.client import CloudClient, Jitter
from flsys_ray.device.clock import Clock, SystemClock
from flsys_ray.device.collector import ExampleSource, feed
from flsys_ray.device.conditions import ConditionsSource
from flsys_ray.device.configuration import PhoneConfig, Shared
from flsys_ray.device.database import Database
from flsys_ray.device.download import FileCache
from flsys_ray.device.examples import Example, ExampleStore
from flsys_ray.device.folder import lock_folder
from flsys_ray.device.identity import Identity
from flsys_ray.device.journal import HeldVersion, Journal
from flsys_ray.device.outcome import Outcome
from flsys_ray.device.participation import Participation
from flsys_ray.device.personal import Personalisation, Personaliser, Ways, personal_accuracy, shared_accuracy
from flsys_ray.device.status import Inference, ModelStatus, PhoneStatus
from flsys_ray.device.trainer import infer
from flsys_ray.device.versions import Versions
from flsys_ray.errors import FlsysError, InvalidInput, NotFound

Used = TypeVar("Used")
_GLANCE_S = 5.0


class Phone:
    """One phone on one folder. Its methods may be called from any thread; `step` and `run` from one at a time.

    Raises:
        Conflict: another process, or another `Phone`, has this folder open.
    """

    def __init__(
        self,
        folder: Path,
        config: PhoneConfig,
        *,
        conditions: ConditionsSource,
        clock: Clock | None = None,
        shared: Shared | None = None,
    ) -> None:
        self.config = config
        self._clock = clock or SystemClock()
        self._shared = shared or Shared()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_file = lock_folder(folder)
        try:
            self._database = Database(folder / "phone.db")
        except BaseException:
            os.close(self._lock_file)
            raise
        self._own_http = self._shared.http is None
        self._http = self._shared.http or httpx2.Client(base_url=config.url, transport=self._shared.transport)
        self._journal = Journal(self._database)
        self._examples = ExampleStore(self._database, config.database_cap_bytes)
        self._cutter = WindowCutter()
        self._feeding = threading.Lock()
        self._woken = threading.Event()
        self._folder = folder
        self._wire(conditions)

    def _wire(self, conditions: ConditionsSource) -> None:
        config, shared = self.config, self._shared
        if self._database.setting("cloud") not in (None, config.url):
            self._journal.forget_cloud()
        self._database.set_settings({"cloud": config.url})
        opened = int(self._database.setting("opened") or 0) + 1
        self._database.set_settings({"opened": opened})
        seed = config.seed if config.seed is not None else int.from_bytes(os.urandom(4)) // 2
        # Not the same waits again after each restart: draws go on where no earlier life of the phone has been.
        jitter = Jitter(seed, drawn=opened * 1_000_000)
        self._client = CloudClient(self._http, self._clock.wait, jitter, config.retry)
        self._identity = Identity(self._database, self._client, self._clock, config.app_key, config.attest)
        files = shared.program_files or FileCache(self._folder / "programs", config.program_cap_bytes)
        weights = FileCache(self._folder / "weights")
        self._versions = Versions(self._identity, self._journal, self._clock, files, weights, shared.programs)
        self._personaliser = Personaliser(self._journal, self._examples, self._versions, conditions, self._clock)
        self._participation = Participation(
            models=config.models,
            identity=self._identity,
            journal=self._journal,
            examples=self._examples,
            versions=self._versions,
            conditions=conditions,
            clock=self._clock,
            personaliser=self._personaliser,
            habits=config.habits,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the phone; open work is resumed by the next `Phone` on this folder."""
        self._wake()
        if self._own_http:
            self._http.close()
        self._database.close()
        os.close(self._lock_file)

    # Taking part --------------------------------------------------------------------------------------------------

    def register(self) -> str:
        """Enrol with the cloud, if that has not been done; return the device's id.

        Raises:
            Unauthenticated: the app key is not valid.
            TryLater: the cloud cannot be reached now. `run` tries again on its own.
        """
        device_id = self._identity.device_id
        return device_id if device_id and self._identity.enrolled else self._identity.enrol()

    def consent(self, model: str, *, granted: bool) -> None:
        """Record the user's decision about training `model` on their data. Without one nothing is trained.

        A withdrawal stops a running training, deletes an update that has not been uploaded, and gives the assignment
        back; the model's personal parameters, control and shared set are deleted.
        """
        self._check(model)
        self._journal.set_consent(model, granted=granted)
        self._versions.tidy()
        self._wake()

    def pause(self) -> None:
        """Stop taking part until `resume`; what has not been uploaded is deleted and given back."""
        with self._database.transaction():
            self._database.set_settings({"paused": 1})
            self._journal.give_back_model(None, "not-eligible")
        self._wake()

    def resume(self) -> None:
        """Take part again."""
        self._database.set_settings({"paused": None})
        self._wake()

    def step(self, *, should_stop: Callable[[], bool] = lambda: False) -> Outcome:
        """Do the next thing of taking part, and say when there will be something to do again.

        `should_stop` is asked between training steps. Never raises for anything that the network or the cloud does.
        """
        try:
            return self._participation.step(should_stop)
        finally:
            self._count_traffic()

    def run(self, stop: threading.Event, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
        """Take part until `stop` is set."""
        while not stop.is_set():
            self._woken.clear()
            outcome = self.step(should_stop=stop.is_set)
            on_outcome(outcome)
            while not stop.is_set() and not self._woken.is_set():
                left_s = outcome.wake_at - self._clock.now()
                if left_s <= 0:
                    break
                self._clock.wait(min(left_s, _GLANCE_S))

    def status(self) -> PhoneStatus:
        """Return what the phone knows of itself. Needs no network."""
        with self._database.transaction():
            work = {item.message.model: item.state for item in self._journal.open_assignments()}
            next_at = self._database.setting("next_check_in_at")
            return PhoneStatus(
                device_id=self._identity.device_id,
                paused=bool(self._database.setting("paused")),
                models=tuple(self._model_status(model, work.get(model)) for model in self.config.models),
                example_bytes=self._examples.total_bytes(),
                bytes_up=int(self._database.setting("bytes_up") or 0),
                bytes_down=int(self._database.setting("bytes_down") or 0),
                next_check_in_at=float(next_at) if isinstance(next_at, int | float) else None,
            )

    # Data ---------------------------------------------------------------------------------------------------------

    def add_samples(self, timestamps_s: ArrayLike, xyz: ArrayLike, label: str | None = None) -> int:
        """Feed readings of the acceleration sensor: UTC seconds [T] and m/s^2 [T, 3] in Android's sign, any T.

        Windows are cut across calls. `label` is a class name of the model's program; windows without one are kept and
        can be named later with `label`.

        Returns:
            how many examples became complete.

        Raises:
            DataInvalid: the shapes do not fit.
            InvalidInput: no model of this phone is fed by samples.
        """
        if not self.config.sensor_models:
            raise InvalidInput("no model takes samples: name it in PhoneConfig.sensor_models, or use add_example")
        with self._feeding:
            labels = [label] * int(np.size(timestamps_s))
            windows = self._cutter.push_many(np.atleast_1d(timestamps_s), np.atleast_2d(xyz), labels)
            examples = [Example(w.x, None, w.label, w.start_s, w.end_s - w.start_s) for w in windows]
            if examples:
                with self._database.transaction():
                    for model in self.config.sensor_models:
                        self._examples.add(model, examples, self._clock.now())
        return len(examples)

    def add_example(self, model: str, x: NDArray[Any], y: int | str, *, at_s: float | None = None) -> None:
        """Add one example in the program's input shape; `y` is a class's index or name. `at_s`: when, UTC seconds.

        Raises:
            InvalidInput: x is not float32 or int32, is not finite, or has another shape than the program (if it is on
                the phone) takes.
        """
        self._check(model)
        self._check_shape(model, x)
        number, label = (None, y) if isinstance(y, str) else (int(y), None)
        self._examples.add(model, [Example(x, number, label, at_s)], self._clock.now())

    def add_text(self, model: str, text: str, label: str) -> None:
        """Add one text with its class's name. It is kept as the ids that the model's own tokenizer makes of it.

        NOTE(production): a model that changes its tokenizer needs a new name; ids of the old one would be misread.

        Raises:
            InvalidInput: the model takes no texts.
            NotFound, TryLater: the program is not on the phone, and cannot be had now.
        """
        self._check(model)
        ids = self._with_version(model, lambda held: self._ids(model, held.program_sha256, [text])[0])
        self.add_example(model, ids, label)

    def label(self, model: str, start_s: float, end_s: float, label: str) -> int:
        """Name what the user did from `start_s` to `end_s` (UTC seconds); return how many examples that names."""
        self._check(model)
        if not (math.isfinite(start_s) and math.isfinite(end_s) and start_s <= end_s):
            raise InvalidInput(f"label: from {start_s} to {end_s} is no span of time")
        return self._examples.label(model, start_s, end_s, label)

    def replay(self, model: str, source: ExampleSource) -> int:
        """Store what of a source is due by now; return how many examples that were."""
        self._check(model)
        return feed(model, source, self._examples, self._clock.now())

    def erase(self) -> None:
        """Delete all examples and versions, withdraw every consent, and give open work back with the next step."""
        with self._database.transaction():
            for model in self.config.models:
                self._journal.set_consent(model, granted=False)
            self._examples.erase()
            self._journal.forget_models()
        with self._feeding:
            self._cutter = WindowCutter()
        self._versions.erase()
        self._database.shrink()
        self._wake()

    # Inference ----------------------------------------------------------------------------------------------------

    def refresh(self, model: str) -> int:
        """Have the newest version on the phone, compared with personal parameters if there are any; return its number.

        Raises:
            NotFound: the cloud has no such model, or no version of it yet.
            TryLater: the cloud cannot be reached now.
        """
        self._check(model)
        self._versions.refresh(model)
        held = self._journal.held(model)
        if held is not None and self._personaliser.due(model, held, automatic=False):
            self._personaliser.compare(model, held)
        return held.version if held else 0

    def personalise(
        self, model: str, *, local: Ways | None = None, should_stop: Callable[[], bool] = lambda: False
    ) -> Personalisation:
        """Train the newest version at hand further for this phone alone, and use what is better on its held-out part.

        Asks the same of consent and conditions as training, between steps too; what stood against it is in `refusal`.
        `local`: how, or several ways to try; by default the newest assignment's. The result never leaves the phone.

        Raises:
            NotFound, TryLater: no version is on the phone, and none can be had now.
        """
        self._check(model)
        return self._with_version(model, lambda held: self._personaliser.personalise(model, held, local, should_stop))

    def infer(self, model: str, x: NDArray[Any], *, max_age_s: float | None = None) -> Inference:
        """Run the newest version, or personal parameters where they are better, on one example or N. Needs no consent.

        Works without a network once a version is on the phone: the newest that came by training or by `run`'s
        refreshing. With `max_age_s`, a version that was not checked for so long is refreshed first, if possible.

        Raises:
            NotFound: no version is on the phone, and the cloud has none.
            TryLater: no version is on the phone, and the cloud cannot be reached.
            DataInvalid: x does not have the program's input shape.
        """
        return self._infer(model, lambda sha256: x, max_age_s)

    def infer_text(self, model: str, *texts: str, max_age_s: float | None = None) -> Inference:
        """Run the newest version on texts, as `infer` does on examples. Raises `InvalidInput` if it takes none."""
        return self._infer(model, lambda sha256: self._ids(model, sha256, texts), max_age_s)

    def _infer(self, model: str, x_for: Callable[[str], NDArray[Any]], max_age_s: float | None) -> Inference:
        """Run the newest version on what `x_for` makes for the program with a given hash."""
        self._check(model)
        held = self._journal.held(model)
        if held is not None and max_age_s is not None and self._clock.now() - held.refreshed_at > max_age_s:
            with contextlib.suppress(FlsysError):  # an older version is better than none
                self.refresh(model)

        def run(held: HeldVersion) -> Inference:
            loaded = self._versions.load(held.program_sha256, held.weights_sha256)
            own = self._personaliser.parameters(model, held)
            scores = infer(loaded.program, own or loaded.weights, x_for(held.program_sha256))
            classes = loaded.program.manifest.classes
            labels = tuple(classes[int(i)] for i in scores.argmax(axis=1))
            return Inference(model, held.version, scores, labels, own is not None)

        return self._with_version(model, run)

    def _with_version(self, model: str, use: Callable[[HeldVersion], Used]) -> Used:
        """Use the newest version on the phone; fetch it if there is none, or if one of its files has just gone."""
        for attempt in range(2):
            held = self._journal.held(model)
            try:
                if held is not None:
                    return use(held)
            except (NotFound, FileNotFoundError):
                if attempt:
                    raise
            self.refresh(model)  # there is none, another thread has just moved on, or a file was evicted
        held = self._journal.held(model)
        if held is None:
            raise NotFound(f"no version of {model} is on this phone")
        return use(held)

    def _ids(self, model: str, program_sha256: str, texts: Sequence[str]) -> NDArray[np.int32]:
        return self._versions.tokenizer(model, program_sha256).batch(texts)

    # Inside -------------------------------------------------------------------------------------------------------

    def _check(self, model: str) -> None:
        if model not in self.config.models:
            raise InvalidInput(f"{model!r} is not a model of this phone: it has {', '.join(self.config.models)}")

    def _check_shape(self, model: str, x: NDArray[Any]) -> None:
        held = self._journal.held(model)
        manifest = self._versions.manifest(held.program_sha256) if held else None
        if manifest and np.shape(x) != manifest.input_shape:
            raise InvalidInput(
                f"example for {model}: x has shape {np.shape(x)}, its program takes {manifest.input_shape}"
            )

    def _wake(self) -> None:
        self._participation.interrupt.set()
        self._personaliser.interrupt.set()
        self._woken.set()

    def _model_status(self, model: str, work: str | None) -> ModelStatus:
        held, record = self._journal.held(model), self._journal.training_record(model)
        own = self._personaliser.record(model)
        return ModelStatus(
            model=model,
            consent=self._journal.consent(model),
            version=held.version if held else None,
            examples=self._examples.counts(model),
            trainings=record.trainings,
            last_trained_at=record.last_trained_at,
            work=work,
            personal=bool(own and own.parameters and own.is_about(held)),
            personal_accuracy=personal_accuracy(own),
            shared_accuracy=shared_accuracy(own),
        )

    def _count_traffic(self) -> None:
        traffic = self._client.traffic
        if traffic.up_bytes or traffic.down_bytes:
            self._journal.count_traffic(traffic.up_bytes, traffic.down_bytes)
            traffic.up_bytes = traffic.down_bytes = 0
