"""How many failed attempts may be made again: a fifth of the requests, and a few a second besides.

Attempts per request bound what one client causes; they don't bound the whole. Where everything fails, three attempts
each are three times the load, on targets that fail because they are overloaded. So retries are paid from a bucket:
every request puts a share of a retry in, time puts in some more so that a quiet router can retry at all, every retry
takes one out. Over any span of s seconds with n requests that is at most ``burst + per_s * s + share * n``.

Source: Finagle's RetryBudget and linkerd's (20 % and 10 a second; what isn't used is kept for 10 seconds).
"""

from __future__ import annotations

KEEP_S = 10.0
"""The bucket holds what so many seconds put in: linkerd's ttl. A full one is what a router starts with."""


class RetryBudget:
    """The retries of one model's requests."""

    __slots__ = ("_at", "_balance", "_most", "_per_s", "_share")

    def __init__(self, share: float, per_s: float, now: float) -> None:
        """``share`` of a retry for each request, and ``per_s`` a second."""
        self._share = share
        self._per_s = per_s
        self._most = max(1.0, per_s * KEEP_S)
        self._balance = self._most
        self._at = now

    @property
    def burst(self) -> float:
        """Most retries at once."""
        return self._most

    def request(self) -> None:
        """A request came."""
        if self._balance < self._most:
            self._balance = min(self._most, self._balance + self._share)

    def take(self, now: float) -> bool:
        """Whether there may be one more retry; it is paid for if there may."""
        earned = (now - self._at) * self._per_s
        self._at = now
        self._balance = min(self._most, self._balance + earned)
        if self._balance < 1:
            return False
        self._balance -= 1
        return True
