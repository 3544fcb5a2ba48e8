"""The walk of one request: lease, attempt, relay, settle; the only loop with ``await`` between decisions.

Until the first piece of an answer is in hand nothing was promised to the client, so an attempt that fails may be made
elsewhere. From then on the reply is that one answer: it ends whole, or with an explicit error. Whatever happens, and
cancellation is one of the things that happen, the lease is settled once, the backend is let go, and one RequestDone
is said.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from router.accounts.accounts import Accounts
from router.accounts.charge import Bill, Charge, bill
from router.accounts.prices import Tokens
from router.backends.base import Answer, Backend, Facts, Limits, Order
from router.clock import Clock
from router.config.schema import Retry
from router.errors import ApiError, Fault, FaultKind, api_error, overloaded
from router.events import AttemptDone, Listener, RequestDone, TargetState
from router.events import Retry as Retried
from router.facts import facts_of
from router.policy.breaker import Verdict
from router.pool import Refusal, Route
from router.target import Lease, Target
from router.wire.request import Request

CLIENT_GONE = "client_gone"
CLIENT_GONE_STATUS = 499
"""nginx's number for a client that closed before its answer; seen in logs and metrics only."""


LIMIT_HEADERS = "x-ratelimit-"


class Call(msgspec.Struct, frozen=True):
    """One request, admitted: what the walk needs to know of it. Times are monotonic seconds."""

    request: Request
    body: bytes
    route: Route
    request_id: str
    key_id: str
    received_at: float
    deadline: float
    charge: Charge | None = None
    """Its claim on its key's limits and budget, if anybody counts; settled with the walk's end."""


class Terms(msgspec.Struct, frozen=True):
    """The rules of every walk."""

    limits: Limits
    whole_limits: Limits
    """For a provider that is asked for a whole answer: its first byte comes after its last token."""
    retry: Retry
    accounts: Accounts | None = None
    """Settles charges; None where there are none."""


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
        self.emit = emit

    def bill(self, call: Call, tokens: Tokens) -> Bill:
        """Settle the request's charge, if it has one, and say what it took."""
        accounts = self._terms.accounts
        if call.charge is None or accounts is None:
            return bill(call.route.model.price, tokens)
        return accounts.settle(call.charge, tokens)

    @property
    def clock(self) -> Clock:
        """The time that leases and events are stamped with."""
        return self._clock

    async def open(self, call: Call) -> Reply:
        """The answer's first piece, in hand. Raises ApiError when no attempt gave one."""
        walk = Walk(self, call)
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
                self._retry_or_raise(walk, fault)
                tried.add(lease.target)
                self.emit(Retried(lease.target.id, fault.kind))

    def _retry_or_raise(self, walk: Walk, fault: Fault) -> None:
        walk.last_fault = fault
        if not fault.retryable or walk.attempts >= self._terms.retry.attempts:
            raise api_error(fault) from fault

    async def _attempt(self, walk: Walk, lease: Lease) -> Reply:
        """One attempt up to its first piece. Raises Fault; then, as on cancellation, the lease is settled."""
        walk.begin(lease)
        answer: Answer | None = None
        try:
            backend = self._backends[lease.target.backend]
            answer = await backend.open(self._order(walk.call, lease.target))
            if answer.facts.first_token_at is not None:
                lease.first_token(answer.facts.first_token_at)
            first = await _first_piece(answer)
        except BaseException as error:
            if answer is not None:
                answer.close()
            walk.settle(error if isinstance(error, Fault) else None, Verdict.VOID)
            raise
        walk.first_token_at = self._clock.now()
        if walk.call.request.stream:
            lease.first_token(walk.first_token_at)
        return Reply(walk, answer, first)

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


def answer_headers(theirs: Mapping[str, str], charge: Charge | None) -> Mapping[str, str]:
    """An answer's headers: of limits only the client's own, never those that an upstream sets us."""
    ours = charge.headers if charge is not None else {}
    if ours or any(name.startswith(LIMIT_HEADERS) for name in theirs):
        kept = (
            (name, value) for name, value in theirs.items() if not name.startswith(LIMIT_HEADERS)
        )
        return {**dict(kept), **ours}
    return theirs


