"""Somebody who serves a model: its load and its health, and the leases that change them.

A target is one model at one backend, however many of our models list it. Its load is what its leases hold: each is
settled exactly once, so it can't drift, and nothing ever resets it. It is counted in tokens as well as in requests
(`router.load`).

Nearly always nothing keeps a target from taking whatever comes: its process is up, its breaker admits, it has no
limits and is at no rest. So a pool keeps the set of its guarded targets, of which that can't be said: what may change
it adds a target, what settles a lease takes it out again. Who isn't guarded need not be asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from router.counting import Need
from router.errors import IllegalMove
from router.load import NOTHING, Claim, Load, MeanOutput
from router.policy.breaker import Breaker, Permit, State, Verdict
from router.policy.concurrency import UNLIMITED, Concurrency
from router.policy.quota import Hold, Quota
from router.policy.slow_start import Place, SlowStart
from router.ratelimits import Readings, Spent

ADMITTING, _GOOD = (
    State.ADMITTING,
    Verdict.GOOD,
)  # reading them through their classes takes longer than a call


class Target:
    """One model at one backend."""

    __slots__ = (
        "_available",
        "_resting_until",
        "backend",
        "breaker",
        "concurrency",
        "continues",
        "guarded",
        "id",
        "kind",
        "load",
        "local",
        "model",
        "not_continuing_until",
        "on_free",
        "places",
        "quota",
        "slow_start",
    )

    def __init__(  # noqa: PLR0913 - made in one place
        self,
        id: str,  # noqa: A002
        backend: str,
        model: str,
        *,
        kind: str,
        breaker: Breaker,
        load: Load | None = None,
        quota: Quota | None = None,
    ) -> None:
        """``id`` is its name in logs and metrics; ``backend`` and ``model`` say where a request goes."""
        self.id = id
        self.backend = backend
        self.model = model
        self.kind = kind
        """``engine`` or ``provider``."""
        self.local = kind == "engine"
        self.breaker = breaker
        self.load = load or Load()
        self.quota = quota
        """What its provider lets us do; None of an engine."""
        self.concurrency = Concurrency()
        self._available = True
        self._resting_until = 0.0
        self.guarded = {self}
        """The guarded ones of its pool."""
        self.slow_start = SlowStart()
        """Where it is said that it was readmitted; all targets of a pool share one."""
        self.places: list[Place] = []
        """Where it stands in models' lists."""
        self.continues: bool | Literal["auto"] = kind == "engine" or "auto"
        """Whether it goes on with an answer that has begun: exactly, never, or to be found out."""
        self.not_continuing_until = 0.0
        """It was found not to; asked again then, for a server may have been exchanged."""
        self.on_free: Callable[[Target, float], None] | None = None
        """Hears of `freed`; set while somebody waits for this target."""

    @property
    def available(self) -> bool:
        """False while its engine's process is not up."""
        return self._available

    @available.setter
    def available(self, value: bool) -> None:
        self._available = value
        self.guarded.add(self)

    @property
    def resting_until(self) -> float:
        """It asked to be left alone until then (429 with retry-after)."""
        return self._resting_until

    @resting_until.setter
    def resting_until(self, at: float) -> None:
        self._resting_until = at
        self.guarded.add(self)

    @property
    def full(self) -> bool:
        """It has as many requests in flight as it may have."""
        return self.load.inflight >= self.concurrency.limit

    def admits(self, now: float) -> bool:
        """Whether a request should go there: it `serves` and isn't `full`."""
        return (
            self._available
            and self.load.inflight < self.concurrency.limit
            and now >= self._resting_until
            and (self.breaker.state is ADMITTING or self.breaker.admits(now))
        )

    def serves(self, now: float) -> bool:
        """Whether it takes requests at all, be there room for one more or not."""
        return self.available and now >= self.resting_until and self.breaker.admits(now)

    def panics(self, now: float) -> bool:
        """Whether a request may go there when nobody serves: ejected or not, but up, not at rest and not full."""
        return self.available and now >= self.resting_until and not self.full

    def freed(self, now: float) -> None:
        """It may be able to take a request more; whoever waits for it hears."""
        if self.on_free is not None:
            self.on_free(self, now)

    def may_continue(self, now: float) -> bool:
        """Whether it may be asked to go on with an answer that has begun."""
        return self.continues is not False and now >= self.not_continuing_until

    def wait_s(self, need: Need, now: float) -> float:
        """How long until its provider's limits let a request through; see `Quota.wait_s`."""
        quota = self.quota
        if quota is None or not quota.knows:
            return 0.0
        return quota.wait_s(need, now)

    def fits(self, need: Need, now: float) -> bool:
        """Whether its provider's limits let a request through now. Where not, that is counted."""
        if not self.wait_s(need, now):
            return True
        if self.quota is not None:
            self.quota.defer(need, now)
        return False

    @property
    def state(self) -> str:
        """For people and metrics."""
        return self.breaker.state.value if self.available else "unavailable"

    @property
    def inflight(self) -> int:
        """Requests it is working on."""
        return self.load.inflight

    def lease(
        self,
        now: float,
        claim: Claim = NOTHING,
        outputs: MeanOutput | None = None,
        hold: Hold | None = None,
    ) -> Lease:
        """Send a request there: counted until the lease is settled. ``outputs`` hears how long the answer was; ``hold``
        is what the request takes of the quota.
        """
        breaker, load = self.breaker, self.load
        permit = breaker.permit if breaker.state is ADMITTING else breaker.enter()
        load.inflight += 1
        predicted_us = 0
        if claim is not NOTHING:
            predicted_us = load.pending_us + claim.work_us
            load.add(claim)
        if self.concurrency.learned:
            self.concurrency.entered(load.inflight, now)
        return Lease(self, now, permit, claim, outputs, hold, predicted_us)

    def heed(self, lease: Lease, now: float, *, good: bool) -> None:
        """A request is over while this target or another was guarded: what its limits learn of that, and whether it is
        to be guarded any longer.
        """
        concurrency, quota = self.concurrency, self.quota
        if good and concurrency.learned:
            concurrency.succeeded(lease.since, self.load.inflight, now)
        if good and quota is not None and quota.refusals and lease.hold is None:
            quota.answered()
        self.release(now)

    def release(self, now: float) -> None:
        """Guard it no longer where nothing keeps requests from it from now on."""
        quota = self.quota
        if (
            self._available
            and now >= self._resting_until
            and self.breaker.state is ADMITTING
            and self.concurrency.limit == UNLIMITED
            and (quota is None or not (quota.counting or quota.knows))
            and not self.slow_start.places
        ):
            self.guarded.discard(self)

    def __repr__(self) -> str:
        return f"Target({self.id}, {self.state}, inflight={self.inflight})"


