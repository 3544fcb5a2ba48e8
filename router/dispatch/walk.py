"""The state of one request across its attempts; an attempt settles its lease, a walk says how the request ended."""

from __future__ import annotations

from router.accounts.charge import Bill, bill
from router.accounts.prices import Tokens
from router.backends.base import Answer, Facts
from router.clock import Clock
from router.dispatch.call import Call, Terms
from router.errors import BUSY, Fault, FaultKind
from router.events import AttemptDone, Listener, RequestDone, TargetState
from router.policy.breaker import Verdict
from router.target import Lease

CLIENT_GONE = "client_gone"
CLIENT_GONE_STATUS = 499
"""nginx's number for a client that closed before its answer; seen in logs and metrics only."""


class Walk:
    """One request, from its first attempt to its end."""

    __slots__ = (
        "_emit",
        "_first_sent_at",
        "attempts",
        "call",
        "clock",
        "first_token_at",
        "last_fault",
        "latest",
        "terms",
    )

    def __init__(self, call: Call, terms: Terms, clock: Clock, emit: Listener) -> None:
        self._emit = emit
        self._first_sent_at: float | None = None
        self.call = call
        self.terms = terms
        self.clock = clock
        self.attempts = 0
        self.latest: Attempt | None = None
        """The one that was sent last, or whose answer the client gets."""
        self.last_fault: Fault | None = None
        self.first_token_at: float | None = None

    @property
    def overhead_s(self) -> float | None:
        """What the router itself took before the first attempt; None while there was none."""
        sent = self._first_sent_at
        return None if sent is None else sent - self.call.received_at

    def begin(self, lease: Lease) -> Attempt:
        """An attempt is about to be sent."""
        self.attempts += 1
        if self._first_sent_at is None:
            self._first_sent_at = lease.since
        self.latest = Attempt(lease, self.call.route.name, self.clock, self._emit)
        return self.latest

    def end(self, outcome: str, status: int) -> None:
        """The request is over, with the latest attempt's answer if there is one."""
        call, latest = self.call, self.latest
        facts = latest.facts if latest is not None else Facts()
        target = latest.lease.target if latest is not None else None
        told = Tokens(facts.input_tokens, facts.cached_input_tokens, facts.output_tokens)
        took = self._bill(told)
        now = self.clock.now()
        first = self.first_token_at
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
                first_token_s=first - call.received_at if first is not None else None,
                input_tokens=took.tokens.input,
                cached_input_tokens=took.tokens.cached_input,
                output_tokens=took.tokens.output,
                overhead_s=self.overhead_s,
                cost_usd=took.cost_usd,
                tokens_estimated=took.estimated or None,
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

    __slots__ = ("_clock", "_emit", "_model", "answer", "lease")

    def __init__(self, lease: Lease, model: str, clock: Clock, emit: Listener) -> None:
        self.lease = lease
        self.answer: Answer | None = None
        """None until its head is there."""
        self._model = model
        self._clock = clock
        self._emit = emit

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
        now = self._clock.now()
        retry_after_s = None
        if fault is not None:
            verdict = _verdict(fault)
            if fault.kind is FaultKind.RATE_LIMITED:
                retry_after_s = fault.retry_after_s
        moved = lease.settle(verdict, now, retry_after_s, self.facts.output_tokens)
        self._emit(
            AttemptDone(
                model=self._model,
                target=target.id,
                provider=target.backend,
                duration_s=now - lease.since,
                fault=fault.kind if fault is not None else None,
            )
        )
        if moved:
            reason = fault.kind.value if fault is not None else verdict.value
            self._emit(TargetState(target.id, target.state, reason))


def _verdict(fault: Fault) -> Verdict:
    """What ``fault`` says about its target. Who named the time when he will answer is believed, and left alone."""
    if fault.kind in BUSY:
        return Verdict.LIMITED if fault.retry_after_s is None else Verdict.VOID
    return Verdict.BAD if fault.blames_target else Verdict.VOID
