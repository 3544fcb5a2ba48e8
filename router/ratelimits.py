"""What providers tell of their limits, as data: read by backends, kept by `router.policy.quota`."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Resource = Literal["requests", "tokens", "input_tokens", "output_tokens"]
"""What a limit counts; ``tokens`` is what the provider calls tokens, see `router.counting`."""


class Reading(Struct, frozen=True):
    """One limit, as one response told it; None is what it didn't say."""

    resource: Resource
    limit: int | None = None
    remaining: int | None = None
    reset_s: float | None = None
    """Seconds until it is whole again, counted from the response."""
    window: str = ""
    """``second``, ``hour``, ``day`` or ``month`` where the response names one beside the minute."""

    @property
    def name(self) -> str:
        """Which limit it is among a provider's: of a closed set, good for a label."""
        return f"{self.resource}_{self.window}" if self.window else self.resource


Readings = tuple[Reading, ...]


class Spent(Struct, frozen=True):
    """What an answer took, as the provider counted it."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Of the input."""


NOTHING_SPENT = Spent()
