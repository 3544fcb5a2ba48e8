"""Keys, spending and usage in one SQLite file: everything that is ever said to it, and nothing asynchronous.

Used by one thread of a server (`bookkeeper`) and by the command line, at the same time: the file is in WAL mode, so
that readers and a writer don't wait for each other, and every change is one short transaction. With
``synchronous=NORMAL`` what was committed survives the process's death; a power cut may cost the last commits and
never the file.

Source: https://www.sqlite.org/wal.html, https://www.sqlite.org/pragma.html (data_version, synchronous).
"""

from __future__ import annotations

import contextlib
import hmac
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from router.accounts.secrets import StoredKey, key_hash
from router.errors import NenyaError
from router.events import RequestDone

BUSY_S = 2.0
"""How long to wait for another's transaction; they take milliseconds."""
MOST_TOKENS = 10**12
MOST_NANOS = 10**15
"""A million dollars: no request costs more, and the sum of nine thousand such still fits 64 bits."""
MOST_SPENT = 2**63 - 1
"""What fits a row."""
_PEPPER_CHECK = "nenya pepper check"
"""Hashed like a secret, and no key's: a wrong pepper is told at the start instead of by every client's 401."""
_SCHEMA = """
CREATE TABLE keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, shown TEXT NOT NULL, created_at REAL NOT NULL, tier TEXT, models TEXT,
    expires_at REAL, budget_nanos INTEGER, revoked_at REAL, previous_hash BLOB, previous_until REAL
) STRICT;
CREATE TABLE spent (key_id TEXT PRIMARY KEY, nanos INTEGER NOT NULL) STRICT;
CREATE TABLE usage (
    at REAL NOT NULL, request_id TEXT NOT NULL, key_id TEXT NOT NULL, model TEXT NOT NULL, target TEXT NOT NULL,
    provider TEXT NOT NULL, input_tokens INTEGER, cached_input_tokens INTEGER, output_tokens INTEGER,
    tokens_estimated INTEGER NOT NULL, cost_nanos INTEGER NOT NULL, status INTEGER NOT NULL, outcome TEXT NOT NULL,
    attempts INTEGER NOT NULL, streaming INTEGER NOT NULL, first_token_s REAL, duration_s REAL NOT NULL,
    overhead_s REAL
) STRICT;
CREATE INDEX usage_at ON usage (at);
CREATE TABLE state (generation INTEGER NOT NULL, pepper_check BLOB) STRICT;
INSERT INTO state VALUES (0, NULL);
"""
_CHANGES = (
    """
ALTER TABLE usage ADD COLUMN burnt_input_tokens INTEGER;
ALTER TABLE usage ADD COLUMN burnt_output_tokens INTEGER;
""",
)
"""To each version of the schema from the one before it; the first is `_SCHEMA`."""
_VERSION = 1 + len(_CHANGES)
_NONE = -1
"""What NULL is bound as: sqlite3 looks for an adapter for None, and for a bool, by an exception of its own, 2,000
instructions each. No count and no time is negative."""
_COLUMNS = (
    "at", "request_id", "key_id", "model", "target", "provider", "input_tokens", "cached_input_tokens", "output_tokens",
    "tokens_estimated", "cost_nanos", "status", "outcome", "attempts", "streaming", "first_token_s", "duration_s",
    "overhead_s",
)  # fmt: skip
"""What every record has a value for; tokens that were burnt are written with the few that have any."""
_BURNT_COLUMNS = (*_COLUMNS, "burnt_input_tokens", "burnt_output_tokens")
_WIDTH = len(_COLUMNS)
_NULLABLE = frozenset({
    "input_tokens", "cached_input_tokens", "output_tokens", "first_token_s", "overhead_s", "burnt_input_tokens",
    "burnt_output_tokens",
})  # fmt: skip
_ROWS_A_STATEMENT = 32
"""A quarter less to write than row by row; more make no difference."""


def _insert(columns: Sequence[str], rows: int) -> str:
    """The statement that writes so many records."""

    def value(number: int, column: str) -> str:
        return (
            f"CASE ?{number} WHEN {_NONE} THEN NULL ELSE ?{number} END"
            if column in _NULLABLE
            else f"?{number}"
        )

    width = len(columns)
    values = [
        f"({', '.join(value(row * width + at, column) for at, column in enumerate(columns, 1))})"
        for row in range(rows)
    ]
    return f"INSERT INTO usage ({', '.join(columns)}) VALUES {', '.join(values)}"  # noqa: S608 - ours


