"""The phone's journal: every assignment and how far it got, written down before the next thing is done.

    assigned ──▶ trained ──▶ settled            each arrow is one durable transaction
        └───────────┴──▶ returning ──▶ settled

`trained` holds the very bytes to upload: a repeated upload repeats them. Its evaluation is sent first: the upload may
end the round. It also holds what the phone's own control and residual become: that happens in the transaction that
notes "counted", once, or not at all. `returning` is a give-back that the cloud has not heard of yet. A settled
assignment is remembered, so that an old message cannot start it again.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from flsys_ray.core.plan import Eligibility, LocalTraining
from flsys_ray.device.database import Database, Row
from flsys_ray.wire.schemas import AssignmentMessage, CheckInReply, EvaluationRequest, GiveBackRequest

State = Literal["assigned", "trained", "returning"]
Ending = Literal["done", "given-back", "late", "refused"]
BackReason = Literal["not-eligible", "not-enough-data", "failed", "restarted", "out-of-time", "withdrawn"]

Kept = Literal["shared", "public"]  # files: the model's shared set, and what it was trained from last

REMEMBERED = 200
_KEPT = "key LIKE 'shared:%' OR key LIKE 'public:%'"
_OWN = {"controls": "control", "residuals": "residual"}  # what changes when an update is counted: table and column

_RETURN = (
    "UPDATE assignments SET state = 'returning', reason = ?1, delta = NULL, evaluation = NULL"
    " WHERE settled_at IS NULL AND state IN ('assigned', 'trained')"
)
_OPEN = (
    "SELECT state, message, deadline_at, starts, delta, evaluation, reason FROM assignments WHERE settled_at IS NULL"
)


@dataclass(frozen=True, slots=True)
class OpenAssignment:
    """An assignment that is not settled. `deadline_at` is UTC seconds; `delta`: the bytes to upload."""

    state: State
    message: AssignmentMessage
    deadline_at: float
    starts: int
    delta: bytes | None
    evaluation: EvaluationRequest | None
    reason: BackReason

    @property
    def id(self) -> str:
        """The assignment's id."""
        return self.message.assignment_id


@dataclass(frozen=True, slots=True)
class FinishedWork:
    """What training left: the bytes to upload, the evaluation to report, and the newest example that it knew.

    `control` and `residual` are the phone's own once the update is counted, if there are any.
    """

    delta: bytes
    evaluation: EvaluationRequest | None
    finished_at: float
    last_example_id: int
    control: bytes | None = None
    residual: bytes | None = None


@dataclass(frozen=True, slots=True)
class HeldVersion:
    """The newest version on the phone: its number, and the hashes of its two files. `refreshed_at`: UTC seconds."""

    version: int
    weights_sha256: str
    program_sha256: str
    refreshed_at: float


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """How often a model was trained on this phone, and when last (UTC seconds)."""

    trainings: int = 0
    last_trained_at: float | None = None


