"""Who may ask, for what, and how much: everything that the router asks about keys, behind one object.

A request of a key without limits, where nothing is recorded, pays for one look-up in a dict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet

from router.accounts.bookkeeper import Bookkeeper, Snapshot
from router.accounts.budgets import Budgets, quota_error
from router.accounts.charge import Charge, Holds
from router.accounts.estimate import Size, most_output
from router.accounts.keys import KeyRing
from router.accounts.limits import Windows, headers_of, limit_error
from router.accounts.pairs import SCOPE, Pair, Pairs
from router.accounts.prices import NANOS, Tokens, cost_nanos
from router.accounts.secrets import StoredKey
from router.accounts.store import Entry, StoreError
from router.accounts.terms import Account, Names, Tiers
from router.clock import Clock
from router.config.schema import Config
from router.errors import ApiError
from router.events import Event, Hearer, LimitDecision, RequestDone, UsageLost

Emit = Callable[[Event], None]
_log = logging.getLogger("nenya.accounts")


class Accounts(Hearer):
    """The keys of a config and their accounts."""

    def __init__(self, config: Config, names: Names, *, clock: Clock, emit: Emit) -> None:
        """``names`` turns a model's name or alias into its name."""
        self._clock = clock
        self._emit = emit
        self._tiers = Tiers(config.tiers, names)
        kept = config.accounts
        pepper = None if kept.database is None else (kept.pepper or "").encode()
        self._ring = KeyRing(config.keys, pepper=pepper, wall=clock.wall)
        self.authenticate = self._ring.authenticate
        """The id of the key in an Authorization header. Raises ApiError 401."""
        self._configured = {key.id: self._tiers.account(key) for key in config.keys}
        self._bound = _bound(self._configured.values())
        self._clashing: AbstractSet[str] = frozenset()
        self._seen_keys: Mapping[str, StoredKey] | None = None
        self.budgets = Budgets()
        self._pairs = Pairs(config.models, self._tiers, self.budgets)
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

    def allows(self, key_id: str, model: str) -> bool:
        """The key may ask for ``model``."""
        account = self._bound.get(key_id)
        return account is None or account.allows(model)

    def pair(self, key_id: str, model: str) -> Pair | None:
        """The key and the model, by its name; None where nothing limits the key and nothing is recorded of it."""
        account = self._bound.get(key_id)
        if account is None and self._books is None:
            return None
        pair = self._pairs.known.get((key_id, model))
        if pair is None or pair.account is not account:
            pair = self._pairs.prepare(key_id, model, account, self._clock.now())
        return pair

    def admit(self, pair: Pair, size: Size) -> Charge:
        """Reserve what the request is likely to take: of all its limits, or of none. Raises ApiError 429."""
        now = self._clock.now()
        given, likely, past = pair.estimator.guess(size)
        worst = None
        if pair.budget_nanos is not None:
            worst = self._worst(pair, size, given, likely, now)
        windows, lines = pair.windows, ""
        holds: Holds = ()
        if windows is not None:
            taken = windows.admit(given + likely, now)
            if taken is None:
                raise self._refused(pair, windows, given + likely, now)
            holds, lines = taken
        if worst is not None:
            pair.spending.reserved += worst
        if pair.admitted is not None:
            self._emit(pair.admitted)
        return Charge(pair, size, given, past, holds, worst, lines)

    def _book(self, event: RequestDone) -> None:
        """What ended goes into the books."""
        if self._books is not None:
            nanos = 0 if event.cost_usd is None else round(event.cost_usd * NANOS)
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

    def _refused(self, pair: Pair, windows: Windows, tokens: int, now: float) -> ApiError:
        """The error for a request of ``tokens`` that the limits refuse."""
        refused = windows.refusal(tokens, now)
        assert refused is not None, "it was refused"
        too_large = refused.wait_s == float("inf")
        self._say(pair, refused.window.resource, "too_large" if too_large else "refused")
        return limit_error(pair.key_id, pair.name, refused, headers_of(windows.lines(now)))

    def _worst(self, pair: Pair, size: Size, given: int, likely: int, now: float) -> int:
        """What of the key's budget must be held: as much as it may write, where its client said how much; else what it
        is ``likely`` to, beside what it was ``given``.

        Raises ApiError 429 where that isn't left; first of all the one of the limits, if they refuse the request too.
        """
        most = most_output(size)
        worst = cost_nanos(pair.model.price, Tokens(given, None, likely if most is None else most))
        if pair.spending.fits(worst, pair.budget_nanos or 0):
            return worst
        windows, tokens = pair.windows, given + likely
        if windows is not None and windows.refusal(tokens, now) is not None:
            raise self._refused(pair, windows, tokens, now)
        self._say(pair, "usd", "refused")
        raise quota_error({} if windows is None else headers_of(windows.lines(now)))

    def _say(self, pair: Pair, resource: str, outcome: str) -> None:
        self._emit(LimitDecision(pair.key_id, pair.name, SCOPE, resource, outcome))


def _bound(accounts: Iterable[Account]) -> dict[str, Account]:
    return {account.id: account for account in accounts if account.is_bound}
