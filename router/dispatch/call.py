"""One request, admitted, and the rules that every walk keeps."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from router.accounts.charge import Charge
from router.backends.base import Limits
from router.config.schema import Recovery, Retry
from router.pool import Route
from router.tracing import Trace
from router.wire.request import Request


class Call(msgspec.Struct, frozen=True):
    """One request, admitted: what the walk needs to know of it. Times are monotonic seconds."""

    request: Request
    body: bytes
    route: Route
    request_id: str
    key_id: str
    received_at: float
    deadline: float
    said: str = ""
    """How a chat's answer has begun, where only its rest is asked for."""
    charge: Charge | None = None
    """Its claim on its key's limits and budget, if anybody counts; settled with the walk's end."""
    priority: int = 0
    """Its key's, for the line: higher first, below 0 is sheddable."""
    trace: Trace | None = None
    """Where it is told of, if anybody wants to know."""

    @property
    def prompt_tokens(self) -> int:
        """About how long the prompt is, told at a glance: in English four bytes of JSON are a token."""
        return len(self.body) >> 2


LONG_BODY_BYTES = 4000
"""A thousand tokens. Below that a prompt's length changes nothing that a limit of seconds would notice."""


def _as_it_is(route: Route, _request: Request, _body: bytes) -> Route:
    return route


class Terms(msgspec.Struct, frozen=True):
    """The rules of every walk."""

    limits: Limits
    whole_limits: Limits
    """For a provider that is asked for a whole answer: its first byte comes after its last token."""
    retry: Retry
    recovery: Recovery = Recovery()
    prompt_s_per_1k: float = 0.0
    """What a thousand tokens of prompt add to the limit on the first token."""
    narrow: Callable[[Route, Request, bytes], Route] = _as_it_is
    """A fallback's route with the members that may serve the request. Raises ApiError: none may."""

    def scaled(self, limits: Limits, prompt_tokens: int) -> Limits:
        """``limits`` with the time that a long prompt may take besides."""
        longer = limits.first_token_s + self.prompt_s_per_1k * prompt_tokens / 1000
        return replace(limits, first_token_s=longer)
