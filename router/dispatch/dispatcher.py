"""The way to an answer's first piece: lease, attempt, retry; the only loop with ``await`` between decisions."""

from __future__ import annotations

import random
from collections.abc import Mapping

from router.backends.base import Answer, Backend, Order
from router.clock import Clock
from router.dispatch.admission import Admission
from router.dispatch.call import Call, Terms
from router.dispatch.reply import Reply, answer_headers
from router.dispatch.walk import CLIENT_GONE, CLIENT_GONE_STATUS, Walk
from router.errors import ApiError, Fault, FaultKind, api_error
from router.events import Listener
from router.events import Retry as Retried
from router.facts import facts_of
from router.policy.breaker import Verdict
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
        self._emit = emit
        self._admission = Admission(terms.retry, clock=clock, rng=rng, emit=emit)

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

    def stop_waiting(self) -> None:
        """Whoever waits in line, now or later, hears that the server shuts down; what runs goes on."""
        self._admission.close()

    async def _first_answer(self, walk: Walk) -> Reply:
        tried: set[Target] = set()
        route = walk.call.route
        facts = facts_of(walk.call.request) if route.wants_facts else None
        while True:
            lease = self._admission.lease(walk, route, tried, facts)
            if isinstance(lease, Refusal):
                lease = await self._admission.wait(walk, route, tried, facts, lease)
            try:
                return await self._attempt(walk, lease)
            except Fault as fault:
                self._retry_or_raise(walk, fault)
                tried.add(lease.target)
                self._emit(Retried(lease.target.id, fault.kind))

    def _retry_or_raise(self, walk: Walk, fault: Fault) -> None:
        walk.last_fault = fault
        if not fault.retryable or walk.attempts >= self._terms.retry.attempts:
            raise api_error(fault) from fault

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


async def _first_piece(answer: Answer) -> bytes:
    first = await answer.read()
    if not first:
        raise Fault(FaultKind.CUT, "The answer ended before it began.")
    return first
