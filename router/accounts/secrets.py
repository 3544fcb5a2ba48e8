"""Secrets of keys that the database holds: how they are made, read and hashed.

``sk-nenya-ID-RANDOM``: the id finds the row, so that nothing secret is ever looked up, and the random part has 190
bits. The hash is an HMAC with a pepper that isn't in the database: who copies the file can't even test a guess.
"""

from __future__ import annotations

import hmac
import re
import secrets
import string

import msgspec

PREFIX = "sk-nenya-"
RANDOM_CHARS = 32
_ALPHABET = string.ascii_letters + string.digits
_SHAPE = re.compile(r"sk-nenya-([A-Za-z0-9_.-]{1,64})-[A-Za-z0-9]{32}")
_SHOWN_CHARS = 4
"""Of the random part, so that people can tell their keys apart; 24 of its bits."""


class StoredKey(msgspec.Struct, frozen=True):
    """A key as the database has it. Times are seconds since the epoch."""

    id: str
    hash: bytes
    shown: str
    """The secret's beginning."""
    created_at: float
    tier: str | None = None
    models: tuple[str, ...] | None = None
    expires_at: float | None = None
    budget_nanos: int | None = None
    revoked_at: float | None = None
    previous_hash: bytes | None = None
    """Of the secret before the last rotation, good until ``previous_until``."""
    previous_until: float | None = None

    def __repr__(self) -> str:
        return f"StoredKey(id={self.id!r}, shown={self.shown!r})"


def new_id() -> str:
    """An id for a key that nobody named."""
    return "key_" + "".join(secrets.choice(_ALPHABET) for _ in range(12))


def new_secret(key_id: str) -> str:
    """A secret for the key of that id."""
    return f"{PREFIX}{key_id}-" + "".join(secrets.choice(_ALPHABET) for _ in range(RANDOM_CHARS))


def id_of(secret: str) -> str | None:
    """The id in a secret; None if it has not the shape of one."""
    found = _SHAPE.fullmatch(secret)
    return None if found is None else found[1]


def shown(secret: str) -> str:
    """What of a secret may be shown again."""
    return secret[: -RANDOM_CHARS + _SHOWN_CHARS] + "…"


def key_hash(pepper: bytes, secret: str) -> bytes:
    """What is kept of a secret."""
    return hmac.digest(pepper, secret.encode("utf-8", "surrogateescape"), "sha256")
