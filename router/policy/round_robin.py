"""Everyone in turn: whoever is ready and was picked longest ago.

Not a cursor over the list: members come and go (ejected, tried already), and a cursor then favours the neighbour
of whoever is missing. A queue in order of the last pick shares their load evenly among all that are left, and whoever
comes back is next. Only those at its head are asked, until one is ready.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence

from router.policy import Rotation, S


class RoundRobin(Rotation):
    """Least recently picked first; those never picked come first, in the order of the config."""

    def __init__(self) -> None:
        self._queue: OrderedDict[int, None] = OrderedDict()

    def next(
        self, members: Sequence[S], ready: Callable[[S], bool], rng: random.Random
    ) -> S | None:
        """Whoever is ready and waits longest; in slow start it lets most of its turns pass."""
        queue = self._queue
        if len(queue) != len(members):
            queue = self._queue = OrderedDict.fromkeys(range(len(members)))
        passed: list[int] = []
        chosen = -1
        for order in queue:
            member = members[order]
            if not ready(member):
                continue
            if self.passes(member, rng):
                passed.append(order)
                continue
            chosen = order
            break
        if chosen < 0:
            if not passed:
                return None
            chosen = passed.pop(0)
        for order in passed:
            queue.move_to_end(order)
        queue.move_to_end(chosen)
        return members[chosen]
