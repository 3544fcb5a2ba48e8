"""Somebody who serves a model: its load and its health, and the leases that change them.

A target is one model at one backend, however many of our models list it. Its load is what its leases hold: each is
settled exactly once, so it can't drift, and nothing ever resets it. It is counted in tokens as well as in requests
(`router.load`).
"""

from __future__ import annotations

from router.errors import IllegalMove
from router.load import NOTHING, Claim, Load, MeanOutput
from router.policy.breaker import Breaker, Permit, State, Verdict
from router.policy.slow_start import Place, SlowStart

_ADMITTING = State.ADMITTING  # reading it through its class takes longer than the rest of `admits`


class Target:
    """One model at one backend."""

    __slots__ = (
        "available",
        "backend",
        "breaker",
        "id",
        "kind",
        "load",
        "model",
        "places",
        "resting_until",
        "slow_start",
    )

    def __init__(
        self,
        id: str,  # noqa: A002
        backend: str,
        model: str,
        *,
        kind: str,
        breaker: Breaker,
        load: Load | None = None,
    ) -> None:
        """``id`` is its name in logs and metrics; ``backend`` and ``model`` say where a request goes."""
        self.id = id
        self.backend = backend
        self.model = model
        self.kind = kind
        """``engine`` or ``provider``."""
        self.breaker = breaker
        self.load = load or Load()
        self.available = True
        """False while its engine's process is not up."""
        self.resting_until = 0.0
        """It asked to be left alone until then (429 with retry-after)."""
        self.slow_start = SlowStart()
        """Where it is said that it was readmitted; all targets of a pool share one."""
        self.places: list[Place] = []
        """Where it stands in models' lists."""

    def admits(self, now: float) -> bool:
        """Whether a request should go there."""
        return (
            self.available
            and now >= self.resting_until
            and (self.breaker.state is _ADMITTING or self.breaker.admits(now))
        )

    def panics(self, now: float) -> bool:
        """Whether a request may go there when nobody admits: ejected or not, but up and not at rest."""
        return self.available and now >= self.resting_until

    @property
    def state(self) -> str:
        """For people and metrics."""
        return self.breaker.state.value if self.available else "unavailable"

    @property
    def inflight(self) -> int:
        """Requests it is working on."""
        return self.load.inflight

    def lease(self, now: float, claim: Claim = NOTHING, outputs: MeanOutput | None = None) -> Lease:
        """Send a request there: counted until the lease is settled. ``outputs`` hears how long the answer was."""
        return Lease(self, self.breaker.enter(), now, claim, outputs)

    def __repr__(self) -> str:
        return f"Target({self.id}, {self.state}, inflight={self.inflight})"


class Lease:
    """One request's hold on a target, and on a share of its load."""

    __slots__ = (
        "_begun",
        "_claim",
        "_outputs",
        "_permit",
        "_predicted_us",
        "_settled",
        "since",
        "target",
    )

    def __init__(
        self, target: Target, permit: Permit, since: float, claim: Claim, outputs: MeanOutput | None
    ) -> None:
        self.target = target
        self.since = since
        self._permit = permit
        self._claim = claim
        self._outputs = outputs
        self._begun = False
        self._settled = False
        self._predicted_us = target.load.pending_us + claim.work_us
        target.load.add(claim)

    def first_token(self, now: float) -> None:
        """The answer began: its prompt is computed. Only the first call counts, and none after ``settle``."""
        claim = self._claim
        if self._begun or self._settled or claim is NOTHING:
            return
        self._begun = True
        load = self.target.load
        load.begin(claim)
        load.rate.saw(self._predicted_us * 1e-6, now - self.since)

    def settle(
        self,
        verdict: Verdict,
        now: float,
        retry_after_s: float | None = None,
        output_tokens: int | None = None,
    ) -> bool:
        """Give the target back and say how it went; true where its health moved to another state.

        Raises IllegalMove the second time.
        """
        if self._settled:
            raise IllegalMove(f"lease of {self.target.id}", "settled", "settle")
        self._settled = True
        target = self.target
        target.load.remove(self._claim, begun=self._begun)
        if output_tokens is not None and self._outputs is not None and verdict is Verdict.GOOD:
            self._outputs.saw(output_tokens)
        if retry_after_s is not None:
            target.resting_until = max(target.resting_until, now + retry_after_s)
        moved = target.breaker.settle(self._permit, verdict, now)
        if moved and target.breaker.state is _ADMITTING:
            target.slow_start.begin(target.places, now)
        return moved
