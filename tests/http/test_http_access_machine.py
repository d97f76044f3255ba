"""Who is let in, as one machine: devices enrol and renew, are revoked and readmitted, keys rotate, replicas restart.

What is known of every token that was ever given is kept beside it, in words that need no store: when it was born, under
which key, after how many revocations. After the two seconds that replicas may be behind, every replica must agree.
"""

from dataclasses import dataclass

import jwt
import pytest
from cloud_fakes import Clock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from flsys_ray.cloud.access import Access
from flsys_ray.cloud.apps import AppRecords
from flsys_ray.cloud.credentials import DEVICE_TOKEN_LIFE_S, Credentials
from flsys_ray.cloud.enrolment import Enrolment
from flsys_ray.cloud.keys import FRESH_S, LEAD_S
from flsys_ray.errors import Conflict, Forbidden, NotFound, Unauthenticated
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.schemas import EnrolRequest

KEPT_S = 31 * 86_400.0
INSTALLATIONS = [f"installation-{number}" for number in range(3)]


@dataclass(frozen=True)
class Given:
    """A token, and what is known of it."""

    token: str
    installation: str
    born: float
    expires_at: float
    revocations: int
    key: int


class Replica:
    """One process on the store."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self.credentials = Credentials(store, clock)
        self.enrolment = Enrolment(store, self.credentials, clock)
        self.access = Access(store, self.credentials, clock)


class Machine(RuleBasedStateMachine):
    tokens = Bundle("tokens")
    replicas = st.integers(0, 1)
    installations = st.sampled_from(INSTALLATIONS)

    def __init__(self) -> None:
        super().__init__()
        self.store, self.clock = MemoryStore(), Clock()
        AppRecords(self.store).register("acme", lambda record: record)
        self.nodes = [Replica(self.store, self.clock) for _ in range(2)]
        self.given: list[Given] = []
        self.revocations = dict.fromkeys(INSTALLATIONS, 0)
        self.out: set[str] = set()
        self.not_before = 0.0
        self.signs_from = {1: 0.0}  # keys in use
        self.until: dict[int, float] = {}
        self.retired: set[int] = set()

    # What happens

    @rule(target=tokens, installation=installations, node=replicas)
    def enrol(self, installation: str, node: int) -> Given | None:
        request = EnrolRequest(installation_id=installation)
        try:
            reply = self.nodes[node].enrolment.enrol("acme", request)
        except Forbidden:
            assert installation in self.out
            return None
        assert installation not in self.out
        return self.keep(reply, installation, self.clock(), self.revocations[installation])

    @rule(target=tokens, token=tokens, node=replicas)
    def renew(self, token: Given | None, node: int) -> Given | None:
        if token is None:
            return None
        replica, now = self.nodes[node], self.clock()
        try:
            reply = replica.enrolment.renew(replica.credentials.check_device(token.token, now))
        except (Unauthenticated, Forbidden):
            return None
        return self.keep(reply, token.installation, token.born, token.revocations)

    @rule(installation=installations, node=replicas)
    def revoke(self, installation: str, node: int) -> None:
        replica = self.nodes[node]
        replica.enrolment.revoke("acme", replica.credentials.device_id("acme", installation))
        if installation not in self.out:
            self.revocations[installation] += 1
        self.out.add(installation)

    @rule(installation=installations, node=replicas)
    def readmit(self, installation: str, node: int) -> None:
        replica = self.nodes[node]
        replica.enrolment.readmit("acme", replica.credentials.device_id("acme", installation))
        self.out.discard(installation)

    @rule(ago=st.sampled_from((0.0, 3.0, 5.0, 100_000.0)), node=replicas)
    def revoke_all(self, ago: float, node: int) -> None:
        instant = self.clock() - ago
        self.not_before = max(self.not_before, instant)
        assert self.nodes[node].enrolment.revoke_all("acme", instant) == self.not_before

    @rule(retire_old=st.booleans(), node=replicas)
    def rotate(self, *, retire_old: bool, node: int) -> None:
        self.wait(FRESH_S)  # a replica makes keys in turn with the other: both know of the last one
        told = self.nodes[node].access.rotate(retire_old=retire_old).keys
        newest = int(told[-1].kid)
        if retire_old:
            self.retired |= set(self.signs_from)
            self.signs_from, self.until = {}, {}
        else:
            self.until[max(self.signs_from)] = told[-1].since + KEPT_S
        self.signs_from[newest] = told[-1].since

    @rule(number=st.integers(1, 5), node=replicas)
    def retire(self, number: int, node: int) -> None:
        self.prune()
        newest = number == max(self.signs_from)
        if newest or number not in self.signs_from:
            with pytest.raises(Conflict if newest else NotFound):
                self.nodes[node].access.retire(str(number))
            return
        self.nodes[node].access.retire(str(number))
        self.retired.add(number)
        del self.signs_from[number]
        before = [other for other in self.signs_from if other < number]
        after = [other for other in self.signs_from if other > number]
        if before:
            self.until[max(before)] = self.signs_from[min(after)] + KEPT_S

    @rule(seconds=st.sampled_from((1.0, LEAD_S, 86_400.0, DEVICE_TOKEN_LIFE_S / 2, DEVICE_TOKEN_LIFE_S)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(node=replicas)
    def restart(self, node: int) -> None:
        self.nodes[node] = Replica(self.store, self.clock)

    # What must hold

    @invariant()
    def everybody_agrees_on_every_token(self) -> None:
        self.clock.advance(FRESH_S)
        self.prune()
        for token in self.given:
            expected = self.good(token)
            for node in self.nodes:
                assert lets_in(node, token, self.clock()) == expected, (token, self.clock())

    # What is known

    def keep(self, reply, installation: str, born: float, revocations: int) -> Given:
        began = [number for number, since in self.signs_from.items() if since <= self.clock()]
        token = Given(reply.token, installation, born, reply.expires_at, revocations, kid_of(reply.token))
        assert token.key in began or not began
        self.given.append(token)
        return token

    def good(self, token: Given) -> bool:
        return (
            self.clock() < token.expires_at
            and token.key not in self.retired
            and token.revocations >= self.revocations[token.installation]
            and token.born >= self.not_before
        )

    def prune(self) -> None:
        for number in [number for number, end in self.until.items() if self.clock() >= end]:
            self.signs_from.pop(number, None)
            del self.until[number]


def kid_of(token: str) -> int:
    return int(jwt.get_unverified_header(token)["kid"])


def lets_in(node: Replica, token: Given, now: float) -> bool:
    try:
        device = node.credentials.check_device(token.token, now)
    except Unauthenticated:
        return False
    assert device.device_id == node.credentials.device_id("acme", token.installation)
    return True


TestAccess = Machine.TestCase
TestAccess.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
