"""One key on one model, with everything that is the same for all its requests.

A pair is prepared by its first request and forgotten once its limits are full again and idle, which changes nothing for
anybody, but that its next answers are guessed as a new key's; or prepared anew where its key's terms change, with what
was learned of it, and with the same windows if the limits are the same.
"""

from __future__ import annotations

import msgspec

from router.accounts.budgets import Budgets, Spending
from router.accounts.estimate import Estimator, Ratio
from router.accounts.limits import Windows
from router.accounts.prices import Steps, steps_of
from router.accounts.terms import NO_RATES, Account, Tiers
from router.config.schema import Model
from router.events import Admitted

SCOPE = "key"
"""Whose limits these are, in events."""
SWEEP_FLOOR = 1024
"""Pairs below which nobody looks for idle ones: about a megabyte."""


class Pair(msgspec.Struct, frozen=True):
    """One key on one model."""

    account: Account | None
    """The terms of which the rest was made; None for a key without any."""
    key_id: str
    name: str
    """The model's."""
    model: Model
    price: Steps | None
    """The model's; None where it has none."""
    allowed: bool
    """The key may ask for the model."""
    priority: int
    """That of the key's tier, for those who wait; 0 without one."""
    windows: Windows | None
    """Its limits; None where it has none."""
    budget_nanos: int | None
    """What the key may spend, in all; None where it has no budget."""
    spending: Spending
    """What it spends."""
    estimator: Estimator
    """What its requests are likely to take."""
    admitted: Admitted | None
    """What is told when a request is admitted; None where nothing could have refused it."""


class Pairs:
    """Every pair that was used lately."""

    def __init__(self, models: dict[str, Model], tiers: Tiers, budgets: Budgets) -> None:
        self._budgets = budgets
        self._models = models
        self._tiers = tiers
        self._ratios = {name: Ratio() for name in models}
        self.known: dict[tuple[str, str], Pair] = {}
        """By the key's id and the model's name; one whose key has other terms by now must be prepared again."""
        self._sweep_at = SWEEP_FLOOR

    def prepare(self, key_id: str, name: str, account: Account | None, now: float) -> Pair:
        """The pair of a key, whose terms are ``account``, and a model's name; known from now on."""
        old = self.known.get((key_id, name))
        if old is None and len(self.known) >= self._sweep_at:
            self._sweep(now)
        terms = account or Account(key_id)
        rates = self._tiers.rates(terms.tier, name)
        windows = None
        if rates is not NO_RATES:
            kept = old.windows if old is not None else None
            windows = kept if kept is not None and kept.rates == rates else Windows(rates)
        model = self._models[name]
        estimator = Estimator(self._ratios[name], model.max_completion_tokens)
        resources: tuple[str, ...] = () if windows is None else windows.resources
        if terms.budget_nanos is not None:
            resources = (*resources, "usd")
        pair = self.known[key_id, name] = Pair(
            account=account,
            key_id=key_id,
            name=name,
            model=model,
            price=None if model.price is None else steps_of(model.price),
            allowed=terms.allows(name),
            priority=0 if terms.tier is None else terms.tier.priority,
            windows=windows,
            budget_nanos=terms.budget_nanos,
            spending=self._budgets.of(key_id),
            estimator=estimator if old is None else old.estimator,
            admitted=Admitted(key_id, name, SCOPE, resources) if resources else None,
        )
        return pair

    def _sweep(self, now: float) -> None:
        """Forget who is idle; the next time is when there are twice as many, so a request pays little for it."""
        self.known = {
            names: pair
            for names, pair in self.known.items()
            if pair.windows is not None and not pair.windows.is_idle(now)
        }
        self._sweep_at = max(SWEEP_FLOOR, 2 * len(self.known))
