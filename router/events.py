"""What happened, as data. The dispatcher, the pool and the supervisors say it; metrics and the log listen.

A listener is called synchronously where the event happens, so it must be quick and should not raise: one that does is
logged and costs no request. One that heeds a few kinds of events is a `Hearer` and is called with those alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec

from router.errors import FaultKind

_log = logging.getLogger("nenya")


class AttemptDone(msgspec.Struct, frozen=True, gc=False):
    """One attempt at one target is over. Times in seconds."""

    model: str
    target: str
    provider: str
    duration_s: float
    fault: FaultKind | None
    request_id: str = ""
    operation: str = "chat"
    """OpenTelemetry's word: ``chat``, ``text_completion`` or ``embeddings``."""
    resource: str | None = None
    """Of a refusal for the provider's limits: the one that was used up, as far as it was told."""


class RequestDone(msgspec.Struct, frozen=True, gc=False):
    """A request is over, whatever way. Times in seconds, None where it never came so far."""

    request_id: str
    key_id: str
    model: str
    target: str
    provider: str
    streaming: bool
    outcome: str
    """``ok``, ``client_gone``, or the code of the error the client got."""
    status: int
    attempts: int
    duration_s: float
    first_token_s: float | None
    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None
    overhead_s: float | None
    """Time that the router itself took before the first attempt was sent."""
    cost_usd: float | None = None
    """At the model's price; None where it has none."""
    tokens_estimated: bool | None = None
    """True where the answer broke off before its usage was told, so that the tokens are a guess."""
    burnt_input_tokens: int | None = None
    """Tokens that targets took besides, as far as they told: by attempts that failed, and by reading the prompt again
    to go on with an answer. None is none."""
    burnt_output_tokens: int | None = None
    trace_id: str | None = None
    """The trace that its span is in, where somebody traces."""
    reasoning_tokens: int | None = None
    """Of the output."""
    operation: str = "chat"
    """OpenTelemetry's word, as in AttemptDone."""


class Recovery(msgspec.Struct, frozen=True):
    """What came of asking a target for the rest of a stream that broke after its first byte."""

    target: str
    """Who was asked; where nobody could be, who broke off."""
    outcome: str
    """``continued``; ``restarted``: nothing had been said; ``completed``: nothing but the end was missing;
    ``rejected``: it takes no beginning; ``diverged``: it wrote something else; ``failed``: it broke, too;
    ``impossible``: nobody could be asked.
    """


class Retry(msgspec.Struct, frozen=True):
    """An attempt failed before its first byte and the request goes on to another."""

    target: str
    reason: FaultKind


class RetryRefused(msgspec.Struct, frozen=True):
    """An attempt failed that would have been made again, but for the model's retry budget."""

    model: str
    target: str
    reason: FaultKind


class Hedge(msgspec.Struct, frozen=True):
    """A request was sent to a second target, because the first kept silent for unusually long."""

    target: str
    """The second."""
    outcome: str
    """``won``, ``lost``, or ``failed`` where neither answered."""


class Fallback(msgspec.Struct, frozen=True):
    """A model could not answer, and another is asked."""

    model: str
    to: str
    reason: str
    """The code of the error that the client would have got."""


class Queued(msgspec.Struct, frozen=True):
    """A request that could not be sent at once is in line no more, or never was."""

    model: str
    priority: int
    outcome: str
    """``served``; ``gone``: its client left; ``expired``: it waited too long; ``displaced`` by a higher priority;
    ``closed``: the router shut down; ``full``: there was no room; ``shed``: refused before that; ``hopeless``: whoever
    rests does so for too long.
    """
    wait_s: float


class TargetState(msgspec.Struct, frozen=True):
    """A target moved to another state of health."""

    target: str
    state: str
    reason: str


class NodeState(msgspec.Struct, frozen=True):
    """A local engine's process moved to another state."""

    engine: str
    state: str
    detail: str = ""


class Generated(msgspec.Struct, frozen=True):
    """A local engine wrote an answer, whole. Times in seconds from the moment in which it was asked."""

    engine: str
    first_token_s: float
    duration_s: float
    input_tokens: int
    cached_input_tokens: int
    output_tokens: int


class Admitted(msgspec.Struct, frozen=True):
    """A limited key asked, and all its limits admitted the request. The same object for every such request."""

    key_id: str
    model: str
    scope: str
    """Whose limits they are: ``key``."""
    resources: tuple[str, ...]
    """What is limited: ``requests``, ``tokens``, ``usd``."""


class LimitDecision(msgspec.Struct, frozen=True):
    """A limited key asked, and was refused."""

    key_id: str
    model: str
    scope: str
    """Whose limit it is: ``key``."""
    resource: str
    """``requests``, ``tokens`` or ``usd``."""
    outcome: str
    """``refused``, or ``too_large``, which no wait mends."""


class UsageLost(msgspec.Struct, frozen=True):
    """A record of usage was dropped: the database has been out of reach for longer than there is room."""

    key_id: str


Event = (
    AttemptDone
    | RequestDone
    | Recovery
    | Retry
    | RetryRefused
    | Hedge
    | Fallback
    | Queued
    | TargetState
    | NodeState
    | Generated
    | Admitted
    | LimitDecision
    | UsageLost
)
Listener = Callable[[Event], None]


class Hearer:
    """A listener that hears some kinds of events, each where it belongs."""

    hears: Mapping[type, Callable[[Any], None]]
    """What is called with the events of a kind; it must be whole before somebody listens."""

    def __call__(self, event: Event) -> None:
        """Hear ``event``, of whatever kind."""
        handler = self.hears.get(type(event))
        if handler is not None:
            handler(event)


class Events:
    """Hands every event to those who heed its kind, in the order in which they came."""

    __slots__ = ("_heeded",)

    def __init__(self) -> None:
        self._heeded: dict[type, tuple[Callable[[Any], None], ...]] = dict.fromkeys(
            get_args(Event), ()
        )

    def listen(self, listener: Listener) -> None:
        """Have ``listener`` called with every event from now on, or a Hearer with those that it hears."""
        every = dict.fromkeys(self._heeded, listener)
        handlers = listener.hears if isinstance(listener, Hearer) else every
        for kind, handler in handlers.items():
            self._heeded[kind] += (handler,)

    def emit(self, event: Event) -> None:
        """Tell those who heed it."""
        for handler in self._heeded[type(event)]:
            try:
                handler(event)
            except Exception:  # noqa: BLE001 - a listener must not cost a request
                _log.exception("a listener failed on %s", type(event).__name__)
