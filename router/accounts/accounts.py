"""Who may ask, for what, and how much: everything that the router asks about keys, behind one object.

A request of a key without limits, where nothing is recorded, pays for one look-up in a dict.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from router.accounts.budgets import Budgets, quota_error
from router.accounts.charge import Bill, Charge, Claim, Desk
from router.accounts.estimate import Estimator, Size, most_output
from router.accounts.keys import KeyRing
from router.accounts.limits import Limiter, Windows, limit_error
from router.accounts.prices import Tokens, cost_nanos
from router.accounts.terms import NO_RATES, Account, Names, Tiers
from router.clock import Clock
from router.config.schema import Config
from router.events import Event, LimitDecision

Emit = Callable[[Event], None]
_SCOPE = "key"


class Asked(msgspec.Struct, frozen=True):
    """A request at the gate."""

    key_id: str
    model: str
    """Its name, no alias."""
    size: Size


class Accounts:
    """The keys of a config and their accounts."""

    def __init__(self, config: Config, names: Names, *, clock: Clock, emit: Emit) -> None:
        """``names`` turns a model's name or alias into its name."""
        self._models = config.models
        self._clock = clock
        self._emit = emit
        self._tiers = Tiers(config.tiers, names)
        self._ring = KeyRing(config.keys, wall=clock.wall)
        accounts = (self._tiers.account(key) for key in config.keys)
        self._bound = {account.id: account for account in accounts if account.is_bound}
        self._limiter = Limiter()
        self.budgets = Budgets()
        self._desk = Desk(self.budgets, Estimator())
        self.keeps_records = False

    def authenticate(self, authorization: str | None) -> str:
        """The id of the key in an Authorization header. Raises ApiError 401."""
        return self._ring.authenticate(authorization)

    def allows(self, key_id: str, model: str) -> bool:
        """The key may ask for ``model``."""
        account = self._bound.get(key_id)
        return account is None or account.allows(model)

    def concerns(self, key_id: str) -> bool:
        """A request of this key must be admitted and settled."""
        return key_id in self._bound or self.keeps_records

    def admit(self, asked: Asked) -> Charge:
        """Reserve what the request is likely to take: of all its limits, or of none. Raises ApiError 429."""
        account = self._bound.get(asked.key_id) or Account(asked.key_id)
        now = self._clock.now()
        rates = self._tiers.rates(account.tier, asked.model)
        windows = None
        headers: dict[str, str] = {}
        claim = self._claim(asked, account)
        tokens = claim.input_tokens + self._output_tokens(asked)
        if rates is not NO_RATES:
            windows = self._limiter.windows(asked.key_id, asked.model, rates, now)
            self._check_limits(asked, windows, tokens, now)
            headers = windows.headers(now)
        if claim.budget_nanos is not None:
            self._check_budget(claim, account, headers)
        if windows is not None:
            holds = windows.take(tokens, now)
            headers = windows.headers(now)
            claim = msgspec.structs.replace(claim, windows=windows, holds=holds)
            for resource in windows.resources:
                self._say(asked, resource, "admitted")
        return Charge(claim, headers)

    def settle(self, charge: Charge, told: Tokens) -> Bill:
        """The request is over; ``told`` is the usage that its answer told."""
        return charge.settle(told, self._desk, self._clock.now())

    def _claim(self, asked: Asked, account: Account) -> Claim:
        model = self._models[asked.model]
        size = asked.size
        given = self._desk.estimator.input_tokens(asked.model, size)
        worst: int | None = None
        if account.budget_nanos is not None:
            output = most_output(size, None) or self._output_tokens(asked)
            worst = cost_nanos(model.price, Tokens(given, None, output))
        return Claim(
            key_id=asked.key_id,
            name=asked.model,
            model=model,
            size=size,
            input_tokens=given,
            windows=None,
            holds=(),
            budget_nanos=worst,
        )

    def _output_tokens(self, asked: Asked) -> int:
        cap = self._models[asked.model].max_completion_tokens
        return self._desk.estimator.output_tokens(asked.model, asked.key_id, asked.size, cap)

    def _check_limits(self, asked: Asked, windows: Windows, tokens: int, now: float) -> None:
        refused = windows.refusal(tokens, now)
        if refused is None:
            return
        too_large = refused.wait_s == float("inf")
        self._say(asked, refused.window.resource, "too_large" if too_large else "refused")
        raise limit_error(asked.key_id, asked.model, refused, windows.headers(now))

    def _check_budget(self, claim: Claim, account: Account, headers: dict[str, str]) -> None:
        worst, budget = claim.budget_nanos, account.budget_nanos
        assert worst is not None
        assert budget is not None
        if not self.budgets.fits(claim.key_id, worst, budget):
            self._emit(LimitDecision(claim.key_id, claim.name, _SCOPE, "usd", "refused"))
            raise quota_error(headers)
        self.budgets.reserve(claim.key_id, worst)
        self._emit(LimitDecision(claim.key_id, claim.name, _SCOPE, "usd", "admitted"))

    def _say(self, asked: Asked, resource: str, outcome: str) -> None:
        self._emit(LimitDecision(asked.key_id, asked.model, _SCOPE, resource, outcome))