@dataclass(frozen=True, slots=True)
class Journal:
    """Assignments, consent and versions in the database. Every method is one durable transaction."""

    database: Database

    # Assignments --------------------------------------------------------------------------------------------------

    def record_check_in(self, reply: CheckInReply, now: float, next_check_in_at: float) -> int:
        """Store what a check-in brought; return how many of its assignments are new."""
        with self.database.transaction():
            for model, eligibility in reply.eligibility.items():
                self._touch(model)
                self.database.write(
                    "UPDATE models SET eligibility = ? WHERE model = ?", (eligibility.model_dump_json(), model)
                )
            new = sum(
                self.database.write(
                    "INSERT OR IGNORE INTO assignments (assignment_id, model, state, message, received_at, deadline_at)"
                    " VALUES (?, ?, 'assigned', ?, ?, ?)",
                    (item.assignment_id, item.model, item.model_dump_json(), now, now + item.deadline_s),
                )
                for item in reply.assignments
            )
            habits = {f"local:{item.model}": item.local.model_dump_json() for item in reply.assignments}
            self.database.set_settings({"next_check_in_at": next_check_in_at, **habits})
        return new

    def local(self, model: str) -> LocalTraining:
        """Return the local hyper-parameters of the newest assignment; a plan's default before the first one."""
        found = self.database.setting(f"local:{model}")
        return LocalTraining.model_validate_json(str(found)) if found else LocalTraining()

    def open_assignments(self) -> list[OpenAssignment]:
        """Return what is not settled, the nearest deadline first."""
        return [_assignment(row) for row in self.database.rows(f"{_OPEN} ORDER BY deadline_at, assignment_id")]

    def begin_training(self, assignment_id: str) -> None:
        """Count one more start, before the first step: an assignment that kills the phone must not do so for ever."""
        self.database.write("UPDATE assignments SET starts = starts + 1 WHERE assignment_id = ?", (assignment_id,))

    def interrupted(self, assignment_id: str) -> None:
        """An orderly stop in the middle of training is no sign of trouble: take its start back."""
        self.database.write("UPDATE assignments SET starts = starts - 1 WHERE assignment_id = ?", (assignment_id,))

    def trained(self, item: OpenAssignment, work: FinishedWork) -> bool:
        """Store the bytes of the update, once. Return False, changing nothing, if the assignment is not open for it."""
        text = work.evaluation.model_dump_json() if work.evaluation else None
        with self.database.transaction():
            stored = self.database.write(
                "UPDATE assignments SET state = 'trained', delta = ?, evaluation = ?, control = ?, residual = ?"
                " WHERE assignment_id = ? AND state = 'assigned' AND settled_at IS NULL AND delta IS NULL",
                (work.delta, text, work.control, work.residual, item.id),
            )
            if stored:
                self._touch(item.message.model)
                self.database.write(
                    "UPDATE models SET trainings = trainings + 1, last_trained_at = ?, last_trained_id = ?"
                    " WHERE model = ?",
                    (work.finished_at, work.last_example_id, item.message.model),
                )
        return bool(stored)

    def reported(self, item: OpenAssignment, evaluation: EvaluationRequest) -> bool:
        """Store what an evaluation assignment found, once. Return False if the assignment is not open for it."""
        return bool(
            self.database.write(
                "UPDATE assignments SET state = 'trained', evaluation = ?"
                " WHERE assignment_id = ? AND state = 'assigned' AND settled_at IS NULL",
                (evaluation.model_dump_json(), item.id),
            )
        )

    def evaluated(self, assignment_id: str) -> None:
        """The evaluation is with the cloud, or will never be: only the update is left."""
        self.database.write("UPDATE assignments SET evaluation = NULL WHERE assignment_id = ?", (assignment_id,))

    def give_back(self, assignment_id: str, reason: BackReason) -> None:
        """Decide to give an assignment back; its delta, if it has one, is deleted with this."""
        self.database.write(
            f"{_RETURN} AND assignment_id = ?2",
            (reason, assignment_id),
        )

    def give_back_model(self, model: str | None, reason: BackReason) -> None:
        """Decide to give back all open work of one model, or of all; deltas that are not uploaded are deleted."""
        self.database.write(f"{_RETURN} AND (?2 IS NULL OR model = ?2)", (reason, model))

    def counted(self, assignment_id: str, now: float, detail: str = "") -> None:
        """Close an assignment whose update is counted: what it made of control and residual holds from now on."""
        with self.database.transaction():
            for table, column in _OWN.items():
                self.database.write(
                    f"INSERT OR REPLACE INTO {table} (model, {column}) SELECT model, {column} FROM assignments"
                    f" WHERE assignment_id = ? AND settled_at IS NULL AND {column} IS NOT NULL",
                    (assignment_id,),
                )
            self.settle(assignment_id, "done", now, detail)

    def control(self, model: str) -> bytes | None:
        """Return the phone's own control of a model (safetensors), None before the first counted update."""
        found = self.database.row("SELECT control FROM controls WHERE model = ?", (model,))
        return found[0] if found and isinstance(found[0], bytes) else None

    def residual(self, model: str) -> bytes | None:
        """Return what the phone's last counted update left out (safetensors), None if it left nothing out."""
        found = self.database.row("SELECT residual FROM residuals WHERE model = ?", (model,))
        return found[0] if found and isinstance(found[0], bytes) else None

    def settle(self, assignment_id: str, ending: Ending, now: float, detail: str = "") -> None:
        """Close an assignment; its token and bytes are deleted, its id is remembered."""
        with self.database.transaction():
            self.database.write(
                "UPDATE assignments SET settled_at = ?, state = ?, detail = ?, message = NULL, delta = NULL,"
                " evaluation = NULL, control = NULL, residual = NULL WHERE assignment_id = ? AND settled_at IS NULL",
                (now, ending, detail[:500], assignment_id),
            )
            self.database.write(
                "DELETE FROM assignments WHERE settled_at IS NOT NULL AND assignment_id NOT IN"
                " (SELECT assignment_id FROM assignments WHERE settled_at IS NOT NULL"
                " ORDER BY settled_at DESC LIMIT ?)",
                (REMEMBERED,),
            )

    def endings(self) -> dict[str, Ending]:
        """Return how the remembered assignments ended, by id."""
        rows = self.database.rows("SELECT assignment_id, state FROM assignments WHERE settled_at IS NOT NULL")
        return {str(key): _ending(state) for key, state in rows}

    def forget_cloud(self) -> None:
        """Another cloud, another identity: drop what belongs to the old one. Examples and consent stay."""
        with self.database.transaction():
            self.database.write("DELETE FROM assignments")
            self.database.write("DELETE FROM personal")
            for table in _OWN:
                self.database.write(f"DELETE FROM {table}")
            self.database.write(
                "UPDATE models SET version = NULL, weights_sha256 = NULL, program_sha256 = NULL, refreshed_at = 0,"
                " eligibility = NULL"
            )
            self.database.write(f"DELETE FROM settings WHERE {_KEPT}")
            self.database.set_settings({"device_id": None, "token": None, "next_check_in_at": None, "failures": None})

    def count_traffic(self, up_bytes: int, down_bytes: int) -> None:
        """Add to the bytes since the installation."""
        with self.database.transaction():
            for key, more in (("bytes_up", up_bytes), ("bytes_down", down_bytes)):
                self.database.set_settings({key: int(self.database.setting(key) or 0) + more})

    # Models -------------------------------------------------------------------------------------------------------

    def consent(self, model: str) -> bool:
        """Whether the user allows training of `model`. Nobody asked means no."""
        found = self.database.row("SELECT consent FROM models WHERE model = ?", (model,))
        return bool(found and found[0])

    def set_consent(self, model: str, *, granted: bool) -> None:
        """Record the user's decision; a withdrawal ends open work, and deletes all that training left here."""
        with self.database.transaction():
            self._touch(model)
            self.database.write("UPDATE models SET consent = ? WHERE model = ?", (int(granted), model))
            if not granted:
                self.give_back_model(model, "withdrawn")
                self.keep("shared", model, None)
                self.keep("public", model, None)
                self.database.write("DELETE FROM personal WHERE model = ?", (model,))
                for table, column in _OWN.items():
                    self.database.write(f"DELETE FROM {table} WHERE model = ?", (model,))
                    self.database.write(f"UPDATE assignments SET {column} = NULL WHERE model = ?", (model,))

    def eligibility(self, model: str) -> Eligibility:
        """Return the newest known eligibility of the model's plan; a plan's default before the first check-in."""
        found = self.database.row("SELECT eligibility FROM models WHERE model = ?", (model,))
        return Eligibility.model_validate_json(str(found[0])) if found and found[0] else Eligibility()

    def held(self, model: str) -> HeldVersion | None:
        """Return the newest version on the phone, None if it has none."""
        found = self.database.row(
            "SELECT version, weights_sha256, program_sha256, refreshed_at FROM models WHERE model = ?", (model,)
        )
        if not found or found[0] is None:
            return None
        return HeldVersion(int(found[0]), str(found[1]), str(found[2]), float(found[3] or 0))

    def hold(self, model: str, version: HeldVersion) -> None:
        """Remember the newest version on the phone."""
        with self.database.transaction():
            self._touch(model)
            self.database.write(
                "UPDATE models SET version = ?, weights_sha256 = ?, program_sha256 = ?, refreshed_at = ?"
                " WHERE model = ?",
                (version.version, version.weights_sha256, version.program_sha256, version.refreshed_at, model),
            )

    def forget_models(self) -> None:
        """Forget which versions are here, that they were trained, and how far sources of examples were read."""
        with self.database.transaction():
            self.database.write("UPDATE models SET version = NULL, trainings = 0, last_trained_at = NULL")
            self.database.write("DELETE FROM settings WHERE key LIKE 'source:%'")

    def training_record(self, model: str) -> TrainingRecord:
        """Return how often and when last the model was trained here."""
        found = self.database.row("SELECT trainings, last_trained_at FROM models WHERE model = ?", (model,))
        if not found:
            return TrainingRecord()
        return TrainingRecord(int(found[0] or 0), None if found[1] is None else float(found[1]))

    def weights_in_use(self) -> set[str]:
        """Return the hashes of files that work to be done or inference needs, or that are kept for the next work."""
        held = {
            str(row[0]) for row in self.database.rows("SELECT weights_sha256 FROM models WHERE version IS NOT NULL")
        }
        messages = [item.message for item in self.open_assignments() if item.state == "assigned"]
        open_ = {link.sha256 for message in messages for link in (*message.extras, *message.weights.smaller)}
        kept = {str(row[0]) for row in self.database.rows(f"SELECT value FROM settings WHERE {_KEPT}")}
        return held | open_ | kept | {message.weights.sha256 for message in messages}

    def keep(self, what: Kept, model: str, sha256: str | None) -> None:
        """Keep a file for the model's next assignments, in place of the one before; None: no file."""
        key = f"{what}:{model}"
        if self.database.setting(key) != sha256:
            self.database.set_settings({key: sha256})

    def _touch(self, model: str) -> None:
        self.database.write("INSERT OR IGNORE INTO models (model) VALUES (?)", (model,))


def _ending(value: object) -> Ending:
    return next(ending for ending in get_args(Ending) if ending == value)


def _assignment(row: Row) -> OpenAssignment:
    state, message, deadline_at, starts, delta, evaluation, reason = row
    return OpenAssignment(
        state=next(known for known in get_args(State) if known == state),
        message=AssignmentMessage.model_validate_json(str(message), extra="ignore"),
        deadline_at=float(deadline_at or 0),
        starts=int(starts or 0),
        delta=delta if isinstance(delta, bytes) else None,
        evaluation=EvaluationRequest.model_validate_json(str(evaluation)) if evaluation else None,
        reason=GiveBackRequest.model_validate({"reason": reason or "failed"}).reason,
    )
