"""A model's history computed again from its store: every version must come out the same, to the bit.

The log says which updates made each version, with which weights and under which plan; the updates are objects, each
under the hash that its line repeats. A replay starts from version 0 and takes nothing else on trust. After a version
that cannot be computed again it goes on from the one that is stored, so that one broken object is named once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Entry, Journal, VersionRef
from flsys_ray.cloud.public_forms import files_of, public_form
from flsys_ray.cloud.stored_updates import StoredUpdates
from flsys_ray.cloud.versions import encode_state, load_plan, load_program, load_version, sha256
from flsys_ray.core.ids import round_of
from flsys_ray.core.layout import Layout, Vector
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.step import committed, prepared
from flsys_ray.core.types import Contribution, Version
from flsys_ray.errors import Missing, NotFound
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import UpdateLine
from flsys_ray.wire.tensors import decode_update, decode_vector, encode_vector

Verdict = Literal["equal", "differs", "missing", "changed"]


@dataclass(frozen=True, slots=True)
class Replayed:
    """One version computed again. `detail` names what is not as the log says: a leaf, an update, an object."""

    version: int
    round: int | None
    updates: int
    verdict: Verdict
    detail: str = ""


class _Broken(Exception):
    """An object is not there, or not what the log says it is."""

    def __init__(self, verdict: Verdict, detail: str) -> None:
        super().__init__(verdict, detail)
        self.verdict = verdict
        self.detail = detail


def replay(store: ObjectStore, model: str) -> Iterator[Replayed]:
    """Yield every version of a model, 0 first. Raises `NotFound` for a model that was never created."""
    journal = Journal(store, model)
    journal.read_tail()
    before: Entry | None = None
    replayer: _Replayer | None = None
    for entry in journal.entries():
        if entry.kind == "started":
            replayer = _Replayer(store, model, entry)
            yield replayer.first()
        elif entry.kind == "closed" and _commits(entry) and replayer is not None and before is not None:
            yield replayer.commit(entry, before.head.round_plan_sha256)
        elif entry.kind == "restored" and replayer is not None:
            yield replayer.restore(entry)
        before = entry


def _commits(entry: Entry) -> bool:
    return entry.head.last_round is not None and entry.head.last_round.committed is not None


class _Replayer:
    """Holds the version that was computed last."""

    def __init__(self, store: ObjectStore, model: str, started: Entry) -> None:
        self._store = store
        self._model = model
        self._started = started
        self._layout: Layout = read_manifest(load_program(store, model, str(started.head.program_sha256))).to_layout()
        self._ref = _ref(started)
        self._refs = {0: self._ref}
        self._version: Version | None = None
        self._slots: tuple[str, ...] = ()

    def first(self) -> Replayed:
        """Look at version 0, which the program made, and no update."""
        try:
            self._check_stored(self._ref)
        except _Broken as broken:
            return Replayed(0, None, 0, broken.verdict, broken.detail)
        return Replayed(0, None, 0, "equal")

    def commit(self, entry: Entry, plan_sha256: str) -> Replayed:
        """Compute the version that an entry commits."""
        number, made_of = _ref(entry).number, len(entry.updates)
        self._refs[number] = _ref(entry)
        round_ = entry.head.last_round.round if entry.head.last_round else None
        try:
            plan = load_plan(self._store, self._model, plan_sha256)
            updates = StoredUpdates(self._store, self._model)
            version, _ = committed(self._base(plan), self._fold(plan, entry), updates, self._layout, plan)
            self._compare(version, plan, _ref(entry))
            self._check_stored(_ref(entry))
            self._compare_public(version, entry)
        except _Broken as broken:
            self._version, self._ref = None, _ref(entry)
            return Replayed(number, round_, made_of, broken.verdict, broken.detail)
        except (Missing, NotFound) as error:
            self._version, self._ref = None, _ref(entry)
            return Replayed(number, round_, made_of, "missing", error.message)
        self._version, self._slots, self._ref = version, plan.server_optimizer.slots, _ref(entry)
        return Replayed(number, round_, made_of, "equal")

    def restore(self, entry: Entry) -> Replayed:
        """Look whether a version that a rollback made is the older one that it says."""
        ref = _ref(entry)
        old = self._refs.get(-1 if ref.restored_from is None else ref.restored_from)
        self._version, self._ref, self._refs[ref.number] = None, ref, ref
        try:
            if old is None or _numbers(old) != _numbers(ref):
                raise _Broken("differs", f"it is not version {ref.restored_from}, which it was made of")
            self._check_stored(ref)
        except _Broken as broken:
            return Replayed(ref.number, None, 0, broken.verdict, broken.detail)
        return Replayed(ref.number, None, 0, "equal")

    def _base(self, plan: TrainingPlan) -> Version:
        """Return the version before, ready for the plan: an optimizer with other slots starts anew, and a control."""
        optimizer, size = plan.server_optimizer, self._layout.size
        if self._version is None:
            return load_version(self._store, self._model, self._ref, size, plan)
        version = prepared(self._version, plan)
        if set(self._slots) != set(optimizer.slots):
            return replace(version, optimizer_state=optimizer.init(size))
        return version

    def _fold(self, plan: TrainingPlan, entry: Entry) -> Any:
        rule = plan.aggregation
        fold = rule.init(plan.scale(), self._layout.size)
        for line in entry.updates:
            body = self._update(line)
            decoded = decode_update(body, self._layout, plan.limits.max_abs_delta, control=rule.carries_control)
            weight = line.num_examples if line.weight is None else line.weight
            measures = (weight, decoded.loss, decoded.num_steps)
            fold = rule.add(fold, Contribution(line.assignment_id, decoded.delta, *measures, control=decoded.control))
        return fold

    def _update(self, line: UpdateLine) -> bytes:
        key = places.update(self._model, round_of(line.assignment_id), line.assignment_id, line.device_id)
        return self._object(key, line.sha256)

    def _object(self, key: str, digest: str) -> bytes:
        try:
            body = self._store.get(key).body
        except Missing:
            raise _Broken("missing", f"{key} is not in the store") from None
        if sha256(body) != digest:
            raise _Broken("changed", f"{key} is not what was counted: its hash is {sha256(body)[:12]}")
        return body

    def _check_stored(self, ref: VersionRef) -> None:
        """Look whether what phones download, and what the next owner loads, is what the log says."""
        self._object(places.weights(self._model, ref.weights_sha256), ref.weights_sha256)
        self._object(places.optimizer(self._model, ref.optimizer_sha256), ref.optimizer_sha256)
        if ref.control_sha256 is not None:
            self._object(places.control(self._model, ref.control_sha256), ref.control_sha256)
        if ref.shared_sha256 is not None:
            self._object(places.shared(self._model, ref.shared_sha256), ref.shared_sha256)
        for place, digest in files_of(self._model, ref.public).items() if ref.public is not None else ():
            self._object(place, digest)

    def _compare(self, version: Version, plan: TrainingPlan, ref: VersionRef) -> None:
        if sha256(encode_vector("parameters", version.parameters)) != ref.weights_sha256:
            raise _Broken("differs", self._first_difference(version.parameters, ref))
        if sha256(encode_state(version.optimizer_state, plan.server_optimizer)) != ref.optimizer_sha256:
            raise _Broken("differs", f"{plan.server_optimizer.name}: the state of the server optimizer")
        control = None if version.control is None else sha256(encode_vector("control", version.control))
        if control != ref.control_sha256:
            raise _Broken("differs", f"{plan.aggregation.name}: the control")

    def _compare_public(self, version: Version, entry: Entry) -> None:
        """Look whether what phones train from is what the next round's plan makes of a version."""
        plan = load_plan(self._store, self._model, entry.head.round_plan_sha256)
        made = public_form(self._store, self._model, version, plan, self._ref.public)
        if (None if made is None else made.form) != _ref(entry).public:
            raise _Broken("differs", "its public form")

    def _first_difference(self, found: Vector, ref: VersionRef) -> str:
        body = self._object(places.weights(self._model, ref.weights_sha256), ref.weights_sha256)
        stored = decode_vector(body, "parameters", self._layout.size)
        at = int(np.flatnonzero(found.view(np.uint32) != stored.view(np.uint32))[0])
        leaf = self._layout.leaf_at(at)
        return f"{leaf.name!r} at its element {at - leaf.offset}: {found[at]!r} again, {stored[at]!r} in the store"


def _numbers(ref: VersionRef) -> tuple[object, ...]:
    return ref.weights_sha256, ref.optimizer_sha256, ref.optimizer_step, ref.control_sha256, ref.public


def _ref(entry: Entry) -> VersionRef:
    if entry.head.version is None:
        raise NotFound(f"the log's entry {entry.seq} names no version")
    return entry.head.version
