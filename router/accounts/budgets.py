"""What keys may spend in all. Reserved before, settled after, like tokens; in whole billionths of a dollar.

What was spent is what this process spent and what the database says of all others: earlier runs of it, and other
processes with the same file.
"""

from __future__ import annotations

from collections.abc import Mapping

from router.errors import ApiError, ErrorObject

_SPENT = "You exceeded your current quota, please check your plan and billing details."


class Budgets:
    """Spending by key."""

    def __init__(self) -> None:
        self._reserved: dict[str, int] = {}
        self._own: dict[str, int] = {}
        self._others: Mapping[str, int] = {}

    def spent(self, key_id: str) -> int:
        """So far, by everybody."""
        return self._own.get(key_id, 0) + self._others.get(key_id, 0)

    def fits(self, key_id: str, nanos: int, budget: int) -> bool:
        """``budget`` isn't exhausted and covers ``nanos`` beside what is under way."""
        taken = self.spent(key_id) + self._reserved.get(key_id, 0)
        return taken < budget and taken + nanos <= budget

    def reserve(self, key_id: str, nanos: int) -> None:
        """Something that may cost ``nanos`` begins."""
        self._reserved[key_id] = self._reserved.get(key_id, 0) + nanos

    def settle(self, key_id: str, reserved: int, nanos: int) -> None:
        """What was ``reserved`` has cost ``nanos``."""
        left = (
            self._reserved.pop(key_id, 0) - reserved
        )  # of models without a price nothing is reserved
        if left:
            self._reserved[key_id] = left
        self.spend(key_id, nanos)

    def spend(self, key_id: str, nanos: int) -> None:
        """``nanos`` are gone."""
        if nanos:
            self._own[key_id] = self._own.get(key_id, 0) + nanos

    def note_others(self, others: Mapping[str, int]) -> None:
        """What the database says that others spent."""
        self._others = others

    @property
    def reserved(self) -> int:
        """Of all keys together."""
        return sum(self._reserved.values())


def quota_error(headers: Mapping[str, str]) -> ApiError:
    """429 in OpenAI's words; waiting doesn't help."""
    error = ErrorObject(_SPENT, "insufficient_quota", None, "insufficient_quota")
    return ApiError(429, error, headers={**headers, "x-should-retry": "false"})
