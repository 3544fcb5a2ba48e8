"""One admitted request's claim on its key's limits and budget, settled exactly once.

What it is settled with, best first: the usage that the answer told; for an answer that broke off, the guess for the
input and the events that were relayed, about a token each; for one that never began, nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.accounts.budgets import Budgets
from router.accounts.estimate import BYTES_PER_TOKEN, Estimator, Size
from router.accounts.limits import Windows
from router.accounts.prices import NANOS, Tokens, cost_nanos
from router.config.schema import Model, Price
from router.errors import IllegalMove
from router.policy.gcra import Hold

FRAME_EVENTS = 2
"""A stream's first event has the role and its last the end: no token's."""


class Bill(msgspec.Struct, frozen=True):
    """What a request took."""

    tokens: Tokens
    cost_usd: float | None
    """None where the model has no price."""
    estimated: bool = False


def bill(price: Price | None, tokens: Tokens) -> Bill:
    """The bill for ``tokens``."""
    return Bill(tokens, None if price is None else cost_nanos(price, tokens) / NANOS)


class Claim(msgspec.Struct, frozen=True):
    """What was reserved, for whom and why."""

    key_id: str
    name: str
    """The model's."""
    model: Model
    size: Size
    input_tokens: int
    windows: Windows | None
    holds: tuple[Hold, ...]
    budget_nanos: int | None
    """Reserved of the budget; None for a key without one."""


class Charge:
    """A claim until it is settled."""

    __slots__ = ("_bytes", "_claim", "_events", "headers", "unread")

    def __init__(self, claim: Claim, headers: dict[str, str]) -> None:
        self._claim: Claim | None = claim
        self._bytes = 0
        self._events = 0
        self.headers = headers
        """What the client hears of its limits."""
        self.unread: Sequence[bytes] = ()
        """Pieces of the answer that were kept anyway: they are counted as if `saw`, if its usage is never told."""

    def saw(self, piece: bytes) -> None:
        """A piece of the answer came: its size is counted, in case its usage is never told."""
        self._bytes += len(piece)
        self._events += piece.count(b"data:")

    def settle(self, told: Tokens, desk: Desk, now: float) -> Bill:
        """Give back what was not used, charge what was more. Raises IllegalMove the second time."""
        claim, self._claim = self._claim, None
        if claim is None:
            raise IllegalMove("charge", "settled", "settle")
        tokens, estimated = self._took(told, claim)
        price = claim.model.price
        if claim.windows is not None:
            used = max(0, (tokens.input or 0) + (tokens.output or 0))
            claim.windows.settle(claim.holds, used, now)
        spent = cost_nanos(price, tokens)
        if claim.budget_nanos is None:
            desk.budgets.spend(claim.key_id, spent)
        else:
            desk.budgets.settle(claim.key_id, claim.budget_nanos, spent)
        _learn(claim, told, desk.estimator)
        cost_usd = None if price is None else spent / NANOS
        return Bill(tokens, cost_usd, estimated)

    def _took(self, told: Tokens, claim: Claim) -> tuple[Tokens, bool]:
        """The tokens that the answer took, and whether they are a guess."""
        if told.output is not None:
            return told, False
        for piece in self.unread:
            self.saw(piece)
        if not self._bytes:
            return told, False
        if claim.size.output_limit == 0 and told.input is not None:
            return Tokens(told.input, told.cached_input, 0), False
        events = self._events - FRAME_EVENTS
        output = max(1, events if self._events else self._bytes // BYTES_PER_TOKEN)
        if claim.size.output_limit == 0:
            output = 0
        given = told.input if told.input is not None else claim.input_tokens
        return Tokens(given, told.cached_input, output), True


class Desk(msgspec.Struct, frozen=True):
    """What charges are settled with."""

    budgets: Budgets
    estimator: Estimator


def _learn(claim: Claim, told: Tokens, estimator: Estimator) -> None:
    if told.input is not None:
        estimator.learn_input(claim.name, claim.size, told.input)
    if told.output is not None:
        cap = claim.model.max_completion_tokens
        estimator.learn_output(claim.name, claim.key_id, claim.size, cap, told.output)
