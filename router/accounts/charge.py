"""One admitted request's claim on its key's limits and budget, settled exactly once.

What it is settled with, best first: the usage that the answer told; for an answer that broke off, the guess for the
input and the events that were relayed, about a token each; for one that never began, nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from router.accounts.estimate import BYTES_PER_TOKEN, Outputs, Size
from router.accounts.limits import headers_of
from router.accounts.pairs import Pair
from router.accounts.prices import NANOS, Tokens, cost_nanos, nanos_at
from router.config.schema import Price
from router.errors import IllegalMove
from router.policy.gcra import Gcra, Hold

FRAME_EVENTS = 2
"""A stream's first event has the role and its last the end: no token's."""

Holds = Sequence[tuple[Gcra, Hold]]


class Bill(msgspec.Struct, frozen=True, gc=False):
    """What a request took."""

    tokens: Tokens
    cost_usd: float | None
    """None where the model has no price."""
    estimated: bool = False


def bill(price: Price | None, tokens: Tokens) -> Bill:
    """The bill for ``tokens``."""
    return Bill(tokens, None if price is None else cost_nanos(price, tokens) / NANOS)


class Charge(msgspec.Struct, eq=False):
    """What was reserved for one request, until it is settled."""

    pair: Pair
    size: Size
    given: int
    """Tokens of input, as they were guessed."""
    past: Outputs
    """What learns how much it wrote."""
    holds: Holds
    """Of the pair's windows of tokens."""
    budget_nanos: int | None
    """Reserved of the budget; None for a key without one."""
    lines: str
    """What the client hears of its limits, as it stands in an answer's head."""
    seen_bytes: int = 0
    """Of the answer."""
    seen_events: int = 0
    unread: Iterable[bytes] = ()
    """Pieces of the answer that were kept anyway: they are counted as if `saw`, if its usage is never told."""
    settled: bool = False

    @property
    def headers(self) -> Mapping[str, str]:
        """What the client hears of its limits."""
        return headers_of(self.lines)

    def saw(self, piece: bytes) -> None:
        """A piece of the answer came: its size is counted, in case its usage is never told."""
        self.seen_bytes += len(piece)
        self.seen_events += piece.count(b"data:")

    def settle(self, told: Tokens, now: float) -> Bill:
        """The request is over; ``told`` is the usage that its answer told. Give back what was not used, charge what
        was more, and learn. Raises IllegalMove the second time.
        """
        if self.settled:
            raise IllegalMove("charge", "settled", "settle")
        self.settled = True
        pair = self.pair
        tokens, estimated = told, False
        if told.output is None:
            tokens, estimated = self._took(told)
        if self.holds:
            used = (tokens.input or 0) + (tokens.output or 0)
            for gcra, hold in self.holds:
                gcra.settle(hold, used if used > 0 else 0, now)
        price = pair.price
        spent = 0 if price is None else nanos_at(price, tokens)
        pair.spending.own += spent
        if self.budget_nanos is not None:
            pair.spending.reserved -= self.budget_nanos
        if told.input is not None:
            pair.estimator.ratio.learn(self.size, told.input)
        if told.output is not None:
            self.past.learn(told.output)
        return Bill(tokens, None if price is None else spent / NANOS, estimated)

    def _took(self, told: Tokens) -> tuple[Tokens, bool]:
        """The tokens of an answer that came, wholly or in part, without its output told; whether they are a guess."""
        for piece in self.unread:
            self.saw(piece)
        if not self.seen_bytes:
            return told, False
        writes_nothing = self.size.output_limit == 0
        if writes_nothing and told.input is not None:
            return Tokens(told.input, told.cached_input, 0), False
        events = self.seen_events - FRAME_EVENTS
        output = max(1, events if self.seen_events else self.seen_bytes // BYTES_PER_TOKEN)
        given = told.input if told.input is not None else self.given
        return Tokens(given, told.cached_input, 0 if writes_nothing else output), True
