"""How long a first token usually takes at a provider, by the size of the prompt.

A quantile over the last answers, kept apart by powers of four of the prompt's length: a provider's queue is the same
for all, its prefill isn't. Nothing is said of a size before enough was seen of it.

Source: J. Dean and L. A. Barroso, "The Tail at Scale", 2013 (a hedge after the 95th percentile costs 5 % more load).
"""

from __future__ import annotations

from collections import deque

SAMPLES = 64
"""The 95th percentile is the fourth from the top: one odd answer doesn't move it."""
FEW = 20
"""Below so many the 95th percentile is the slowest one's luck."""


class FirstTokens:
    """The times to the first token of one target."""

    __slots__ = ("_by_size",)

    def __init__(self) -> None:
        self._by_size: dict[int, deque[float]] = {}

    def saw(self, tokens: int, seconds: float) -> None:
        """A prompt of about ``tokens`` had its first token after ``seconds``."""
        size = tokens.bit_length() >> 1
        samples = self._by_size.get(size)
        if samples is None:
            samples = self._by_size[size] = deque(maxlen=SAMPLES)
        samples.append(seconds)

    def quantile(self, tokens: int, q: float) -> float | None:
        """The seconds that a share ``q`` of such prompts stayed within; None where too little is known."""
        samples = self._by_size.get(tokens.bit_length() >> 1)
        if samples is None or len(samples) < FEW:
            return None
        return sorted(samples)[int(q * (len(samples) - 1))]
