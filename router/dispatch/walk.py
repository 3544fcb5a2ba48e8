"""The state of one request across its attempts; an attempt settles its lease, a walk says how the request ended."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from router.accounts.charge import bill
from router.accounts.prices import Tokens
from router.backends.base import Answer, Facts
from router.clock import Clock
from router.dispatch.call import Call, Terms
from router.errors import BUSY, ApiError, Fault, FaultKind
from router.events import AttemptDone, Event, Listener, RequestDone, TargetState
from router.load import Facts as Demands
from router.policy.breaker import Verdict
from router.pool import NO_FALLBACKS, Route
from router.ratelimits import NOTHING_SPENT, Spent
from router.target import Lease, Target
from router.tracing import AttemptTrace, Sent

CLIENT_GONE = "client_gone"
CLIENT_GONE_STATUS = 499
"""nginx's number for a client that closed before its answer; seen in logs and metrics only."""
NOTHING_BURNT: tuple[int | None, int | None] = (None, None)
UNHEARD = Facts()
"""What is known of an answer that hasn't begun; nobody writes to it."""


def begin(call: Call, terms: Terms, clock: Clock, emit: Listener) -> Walk:
    """The walk of ``call``; ``emit`` tells the listeners."""
    say, trace = emit, call.trace
    if trace is not None:

        def say(event: Event) -> None:
            trace.note(event)
            emit(event)

    route = call.route
    walk = Walk(call, terms, clock, emit, say, route, call)
    if route.fallbacks is not NO_FALLBACKS:
        walk.left = {one.name: one for one in route.fallbacks.all}
    return walk