_INSERT = _insert(_COLUMNS, 1)
_INSERT_MANY = _insert(_COLUMNS, _ROWS_A_STATEMENT)
_INSERT_BURNT = _insert(_BURNT_COLUMNS, 1)
_KEY_COLUMNS = (
    "id", "hash", "shown", "created_at", "tier", "models", "expires_at", "budget_nanos", "revoked_at", "previous_hash",
    "previous_until",
)  # fmt: skip


class StoreError(NenyaError):
    """The database can't be used now, or at all; the text says why."""


class KeyTakenError(StoreError):
    """A key has that id."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A request that is over, for the books."""

    at: float
    """Seconds since the epoch."""
    done: RequestDone
    cost_nanos: int


class Store:
    """One connection to the file, for one thread."""

    def __init__(self, path: str, *, must_exist: bool = False) -> None:
        """Open the file, make it where it isn't. Raises StoreError."""
        self.path = path
        with self._translated():
            if must_exist and not Path(path).is_file():
                raise StoreError(f"{path}: there is no such file")
            # Hashes and spending are nobody else's business; SQLite gives the files beside it the same mode.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Let the file go."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version < _VERSION:
            self._bring_up()
        elif version > _VERSION:
            raise StoreError(f"{self.path}: made by another version of Nenya")

    def _bring_up(self) -> None:
        """Make the tables, or change what an earlier version made of them."""
        with self._changing():
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version < _VERSION:  # nobody else was quicker
                for change in (_SCHEMA, *_CHANGES)[version:]:
                    for statement in change.split(";\n"):
                        self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={_VERSION}")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, msgspec.MsgspecError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise StoreError(f"{self.path}: {why}") from error

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """All of it or nothing. Raises StoreError."""
        with self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # some failures have rolled back already
                    self._db.execute("ROLLBACK")
                raise

    # Keys

    def keys(self) -> dict[str, StoredKey]:
        """All keys by id, the oldest first. Raises StoreError."""
        with self._translated():
            query = f"SELECT {', '.join(_KEY_COLUMNS)} FROM keys ORDER BY created_at, id"  # noqa: S608 - ours
            return {row[0]: _key(row) for row in self._db.execute(query)}

    def add(self, keys: Iterable[StoredKey]) -> None:
        """All of ``keys``, which are new. Raises KeyTakenError and StoreError; then none was added."""
        with self._changing():
            for key in keys:
                try:
                    self._insert("INSERT", key)
                except sqlite3.IntegrityError as error:
                    raise KeyTakenError(f"there is a key `{key.id}` already") from error
            self._turn()

    def replace(self, key: StoredKey) -> None:
        """Put ``key`` in the place of the one with its id. Raises StoreError."""
        with self._changing():
            self._insert("REPLACE", key)
            self._turn()

    def _insert(self, verb: str, key: StoredKey) -> None:
        row = msgspec.structs.asdict(key)
        if key.models is not None:
            row["models"] = msgspec.json.encode(key.models).decode()
        marks = ", ".join(f":{name}" for name in _KEY_COLUMNS)
        self._db.execute(f"{verb} INTO keys ({', '.join(_KEY_COLUMNS)}) VALUES ({marks})", row)

    def _turn(self) -> None:
        self._db.execute("UPDATE state SET generation = generation + 1")

    def check_pepper(self, pepper: bytes) -> None:
        """Raise StoreError if the file's keys are hashed under another pepper; the first to ask decides."""
        check = key_hash(pepper, _PEPPER_CHECK)
        with self._translated():
            (known,) = self._db.execute("SELECT pepper_check FROM state").fetchone()
        if known is None:
            with self._changing():
                self._db.execute(
                    "UPDATE state SET pepper_check = ? WHERE pepper_check IS NULL", (check,)
                )
            return self.check_pepper(pepper)
        if not hmac.compare_digest(known, check):
            raise StoreError(f"{self.path}: the pepper is not the one its keys were made with")
        return None

    def generation(self) -> int:
        """Another number after every change of a key. Raises StoreError."""
        with self._translated():
            (found,) = self._db.execute("SELECT generation FROM state").fetchone()
            return int(found)

    def data_version(self) -> int:
        """Another number after a commit of somebody else. Raises StoreError."""
        with self._translated():
            (found,) = self._db.execute("PRAGMA data_version").fetchone()
            return int(found)

    # Books

    def spent(self) -> dict[str, int]:
        """What each key spent, in billionths of a dollar. Raises StoreError."""
        with self._translated():
            return dict(self._db.execute("SELECT key_id, nanos FROM spent").fetchall())

    def book(self, entries: Sequence[Entry], *, usage: bool) -> dict[str, int]:
        """Add to what is spent and, with ``usage``, write each entry down; returns what each key spent. Raises
        StoreError; then nothing was.
        """
        try:
            return self._book(entries, usage=usage)
        except UnicodeEncodeError:  # half a character, which SQLite refuses
            return self._book([_whole(entry) for entry in entries], usage=usage)

    def _book(self, entries: Sequence[Entry], *, usage: bool) -> dict[str, int]:
        spending: dict[str, int] = {}
        for entry in entries:
            nanos = entry.cost_nanos
            if nanos:
                key_id = entry.done.key_id
                spending[key_id] = spending.get(key_id, 0) + (
                    nanos if nanos < MOST_NANOS else MOST_NANOS
                )
        with self._changing():
            self._db.executemany(
                "INSERT INTO spent VALUES (?, ?) ON CONFLICT (key_id) DO UPDATE SET nanos = nanos + excluded.nanos",
                [(key_id, min(nanos, MOST_SPENT)) for key_id, nanos in spending.items()],
            )
            if usage:
                self._write_usage(entries)
        return spending

    def _write_usage(self, entries: Sequence[Entry]) -> None:
        values: list[str | float] = []
        burnt = []
        for entry in entries:
            row, done = _usage_row(entry), entry.done
            if done.burnt_input_tokens is None and done.burnt_output_tokens is None:
                values += row
            else:
                more = _count(done.burnt_input_tokens), _count(done.burnt_output_tokens)
                burnt.append((*row, *more))
        many = _WIDTH * _ROWS_A_STATEMENT
        whole = len(values) - len(values) % many
        for at in range(0, whole, many):
            self._db.execute(_INSERT_MANY, values[at : at + many])
        rest = range(whole, len(values), _WIDTH)
        self._db.executemany(_INSERT, [values[at : at + _WIDTH] for at in rest])
        self._db.executemany(_INSERT_BURNT, burnt)

    def select(self, query: str, values: Iterable[float | str]) -> list[tuple[object, ...]]:
        """The rows of a query that `usage` built. Raises StoreError."""
        with self._translated():
            return self._db.execute(query, tuple(values)).fetchall()


