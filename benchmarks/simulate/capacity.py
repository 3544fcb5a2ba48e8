"""The highest rate at which enough requests meet the objective, found by halving."""

from __future__ import annotations

from collections.abc import Callable

ENOUGH = 0.9
"""Of all requests."""
PRECISION = 0.01
"""Of the rate: finer than seeds differ."""
DOUBLINGS = 12
"""From the first guess, up or down; past that the objective can't be met at all, or always is."""


def capacity(goodput: Callable[[float], float], guess: float) -> float:
    """The rate up to which ``goodput(rate)`` is enough, near ``guess`` at first; 0 where no rate is low enough.

    Goodput falls with the rate but for noise, so that one crossing is looked for.
    """
    low, high = 0.0, guess
    for _ in range(DOUBLINGS):
        if goodput(high) < ENOUGH:
            break
        low, high = high, 2 * high
    if not low:
        for _ in range(DOUBLINGS):
            low = high / 2
            if goodput(low) >= ENOUGH:
                break
            high = low
        else:
            return 0.0
    while high - low > PRECISION * low:
        middle = (low + high) / 2
        if goodput(middle) >= ENOUGH:
            low = middle
        else:
            high = middle
    return low
