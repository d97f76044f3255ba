"""A model's event log: its whole state, as a row of objects that are made once.

Each entry says what happened and repeats the *head*, everything that must be known to go on from there. So the last
entry is the state, and the log is the history. Who wants to change the model appends the next entry; since an object
can be made only once, of two that believe to own the model one wins and the other learns that it lost. That is the only
fence: a round commits *by* its entry.
"""

import uuid
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from flsys_ray.cloud import places
from flsys_ray.core.ids import model_name
from flsys_ray.errors import AlreadyExists, Missing, NotFound, OwnershipLost
from flsys_ray.storage.base import ObjectStore, last_key
from flsys_ray.wire.developer_schemas import PublicForm, RoundInfo, UpdateLine
from flsys_ray.wire.schemas import State

Kind = Literal[
    "created",
    "planned",
    "programmed",
    "augmented",  # there is another shared set
    "started",
    "paused",
    "resumed",
    "stopped",
    "archived",
    "activated",
    "closed",  # a round ended, with a version or without
    "restored",  # a round was given up, and a version made that has the numbers of an older one
    "promoted",
]
KEPT, KEPT_IDS = 128, 20_000  # entries of which the assignments are remembered: a few megabytes at most
ROUND_ENDS: tuple[Kind, ...] = ("closed", "restored")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class VersionRef(_Record):
    """Where a version's numbers are, and what made it: the log's entry of that number, under a plan.

    `restored_from` is the older version that it has its numbers from, if it has. `shared_sha256` is the shared set of
    which the devices of its round mixed in a share, if they did, `public` what devices of the next one train from.
    """

    number: int
    entry: int
    plan_sha256: str
    weights_sha256: str
    optimizer_sha256: str
    optimizer_step: int
    restored_from: int | None = None
    control_sha256: str | None = None
    shared_sha256: str | None = None
    public: PublicForm | None = None


class Head(_Record):
    """A model's state. `plan_sha256` is the plan of the next round, `round_plan_sha256` that of the open one.

    `shared_sha256` and `round_shared_sha256` are their shared sets; a plan without a share leaves them alone.

    `promoted` is the version that is pinned for inference; None: the newest. Updates of rounds before `restored_round`
    do not count any more: they belong to versions that were given up.
    """

    app_id: str
    state: State = "draft"
    plan_sha256: str
    round_plan_sha256: str
    program_sha256: str | None = None
    shared_sha256: str | None = None
    round_shared_sha256: str | None = None
    version: VersionRef | None = None
    round: int = 0
    opened_at: float = 0.0
    last_round: RoundInfo | None = None
    promoted: int | None = None
    restored_round: int = 0
    stored_bytes: int = 0

    @property
    def serving(self) -> int | None:
        """The version that inference uses; None before the start."""
        return self.promoted if self.promoted is not None or self.version is None else self.version.number


class Entry(_Record):
    """One event. `updates` are those of the version that a `closed` entry commits, in assignment order.

    `closed_before` is the last entry before this one that closed a round, -1 if none did: who looks for what made the
    last versions need not read what an owner that came and went left between them. None: written before it was noted.
    """

    seq: int
    kind: Kind
    at: float
    owner: str
    head: Head
    updates: tuple[UpdateLine, ...] = ()
    closed_before: int | None = None


class Ended(NamedTuple):
    """Of an entry: the round that was open after it, the assignments in its version, and where to look before it."""

    round_after: int
    assignments: frozenset[str]
    before: int


