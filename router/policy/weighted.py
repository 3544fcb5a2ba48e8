"""In turn, in proportion to weights, and evenly: 5:1:1 gives a a b a c a a, never a a a a a b c.

Each member has a time on a common clock at which its next turn is due, and a turn moves it by 1/weight: the earliest
is picked, from a heap. First turns are spread over the clock's first unit, those of equal weights evenly, so that
they don't all fall due together.

Whoever wasn't ready keeps his time; when he comes back it is long past, and he gets one turn for it, not all that he
missed. In slow start a member lets most of its turns pass, but they keep their times: when it is warm it is in step.

Source: stride scheduling (C. Waldspurger and W. Weihl, 1995), whose heap replaces the pass over everybody of nginx's
"smooth weighted round-robin balancing"; the sequence is nginx's.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush, heapreplace

from router.policy import Candidate, Rotation, S


class Weighted(Rotation):
    """The member whose turn is due first."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int]] = []
        self._clock = 0.0

    def next(
        self, members: Sequence[S], ready: Callable[[S], bool], rng: random.Random
    ) -> S | None:
        """Whoever is ready and due first."""
        if len(self._due) != len(members):
            self._due = _first_turns(members)
        due = self._due
        missing: list[tuple[float, int]] = []
        passed: tuple[int, ...] = ()
        chosen = None
        while due and chosen is None:
            at, order = due[0]
            member = members[order]
            if not ready(member):
                missing.append(heappop(due))
                continue
            if order not in passed and self.passes(member, rng):
                passed += (order,)
            else:
                chosen = member
            heapreplace(due, (self._after(at, member), order))
        for one in missing:
            heappush(due, one)
        return chosen

    def _after(self, due: float, member: Candidate) -> float:
        """When its turn comes again, that was ``due`` and is now."""
        stride = member.warmth / member.weight
        start = max(due, self._clock - stride)
        self._clock = max(self._clock, start)
        return start + stride


def _first_turns(members: Sequence[Candidate]) -> list[tuple[float, int]]:
    alike = Counter(member.weight for member in members)
    seen: Counter[float] = Counter()
    due = []
    for order, member in enumerate(members):
        seen[member.weight] += 1
        due.append((seen[member.weight] / (alike[member.weight] + 1) / member.weight, order))
    heapify(due)
    return due
