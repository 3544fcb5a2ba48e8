"""The state of one request across its attempts; an attempt settles its lease, a walk says how the request ended."""

from __future__ import annotations

from msgspec.structs import replace

from router.accounts.charge import Bill, bill
from router.accounts.prices import Tokens
from router.backends.base import Answer, Facts
from router.clock import Clock
from router.dispatch.call import Call, Terms
from router.errors import BUSY, Fault, FaultKind
from router.events import AttemptDone, Event, Listener, RequestDone, TargetState
from router.policy.breaker import Verdict
from router.pool import Route
from router.ratelimits import NOTHING_SPENT, Spent
from router.target import Lease

CLIENT_GONE = "client_gone"
CLIENT_GONE_STATUS = 499
"""nginx's number for a client that closed before its answer; seen in logs and metrics only."""


class Walk:
    """One request, from its first attempt to its end."""

    __slots__ = (
        "_burnt",
        "_emit",
        "_first_sent_at",
        "attempts",
        "call",
        "clock",
        "first_at",
        "last_fault",
        "latest",
        "route",
        "sent",
        "terms",
        "tries",
        "waited_s",
    )

    def __init__(self, call: Call, terms: Terms, clock: Clock, emit: Listener) -> None:
        self._emit = emit
        self._first_sent_at: float | None = None
        self.call = call
        self.terms = terms
        self.clock = clock
        self._burnt: tuple[int | None, int | None] = (None, None)
        self.attempts = 0
        self.route = call.route
        """The model that is asked at present: the call's, or a fallback."""
        self.sent = call
        """What it is asked."""
        self.tries = 0
        """Attempts at it."""
        self.latest: Attempt | None = None
        """The one that was sent last, or whose answer the client gets."""
        self.last_fault: Fault | None = None
        self.first_at: float | None = None
        """When the client's answer began."""
        self.waited_s = 0.0
        """In line, before the first attempt."""

    @property
    def overhead_s(self) -> float | None:
        """What the router itself took before the first attempt; None while there was none."""
        sent = self._first_sent_at
        return None if sent is None else sent - self.call.received_at - self.waited_s

    @property
    def is_final(self) -> bool:
        """No other target would have mended what befell it last."""
        return self.last_fault is not None and not self.last_fault.retryable

    def turn_to(self, route: Route) -> None:
        """Another model is asked from now on, by its own name."""
        request = replace(self.call.request, model=route.name)
        self.route = route
        self.sent = replace(self.call, request=request)
        self.tries = 0
        self.last_fault = None

    def begin(self, lease: Lease) -> Attempt:
        """An attempt is about to be sent."""
        self.attempts += 1
        self.tries += 1
        if self._first_sent_at is None:
            self._first_sent_at = lease.since
        self.latest = Attempt(lease, self)
        return self.latest

    def say(self, event: Event) -> None:
        """Tell the listeners."""
        self._emit(event)

    def burn(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Targets took so many tokens that the client's answer has no part in."""
        given, wrote = self._burnt
        if input_tokens:
            given = (given or 0) + input_tokens
        if output_tokens:
            wrote = (wrote or 0) + output_tokens
        self._burnt = given, wrote

    def end(self, outcome: str, status: int) -> None:
        """The request is over, with the latest attempt's answer if there is one."""
        call, latest = self.call, self.latest
        facts = latest.facts if latest is not None else Facts()
        target = latest.lease.target if latest is not None else None
        told = Tokens(facts.input_tokens, facts.cached_input_tokens, facts.output_tokens)
        took = self._bill(told)
        now = self.clock.now()
        self._emit(
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
                first_token_s=self.first_at - call.received_at
                if self.first_at is not None
                else None,
                input_tokens=took.tokens.input,
                cached_input_tokens=took.tokens.cached_input,
                output_tokens=took.tokens.output,
                overhead_s=self.overhead_s,
                cost_usd=took.cost_usd,
                tokens_estimated=took.estimated or None,
                burnt_input_tokens=self._burnt[0],
                burnt_output_tokens=self._burnt[1],
                reasoning_tokens=facts.reasoning_tokens,
                operation=call.request.operation.genai,
            )
        )

    def _bill(self, tokens: Tokens) -> Bill:
        """Settle the request's charge, if it has one, and say what it took."""
        call, accounts = self.call, self.terms.accounts
        if call.charge is None or accounts is None:
            return bill(call.route.model.price, tokens)
        return accounts.settle(call.charge, tokens)


