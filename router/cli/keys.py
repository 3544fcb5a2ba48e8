"""`nenya keys ACTION`: keys in the database. A secret is printed when it is made, and never again."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from router.accounts.prices import NANOS, nanos_of
from router.accounts.secrets import PREFIX, StoredKey, key_hash, new_id, new_secret, shown
from router.accounts.store import Store, StoreError
from router.cli import FAILED, OK, USAGE
from router.cli.key_file import Wanted, read
from router.cli.ledger import AskedWronglyError, Ledger, ledger
from router.cli.table import aligned
from router.config.moment import moment

_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DURATION = re.compile(r"([0-9]{1,6})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAKING = frozenset({"create", "import", "rotate"})
"""Actions that hash a secret."""
_NONE = "none"
_SHOWN_FOREIGN_CHARS = 4
"""Of a secret that was made elsewhere."""


class Shown(msgspec.Struct, frozen=True, omit_defaults=True):
    """A key as it is printed."""

    id: str
    key: str
    """Its secret's beginning."""
    state: str
    tier: str | None = None
    models: tuple[str, ...] | None = None
    expires: str | None = None
    budget_usd: float | None = None
    spent_usd: float = 0.0
    created: str | None = None
    secret: str | None = None


def run(arguments: argparse.Namespace) -> int:
    """Do what the action says."""
    try:
        found = ledger(arguments)
        reading = arguments.action not in {"create", "import"}
        with Store(found.path, must_exist=reading) as store:
            if arguments.action in _MAKING:
                store.check_pepper(found.needed_pepper())
            _ACTIONS[arguments.action](arguments, found, store)
    except AskedWronglyError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return USAGE
    except StoreError as error:
        print(f"nenya: {error}", file=sys.stderr)
        return FAILED
    return OK


def _create(arguments: argparse.Namespace, found: Ledger, store: Store) -> None:
    wanted = _wanted(arguments, Wanted(arguments.id or new_id()))
    key, secret = _made(wanted, found)
    store.add([key])
    _print_secrets([(key, secret)], as_json=arguments.json)


def _update(arguments: argparse.Namespace, found: Ledger, store: Store) -> None:
    key = _existing(store, arguments.id)
    before = Wanted(
        id=key.id,
        tier=key.tier,
        models=key.models,
        expires=_time(key.expires_at),
        budget_usd=None if key.budget_nanos is None else key.budget_nanos / NANOS,
    )
    wanted = _wanted(arguments, before)
    _check(wanted, found)
    key = msgspec.structs.replace(key, **_terms(wanted))
    store.replace(key)
    if arguments.json:
        _print_json([_shown(key, store.spent())])
    else:
        print(f"{key.id} is changed")


def _wanted(arguments: argparse.Namespace, before: Wanted) -> Wanted:
    """``before`` with the terms that the arguments name; ``none`` takes one away."""
    given: dict[str, str | float | tuple[str, ...] | None] = {}
    for name in ("tier", "models", "expires", "budget_usd"):
        text: str | None = getattr(arguments, name)
        if text is None:
            continue
        if text == _NONE:
            given[name] = None
        elif name == "models":
            given[name] = tuple(model.strip() for model in text.split(",") if model.strip())
        else:
            given[name] = _dollars(text) if name == "budget_usd" else text
    return msgspec.structs.replace(before, **given)


