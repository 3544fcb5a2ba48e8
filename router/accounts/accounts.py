"""Who may ask, for what, and how much: everything that the router asks about keys, behind one object.

A request of a key without limits, where nothing is recorded, pays for one look-up in a dict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

import msgspec

from router.accounts.bookkeeper import Bookkeeper, Snapshot
from router.accounts.budgets import Budgets, quota_error
from router.accounts.charge import Bill, Charge, Claim, Desk
from router.accounts.estimate import Estimator, Size, most_output
from router.accounts.keys import KeyRing
from router.accounts.limits import Limiter, Windows, limit_error
from router.accounts.prices import Tokens, cost_nanos, nanos_of
from router.accounts.secrets import StoredKey
from router.accounts.store import Entry, StoreError
from router.accounts.terms import NO_RATES, Account, Names, Tiers
from router.clock import Clock
from router.config.schema import Config
from router.events import Admitted, Event, Hearer, LimitDecision, RequestDone, UsageLost

Emit = Callable[[Event], None]
_SCOPE = "key"
_log = logging.getLogger("nenya.accounts")


class Asked(msgspec.Struct, frozen=True):
    """A request at the gate."""

    key_id: str
    model: str
    """Its name, no alias."""
    size: Size


class Accounts(Hearer):
    """The keys of a config and their accounts."""

    def __init__(self, config: Config, names: Names, *, clock: Clock, emit: Emit) -> None:
        """``names`` turns a model's name or alias into its name."""
        self._models = config.models
        self._clock = clock
        self._emit = emit
        self._tiers = Tiers(config.tiers, names)
        kept = config.accounts
        pepper = None if kept.database is None else (kept.pepper or "").encode()
        self._ring = KeyRing(config.keys, pepper=pepper, wall=clock.wall)
        self._configured = {key.id: self._tiers.account(key) for key in config.keys}
        self._bound = _bound(self._configured.values())
        self._clashing: AbstractSet[str] = frozenset()
        self._seen_keys: Mapping[str, StoredKey] | None = None
        self._limiter = Limiter()
        self.budgets = Budgets()
        self._desk = Desk(self.budgets, Estimator())
        self._books: Bookkeeper | None = None
        if kept.database is not None and pepper is not None:
            self._books = Bookkeeper(kept.database, pepper, usage=kept.usage, on_change=self._note)
        self.hears = {} if self._books is None else {RequestDone: self._book}

    async def start(self) -> None:
        """Read the database, if there is one. Raises StoreError, also where a key of it has the id of a config's."""
        if self._books is not None:
            await self._books.start()
            if clash := sorted(self._clashing):
                raise StoreError(f"keys of the config are in the database too: {', '.join(clash)}")

    async def close(self) -> None:
        """Write what is left."""
        if self._books is not None:
            await self._books.stop()

    def authenticate(self, authorization: str | None) -> str:
        """The id of the key in an Authorization header. Raises ApiError 401."""
        return self._ring.authenticate(authorization)

    def allows(self, key_id: str, model: str) -> bool:
        """The key may ask for ``model``."""
        account = self._bound.get(key_id)
        return account is None or account.allows(model)

    def concerns(self, key_id: str) -> bool:
        """A request of this key must be admitted and settled."""
        return self._books is not None or key_id in self._bound

    def priority(self, key_id: str) -> int:
        """That of the key's tier, for those who wait; 0 without one."""
        account = self._bound.get(key_id)
        tier = account.tier if account is not None else None
        return 0 if tier is None else tier.priority

    def admit(self, asked: Asked) -> Charge:
        """Reserve what the request is likely to take: of all its limits, or of none. Raises ApiError 429."""
        account = self._bound.get(asked.key_id) or Account(asked.key_id)
        now = self._clock.now()
        model, size = self._models[asked.model], asked.size
        estimator = self._desk.estimator
        given = estimator.input_tokens(asked.model, size)
        cap = model.max_completion_tokens
        likely = estimator.output_tokens(asked.model, asked.key_id, size, cap)
        windows = self._windows(asked, account, given + likely, now)
        reserved = self._reserve_budget(asked, account, windows, Tokens(given, None, likely))
        claim = Claim(
            key_id=asked.key_id,
            name=asked.model,
            model=model,
            size=size,
            input_tokens=given,
            windows=windows,
            holds=() if windows is None else windows.take(given + likely, now),
            budget_nanos=reserved,
        )
        limited: tuple[str, ...] = () if windows is None else windows.resources
        if reserved is not None:
            limited = (*limited, "usd")
        if limited:
            self._emit(Admitted(asked.key_id, asked.model, _SCOPE, limited))
        if windows is None:
            return Charge(claim, {})
        return Charge(claim, windows.headers(now))

    def settle(self, charge: Charge, told: Tokens) -> Bill:
        """The request is over; ``told`` is the usage that its answer told."""
        return charge.settle(told, self._desk, self._clock.now())

    def _book(self, event: RequestDone) -> None:
        """What ended goes into the books."""
        if self._books is not None:
            nanos = 0 if event.cost_usd is None else nanos_of(event.cost_usd)
            if not self._books.book(Entry(self._clock.wall(), event, nanos)):
                self._emit(UsageLost(event.key_id))

    def _note(self, snapshot: Snapshot) -> None:
        """The database changed: its keys, or only what others spent."""
        self.budgets.note_others(snapshot.spent_by_others)
        if snapshot.keys is not self._seen_keys:
            self._seen_keys = snapshot.keys
            self._note_keys(snapshot.keys)

    def _note_keys(self, keys: Mapping[str, StoredKey]) -> None:
        self._clashing = self._configured.keys() & keys.keys()
        known: dict[str, StoredKey] = {}
        accounts = dict(self._configured)
        for key in keys.values():
            if key.id in self._clashing:
                _log.error(
                    "the key `%s` of the database is ignored: the config has that id", key.id
                )
            elif not self._tiers.has(key.tier):
                _log.error("the key `%s` is refused: there is no tier `%s`", key.id, key.tier)
            else:
                known[key.id] = key
                accounts[key.id] = self._tiers.stored_account(key)
        self._bound = _bound(accounts.values())
        self._ring.note_stored(known)

    def _windows(self, asked: Asked, account: Account, tokens: int, now: float) -> Windows | None:
        """The limits, which all admit the request; nothing is taken yet. Raises ApiError 429."""
        rates = self._tiers.rates(account.tier, asked.model)
        if rates is NO_RATES:
            return None
        windows = self._limiter.windows(asked.key_id, asked.model, rates, now)
        refused = windows.refusal(tokens, now)
        if refused is None:
            return windows
        too_large = refused.wait_s == float("inf")
        self._say(asked, refused.window.resource, "too_large" if too_large else "refused")
        raise limit_error(asked.key_id, asked.model, refused, windows.headers(now))

    def _reserve_budget(
        self, asked: Asked, account: Account, windows: Windows | None, likely: Tokens
    ) -> int | None:
        """What of the budget is held for the request: as much as it may write, where its client said how much.

        None for a key without a budget. Raises ApiError 429.
        """
        budget = account.budget_nanos
        if budget is None:
            return None
        most = most_output(asked.size, None)
        output = likely.output if most is None else most
        worst = cost_nanos(self._models[asked.model].price, Tokens(likely.input, None, output))
        if not self.budgets.fits(asked.key_id, worst, budget):
            self._say(asked, "usd", "refused")
            raise quota_error({} if windows is None else windows.headers(self._clock.now()))
        self.budgets.reserve(asked.key_id, worst)
        return worst

    def _say(self, asked: Asked, resource: str, outcome: str) -> None:
        self._emit(LimitDecision(asked.key_id, asked.model, _SCOPE, resource, outcome))


def _bound(accounts: Iterable[Account]) -> dict[str, Account]:
    return {account.id: account for account in accounts if account.is_bound}
