"""Bad keys from one address, many a minute: a guesser, or a client gone wrong.

A good key always passes, whatever its address did: behind a proxy everybody has one address, and a throttle that
refused them all would be the better attack. What a flood gets is 429 and a closed connection instead of 401, which
costs it a handshake a guess.
"""

from __future__ import annotations

from router.errors import ApiError, ErrorObject, retry_after_headers

BAD_KEYS_A_MINUTE = 60
"""A person who mistypes makes a few, a client that retries a stale key one a second."""
MAX_ADDRESSES = 10_000
"""About 1 MiB; above it the table starts anew, which forgives more than it should for a minute."""
WINDOW_S = 60.0


class Floods:
    """Counts bad keys by address, in windows of a minute."""

    __slots__ = ("_counts", "_since")

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._since = 0.0

    def note(self, address: str, now: float) -> ApiError | None:
        """A bad key came from ``address`` at ``now`` (monotonic seconds); a 429 above the limit."""
        if now - self._since >= WINDOW_S or len(self._counts) >= MAX_ADDRESSES:
            self._counts.clear()
            self._since = now
        count = self._counts[address] = self._counts.get(address, 0) + 1
        if count <= BAD_KEYS_A_MINUTE:
            return None
        message = "Too many requests with an incorrect API key."
        error = ErrorObject(message, "requests", None, "rate_limit_exceeded")
        return ApiError(429, error, headers=retry_after_headers(WINDOW_S - (now - self._since)))