class Journal:
    """The log of one model, as seen by one owner. `owner` is new with each object: no two are ever the same."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self.store = store
        self.model = model
        self.owner = uuid.uuid4().hex
        self._next = 0
        self._closed: int | None = -1
        self._ended: dict[int, Ended] = {}

    @property
    def next_entry(self) -> int:
        """The number of the entry that is appended next."""
        return self._next

    def read_tail(self) -> Entry:
        """Return the last entry, and append behind it from now on. Raises `NotFound` for an empty log."""
        key = last_key(self.store, places.log(self.model))
        if key is None:
            raise NotFound(f"model {self.model!r} does not exist")
        entry = self._read(key)
        self._go_behind(entry)
        return entry

    def take_over(self, clock: Callable[[], float]) -> Head:
        """Become the model's owner: append behind whoever was. Raises `NotFound`, `OwnershipLost`."""
        for _ in range(20):
            head = self.read_tail().head
            try:
                self.append("activated", head, clock())
            except OwnershipLost:
                continue  # another one activated between reading and appending: take over from it
            return head
        raise OwnershipLost(
            f"model {model_name(self.model)!r} is being taken over by others all the time: try again", 5.0
        )

    def append(self, kind: Kind, head: Head, at: float, updates: tuple[UpdateLine, ...] = ()) -> Entry:
        """Write the next entry: when it returns, it happened.

        Raises:
            OwnershipLost: another owner wrote there first. Nothing that this owner knows counts any more.
        """
        entry = Entry(
            seq=self._next,
            kind=kind,
            at=at,
            owner=self.owner,
            head=head,
            updates=updates,
            closed_before=self._closed,
        )
        try:
            self.store.put_new(places.log_entry(self.model, entry.seq), entry.model_dump_json().encode())
        except AlreadyExists:
            raise OwnershipLost(f"model {model_name(self.model)!r} moved to another actor: try again", 1.0) from None
        self._go_behind(entry)
        return entry

    def check_fence(self) -> None:
        """Return if nobody has appended behind this owner. Raises `OwnershipLost` otherwise.

        An update that was durable before this check is seen by every later owner: it appends first and lists then.
        """
        try:
            self.store.get(places.log_entry(self.model, self._next), 0, 0)
        except Missing:
            return
        raise OwnershipLost(f"model {model_name(self.model)!r} moved to another actor: try again", 1.0)

    def entries(self) -> Iterator[Entry]:
        """Yield every entry, oldest first."""
        for key in self.store.list(places.log(self.model)):
            yield self._read(key)

    def entry(self, seq: int) -> Entry:
        """Return the entry of a number. Raises `Missing`."""
        return self._read(places.log_entry(self.model, seq))

    def closed_backwards(self) -> Iterator[Entry]:
        """Yield the entries that ended a round, newest first."""
        seq = self._next - 1 if self._closed is None else self._closed
        while seq >= 0:
            entry = self.entry(seq)
            if entry.kind in ROUND_ENDS:
                yield entry
            seq = seq - 1 if entry.closed_before is None else entry.closed_before

    def ended_backwards(self) -> Iterator[Ended]:
        """Yield what is known of the entries that ended a round, newest first, and perhaps of others in between.

        Entries never change: the ids of the last ones are remembered, and of these no object is read.
        """
        seq = self._next - 1 if self._closed is None else self._closed
        while seq >= 0:
            ended = self._ended.get(seq) or self._remember(self.entry(seq))
            yield ended
            seq = ended.before

    def _remember(self, entry: Entry) -> Ended:
        before = entry.seq - 1 if entry.closed_before is None else entry.closed_before
        ended = Ended(entry.head.round, frozenset(line.assignment_id for line in entry.updates), before)
        self._ended[entry.seq] = ended
        while len(self._ended) > KEPT or sum(len(kept.assignments) for kept in self._ended.values()) > KEPT_IDS:
            self._ended.pop(min(self._ended))
        return ended

    def _go_behind(self, entry: Entry) -> None:
        self._next = entry.seq + 1
        self._closed = entry.seq if entry.kind in ROUND_ENDS else entry.closed_before
        if entry.kind in ROUND_ENDS:
            self._remember(entry)

    def _read(self, key: str) -> Entry:
        return Entry.model_validate_json(self.store.get(key).body)


def entry_after(store: ObjectStore, model: str, seq: int) -> Entry | None:
    """Return the entry behind number `seq` of a model's log, or None if there is none yet."""
    try:
        return Entry.model_validate_json(store.get(places.log_entry(model, seq + 1)).body)
    except Missing:
        return None
