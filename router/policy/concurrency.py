"""How many requests a target may have in flight: what the config says, and less once it said that it is overloaded.

Nobody tells how much a provider takes at once, and it changes; so there is no limit until it refuses. Then the limit
is cut below what was in flight (multiplicative decrease) and grows by one for as many good answers as it allows, as
long as it is really used (additive increase). Each such round without a refusal doubles the step: a cut that was far
too deep, because somebody else's load or a fault of the network was the reason, is made good in a few rounds. After
a while without need it is forgotten.

Refusals of requests that were sent before the cut are of the same overload: they don't cut again, but they tell how
many of those in flight then were not taken, and the limit is never above those that were. A burst of a thousand
against a capacity of ten finds the ten in one round instead of halving its way down.

Latency is no signal here (gradients, as in Envoy's adaptive concurrency): an answer's time is its length.

Source: Netflix concurrency-limits, AIMDLimit; RFC 5681 (one decrease a window, slow start); RFC 9438, 4.6 (the factor);
RFC 7661 (a window that isn't used doesn't grow).
"""

from __future__ import annotations

UNLIMITED = float("inf")
BACKOFF = 0.7
"""CUBIC's factor. Netflix's 0.9 is back at the edge after a tenth of the capacity, and every visit there costs
somebody an attempt; TCP's 0.5 leaves a quarter of the capacity unused on average, this 15 %."""
USED = 0.5
"""A limit is in use while half of it is in flight: Netflix's and RFC 7661's bound for letting it grow."""
FORGET_S = 60.0
"""Providers count by the minute: who had a quiet one starts anew."""


class Concurrency:
    """The limit of one target. ``now`` is monotonic seconds."""

    __slots__ = (
        "_cut_at", "_most", "_peak", "_refused", "_round", "_step", "_used_at", "learned", "limit",
    )  # fmt: skip

    def __init__(self) -> None:
        self._most = UNLIMITED
        self.limit = self._most
        """Requests in flight that are too many: one more may come while there are fewer."""
        self.learned = False
        """The target has refused lately, so it has a limit below its config's."""
        self._cut_at = 0.0
        self._used_at = 0.0
        self._peak = 0
        """In flight at the last cut."""
        self._refused = 0
        """Of those."""
        self._step = 1.0
        self._round = 0.0
        """Good answers until the step doubles."""

    def cap(self, most: int | None) -> None:
        """Never allow more than ``most``, whatever is learned; of several caps the smallest counts."""
        if most is not None:
            self._most = min(self._most, float(most))
            self._let(min(self.limit, self._most))

    def overloaded(self, since: float, inflight: int, now: float) -> None:
        """It refused a request sent at ``since``, with ``inflight`` requests under way, this one included."""
        if self.learned and since <= self._cut_at:
            self._refused += 1
            self._let(max(1.0, min(self.limit, self._peak - self._refused)))
        else:
            self._peak, self._refused, self._cut_at = inflight, 1, now
            self._let(max(1.0, min(self._most, inflight * BACKOFF)))
        self._used_at = now
        self._step = 1.0
        self._round = self.limit

    def succeeded(self, since: float, inflight: int, now: float) -> None:
        """It answered a request sent at ``since``, with ``inflight`` requests under way, this one included.

        Nothing to say while nothing is `learned`, as in `entered`.
        """
        if inflight < USED * self.limit:
            self._perhaps_forget(now)
            return
        self._used_at = now
        if since <= self._cut_at:
            return
        self._let(min(self._most, self.limit + self._step / self.limit))
        self._round -= 1
        if self._round <= 0:
            self._step *= 2
            self._round = self.limit

    def entered(self, inflight: int, now: float) -> None:
        """A request is sent, the last of ``inflight``."""
        if inflight - 1 < USED * self.limit:
            self._perhaps_forget(now)

    def forget(self) -> None:
        """Whatever was learned is of the past: another process stands there."""
        self._let(self._most)

    def _let(self, limit: float) -> None:
        self.limit = limit
        self.learned = limit < self._most

    def _perhaps_forget(self, now: float) -> None:
        if now - self._used_at >= FORGET_S:
            self.forget()
