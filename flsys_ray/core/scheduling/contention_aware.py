"""The rarest first: a device that few models can use, and one model needs, is not spent on one that any device serves.

After Liu, Lai, Ding, Zhang, Chowdhury, "Venn: Resource Management for Collaborative Learning Jobs", MLSys 2025 (arXiv
2312.08298), its contention-aware heuristic (Intersection Resource Scheduling), as the authors' program has it
(github.com/SymbioticLab/Venn, `src/irs.py`, commit 2e2c789). It orders jobs by the sets of devices that can serve them:

- Jobs with the same set are a group. Inside a group the job with the smallest remaining demand goes first.
- Each device goes to the group with the smallest set that it is in: a group keeps what smaller sets leave of its own.
- A larger group takes a smaller one's devices over when its queue is longer, relative to what each of them has.

Ours: sets are told apart by their estimated sizes alone (within `same_supply`), and a smaller one is taken to lie
inside a larger one, since why a device is eligible never leaves it. A queue is a group's own and whole; the program
counts the jobs that a takeover delays, and adds up the queues of those that were taken over. Two rules
come before the paper's:

- *Nobody starves.* A round that has been open for `starving_s` and still wants devices goes first, the oldest at the
  front.
- *Fair between apps.* An app that was served `lead` times as much as the least served app at the same door, and
  `head_start` assignments more, stands back until the others have caught up.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from flsys_ray.core.rng import unit
from flsys_ray.core.scheduling.base import Candidate, CheckIn, Scheduler


class ContentionAware(Scheduler):
    """Scarce supply first, then the least remaining work; with bounds on waiting and on an app's lead."""

    name: Literal["contention_aware"] = "contention_aware"
    same_supply: float = Field(1.25, ge=1, description="supplies within this ratio are one group")
    starving_s: float = Field(7200.0, gt=0, description="a round open for longer goes first")
    lead: float = Field(2.0, ge=1, description="how many times the least served app another may have had")
    head_start: float = Field(16.0, ge=0, description="assignments that an app may be ahead in any case")

    def order(self, check_in: CheckIn) -> tuple[str, ...]:
        """Return the models: starving ones, then those of apps that are not ahead, then by contention."""
        wanting = [c for c in check_in.candidates if c.demand.free_slots > 0]
        places = {model: place for place, model in enumerate(self._by_contention(wanting, check_in))}
        least = min((c.served for c in wanting), default=0.0)

        def rank(c: Candidate) -> tuple[float, ...]:
            if c.demand.free_slots <= 0:
                return (3, 0, unit(check_in.seed, f"schedule:{c.model}"))
            if check_in.now - c.demand.opened_at >= self.starving_s:
                return (0, c.demand.opened_at, places[c.model])
            ahead = c.served > max(self.lead * least, least + self.head_start)
            return (2 if ahead else 1, 0, places[c.model])

        ranked = sorted(check_in.candidates, key=lambda c: (rank(c), c.model))
        return tuple(candidate.model for candidate in ranked)

    def _by_contention(self, wanting: Sequence[Candidate], check_in: CheckIn) -> list[str]:
        groups = self._groups(wanting)
        if groups:
            owner = owner_of_the_rarest([groups_supply(group) for group in groups], [len(group) for group in groups])
            groups.insert(0, groups.pop(owner))

        def shortest_first(c: Candidate) -> tuple[int, float, str]:
            return (c.demand.remaining, unit(check_in.seed, f"schedule:{c.model}", 0, check_in.device_id), c.model)

        return [c.model for group in groups for c in sorted(group, key=shortest_first)]

    def _groups(self, wanting: Sequence[Candidate]) -> list[list[Candidate]]:
        """Return the candidates in groups of about the same supply, the rarest group first."""
        groups: list[list[Candidate]] = []
        for candidate in sorted(wanting, key=lambda c: (c.supply, c.model)):
            if groups and candidate.supply <= groups_supply(groups[-1]) * self.same_supply:
                groups[-1].append(candidate)
            else:
                groups.append([candidate])
        return groups


def groups_supply(group: Sequence[Candidate]) -> float:
    """Return the supply of a group: that of its rarest member."""
    return group[0].supply


def owner_of_the_rarest(supplies: Sequence[float], queues: Sequence[int]) -> int:
    """Return which group has the devices of the smallest set, which lies inside all the others.

    `supplies` are the sizes of the groups' sets in rising order, `queues` their numbers of jobs. As in Venn,
    first every group has what the smaller sets leave of its own; then, from the largest set down, a group takes over
    the devices of the next smaller ones for as long as it has more jobs a device than they.
    """
    owned = [max(s - smaller, 1e-9) for s, smaller in zip(supplies, [0.0, *supplies[:-1]], strict=True)]
    owner = 0
    for large in range(len(supplies) - 1, 0, -1):
        if owned[large] == 0:
            continue
        for small in range(large - 1, -1, -1):
            if owned[small] == 0:
                continue
            if queues[large] * owned[small] <= queues[small] * owned[large]:
                break
            owned[large], owned[small] = owned[large] + owned[small], 0.0
            if small == owner:
                owner = large
    return owner