class Attempt:
    """One lease on one target, and the answer that came of it."""

    __slots__ = ("_walk", "answer", "first", "lease", "used")

    def __init__(self, lease: Lease, walk: Walk) -> None:
        self.lease = lease
        self.used = False
        """The client gets of its answer; else what it took is burnt."""
        self.answer: Answer | None = None
        """None until its head is there."""
        self.first = b""
        """The answer's first piece."""
        self._walk = walk

    @property
    def facts(self) -> Facts:
        """What is known of its answer; empty while there is none."""
        return self.answer.facts if self.answer is not None else Facts()

    def end(self, fault: Fault | None, verdict: Verdict) -> None:
        """It is over, by ``fault`` or else with ``verdict``: let the backend go and settle the lease.

        Raises IllegalMove the second time.
        """
        if self.answer is not None:
            self.answer.close()
        lease, target = self.lease, self.lease.target
        walk = self._walk
        now = walk.clock.now()
        if not self.used:
            walk.burn(self.facts.input_tokens, self.facts.output_tokens)
        retry_after_s = None
        if fault is not None:
            verdict = _verdict(fault)
            if fault.kind is FaultKind.RATE_LIMITED:
                retry_after_s = fault.retry_after_s
                if fault.readings or retry_after_s is not None:
                    lease.refused(fault.readings, now, retry_after_s)
        facts = self.facts
        overloads = fault is not None and fault.overloads
        spent = _spent(facts, fault)
        moved = lease.settle(verdict, now, retry_after_s, facts.output_tokens, spent, overloads)
        walk.say(
            AttemptDone(
                model=walk.call.route.name,
                target=target.id,
                provider=target.backend,
                duration_s=now - lease.since,
                fault=fault.kind if fault is not None else None,
                operation=walk.call.request.operation.genai,
                resource=_used_up(fault),
            )
        )
        if moved:
            reason = fault.kind.value if fault is not None else verdict.value
            walk.say(TargetState(target.id, target.state, reason))
        target.freed(now)


def _verdict(fault: Fault) -> Verdict:
    """What ``fault`` says about its target. Who told when he will answer, or of his limits, is believed: the request
    came too early, and that is no matter of health.
    """
    if fault.kind in BUSY:
        told = fault.retry_after_s is not None or fault.readings
        return Verdict.VOID if told else Verdict.LIMITED
    return Verdict.BAD if fault.blames_target else Verdict.VOID


def _used_up(fault: Fault | None) -> str | None:
    """The limit for which a provider refused, as far as it told: the one of which the least is left."""
    if fault is None or not fault.readings:
        return None
    told = [
        (one.remaining / (one.limit or 1), one.name)
        for one in fault.readings
        if one.remaining is not None
    ]
    return min(told)[1] if told else None


UNCOUNTED = frozenset({
    FaultKind.LOCAL, FaultKind.RATE_LIMITED, FaultKind.CONNECT, FaultKind.TIMEOUT_CONNECT,
})  # fmt: skip
"""Kinds after which the provider has counted nothing."""


def _spent(facts: Facts, fault: Fault | None) -> Spent | None:
    """What an attempt took of its provider's limits; None where nobody said."""
    if fault is not None and fault.kind in UNCOUNTED:
        return NOTHING_SPENT
    if facts.input_tokens is None or facts.output_tokens is None:
        return None
    return Spent(facts.input_tokens, facts.output_tokens, facts.cached_input_tokens or 0)
