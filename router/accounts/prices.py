"""What tokens cost, in whole billionths of a dollar.

Whole numbers add up exactly however many there are, and 64 bits hold nine billion dollars of them.
"""

from __future__ import annotations

import math

import msgspec

from router.config.schema import Price

NANOS = 1_000_000_000
"""In a dollar."""
_NANOS_PER_TOKEN = NANOS / 1_000_000
"""Prices are for a million tokens."""


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
    dollars = (given - cached) * price.input + cached * cached_price
    dollars += (tokens.output or 0) * price.output
    # A billionth of a billionth less, so that 80.00000000000001 isn't rounded up to 81.
    return math.ceil(dollars * _NANOS_PER_TOKEN * (1 - 1e-12))


def nanos_of(dollars: float) -> int:
    """Dollars as billionths."""
    return round(dollars * NANOS)
