"""What a key may do: who it is, which models, how much, until when; from the config or from the database."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from router.accounts.prices import nanos_of
from router.accounts.secrets import StoredKey
from router.config.schema import Key, Rates, Tier


class Account(msgspec.Struct, frozen=True):
    """A key's terms; without any it may do everything."""

    id: str
    tier: Tier | None = None
    models: frozenset[str] | None = None
    """Names, never aliases; None is all."""
    budget_nanos: int | None = None

    @property
    def is_bound(self) -> bool:
        """Something must be looked at before it is served."""
        limited = self.tier is not None or self.budget_nanos is not None
        return limited or self.models is not None

    def allows(self, model: str) -> bool:
        """It may ask for ``model``, and see it in a list."""
        return self.models is None or model in self.models


NO_RATES = Rates()

Names = Callable[[str], str | None]
"""A model's name for its name or alias; None where there is no such model."""


class Tiers:
    """Every tier's limits for every model, by names and never by aliases."""

    def __init__(self, tiers: dict[str, Tier], names: Names) -> None:
        self._tiers = tiers
        self._names = names
        self._by_model = {
            id(tier): {names(model) or model: rates for model, rates in tier.models.items()}
            for tier in tiers.values()
        }

    def has(self, name: str | None) -> bool:
        """There is such a tier; None is none, which there always is."""
        return name is None or name in self._tiers

    def _find(self, name: str | None) -> Tier | None:
        return None if name is None else self._tiers[name]

    def rates(self, tier: Tier | None, model: str) -> Rates:
        """The limits for ``model``; what a tier says of one model replaces what it says of all."""
        if tier is None:
            return NO_RATES
        return self._by_model[id(tier)].get(model, tier)

    def _allowed(self, models: Iterable[str] | None) -> frozenset[str] | None:
        """A list of names and aliases as names; what doesn't exist allows nothing."""
        if models is None:
            return None
        return frozenset(found for model in models if (found := self._names(model)) is not None)

    def account(self, key: Key) -> Account:
        """The terms of a key in the config."""
        budget = None if key.budget_usd is None else nanos_of(key.budget_usd)
        return Account(key.id, self._find(key.tier), self._allowed(key.models), budget)

    def stored_account(self, key: StoredKey) -> Account:
        """The terms of a key in the database, whose tier there is."""
        allowed = self._allowed(key.models)
        return Account(key.id, self._find(key.tier), allowed, key.budget_nanos)
