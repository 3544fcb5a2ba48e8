"""How fast a line moves: those served, over the time in which somebody waited, both forgotten alike.

Who is refused is told when to come back by this, so it counts standing still, too: while nobody is served, the rate
falls. Times between two served would not do: ten who are served at once and then none for a minute have a median of
nothing.
"""

from __future__ import annotations

import math

MEMORY_S = 30.0
"""Long enough for answers of many seconds to be a rate, short enough to see a target come or go."""
GUESS_S = 1.0
"""What one place in line takes before anybody was served, about an answer of a hundred tokens; it weighs as much as
one who was."""


class Drain:
    """The pace of one line. ``now`` is monotonic seconds."""

    __slots__ = ("_at", "_busy_s", "_served")

    def __init__(self) -> None:
        self._at: float | None = None
        """Until when time is counted; None while nobody waits."""
        self._busy_s = 0.0
        self._served = 0.0

    def begin(self, now: float) -> None:
        """Somebody waits."""
        self._at = now

    def served(self, now: float) -> None:
        """One left the line with a target."""
        self._pass(now)
        self._served += 1

    def end(self, now: float) -> None:
        """Nobody waits."""
        self._pass(now)
        self._at = None

    def place_s(self, now: float) -> float:
        """How long one place in line takes; never 0."""
        kept = self._kept(now)
        return (self._busy(kept) + GUESS_S) / (self._served * kept + 1)

    def _pass(self, now: float) -> None:
        kept = self._kept(now)
        self._busy_s = self._busy(kept)
        self._served *= kept
        if self._at is not None:
            self._at = now

    def _kept(self, now: float) -> float:
        return 1.0 if self._at is None else math.exp((self._at - now) / MEMORY_S)

    def _busy(self, kept: float) -> float:
        return self._busy_s * kept + MEMORY_S * (1 - kept)
