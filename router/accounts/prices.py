"""What tokens cost, in whole billionths of a dollar.

Whole numbers add up exactly however many there are, and 64 bits hold nine billion dollars of them.
"""

from __future__ import annotations

import msgspec

from router.config.schema import Price

NANOS = 1_000_000_000
"""In a dollar."""
_STEPS = 1_000_000
"""Of a dollar in a price: a millionth of a dollar for a million tokens is finer than anybody's."""
_STEPS_PER_NANO = 1000
"""A step for a million tokens is a thousandth of a nano-dollar for each."""


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of a request; None is unknown. ``cached_input`` are part of ``input``."""

    input: int | None = None
    cached_input: int | None = None
    output: int | None = None


def cost_nanos(price: Price | None, tokens: Tokens) -> int:
    """The cost of ``tokens``, rounded up; what is unknown costs nothing."""
    if price is None:
        return 0
    given = tokens.input or 0
    cached = min(tokens.cached_input or 0, given)
    cached_price = price.cached_input if price.cached_input is not None else price.input
    steps = (given - cached) * _whole(price.input) + cached * _whole(cached_price)
    steps += (tokens.output or 0) * _whole(price.output)
    return -(-steps // _STEPS_PER_NANO)


def _whole(price: float) -> int:
    return round(price * _STEPS)


def nanos_of(dollars: float) -> int:
    """Dollars as billionths."""
    return round(dollars * NANOS)
