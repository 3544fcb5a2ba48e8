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


Steps = tuple[int, int, int]
"""What a token of input, of cached input and of output costs, in whole thousandths of a nano-dollar."""


def cost_nanos(price: Price | None, tokens: Tokens) -> int:
    """The cost of ``tokens``, rounded up; what is unknown costs nothing."""
    return 0 if price is None else nanos_at(steps_of(price), tokens)


def nanos_at(steps: Steps, tokens: Tokens) -> int:
    """The same at a price that was prepared."""
    input_steps, cached_steps, output_steps = steps
    given, cached = tokens.input or 0, tokens.cached_input
    cost = given * input_steps + (tokens.output or 0) * output_steps
    if cached:
        cost += min(cached, given) * (cached_steps - input_steps)
    return -(-cost // _STEPS_PER_NANO)


@cache
def steps_of(price: Price) -> Steps:
    """A price, prepared; a config has few."""
    cached = price.cached_input if price.cached_input is not None else price.input
    return round(price.input * _STEPS), round(cached * _STEPS), round(price.output * _STEPS)


def nanos_of(dollars: float) -> int:
    """Dollars as billionths."""
    return round(dollars * NANOS)