class Lease(Struct, eq=False):
    """One request's hold on a target, and on a share of its load; see `Target.lease`."""

    target: Target
    since: float
    _permit: Permit
    _claim: Claim
    _outputs: MeanOutput | None
    hold: Hold | None
    """What it takes of the target's quota; None where nobody counts."""
    _predicted_us: int
    _begun: bool = False
    _settled: bool = False

    def __repr__(self) -> str:
        return f"<Lease on {self.target.id}>"

    def first_token(self, now: float) -> None:
        """The answer began: its prompt is computed. Only the first call counts, and none after ``settle``."""
        claim = self._claim
        if self._begun or self._settled or claim is NOTHING:
            return
        self._begun = True
        load = self.target.load
        load.begin(claim)
        load.rate.saw(self._predicted_us * 1e-6, now - self.since)

    def hear(self, readings: Readings, now: float) -> None:
        """The response's head told of limits."""
        target = self.target
        if readings and target.quota is not None:
            target.guarded.add(target)
            target.quota.hear(readings, now, self.hold)

    def refused(self, readings: Readings, now: float, retry_after_s: float | None) -> None:
        """The provider refused the request for one of its limits."""
        target = self.target
        self.hear(readings, now)
        if target.quota is not None:
            target.guarded.add(target)
            target.quota.refused(now, retry_after_s, told=bool(readings))

    def settle(
        self,
        verdict: Verdict,
        now: float,
        retry_after_s: float | None = None,
        output_tokens: int | None = None,
        spent: Spent | None = None,
        overloaded: bool = False,  # noqa: FBT001, FBT002 - beside the verdict, which is about health
    ) -> bool:
        """Give the target back and say how it went; true where its health moved to another state. ``spent``: what the
        provider counted, where that is known.

        ``overloaded``: it refused the request because it has too many. Raises IllegalMove the second time.
        """
        if self._settled:
            raise IllegalMove(f"lease of {self.target.id}", "settled", "settle")
        self._settled = True
        target, good = self.target, verdict is _GOOD
        load = target.load
        if self.hold is not None and target.quota is not None:
            target.quota.settle(self.hold, spent, now)
        if overloaded:
            target.guarded.add(target)
            target.concurrency.overloaded(self.since, load.inflight, now)
        elif target.guarded:
            target.heed(self, now, good=good)
        load.inflight -= 1
        if self._claim is not NOTHING:
            load.remove(self._claim, begun=self._begun)
        if good and output_tokens is not None and self._outputs is not None:
            self._outputs.saw(output_tokens)
        if retry_after_s is not None:
            target.resting_until = max(target.resting_until, now + retry_after_s)
        return target.breaker.settle(self._permit, verdict, now) and self._moved(now)

    def _moved(self, now: float) -> bool:
        """Its target's health has another state now: True."""
        target = self.target
        target.guarded.add(target)
        if target.breaker.state is ADMITTING:
            target.slow_start.begin(target.places, now)
        return True
