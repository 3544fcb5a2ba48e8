"""What tokens cost, in whole billionths of a dollar.

Whole numbers add up exactly however many there are, and 64 bits hold nine billion dollars of them.
"""

from __future__ import annotations

from functools import cache

import msgspec

from router.config.schema import Price

NANOS = 1_000_000_000
"""In a dollar."""
_STEPS = 1_000_000
"""Of a dollar in a price: a millionth of a dollar for a million tokens is finer than anybody's."""
_STEPS_PER_NANO = 1000
"""A step for a million tokens is a thousandth of a nano-dollar for each."""


class Tokens(msgspec.Struct, frozen=True, gc=False):
    """Tokens of a request; None is unknown. ``cached_input`` are part of ``input``."""

    input: int | None = None
    cached_input: int | None = None
    output: int | None = None


def cost_nanos(price: Price | None, tokens: Tokens) -> int:
    """The cost of ``tokens``, rounded up; what is unknown costs nothing."""
    if price is None:
        return 0
    input_steps, cached_steps, output_steps = _steps(price)
    given, cached = tokens.input or 0, tokens.cached_input
    steps = given * input_steps + (tokens.output or 0) * output_steps
    if cached:
        steps += min(cached, given) * (cached_steps - input_steps)
    return -(-steps // _STEPS_PER_NANO)


@cache
def _steps(price: Price) -> tuple[int, int, int]:
    """What a token of input, of cached input and of output costs; a config has few prices."""
    cached = price.cached_input if price.cached_input is not None else price.input
    return round(price.input * _STEPS), round(cached * _STEPS), round(price.output * _STEPS)


def nanos_of(dollars: float) -> int:
    """Dollars as billionths."""
    return round(dollars * NANOS)
