"""The way to an answer's first piece: lease, attempt, retry, fall back; the only loop with ``await`` between steps."""

from __future__ import annotations

import random
from collections.abc import Mapping

from router.backends.base import Backend, Order
from router.clock import Clock
from router.dispatch.admission import Admission
from router.dispatch.call import LONG_BODY_BYTES, Call, Terms
from router.dispatch.hedge import Sending, sooner
from router.dispatch.reply import Reply, answer_headers, reply
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Attempt, Walk, begin
from router.errors import ApiError, Fault, FaultKind, api_error
from router.events import Fallback, Hedge, Listener, RetryRefused
from router.events import Retry as Retried
from router.facts import facts_of, size_of
from router.policy.breaker import Verdict
from router.policy.hedge_budget import HedgeBudget
from router.policy.retry_budget import RetryBudget
from router.pool import NO_FALLBACKS, Refusal, Route
from router.target import Lease, Target

HEDGE_QUANTILE = 0.95
"""Of first tokens at the target: one request in twenty is slower, which is what the budget is made for."""


class Dispatcher:
    """Sends requests to targets until one answers."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        terms: Terms,
        *,
        clock: Clock,
        rng: random.Random,
        emit: Listener,
    ) -> None:
        self._backends = backends
        self._terms = terms
        self._clock = clock
        self._emit = emit
        self._budgets: dict[str, RetryBudget] = {}
        self._hedges = HedgeBudget(terms.retry.hedge_share)
        self._admission = Admission(terms.retry, clock=clock, rng=rng, emit=emit)

    async def open(self, call: Call) -> Reply:
        """The answer's first piece, in hand: of the model that was asked for, or of one of its fallbacks.

        Raises ApiError when no attempt gave one: the model's own, unless a fallback found the request itself wrong.
        """
        walk = begin(call, self._terms, self._clock, self._emit)
        target: Target | None = None
        try:
            self._ask(walk)
            while True:
                route, tried = walk.route, walk.tried
                try:
                    if route.line.waiting:
                        lease = self._admission.lease(walk, route, tried, walk.facts)
                    else:
                        lease = route.lease(self._clock.now(), tried, walk.facts)
                    if type(lease) is Refusal:
                        lease = await self._admission.wait(
                            walk, route, tried, walk.facts, lease, may_turn=bool(walk.left)
                        )
                    target = lease.target
                    if self._hedges.on and target.kind == "provider" and call.request.stream:
                        attempt = await self._hedged(walk, route, lease, tried)
                    else:
                        attempt = await self._send(walk, lease, walk.sent)
                    break
                except Fault as fault:
                    assert target is not None, "it was sent"
                    self._retry_or_turn(walk, fault, target)
                except ApiError as error:
                    self._turn_or_raise(walk, error)
        except ApiError as error:
            walk.end(error.error.code or error.error.type, error.status, self._clock.now())
            error.headers = answer_headers(error.headers, call.charge)
            raise
        except BaseException:
            walk.end(CLIENT_GONE, CLIENT_GONE_STATUS, self._clock.now())
            raise
        return reply(walk, attempt, self._send)

    def stop_waiting(self) -> None:
        """Whoever waits in line, now or later, hears that the server shuts down; what runs goes on."""
        self._admission.close()

    # Who is asked: the model, again or not, or a fallback

    def _ask(self, walk: Walk) -> None:
        """A model is asked: what its policy wants to know, and what its retries are paid with."""
        route, call = walk.route, walk.sent
        budget = self._budgets.get(route.name) or self._budget(route.name)
        budget.request()
        if route.wants_facts:
            walk.facts = facts_of(call.request, route.most_blocks)
        elif route.wants_size():
            walk.facts = size_of(call.request, len(call.body))

    def _retry_or_turn(self, walk: Walk, fault: Fault, target: Target) -> None:
        """An attempt failed: return where the model or a fallback may be asked again. Raises ApiError."""
        walk.last_fault = fault
        if fault.retryable and walk.tries < self._terms.retry.attempts:
            if self._budgets[walk.route.name].take(self._clock.now()):
                walk.tried.add(target)
                walk.say(Retried(target.id, fault.kind))
                return
            walk.say(RetryRefused(walk.route.name, target.id, fault.kind))
        error = api_error(fault)
        error.__cause__ = fault
        self._turn_or_raise(walk, error)

    def _turn_or_raise(self, walk: Walk, error: ApiError) -> None:
        """The model can't answer: return where a fallback is asked from now on. Raises ApiError, for the client."""
        if walk.call.route.fallbacks is NO_FALLBACKS:
            raise error
        first = walk.refusal = walk.refusal or error
        route = self._instead(walk)
        if route is None:
            raise error if walk.is_final else first from None
        walk.turn_to(route)
        walk.say(Fallback(walk.call.route.name, route.name, error.error.code or ""))
        self._ask(walk)

    def _instead(self, walk: Walk) -> Route | None:
        """The next fallback that can serve the request after what befell it."""
        call, fault = walk.call, walk.last_fault
        fallbacks, left = call.route.fallbacks, walk.left or {}
        options = fallbacks.failed
        if fault is not None and fault.kind is FaultKind.CONTEXT_LENGTH:
            options = fallbacks.too_long
        elif fault is not None and fault.kind is FaultKind.CONTENT_FILTER:
            options = fallbacks.filtered
        elif walk.is_final:
            return None
        for option in options:
            if left.pop(option.name, None) is None:
                continue
            try:
                return self._terms.narrow(option, call.request, call.body)
            except ApiError:
                continue
        return None

    def _budget(self, model: str) -> RetryBudget:
        """A model's own, made now: what fails on one must not cost another its retries."""
        retry = self._terms.retry
        budget = RetryBudget(retry.budget_share, retry.budget_per_s, self._clock.now())
        self._budgets[model] = budget
        return budget

    # One attempt

    async def _hedged(self, walk: Walk, route: Route, lease: Lease, tried: set[Target]) -> Attempt:
        """The sooner of two attempts, or one. Raises Fault; then all leases are settled."""
        tokens = walk.call.prompt_tokens + route.outputs.value
        self._hedges.earn(tokens)
        patience = lease.target.load.first_tokens.quantile(walk.call.prompt_tokens, HEDGE_QUANTILE)
        if patience is None:
            return await self._send(walk, lease, walk.sent)
        rival: Target | None = None

        def second() -> Sending | None:
            nonlocal rival
            other = self._rival(route, walk.sent, tried | {lease.target}, tokens)
            if other is None:
                return None
            rival = other.target
            tried.add(rival)
            return self._send(walk, other, walk.sent, "hedge")

        try:
            won = await sooner(
                self._send(walk, lease, walk.sent), second, patience_s=patience, clock=self._clock
            )
        except Fault:
            if rival is not None:
                walk.say(Hedge(rival.id, "failed"))
            raise
        if rival is not None:
            walk.say(Hedge(rival.id, "won" if won.lease.target is rival else "lost"))
        return won

    def _rival(self, route: Route, call: Call, exclude: set[Target], tokens: float) -> Lease | None:
        """Another provider's lease, where one is free for the asking and the budget allows."""
        providers = route.providers()
        if not providers.members or not self._hedges.spend(tokens):
            return None
        facts = size_of(call.request, len(call.body))
        lease = providers.lease(self._clock.now(), exclude, facts)
        if isinstance(lease, Refusal):
            self._hedges.refund(tokens)
            return None
        return lease

    async def _send(self, walk: Walk, lease: Lease, call: Call, why: str = "") -> Attempt:
        """One attempt up to its first piece. Raises Fault; then, as on cancellation, the lease is settled.

        ``call``: what the target is asked, which may be the rest of an answer; ``why``: see `Walk.attempt`.
        """
        attempt, target = walk.attempt(lease, why), lease.target
        try:
            answer = await self._backends[target.backend].open(self._order(call, attempt))
            attempt.answer, facts = answer, answer.facts
            if facts.readings:
                lease.hear(facts.readings, self._clock.now())
            if facts.first_token_at is not None:
                lease.first_token(facts.first_token_at)
            attempt.first = await answer.read() or _unsaid()
        except BaseException as error:
            fault = error if isinstance(error, Fault) else None
            attempt.waste(fault, Verdict.VOID, self._clock.now())
            raise
        now = self._clock.now()
        if call.request.stream:
            lease.first_token(now)
            target.load.first_tokens.saw(call.prompt_tokens, now - lease.since)
        if walk.first_at is None:
            walk.first_at = now
        return attempt

    def _order(self, call: Call, attempt: Attempt) -> Order:
        terms, target, trace = self._terms, attempt.lease.target, attempt.trace
        local = target.local
        limits = terms.limits if local or call.request.stream else terms.whole_limits
        if len(call.body) >= LONG_BODY_BYTES and terms.prompt_s_per_1k:
            limits = terms.scaled(limits, call.prompt_tokens)
        return Order(
            call.request,
            call.body,
            target.model,
            call.request_id,
            call.deadline,
            limits,
            int(self._clock.wall()) if local else 0,
            call.said,
            trace.headers if trace is not None else b"",
        )


def _unsaid() -> bytes:
    raise Fault(FaultKind.CUT, "The answer ended before it began.")
