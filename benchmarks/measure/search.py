"""The highest rate that meets an objective, found on a server in real time: doubling, then halving what is left.

Every probe has the same sessions and the same pattern of arrivals, only faster, so that two rates differ by the rate
and not by luck. What luck remains is the server's; a rate is only counted as held when it was.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

DOUBLINGS = 10
"""From the first guess, up or down."""

Probe = Callable[[float], Awaitable[bool | None]]
"""Whether a rate meets the objective; None: it was interrupted."""


class Bracket(msgspec.Struct, frozen=True):
    """The highest rate that held and the lowest that didn't; requests a second."""

    held: float
    """0: none did."""
    failed: float | None
    """None: none failed."""
    whole: bool
    """False: interrupted before it was as narrow as it should be."""


async def search(probe: Probe, guess: float, precision: float) -> Bracket:
    """Narrow the bracket until its ends differ by ``precision`` of the lower."""
    held, failed = 0.0, None
    rate = guess
    for _ in range(DOUBLINGS):
        met = await probe(rate)
        if met is None:
            return Bracket(held, failed, whole=False)
        if met:
            held = rate
        else:
            failed = rate
        if held and failed is not None:
            break
        rate = rate * 2 if met else rate / 2
    while held and failed is not None and failed - held > precision * held:
        rate = (held * failed) ** 0.5
        met = await probe(rate)
        if met is None:
            return Bracket(held, failed, whole=False)
        held, failed = (rate, failed) if met else (held, rate)
    return Bracket(held, failed, whole=True)
