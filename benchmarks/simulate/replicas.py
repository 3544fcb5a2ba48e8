"""Several routers in front of one fleet: each has its own state, and learns of the others' load now and then.

What a router knows at once is what it sent itself. A synchronisation tells it what the others have under way at that
moment; until the next it acts on that. Whom the others sent which beginning of a prompt isn't told, nor what they know
of providers' limits: the responses' headers tell everybody.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from router.load import Load
from router.pool import Pool

COUNTED = ("inflight", "pending_tokens", "pending_us", "context_tokens", "reserved_tokens")
"""What a load is made of: whole numbers that leases add and take back, so that others' can be added, too."""


class Replicas(Struct, frozen=True):
    """How many there are, and how often they hear of each other; None is never."""

    count: int = 1
    sync_s: float | None = None


class Synchronised:
    """The pools of several routers over the same targets."""

    def __init__(self, pools: Sequence[Pool], replicas: Replicas) -> None:
        self._sync_s = replicas.sync_s if len(pools) > 1 else None
        self._rounds = 0
        self._loads: list[list[Load]] = [
            [target.load for target in pool.targets.values()] for pool in pools
        ]
        self._others: list[list[list[int]]] = [
            [[0] * len(COUNTED) for _ in loads] for loads in self._loads
        ]
        """By router and target: what was last heard of the others."""

    def due(self, now: float) -> float | None:
        """When the last synchronisation before ``now`` was, if it hasn't been done: earlier ones changed nothing."""
        if self._sync_s is None:
            return None
        rounds = int(now / self._sync_s)
        if rounds <= self._rounds:
            return None
        self._rounds = rounds
        return rounds * self._sync_s

    def sync(self) -> None:
        """Everybody hears what everybody else has under way."""
        for target in range(len(self._loads[0])):
            own = [
                [getattr(loads[target], name) - known for name, known in zip(COUNTED, others[target], strict=True)]
                for loads, others in zip(self._loads, self._others, strict=True)
            ]  # fmt: skip
            whole = [sum(column) for column in zip(*own, strict=True)]
            for loads, others, mine in zip(self._loads, self._others, own, strict=True):
                foreign = [all_ - one for all_, one in zip(whole, mine, strict=True)]
                for name, one, more in zip(COUNTED, mine, foreign, strict=True):
                    setattr(loads[target], name, one + more)
                others[target] = foreign