def _key(row: tuple[object, ...]) -> StoredKey:
    fields = dict(zip(_KEY_COLUMNS, row, strict=True))
    if isinstance(models := fields["models"], str):
        fields["models"] = msgspec.json.decode(models)
    return msgspec.convert(fields, StoredKey)


def _usage_row(entry: Entry) -> tuple[str | float, ...]:
    """The values of _COLUMNS. What an upstream says of its usage may be nonsense; a row must not fail on it."""
    done = entry.done
    given, cached, wrote = done.input_tokens, done.cached_input_tokens, done.output_tokens
    first_token_s, overhead_s, nanos = done.first_token_s, done.overhead_s, entry.cost_nanos
    return (
        entry.at, done.request_id, done.key_id, done.model, done.target, done.provider,
        given if given is not None and given < MOST_TOKENS else _count(given),
        _NONE if cached is None else _count(cached),
        wrote if wrote is not None and wrote < MOST_TOKENS else _count(wrote),
        1 if done.tokens_estimated else 0, nanos if nanos < MOST_NANOS else MOST_NANOS, done.status, done.outcome,
        done.attempts, 1 if done.streaming else 0, _NONE if first_token_s is None else first_token_s, done.duration_s,
        _NONE if overhead_s is None else overhead_s,
    )  # fmt: skip


def _count(tokens: int | None) -> int:
    return _NONE if tokens is None else tokens if tokens < MOST_TOKENS else MOST_TOKENS


def _whole(entry: Entry) -> Entry:
    """``entry`` without the half characters that others' words may have."""
    done = entry.done
    texts = {name: _text(getattr(done, name)) for name in ("request_id", "key_id", "outcome")}
    return msgspec.structs.replace(entry, done=msgspec.structs.replace(done, **texts))


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
