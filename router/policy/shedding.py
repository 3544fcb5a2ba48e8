"""Who is refused before the line is full: the sheddable, with a probability that grows with the line.

Below a fifth of the line hardly anybody is; from a third of it on everybody sheddable is, so two thirds are left to
those who matter more. A threshold would do the same with a jolt: all or nothing from one request to the next.

Source: llm-d-router, probabilistic admitter: p = min(k * saturation^n, 1) with these constants, tuned there by
simulation; the Gateway API Inference Extension for what sheddable means: a priority below 0.
"""

from __future__ import annotations

FACTOR = 300.0
POWER = 5


def shed_probability(waiting: int, most: int) -> float:
    """How likely a sheddable request is refused where ``waiting`` of at most ``most`` stand in line."""
    return min(1.0, FACTOR * (waiting / most) ** POWER)
