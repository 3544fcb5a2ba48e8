"""A lease, at once or in turn: the line's asynchronous half.

``lease`` asks without waiting and lets nobody overtake; ``wait`` stands in the model's line until `router.turns` gives
the request a target. Whoever waits is told something in the end: a lease, an error with a truthful retry-after, or
nothing because the client left, and then nothing is held for it, not even where it leaves in the moment in which it
was served.

A request whose attempts failed waits for targets that it hasn't tried at once, and for those that it has after
exponentially longer pauses with full jitter.

Source: AWS Architecture Blog, "Exponential Backoff And Jitter"; `router.line` and `router.policy.shedding` for who
waits.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterable

from router.clock import Clock, Timer
from router.config.schema import Retry
from router.dispatch.walk import Walk
from router.errors import ApiError, Fault, FaultKind, api_error, overloaded, shutting_down
from router.events import Listener, Queued
from router.load import Facts
from router.policy.breaker import Verdict
from router.policy.shedding import shed_probability
from router.pool import Refusal, Route
from router.target import Lease, Target
from router.turns import Served, Turns, Waiting

OVERLOADED = "overloaded"
"""The code of an error that a full or slow line causes."""
MAX_RETRY_AFTER_S = 60.0
"""OpenAI's SDKs obey no longer one, and an estimate of more than a minute isn't worth more."""
NEVER = float("inf")


class Admission:
    """Who is sent, who waits, and who is refused."""

    def __init__(self, retry: Retry, *, clock: Clock, rng: random.Random, emit: Listener) -> None:
        self._retry = retry
        self._clock = clock
        self._rng = rng
        self._emit = emit
        self._turns = Turns(self._freed)
        self._numbers = itertools.count()
        self._waiting: set[_Turn] = set()
        self._timer: Timer | None = None
        self._timer_at = NEVER
        self._closed = False

    def lease(
        self, walk: Walk, route: Route, tried: set[Target], facts: Facts | None
    ) -> Lease | Refusal:
        """A lease on a member of ``route`` now, or why there is none; behind those who wait for it already. Where
        nobody waits, `Route.lease` says the same.
        """
        now, call = self._clock.now(), walk.call
        if now >= self._turns.due_at:
            self._give(self._turns.due(now))
        ahead = self._turns.ahead(route, tried, call.priority, call.received_at)
        return route.lease(now, tried, facts) if ahead is None else ahead

    async def wait(
        self,
        walk: Walk,
        route: Route,
        tried: set[Target],
        facts: Facts | None,
        why: Refusal,
        *,
        may_turn: bool = False,
    ) -> Lease:
        """Wait in line for a lease; ``tried`` is emptied once those may be tried again. ``may_turn``: a fallback could
        answer, so nobody waits for longer than `Retry.fallback_wait_s`.

        Raises ApiError: the line is full, nobody is up, the wait would be or was too long, the router shuts down.
        """
        now = self._clock.now()
        route.decisions.counts[why.reason] += 1
        again_at = now + self._pause_s(walk) if walk.tries else NEVER
        until = min(walk.call.deadline, now + route.line.max_wait_s)
        if may_turn:
            until = min(until, now + self._retry.fallback_wait_s)
        self._refuse_hopeless(walk, route, why, (again_at, until), now)
        turn = _Turn(walk, route, tried, facts, next(self._numbers))
        self._make_room(turn, why, now)
        route.line.join(turn, now)
        self._waiting.add(turn)
        turn.since, turn.again_at = now, again_at
        turn.until = until
        try:
            self._sleep(turn)
            self._give(self._turns.stand(turn, now))
            return await turn.future
        except BaseException:
            self._give_back(turn)
            raise
        finally:
            self._waiting.discard(turn)
            turn.stop()
            if not walk.attempts:
                walk.waited_s += self._clock.now() - now

    def close(self) -> None:
        """Nobody waits any more: those in line hear that the server shuts down, as does whoever comes."""
        self._closed = True
        for turn in tuple(self._waiting):
            self._refuse(turn, "closed", shutting_down())

    # Before the line.

    def _pause_s(self, walk: Walk) -> float:
        """How long until a target is tried again that failed this request."""
        retry = self._retry
        pause_s: float = self._rng.random() * retry.backoff_s * 2 ** (walk.tries - 1)
        fault = walk.last_fault
        asked_s = fault.retry_after_s if fault is not None else None
        return pause_s if asked_s is None else max(pause_s, asked_s)

    def _refuse_hopeless(
        self, walk: Walk, route: Route, why: Refusal, span: tuple[float, float], now: float
    ) -> None:
        """Raises ApiError where it is known now that waiting is of no use. ``span``: when it may be tried again, and
        until when it waits.
        """
        again_at, until = span
        fault = walk.last_fault
        if self._closed:
            raise self._said(walk, route, "closed", shutting_down())
        if why.reason == "unavailable":
            message = f"The model `{route.name}` has no target that is up. Try again in a moment."
            error = overloaded(message, "model_unavailable", why.retry_at - now)
            raise api_error(fault) if fault is not None else error
        at = again_at
        if why.reason == "full":
            at = now
        elif why.reason != "all_tried":
            at = min(at, why.retry_at)
        if at > until or at >= walk.call.deadline:
            message = "All targets of this model asked to be left alone for a while."
            rest = Fault(FaultKind.RATE_LIMITED, message, retry_after_s=at - now)
            raise self._said(walk, route, "hopeless", api_error(fault or rest))

    def _make_room(self, turn: _Turn, why: Refusal, now: float) -> None:
        """Raises ApiError where there is no place for it in line; another may lose its own."""
        walk, route, line = turn.walk, turn.route, turn.line
        least_s = why.retry_at - now if why.reason != "full" else 0.0
        if turn.priority < 0 and self._rng.random() < shed_probability(line.waiting, line.most):
            raise self._said(walk, route, "shed", self._overload(turn, now, least_s))
        last = line.last_after(turn)
        if last is turn:
            raise self._said(walk, route, "full", self._overload(turn, now, least_s))
        if isinstance(last, _Turn):
            self._refuse(last, "displaced", self._overload(last, now))

    # In the line.

    def _sleep(self, turn: _Turn) -> None:
        at = min(turn.again_at, turn.until)
        turn.timer = self._clock.call_at(at, lambda: self._wake(turn))

    def _wake(self, turn: _Turn) -> None:
        """It has waited too long, or those that it tried may be tried again."""
        now, fault = self._clock.now(), turn.walk.last_fault
        if turn.future.done():
            return
        if now >= turn.until:
            error = self._overload(turn, now) if fault is None else api_error(fault)
            self._refuse(turn, "expired", error)
            return
        if now >= turn.again_at:
            turn.again_at = NEVER
            turn.tried.clear()
            self._give(self._turns.stand(turn, now))
        if not turn.future.done():
            self._sleep(turn)

    def _freed(self, target: Target, now: float) -> None:
        self._give(self._turns.freed(target, now))

    def _due(self) -> None:
        self._timer, self._timer_at = None, NEVER
        self._give(self._turns.due(self._clock.now()))

    def _give(self, served: Iterable[Served]) -> None:
        """Hand leases to those whom they were taken for, and see to the next moment that refusals told."""
        for turn, lease in served:
            assert isinstance(turn, _Turn), "only these stand in the lines"
            turn.future.set_result(lease)
            self._say(turn, "served")
        due_at = self._turns.due_at
        if due_at != self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = due_at
            self._timer = self._clock.call_at(due_at, self._due) if due_at < NEVER else None

    # Out of it.

    def _give_back(self, turn: _Turn) -> None:
        """The client left: it is out of the line, and what it was given in the same moment goes to the next."""
        now, future = self._clock.now(), turn.future
        if not future.done():
            future.cancel()
        if future.cancelled():
            if turn in turn.line:
                self._give(self._turns.leave(turn, now))
            self._say(turn, "gone")
        elif future.exception() is None:
            lease = future.result()
            lease.settle(Verdict.VOID, now)
            lease.target.freed(now)

    def _refuse(self, turn: _Turn, outcome: str, error: ApiError) -> None:
        """End a wait with ``error``, unless it has ended."""
        if turn.future.done():
            return
        turn.future.set_exception(error)
        turn.stop()
        self._give(self._turns.leave(turn, self._clock.now()))
        self._say(turn, outcome)

    def _overload(self, turn: _Turn, now: float, least_s: float = 0.0) -> ApiError:
        """503 with the time after which its place in line would have been served."""
        wait_s = max(turn.line.wait_s(turn.priority, now), least_s)
        message = (
            f"The model `{turn.route.name}` has more requests than it can serve at the moment. "
            "Try again later."
        )
        return overloaded(message, OVERLOADED, min(wait_s, MAX_RETRY_AFTER_S))

    def _say(self, turn: _Turn, outcome: str) -> None:
        wait_s = self._clock.now() - turn.since
        turn.walk.say(Queued(turn.route.name, turn.priority, outcome, wait_s))

    def _said(self, walk: Walk, route: Route, outcome: str, error: ApiError) -> ApiError:
        """``error``, of a request that never stood in line."""
        walk.say(Queued(route.name, walk.call.priority, outcome, 0.0))
        return error


class _Turn(Waiting):
    """A place in line, and the future that ends its wait."""

    __slots__ = ("again_at", "future", "since", "timer", "until", "walk")

    def __init__(
        self, walk: Walk, route: Route, tried: set[Target], facts: Facts | None, number: int
    ) -> None:
        self.future: asyncio.Future[Lease] = asyncio.get_running_loop().create_future()
        key = (walk.call.priority, walk.call.received_at, number)
        super().__init__(key, route, tried, facts, self.future.done)
        self.walk = walk
        self.since = self.until = 0.0
        self.again_at = NEVER
        """When those that it tried may be tried again."""
        self.timer: Timer | None = None

    def stop(self) -> None:
        """No timer more."""
        if self.timer is not None:
            self.timer.cancel()
