"""Somebody who serves a model: its load and its health, and the leases that change them.

A target is one model at one backend, however many of our models list it. Its load is what its leases hold: each is
settled exactly once, so it can't drift, and nothing ever resets it.
"""

from __future__ import annotations

from router.errors import IllegalMove
from router.policy.breaker import Breaker, Permit, Verdict


class Target:
    """One model at one backend."""

    __slots__ = (
        "available",
        "backend",
        "breaker",
        "id",
        "inflight",
        "kind",
        "model",
        "resting_until",
    )

    def __init__(self, id: str, backend: str, model: str, *, kind: str, breaker: Breaker) -> None:  # noqa: A002
        """``id`` is its name in logs and metrics; ``backend`` and ``model`` say where a request goes."""
        self.id = id
        self.backend = backend
        self.model = model
        self.kind = kind
        """``engine`` or ``provider``."""
        self.breaker = breaker
        self.inflight = 0
        self.available = True
        """False while its engine's process is not up."""
        self.resting_until = 0.0
        """It asked to be left alone until then (429 with retry-after)."""

    def admits(self, now: float) -> bool:
        """Whether a request should go there."""
        return self.available and now >= self.resting_until and self.breaker.admits(now)

    def panics(self, now: float) -> bool:
        """Whether a request may go there when nobody admits: ejected or not, but up and not at rest."""
        return self.available and now >= self.resting_until

    @property
    def state(self) -> str:
        """For people and metrics."""
        return self.breaker.state.value if self.available else "unavailable"

    def lease(self, now: float) -> Lease:
        """Send a request there: counted until the lease is settled."""
        self.inflight += 1
        return Lease(self, self.breaker.enter(), now)

    def __repr__(self) -> str:
        return f"Target({self.id}, {self.state}, inflight={self.inflight})"


class Lease:
    """One request's hold on a target."""

    __slots__ = ("_permit", "_settled", "since", "target")

    def __init__(self, target: Target, permit: Permit, since: float) -> None:
        self.target = target
        self.since = since
        self._permit = permit
        self._settled = False

    def settle(self, verdict: Verdict, now: float, retry_after_s: float | None = None) -> bool:
        """Give the target back and say how it went; true where its health moved to another state.

        Raises IllegalMove the second time.
        """
        if self._settled:
            raise IllegalMove(f"lease of {self.target.id}", "settled", "settle")
        self._settled = True
        target = self.target
        target.inflight -= 1
        if retry_after_s is not None:
            target.resting_until = max(target.resting_until, now + retry_after_s)
        return target.breaker.settle(self._permit, verdict, now)
