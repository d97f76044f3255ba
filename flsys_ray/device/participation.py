"""The FL phone manager: one durable step after the other, from check-in to evaluation.

All state is in the journal. `step` does one thing and says when it wants to be called again, so a phone can be killed
between any two lines: the next `step`, in a new process, reads the journal and goes on. What it does, in this order:

    no identity         enrol
    a token grows old   renew it, between two assignments
    open work           deliver what is finished, give back what is hopeless, download, train
    nothing open        fetch the newest version, for inference, if the one at hand has become old
                        compare a new one with the phone's own parameters; with the habit, personalise it
                        check in, if the phone is eligible and the cloud's time to come back is there
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flsys_ray.core.plan import LocalTraining
from flsys_ray.device.augmenting import transforms_of
from flsys_ray.device.clock import Clock
from flsys_ray.device.conditions import ConditionsSource, Obstacle, eligible
from flsys_ray.device.controls import Controls
from flsys_ray.device.delivery import deliver
from flsys_ray.device.examples import Batch, ExampleStore, Part
from flsys_ray.device.identity import Identity
from flsys_ray.device.journal import BackReason, FinishedWork, HeldVersion, Journal, OpenAssignment
from flsys_ray.device.mixing import portion
from flsys_ray.device.outcome import Kind, Outcome
from flsys_ray.device.personal import Personaliser
from flsys_ray.device.trainer import Carried, LocalResult, Telling, evaluate_per_class, train_assignment
from flsys_ray.device.uploads import chosen_encoding
from flsys_ray.device.versions import Versions
from flsys_ray.errors import FlsysError, Forbidden, TryLater, Unauthenticated
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.schemas import AssignmentMessage, CheckInRequest, ModelCandidacy

PAUSED_S = 3600.0
LONGEST_WAIT_S = 86_400.0
ASKING_S = 86_400.0  # so long after its deadline an upload is repeated to learn whether it was counted, if a control
# or a residual depends on that: the answer to an earlier one may have been lost


@dataclass(frozen=True, slots=True)
class Habits:
    """How a phone takes part.

    Attributes:
        recheck_s: after so many seconds a phone that was not eligible looks again.
        refresh_after_s: the version at hand is looked after when it is older than this.
        min_new_examples: examples that must have come since the last training; 0: train on the same ones again.
        max_starts: an assignment whose training was killed so often is given back.
        backoff_s, max_backoff_s: the first and the longest wait after failures, drawn with full jitter.
        personalise: train each new version further for this phone alone, and use the result where it is better.
        personal: in which ways: the best is used. None: as the newest assignment says, which is meant for a round.
        label_counts: tell how many examples of each class were trained on, where a plan's selector asks for it.
    """

    recheck_s: float = 60.0
    refresh_after_s: float = 6 * 3600.0
    min_new_examples: int = 0
    max_starts: int = 3
    backoff_s: float = 5.0
    max_backoff_s: float = 900.0
    personalise: bool = False
    personal: tuple[LocalTraining, ...] = ()
    label_counts: bool = False


@dataclass(frozen=True, slots=True)
class Participation:
    """The state machine of one phone. `interrupt` ends a training between two steps, to look at the journal again."""

    models: Sequence[str]
    identity: Identity
    journal: Journal
    examples: ExampleStore
    versions: Versions
    conditions: ConditionsSource
    clock: Clock
    personaliser: Personaliser
    habits: Habits = Habits()
    interrupt: threading.Event = field(default_factory=threading.Event)

    def step(self, stopping: Callable[[], bool]) -> Outcome:
        """Do the next thing, and write down what must last. Never raises for anything that the cloud answers."""
        try:
            outcome = self._next(stopping)
        except FlsysError as error:
            return self._failed(error)
        except (OSError, sqlite3.OperationalError) as error:  # a full disk, say
            now = self.clock.now()
            return Outcome("failed", now, now + self.habits.recheck_s, detail=f"{type(error).__name__}: {error}")
        if outcome.kind != "waiting" and self.journal.database.setting("failures") is not None:
            self.journal.database.set_settings({"failures": None})
        return outcome

    def _next(self, stopping: Callable[[], bool]) -> Outcome:
        now = self.clock.now()
        paused = bool(self.journal.database.setting("paused"))
        items = [item for item in self.journal.open_assignments() if not paused or item.state == "returning"]
        if paused and not items:
            return Outcome("paused", now, now + PAUSED_S)
        if not self.identity.enrolled:
            self.identity.enrol()
            return Outcome("enrolled", now, now)
        if items:
            return self._first_that_moves(items, stopping)
        # Check-ins come as often as the cloud asks: what comes rarely goes before them, or would never have its turn.
        return (
            self._renew(now)
            or self._refresh(now)
            or self._personalise(now, stopping)
            or self._check_in(now)
            or self._wait(now)
        )

    def _first_that_moves(self, items: Sequence[OpenAssignment], stopping: Callable[[], bool]) -> Outcome:
        """One model's troubles must not hold up another's work."""
        trouble: TryLater | None = None
        for item in items:
            try:
                return self._advance(item, stopping)
            except TryLater as error:
                trouble = error
        raise trouble or TryLater("no open work could be continued")

    # One assignment -----------------------------------------------------------------------------------------------

    def _advance(self, item: OpenAssignment, stopping: Callable[[], bool]) -> Outcome:
        now = self.clock.now()
        if item.state == "returning":
            return deliver(item, self.identity, self.journal, now)
        hopeless = self._hopeless(item, now)
        if hopeless:
            return self._give_back(item, hopeless)
        if item.state == "trained":
            return deliver(item, self.identity, self.journal, now)
        if not self.versions.has(item.message):
            return self._download(item)
        return self._evaluate(item) if item.message.kind == "evaluate" else self._train(item, stopping)

    def _hopeless(self, item: OpenAssignment, now: float) -> BackReason | None:
        """Return why nothing can come of an assignment any more, None if something can."""
        model = item.message.model
        if now >= item.deadline_at + (ASKING_S if item.state == "trained" and _leaves_a_state(item) else 0.0):
            return "out-of-time"
        if not self.journal.consent(model):
            return "withdrawn"
        if item.state == "trained":
            return None
        if item.starts >= self.habits.max_starts:
            return "restarted"
        if transforms_of(item.message) is None:
            return "failed"  # this phone cannot augment as it is asked, and must not train as if it had
        obstacles = self._obstacles(model, now)
        if obstacles == ("too-few-examples",):
            return "not-enough-data"
        return "not-eligible" if obstacles else None

    def _give_back(self, item: OpenAssignment, reason: BackReason) -> Outcome:
        self.journal.give_back(item.id, reason)
        returning = replace(item, state="returning", delta=None, evaluation=None, reason=reason)
        return deliver(returning, self.identity, self.journal, self.clock.now())

    def _download(self, item: OpenAssignment) -> Outcome:
        try:
            self.versions.fetch(item.message)
        except (TryLater, Unauthenticated, OSError, sqlite3.OperationalError):
            raise
        except FlsysError:  # another file than announced, or none: no repetition can mend that
            return self._give_back(item, "failed")
        except Exception as error:  # a program that cannot be loaded: as in training
            return replace(self._give_back(item, "failed"), detail=f"failed: {type(error).__name__}: {error}")
        now = self.clock.now()
        return Outcome("downloaded", now, now, item.message.model, item.id)

    def _evaluate(self, item: OpenAssignment) -> Outcome:
        """Do an evaluation assignment. Without a training here all examples are held out."""
        message = item.message
        self.journal.begin_training(item.id)
        try:
            loaded = self.versions.load(message.program.sha256, message.weights.sha256)
            batch = self._unseen(message.model, loaded.program.manifest)
            found = evaluate_per_class(loaded.program, loaded.weights, batch) if batch is not None else None
        except Exception as error:  # as in training
            return replace(self._give_back(item, "failed"), detail=f"failed: {type(error).__name__}: {error}")
        if found is None:
            return self._give_back(item, "not-enough-data" if batch is None else "failed")
        now = self.clock.now()
        if not self.journal.reported(item, found):  # consent was withdrawn in the meantime
            return Outcome("interrupted", now, now, message.model, item.id)
        return deliver(replace(item, state="trained", evaluation=found), self.identity, self.journal, now)

    def _unseen(self, model: str, manifest: Manifest) -> Batch | None:
        """Return the held-out examples, and the others too if none of them was ever trained on here."""
        parts: tuple[Part, ...] = ("held-out",)
        if self.journal.training_record(model).trainings == 0:
            parts = ("held-out", "training")
        read = [self.examples.batch(model, part, manifest.classes, manifest.input_shape) for part in parts]
        found = [batch for batch in read if batch is not None]
        return Batch(np.concatenate([b.x for b in found]), np.concatenate([b.y for b in found])) if found else None

    def _train(self, item: OpenAssignment, stopping: Callable[[], bool]) -> Outcome:
        self.interrupt.clear()
        last_example_id = self.examples.newest_id(item.message.model)
        self.journal.begin_training(item.id)
        try:
            result = self._local_result(item, stopping)
        except Exception as error:  # a program comes from outside: what it raises ends its assignment, not the phone
            return replace(self._give_back(item, "failed"), detail=f"failed: {type(error).__name__}: {error}")
        if result is None:
            return self._give_back(item, "not-enough-data")
        if result.update is None:
            return self._stopped(item)
        now = self.clock.now()
        work = FinishedWork(result.update, result.evaluation, now, last_example_id, result.control, result.residual)
        if not self.journal.trained(item, work):  # consent was withdrawn in the meantime
            return Outcome("interrupted", now, now, item.message.model, item.id)
        about = (item.message.model, item.id, "", result.num_examples, result.loss)
        return Outcome("trained", now, now, *about)

    def _local_result(self, item: OpenAssignment, stopping: Callable[[], bool]) -> LocalResult | None:
        message = item.message
        loaded = self.versions.load(message.program.sha256, message.weights.sha256)
        manifest = loaded.program.manifest
        training = self.examples.batch(message.model, "training", manifest.classes, manifest.input_shape)
        if training is None:
            return None
        held_out = self.examples.batch(message.model, "held-out", manifest.classes, manifest.input_shape)

        def should_stop() -> bool:
            now = self.clock.now()
            over = stopping() or self.interrupt.is_set() or now >= item.deadline_at
            return over or bool(self._unfit(message.model, now))

        server = self.versions.read(message.control) if message.control is not None else None
        controls = Controls(server, self.journal.control(message.model)) if server is not None else None
        carried = Carried(controls, self.journal.residual(message.model), self._portion(message, manifest))
        parts, telling = (training, held_out), Telling(self.clock.now, self.habits.label_counts)
        return train_assignment(loaded.program, loaded.weights, message, parts, should_stop, carried, telling)

    def _portion(self, message: AssignmentMessage, manifest: Manifest) -> Batch | None:
        """Return what of the model's shared set this phone trains on, None if the plan has no share."""
        if message.shared is None:
            return None
        return portion(message.shared, self.versions.read(message.shared), manifest, self.identity.device_id or "")

    def _stopped(self, item: OpenAssignment) -> Outcome:
        now = self.clock.now()
        if now >= item.deadline_at:
            return self._give_back(item, "out-of-time")
        if self._unfit(item.message.model, now):
            return self._give_back(item, "not-eligible")
        self.journal.interrupted(item.id)
        return Outcome("interrupted", now, now, item.message.model, item.id)

    # Between assignments ------------------------------------------------------------------------------------------

    def _renew(self, now: float) -> Outcome | None:
        if not self.identity.renewal_due:
            return None
        try:
            self.identity.renew()
        except Forbidden:
            raise
        except FlsysError:  # the present token is good for a long while yet
            return None
        return Outcome("renewed", now, now)

    def _check_in(self, now: float) -> Outcome | None:
        if self._next_check_in_at(now) > now:
            return None
        candidates = [
            ModelCandidacy(model=model, version=held.version if held else None, examples=self._usable(model))
            for model, held in ((model, self.journal.held(model)) for model in self.models)
            if self.journal.consent(model) and not self._obstacles(model, now)
        ]
        if not candidates:
            return None
        client, request = self.identity.client, CheckInRequest(models=candidates)
        reply = self.identity.call(lambda token: client.check_in(token, request))
        now = self.clock.now()
        # A little later than asked, each phone differently: phones that were told the same do not come at once.
        next_check_in_at = now + min(reply.retry_after_s, LONGEST_WAIT_S) * (1.0 + 0.1 * client.jitter())
        new = self.journal.record_check_in(reply, now, next_check_in_at)
        return Outcome("checked-in", now, now if new else next_check_in_at, detail=str(new))

    def _personalise(self, now: float, stopping: Callable[[], bool]) -> Outcome | None:
        for model in self.models:
            held, own = self.journal.held(model), self.personaliser
            if held is None or not own.due(model, held, automatic=self.habits.personalise):
                continue
            starts = f"personalising:{model}:{held.weights_sha256}"
            started = int(self.journal.database.setting(starts) or 0)
            self.journal.database.set_settings({starts: started + 1})
            trains = self.habits.personalise and started < self.habits.max_starts  # one that kills the phone ends too
            found = own.personalise(model, held, self.habits.personal, stopping) if trains else own.compare(model, held)
            self.journal.database.set_settings({starts: None})
            kind: Kind = "interrupted" if found.refusal == "interrupted" else "personalised"
            return Outcome(kind, now, now, model, detail=found.refusal or ("personal" if found.personal else "shared"))
        return None

    def _refresh(self, now: float) -> Outcome | None:
        for model in self.models:
            held = self.journal.held(model)
            if held and now - held.refreshed_at >= self.habits.refresh_after_s and self.conditions.read(now).unmetered:
                return self._refresh_model(model, held, now)
        return None

    def _refresh_model(self, model: str, held: HeldVersion, now: float) -> Outcome:
        try:
            changed = self.versions.refresh(model)
        except (TryLater, Unauthenticated):
            raise
        except FlsysError as error:  # the model is gone: keep what is here
            self.journal.hold(model, replace(held, refreshed_at=now))
            return Outcome("refused", now, now, model, detail=error.message)
        return Outcome("refreshed", now, now, model, detail="" if changed else "unchanged")

    def _wait(self, now: float) -> Outcome:
        due_at = self._next_check_in_at(now)
        if due_at <= now:
            due_at = now + self.habits.recheck_s * (0.9 + 0.2 * self.identity.client.jitter())
        return Outcome("waiting", now, due_at)

    def _next_check_in_at(self, now: float) -> float:
        found = self.journal.database.setting("next_check_in_at")
        next_at = float(found) if isinstance(found, int | float) else now
        # Further away than any answer puts it: the phone's clock was set back.
        return next_at if next_at <= now + 1.1 * LONGEST_WAIT_S else now

    # Judgement ----------------------------------------------------------------------------------------------------

    def _usable(self, model: str) -> int:
        counts = self.examples.counts(model)
        return counts.training if counts.new >= self.habits.min_new_examples else 0

    def _obstacles(self, model: str, now: float) -> tuple[Obstacle, ...]:
        return eligible(self.conditions.read(now), self.journal.eligibility(model), self._usable(model))

    def _unfit(self, model: str, now: float) -> bool:
        """Whether the conditions (not the examples, which are at hand) forbid to go on."""
        eligibility = self.journal.eligibility(model)
        return bool(eligible(self.conditions.read(now), eligibility, eligibility.min_examples))

    def _failed(self, error: FlsysError) -> Outcome:
        now, database = self.clock.now(), self.journal.database
        failures = min(int(database.setting("failures") or 0) + 1, 30)
        database.set_settings({"failures": failures})
        longest_s = min(self.habits.max_backoff_s, self.habits.backoff_s * 2.0 ** (failures - 1))
        asked_s = error.retry_after_s if isinstance(error, TryLater) else 0.0
        # Not less than a second: a draw near zero must not make a busy loop.
        delay_s = asked_s + max(1.0, longest_s * self.identity.client.jitter())
        return Outcome("failed", now, now + delay_s, detail=f"{error.code}: {error.message}")


def _leaves_a_state(item: OpenAssignment) -> bool:
    """Whether something of the phone's own changes when the update is counted."""
    return item.message.control is not None or chosen_encoding(item.message.upload).keeps_error