class Walk:
    """The state of one request between its attempts."""

    __slots__ = (
        "_dispatcher",
        "_first_sent_at",
        "attempts",
        "call",
        "facts",
        "first_token_at",
        "last_fault",
        "lease",
        "target",
    )

    def __init__(self, dispatcher: Dispatcher, call: Call) -> None:
        self._dispatcher = dispatcher
        self._first_sent_at: float | None = None
        self.call = call
        self.attempts = 0
        self.last_fault: Fault | None = None
        self.lease: Lease | None = None
        self.target: Target | None = None
        self.first_token_at: float | None = None
        self.facts = Facts()
        """Of the answer that the client gets; empty while there is none."""

    @property
    def overhead_s(self) -> float | None:
        """What the router itself took before the first attempt; None while there was none."""
        sent = self._first_sent_at
        return None if sent is None else sent - self.call.received_at

    def begin(self, lease: Lease) -> None:
        """An attempt is about to be sent."""
        self.lease = lease
        self.target = lease.target
        self.attempts += 1
        if self._first_sent_at is None:
            self._first_sent_at = lease.since

    def settle(self, fault: Fault | None, verdict: Verdict) -> None:
        """An attempt is over: by ``fault``, or else with ``verdict``."""
        lease = self.lease
        assert lease is not None, "settled without an attempt"
        self.lease = None
        now = self._dispatcher.clock.now()
        retry_after_s = None
        if fault is not None:
            verdict = Verdict.BAD if fault.blames_target else Verdict.VOID
            if fault.kind is FaultKind.RATE_LIMITED:
                verdict, retry_after_s = Verdict.VOID, fault.retry_after_s
        target = lease.target
        moved = lease.settle(verdict, now, retry_after_s, self.facts.output_tokens)
        emit = self._dispatcher.emit
        emit(
            AttemptDone(
                model=self.call.route.name,
                target=target.id,
                provider=target.backend,
                duration_s=now - lease.since,
                fault=fault.kind if fault is not None else None,
            )
        )
        if moved:
            reason = fault.kind.value if fault is not None else verdict.value
            emit(TargetState(target.id, target.state, reason))

    def end(self, outcome: str, status: int) -> None:
        """The request is over."""
        call, target, facts = self.call, self.target, self.facts
        told = Tokens(facts.input_tokens, facts.cached_input_tokens, facts.output_tokens)
        took = self._dispatcher.bill(call, told)
        now = self._dispatcher.clock.now()
        first = self.first_token_at
        self._dispatcher.emit(
            RequestDone(
                request_id=call.request_id,
                key_id=call.key_id,
                model=call.route.name,
                target=target.id if target is not None else "",
                provider=target.backend if target is not None else "",
                streaming=bool(call.request.stream),
                outcome=outcome,
                status=status,
                attempts=self.attempts,
                duration_s=now - call.received_at,
                first_token_s=first - call.received_at if first is not None else None,
                input_tokens=took.tokens.input,
                cached_input_tokens=took.tokens.cached_input,
                output_tokens=took.tokens.output,
                overhead_s=self.overhead_s,
                cost_usd=took.cost_usd,
                tokens_estimated=took.estimated or None,
            )
        )


class Reply:
    """An answer under way to its client."""

    __slots__ = (
        "_answer",
        "_charge",
        "_first",
        "_over",
        "_walk",
        "attempts",
        "headers",
        "overhead_s",
        "streaming",
        "target",
    )

    def __init__(self, walk: Walk, answer: Answer, first: bytes) -> None:
        self._walk = walk
        self._answer = answer
        self._first = first
        self._over = False
        self._charge = walk.call.charge
        walk.facts = answer.facts
        self.streaming = bool(walk.call.request.stream)
        self.attempts = walk.attempts
        self.overhead_s = walk.overhead_s
        self.headers = answer_headers(answer.headers, walk.call.charge)
        self.target = walk.target.id if walk.target is not None else ""

    async def read(self) -> bytes:
        """The next bytes; the first call returns at once, ``b""`` comes after the last.

        A stream gives blobs of whole server-sent events, the last ends with ``[DONE]``; otherwise there is one piece,
        the JSON. Raises ApiError where the answer broke: the client must be told.
        """
        if self._first:
            first, self._first = self._first, b""
            if self._charge is not None:
                self._charge.saw(first)
            return first
        if self._over:
            return b""
        try:
            piece = await self._answer.read()
        except Fault as fault:
            error = api_error(fault)
            self._finish(fault, error.error.code or error.error.type, error.status)
            raise error from fault
        if not piece:
            self._finish(None, "ok", 200)
        elif self._charge is not None:
            self._charge.saw(piece)
        return piece

    def close(self) -> None:
        """Let go: what still runs is cancelled at once, everything is settled. May be called twice."""
        if self._over:
            return
        if self._answer.facts.finished:
            self._finish(None, "ok", 200)
        else:
            self._finish(None, CLIENT_GONE, CLIENT_GONE_STATUS)

    def _finish(self, fault: Fault | None, outcome: str, status: int) -> None:
        self._over = True
        self._answer.close()
        self._walk.settle(fault, Verdict.GOOD if outcome == "ok" else Verdict.VOID)
        self._walk.end(outcome, status)
