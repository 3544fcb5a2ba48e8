"""What keys may spend in all. Reserved before, settled after, like tokens; in whole billionths of a dollar.

What was spent is what this process spent and what the database says of all others: earlier runs of it, and other
processes with the same file.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.errors import ApiError, ErrorObject

_SPENT = "You exceeded your current quota, please check your plan and billing details."


class Spending:
    """What one key spends, on all models; in billionths of a dollar."""

    __slots__ = ("others", "own", "reserved")

    def __init__(self, others: int = 0) -> None:
        self.others = others
        """What the database says that others spent."""
        self.own = 0
        """What this process spent."""
        self.reserved = 0
        """What is under way may cost, of requests that a budget limits."""

    def fits(self, nanos: int, budget: int) -> bool:
        """``budget`` isn't exhausted and covers ``nanos`` beside what is under way."""
        taken = self.own + self.others + self.reserved
        return taken < budget and taken + nanos <= budget


class Budgets:
    """Spending by key."""

    def __init__(self) -> None:
        self._known: dict[str, Spending] = {}
        self._others: Mapping[str, int] = {}

    def of(self, key_id: str) -> Spending:
        """That key's, from now on."""
        found = self._known.get(key_id)
        if found is None:
            found = self._known[key_id] = Spending(self._others.get(key_id, 0))
        return found

    def spent(self, key_id: str) -> int:
        """So far, by everybody."""
        spending = self.of(key_id)
        return spending.own + spending.others

    def note_others(self, others: Mapping[str, int]) -> None:
        """What the database says that others spent."""
        self._others = others
        for key_id, spending in self._known.items():
            spending.others = others.get(key_id, 0)

    @property
    def reserved(self) -> int:
        """Of all keys together."""
        return sum(spending.reserved for spending in self._known.values())


def quota_error(headers: Mapping[str, str]) -> ApiError:
    """429 in OpenAI's words; waiting doesn't help."""
    error = ErrorObject(_SPENT, "insufficient_quota", None, "insufficient_quota")
    return ApiError(429, error, headers={**headers, "x-should-retry": "false"})
