"""What must be true after every run, whatever happened in it.

`look_at(story)` raises `Broken`, which names the promise, or returns how many facts it looked at.
"""

from collections import Counter
from itertools import groupby, pairwise

import numpy as np
from cloud_fakes import SIZE, fake_program
from story import Story, update_of

from flsys_ray.cloud import places
from flsys_ray.cloud.history import RECENT_ROUNDS
from flsys_ray.cloud.journal import Entry, Journal
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.versions import encode_state, load_parameters, load_plan, sha256
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import round_of
from flsys_ray.core.types import Assignment, Counted, OptimizerState, Update, Version
from flsys_ray.errors import Missing
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.tensors import decode_update

LAYOUT = read_manifest(fake_program()).to_layout()
FAR = 1e12


class Broken(AssertionError):
    """A promise was not kept."""


class Look:
    """One look at one run."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.facts = Counter[str]()
        store, model = story.store, story.model_id
        self.entries = [*Journal(store, model).entries()]
        keys = store.list(places.versions(model))
        self.infos = [VersionInfo.model_validate_json(store.get(key).body) for key in keys]
        self.held = Counter(line.assignment_id for info in self.infos for line in info.updates)

    def holds(self, promise: str, truth: bool, detail: object = "") -> None:
        """Note one fact that was looked at."""
        self.facts[promise] += 1
        if not truth:
            raise Broken(f"seed {self.story.seed}: {promise}: {detail}")

    def one_owner_after_the_other(self) -> None:
        """A zombie never writes: once another owner appended, an earlier one does not."""
        self.holds("the log has no gap", [entry.seq for entry in self.entries] == [*range(len(self.entries))])
        owners = [owner for owner, _ in groupby(entry.owner for entry in self.entries)]
        self.holds("no owner writes after it lost the model", len(set(owners)) == len(owners), owners)

    def versions_rise_by_one(self) -> None:
        numbers = [info.version for info in self.infos]
        self.holds("versions rise by one", numbers == [*range(len(numbers))], numbers)
        for before, entry in pairwise(self.entries):
            change = _number(entry) - _number(before)
            self.holds("versions rise by one", change in (0, 1), f"entry {entry.seq}: {change}")

    def what_was_counted_counts_once(self) -> None:
        """Every update that was acknowledged is in exactly one version, or was in a round that missed its quorum."""
        self.holds("no update is in two versions", not self.held or max(self.held.values()) == 1)
        without = {
            entry.head.last_round.round
            for entry in self.entries
            if entry.head.last_round is not None and entry.head.last_round.committed is None
        }
        open_round = self.entries[-1].head.round
        told = self.story.told.in_the_end
        answers = {key: answer for key, answer in told.items() if open_round - round_of(key) < RECENT_ROUNDS}
        for assignment_id, answer in answers.items():
            if assignment_id in self.held:
                self.holds("a counted update stays counted", answer == "duplicate", f"{assignment_id}: {answer}")
            elif self.story.plan.pacing.staleness is None and round_of(assignment_id) in without:
                self.holds("a round without a quorum is over", answer == "late", f"{assignment_id}: {answer}")
            else:
                still_open = answer == "duplicate" and round_of(assignment_id) <= open_round
                self.holds(
                    "a counted update is in a version, or in the open round", still_open, f"{assignment_id}: {answer}"
                )
        for assignment_id in self.story.told.counted:
            self.holds(
                "what was acknowledged is there", assignment_id in self.held or assignment_id in told, assignment_id
            )
        for assignment_id in self.story.told.given_back:
            if not self._outcome(assignment_id):
                self.holds("what was given back does not count", assignment_id not in self.held, assignment_id)

    def _outcome(self, assignment_id: str) -> bytes:
        """Return the update of an assignment; empty: given back. A round that was over when it was told has neither."""
        work = self.story.told.tickets[assignment_id].assignment
        key = places.update(self.story.model_id, work.round, assignment_id, work.device_id)
        try:
            return self.story.store.get(key).body
        except Missing:
            return b""

    def counters_reconcile(self) -> None:
        for entry in self.entries:
            if entry.kind == "closed" and entry.head.last_round is not None:
                c = entry.head.last_round.counters
                total = c.counted + c.late + c.given_back + c.pending
                self.holds("counters reconcile", c.assigned == total, f"round {entry.head.last_round.round}: {c}")
                if entry.updates:
                    self.holds("counters are those of the version", c.counted == len(entry.updates), entry.seq)

    def versions_are_those_of_a_run_without_faults(self) -> None:
        """The same updates, given to a coordinator that nothing ever happens to, make the same bits."""
        store, model = self.story.store, self.story.model_id
        version = Version(0, load_parameters(store, model, self.infos[0].weights_sha256, SIZE), OptimizerState())
        for info in self.infos[1:]:
            plan = load_plan(store, model, info.plan_sha256)
            optimizer = plan.server_optimizer
            if len(version.optimizer_state.vectors) != len(optimizer.slots):
                version = Version(version.number, version.parameters, optimizer.init(SIZE))
            assert info.round is not None
            undisturbed = Coordinator(model, LAYOUT, plan, version, round_=info.round, opened_at=0.0)
            for line in info.updates:
                base = version.number - line.staleness
                work = Assignment(line.assignment_id, model, round_of(line.assignment_id), base, line.device_id, FAR)
                body = update_of(line.assignment_id)
                sent = decode_update(body, LAYOUT, 1024.0)
                update = Update(work, sent.delta, sent.num_examples, sent.loss, sha256(body), sent.num_steps)
                outcome = undisturbed.submit(update, 0.0)
                self.holds("an update in a version may be there", outcome == Counted(duplicate=False), (line, outcome))
            summary = undisturbed.tick(FAR)
            assert summary is not None
            assert summary.commit is not None
            version = summary.commit.version
            weights = load_parameters(store, model, info.weights_sha256, SIZE)
            same = np.array_equal(weights.view(np.uint32), version.parameters.view(np.uint32))
            self.holds("versions are the same to the bit", same, f"version {info.version}")
            state = sha256(encode_state(version.optimizer_state, optimizer))
            self.holds("optimizers are the same to the bit", state == info.optimizer_sha256, f"version {info.version}")
        for replayed in replay(store, model):
            self.holds("a replay gives the same bits", replayed.verdict == "equal", replayed)

    def it_goes_on(self) -> None:
        healed, last = self.story.version_when_healed, self.story.last_version
        self.holds("training goes on when faults end", last > healed, f"version {healed}, then {last}")


def look_at(story: Story) -> Counter[str]:
    """Look at everything. Raises `Broken`."""
    look = Look(story)
    look.one_owner_after_the_other()
    look.versions_rise_by_one()
    look.what_was_counted_counts_once()
    look.counters_reconcile()
    look.versions_are_those_of_a_run_without_faults()
    look.it_goes_on()
    return look.facts


def _number(entry: Entry) -> int:
    return -1 if entry.head.version is None else entry.head.version.number