def _dollars(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise AskedWronglyError("--budget-usd must be a number") from error


def _import(arguments: argparse.Namespace, found: Ledger, store: Store) -> None:
    made = [_made(wanted, found) for wanted in read(arguments.file)]
    store.add(key for key, _ in made)
    given = [(key, secret) for key, secret in made if key.shown.startswith(PREFIX)]
    if arguments.json or given:
        _print_secrets(given, as_json=arguments.json)
    if not arguments.json:
        print(f"{len(made)} {'key' if len(made) == 1 else 'keys'} imported", file=sys.stderr)


def _rotate(arguments: argparse.Namespace, found: Ledger, store: Store) -> None:
    length = _DURATION.fullmatch(arguments.grace)
    if length is None:
        raise AskedWronglyError("--grace must be like 90s, 30m, 24h or 7d")
    key = _existing(store, arguments.id)
    if key.revoked_at is not None:
        raise AskedWronglyError(f"the key `{key.id}` is revoked; make a new one")
    grace_s = int(length[1]) * _SECONDS[length[2]]
    secret = new_secret(key.id)
    key = msgspec.structs.replace(
        key,
        hash=key_hash(found.needed_pepper(), secret),
        shown=shown(secret),
        previous_hash=key.hash if grace_s else None,
        previous_until=time.time() + grace_s if grace_s else None,
    )
    store.replace(key)
    _print_secrets([(key, secret)], as_json=arguments.json)


def _revoke(arguments: argparse.Namespace, _: Ledger, store: Store) -> None:
    key = _existing(store, arguments.id)
    if key.revoked_at is None:
        key = msgspec.structs.replace(key, revoked_at=time.time())
        store.replace(key)
    if arguments.json:
        _print_json([_shown(key, {})])
    else:
        print(f"{key.id} is revoked")


def _list(arguments: argparse.Namespace, _: Ledger, store: Store) -> None:
    spent = store.spent()
    rows = [_shown(key, spent) for key in store.keys().values()]
    if arguments.json:
        _print_json(rows)
        return
    names = ("id", "key", "state", "tier", "models", "expires", "budget_usd", "spent_usd")
    print(aligned(names, [[_cell(getattr(row, name)) for name in names] for row in rows]))


_ACTIONS: dict[str, Callable[[argparse.Namespace, Ledger, Store], None]] = {
    "create": _create,
    "import": _import,
    "list": _list,
    "revoke": _revoke,
    "rotate": _rotate,
    "update": _update,
}


def _existing(store: Store, key_id: str) -> StoredKey:
    key = store.keys().get(key_id)
    if key is None:
        raise AskedWronglyError(f"the database has no key `{key_id}`")
    return key


def _made(wanted: Wanted, found: Ledger) -> tuple[StoredKey, str]:
    """The key, and its secret. Raises AskedWronglyError where it can't be as it is wanted."""
    _check(wanted, found)
    secret = wanted.secret or new_secret(wanted.id)
    is_ours = wanted.secret is None
    key = StoredKey(
        id=wanted.id,
        hash=key_hash(found.needed_pepper(), secret),
        shown=shown(secret) if is_ours else secret[:_SHOWN_FOREIGN_CHARS] + "…",
        created_at=time.time(),
    )
    return msgspec.structs.replace(key, **_terms(wanted)), secret


def _terms(wanted: Wanted) -> dict[str, str | float | tuple[str, ...] | None]:
    """A key's fields that say what it may do."""
    return {
        "tier": wanted.tier,
        "models": wanted.models,
        "expires_at": None if wanted.expires is None else moment(wanted.expires),
        "budget_nanos": None if wanted.budget_usd is None else nanos_of(wanted.budget_usd),
    }


def _check(wanted: Wanted, found: Ledger) -> None:
    name = f"the key `{wanted.id}`"
    if not _ID.fullmatch(wanted.id):
        raise AskedWronglyError("an id has 1 to 64 letters, digits, dots, hyphens or underscores")
    if wanted.secret is not None and not _is_secret(wanted.secret):
        raise AskedWronglyError(
            f"{name}: a secret has 8 or more visible ASCII characters, and not Nenya's own prefix"
        )
    if wanted.expires is not None and moment(wanted.expires) is None:
        raise AskedWronglyError(f"{name}: `expires` must be a date or a time in UTC: 2027-01-31")
    if wanted.budget_usd is not None and not 0 <= wanted.budget_usd <= 1_000_000:
        raise AskedWronglyError(f"{name}: a budget is between 0 and 1,000,000 USD")
    config = found.config
    if config is None:
        return
    if any(key.id == wanted.id for key in config.keys):
        raise AskedWronglyError(f"{name} is in the config already")
    if wanted.tier is not None and wanted.tier not in config.tiers:
        raise AskedWronglyError(f"{name}: the config has no tier `{wanted.tier}`")
    names = {n.casefold() for n, model in config.models.items() for n in (n, *model.aliases)}
    for model in wanted.models or ():
        if model.casefold() not in names:
            raise AskedWronglyError(f"{name}: the config has no model `{model}`")


def _is_secret(secret: str) -> bool:
    visible = all("!" <= c <= "~" for c in secret)
    return len(secret) >= 8 and visible and not secret.startswith(PREFIX)


def _shown(key: StoredKey, spent: dict[str, int], secret: str | None = None) -> Shown:
    return Shown(
        id=key.id,
        key=key.shown,
        state=_state(key),
        tier=key.tier,
        models=key.models,
        expires=_time(key.expires_at),
        budget_usd=None if key.budget_nanos is None else key.budget_nanos / NANOS,
        spent_usd=spent.get(key.id, 0) / NANOS,
        created=_time(key.created_at),
        secret=secret,
    )


def _state(key: StoredKey) -> str:
    now = time.time()
    if key.revoked_at is not None:
        return "revoked"
    if key.expires_at is not None and now >= key.expires_at:
        return "expired"
    rotating = key.previous_until is not None and now < key.previous_until
    return "rotating" if rotating else "active"


def _time(at: float | None) -> str | None:
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _cell(value: str | float | tuple[str, ...] | None) -> str | float | None:
    return ",".join(value) if isinstance(value, tuple) else value


def _print_secrets(made: list[tuple[StoredKey, str]], *, as_json: bool) -> None:
    if as_json:
        _print_json([_shown(key, {}, secret) for key, secret in made])
        return
    print(aligned(("id", "secret"), [(key.id, secret) for key, secret in made]))
    print("Keep it: it is not shown again.", file=sys.stderr)


def _print_json(rows: list[Shown]) -> None:
    print(msgspec.json.format(msgspec.json.encode(rows), indent=2).decode())
