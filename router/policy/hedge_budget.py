"""How much may be spent on asking twice: a share of the tokens that are asked for once.

A share of requests would let the few with long prompts double the bill. The account holds little, so that a quiet
night doesn't pay for a storm of hedges in the morning, just when a slow provider has all requests wait.

Source: the bucket of Finagle's RetryBudget, counted in tokens.
"""

from __future__ import annotations

MOST_TOKENS = 50_000
"""That may be saved up: some dozens of ordinary requests, or one long one."""


class HedgeBudget:
    """Tokens that may be spent on hedges."""

    __slots__ = ("_share", "_tokens", "on")

    def __init__(self, share: float) -> None:
        """``share``: of the tokens asked for; 0 never hedges."""
        self._share = share
        self._tokens = 0.0
        self.on = share > 0
        """Whether anybody hedges at all."""

    def earn(self, tokens: float) -> None:
        """A request of about so many tokens is sent."""
        self._tokens = min(MOST_TOKENS, self._tokens + tokens * self._share)

    def spend(self, tokens: float) -> bool:
        """Whether a hedge of that size may be sent; it is paid for then."""
        if tokens > self._tokens:
            return False
        self._tokens -= tokens
        return True

    def refund(self, tokens: float) -> None:
        """A hedge that was paid for had nobody to go to."""
        self._tokens = min(MOST_TOKENS, self._tokens + tokens)
