"""The way to an answer's first piece: lease, attempt, retry; the only loop with ``await`` between decisions."""

from __future__ import annotations

import random
from collections.abc import Mapping

from router.backends.base import Answer, Backend, Order
from router.clock import Clock
from router.dispatch.call import Call, Terms
from router.dispatch.reply import Reply, answer_headers
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Walk
from router.errors import ApiError, Fault, FaultKind, api_error, overloaded
from router.events import Listener, RetryRefused
from router.events import Retry as Retried
from router.facts import facts_of
from router.policy.breaker import Verdict
from router.policy.retry_budget import RetryBudget
from router.pool import Refusal
from router.target import Lease, Target


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
        self._rng = rng
        self._emit = emit
        self._budgets: dict[str, RetryBudget] = {}

    async def open(self, call: Call) -> Reply:
        """The answer's first piece, in hand. Raises ApiError when no attempt gave one."""
        walk = Walk(call, self._terms, self._clock, self._emit)
        try:
            return await self._first_answer(walk)
        except ApiError as error:
            walk.end(error.error.code or error.error.type, error.status)
            error.headers = answer_headers(error.headers, call.charge)
            raise
        except BaseException:
            walk.end(CLIENT_GONE, CLIENT_GONE_STATUS)
            raise

    async def _first_answer(self, walk: Walk) -> Reply:
        tried: set[Target] = set()
        route = walk.call.route
        budget = self._budget(route.name)
        budget.request()
        facts = facts_of(walk.call.request) if route.wants_facts else None
        while True:
            lease = route.lease(self._clock.now(), tried, facts)
            if isinstance(lease, Refusal):
                await self._wait(walk, lease)
                tried.clear()
                continue
            try:
                return await self._attempt(walk, lease)
            except Fault as fault:
                self._retry_or_raise(walk, fault, lease.target, budget)
                tried.add(lease.target)
                self._emit(Retried(lease.target.id, fault.kind))

    def _retry_or_raise(
        self, walk: Walk, fault: Fault, target: Target, budget: RetryBudget
    ) -> None:
        """Return where the request may be sent again. Raises ApiError, the client's answer."""
        walk.last_fault = fault
        if not fault.retryable or walk.attempts >= self._terms.retry.attempts:
            raise api_error(fault) from fault
        if not budget.take(self._clock.now()):
            self._emit(RetryRefused(walk.call.route.name, target.id, fault.kind))
            raise api_error(fault) from fault

    def _budget(self, model: str) -> RetryBudget:
        """A model's own: what fails on one must not cost another its retries."""
        budget = self._budgets.get(model)
        if budget is None:
            retry = self._terms.retry
            budget = RetryBudget(retry.budget_share, retry.budget_per_s, self._clock.now())
            self._budgets[model] = budget
        return budget

    async def _attempt(self, walk: Walk, lease: Lease) -> Reply:
        """One attempt up to its first piece. Raises Fault; then, as on cancellation, the lease is settled."""
        attempt = walk.begin(lease)
        try:
            backend = self._backends[lease.target.backend]
            answer = await backend.open(self._order(walk.call, lease.target))
            attempt.answer = answer
            if answer.facts.first_token_at is not None:
                lease.first_token(answer.facts.first_token_at)
            first = await _first_piece(answer)
        except BaseException as error:
            attempt.end(error if isinstance(error, Fault) else None, Verdict.VOID)
            raise
        walk.first_token_at = self._clock.now()
        if walk.call.request.stream:
            lease.first_token(walk.first_token_at)
        return Reply(walk, attempt, answer, first)

    def _order(self, call: Call, target: Target) -> Order:
        shows_progress = call.request.stream or target.kind == "engine"
        return Order(
            request=call.request,
            body=call.body,
            model=target.model,
            request_id=call.request_id,
            deadline=call.deadline,
            limits=self._terms.limits if shows_progress else self._terms.whole_limits,
            created=int(self._clock.wall()),
        )

    async def _wait(self, walk: Walk, refusal: Refusal) -> None:
        """Wait until somebody may take the request: as long as targets asked for, and before any is tried
        again, exponentially longer with full jitter. Raises ApiError where nobody is up or the wait would outlast
        the deadline.

        Source: AWS Architecture Blog, "Exponential Backoff And Jitter".
        """
        now = self._clock.now()
        fault = walk.last_fault
        wait = max(0.0, refusal.retry_at - now)
        if refusal.reason == "unavailable":
            raise api_error(fault) if fault is not None else self._nobody_up(walk, wait)
        if walk.attempts:
            retry = self._terms.retry
            wait = max(wait, self._rng.random() * retry.backoff_s * 2 ** (walk.attempts - 1))
        if fault is not None and fault.retry_after_s is not None:
            wait = max(wait, fault.retry_after_s)
        if now + wait >= walk.call.deadline:
            message = "All targets of this model asked to be left alone for a while."
            raise api_error(fault or Fault(FaultKind.RATE_LIMITED, message, retry_after_s=wait))
        await self._clock.sleep(wait)

    def _nobody_up(self, walk: Walk, wait: float) -> ApiError:
        message = (
            f"The model `{walk.call.route.name}` has no target that is up. Try again in a moment."
        )
        return overloaded(message, "model_unavailable", wait)


async def _first_piece(answer: Answer) -> bytes:
    first = await answer.read()
    if not first:
        raise Fault(FaultKind.CUT, "The answer ended before it began.")
    return first
