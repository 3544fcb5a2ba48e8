"""One request, admitted, and the rules that every walk keeps."""

from __future__ import annotations

import msgspec

from router.accounts.accounts import Accounts
from router.accounts.charge import Charge
from router.backends.base import Limits
from router.config.schema import Retry
from router.pool import Route
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
    charge: Charge | None = None
    """Its claim on its key's limits and budget, if anybody counts; settled with the walk's end."""
    priority: int = 0
    """Its key's, for the line: higher first, below 0 is sheddable."""


class Terms(msgspec.Struct, frozen=True):
    """The rules of every walk."""

    limits: Limits
    whole_limits: Limits
    """For a provider that is asked for a whole answer: its first byte comes after its last token."""
    retry: Retry
    accounts: Accounts | None = None
    """Settles charges; None where there are none."""