class Walk(Struct, eq=False):
    """One request, from its first attempt to its end."""

    call: Call
    terms: Terms
    clock: Clock
    _emit: Listener
    say: Listener
    """Tell the listeners, and the request's trace."""
    route: Route
    """The model that is asked at present: the call's, or a fallback."""
    sent: Call
    """What it is asked."""
    tried: set[Target] = set()
    """Its targets that failed, and may not be tried again yet."""
    facts: Demands | None = None
    """What is known of the request, as far as its policy looks at that."""
    left: dict[str, Route] | None = None
    """Fallbacks that were not asked yet, by name; None where there are none."""
    refusal: ApiError | None = None
    """Why the model that was asked for didn't answer, where a fallback was asked then."""
    attempts: int = 0
    _before: int = 0
    """Of these, at models that were asked before this one."""
    latest: Attempt | None = None
    """The one that was sent last, or whose answer the client gets."""
    last_fault: Fault | None = None
    first_at: float | None = None
    """When the client's answer began."""
    waited_s: float = 0.0
    """In line, before the first attempt."""
    overhead_s: float | None = None
    """What the router itself took before the first attempt; None while there was none."""
    _burnt: tuple[int | None, int | None] = NOTHING_BURNT

    def __repr__(self) -> str:
        return f"<Walk {self.call.request_id}>"

    @property
    def tries(self) -> int:
        """Attempts at the model that is asked at present."""
        return self.attempts - self._before

    @property
    def is_final(self) -> bool:
        """No other target would have mended what befell it last."""
        return self.last_fault is not None and not self.last_fault.retryable

    def turn_to(self, route: Route) -> None:
        """Another model is asked from now on, by its own name."""
        request = replace(self.call.request, model=route.name)
        self.route = route
        self.sent = replace(self.call, request=request)
        self._before = self.attempts
        self.tried = set()
        self.facts = None
        self.last_fault = None

    def attempt(self, lease: Lease, why: str = "") -> Attempt:
        """One that is about to be sent: the latest. ``why``: a trace's word for it, where it isn't plain."""
        self.attempts += 1
        if self.overhead_s is None:
            self.overhead_s = lease.since - self.call.received_at - self.waited_s
        trace = self.call.trace
        told = None if trace is None else trace.attempt(self._sending(lease, why))
        self.latest = attempt = Attempt(lease, self, told)
        return attempt

    def _sending(self, lease: Lease, why: str) -> Sent:
        """The latest attempt as a trace is told of it."""
        target, reason = lease.target, "first"
        if why:
            reason = why
        elif self.first_at is not None:
            reason = "recovery"
        elif self.tries > 1:
            reason = "retry"
        elif self.route is not self.call.route:
            reason = "fallback"
        return Sent(target.id, target.backend, target.model, self.attempts, reason, lease.since)

    def burn(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Targets took so many tokens that the client's answer has no part in."""
        given, wrote = self._burnt
        if input_tokens:
            given = (given or 0) + input_tokens
        if output_tokens:
            wrote = (wrote or 0) + output_tokens
        self._burnt = given, wrote

    def end(self, outcome: str, status: int, now: float) -> None:
        """The request is over, with the latest attempt's answer if there is one."""
        call, latest = self.call, self.latest
        facts, target_id, backend = UNHEARD, "", ""
        if latest is not None:
            self.latest = None  # they know each other: with this, both go without the collector
            facts, target = latest.facts, latest.lease.target
            target_id, backend = target.id, target.backend
        told = Tokens(facts.input_tokens, facts.cached_input_tokens, facts.output_tokens)
        charge = call.charge
        took = bill(call.route.model.price, told) if charge is None else charge.settle(told, now)
        trace = call.trace
        received_at, first_at = call.received_at, self.first_at
        given_in_vain, written_in_vain = self._burnt
        tokens = took.tokens
        done = RequestDone(  # by place: names take 0.9 µs, places 0.1
            call.request_id,
            call.key_id,
            call.route.name,
            target_id,
            backend,
            call.request.stream or False,
            outcome,
            status,
            self.attempts,
            now - received_at,
            first_at - received_at if first_at is not None else None,
            tokens.input,
            tokens.cached_input,
            tokens.output,
            self.overhead_s,
            took.cost_usd,
            took.estimated or None,
            given_in_vain,
            written_in_vain,
            trace.id if trace is not None else None,
            facts.reasoning_tokens,
            call.request.operation.genai,
        )
        self._emit(done)
        if trace is not None:
            trace.end(done)


class Attempt(Struct, eq=False):
    """One lease on one target, and the answer that came of it."""

    lease: Lease
    _walk: Walk
    trace: AttemptTrace | None = None
    answer: Answer | None = None
    """None until its head is there."""
    first: bytes = b""
    """The answer's first piece."""

    def __repr__(self) -> str:
        return f"<Attempt at {self.lease.target.id}>"

    @property
    def facts(self) -> Facts:
        """What is known of its answer; empty while there is none."""
        return UNHEARD if self.answer is None else self.answer.facts

    def waste(self, fault: Fault | None, verdict: Verdict, now: float) -> None:
        """It is over, as in `end`, and the client got nothing of its answer: what it took is burnt."""
        self.end(fault, verdict, now)
        facts = self.facts
        self._walk.burn(facts.input_tokens, facts.output_tokens)

    def end(self, fault: Fault | None, verdict: Verdict, now: float) -> None:
        """It is over, by ``fault`` or else with ``verdict``: let the backend go and settle the lease.

        Raises IllegalMove the second time.
        """
        lease, walk, answer = self.lease, self._walk, self.answer
        target, facts = lease.target, UNHEARD
        if answer is not None:
            answer.close()
            facts = answer.facts
        spent = _spent(facts, fault) if lease.hold is not None else None
        if fault is None:
            moved = lease.settle(verdict, now, None, facts.output_tokens, spent)
        else:
            verdict = _verdict(fault)
            moved = self._settle(fault, verdict, spent, now)
        request = walk.call.request
        walk.say(
            AttemptDone(  # by place, as above
                walk.call.route.name,
                target.id,
                target.backend,
                now - lease.since,
                None if fault is None else fault.kind,
                walk.call.request_id,
                request.operation.genai,
                None if fault is None else _used_up(fault),
            )
        )
        if self.trace is not None:
            self.trace.end(answer, fault, now, good=verdict is Verdict.GOOD)
        if moved:
            reason = fault.kind.value if fault is not None else verdict.value
            walk.say(TargetState(target.id, target.state, reason))
        if target.on_free is not None:
            target.on_free(target, now)

    def _settle(self, fault: Fault, verdict: Verdict, spent: Spent | None, now: float) -> bool:
        """Settle the lease of an attempt that failed; whether its target's health moved."""
        lease, retry_after_s = self.lease, None
        if fault.kind is FaultKind.RATE_LIMITED:
            retry_after_s = fault.retry_after_s
            if fault.readings or retry_after_s is not None:
                lease.refused(fault.readings, now, retry_after_s)
        output_tokens = self.facts.output_tokens
        return lease.settle(verdict, now, retry_after_s, output_tokens, spent, fault.overloads)


def _verdict(fault: Fault) -> Verdict:
    """What ``fault`` says about its target. Who told when he will answer, or of his limits, is believed: the request
    came too early, and that is no matter of health.
    """
    if fault.kind in BUSY:
        told = fault.retry_after_s is not None or fault.readings
        return Verdict.VOID if told else Verdict.LIMITED
    return Verdict.BAD if fault.blames_target else Verdict.VOID


def _used_up(fault: Fault) -> str | None:
    """The limit for which a provider refused, as far as it told: the one of which the least is left."""
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
