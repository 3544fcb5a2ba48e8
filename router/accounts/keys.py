"""Bearer keys: who is asking.

Secrets of the config are kept as BLAKE2b digests of the header that they usually come in, and looked up by digest: the
time of a look-up tells something of a digest at most, and nothing of the secret behind it. (SHA-256 would do as well,
but OpenSSL takes twice as long to begin one.) Secrets of the database name their key, so they are looked up by id and
compared as HMACs in constant time. Keys are random and long, so a slow hash would protect nothing that a fast one
doesn't.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b

from router.accounts.secrets import PREFIX, StoredKey, id_of, key_hash
from router.config.moment import moment
from router.config.schema import Key
from router.errors import overloaded, unauthorized

ANONYMOUS = "anonymous"
"""The id of everybody where no keys are configured, which is possible on loopback alone."""

_BEARER = "Bearer "
"""How clients write the scheme, whose case is free."""

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
WRONG_KEY = "Incorrect API key provided."  # never quotes it, not even its ends
EXPIRED_KEY = "The API key provided has expired."
REVOKED_KEY = "The API key provided has been revoked."
STARTING_S = 1.0
"""A database is read in less."""
NOBODY = b"\0" * 32
"""Compared with where no key has the id, so that ids can't be told by time."""


class KeyRing:
    """The keys of a config, and beside them those of a database."""

    def __init__(
        self,
        keys: Iterable[Key],
        *,
        pepper: bytes | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``pepper``: of the database, if there is one; then nobody is anonymous, however few keys it has."""
        self._own = {_digest(f"{_BEARER}{key.secret}"): (key.id, _expiry(key)) for key in keys}
        self._stored: Mapping[str, StoredKey] | None = None
        self._foreign: Mapping[bytes, StoredKey] = {}
        self._pepper = pepper
        self._wall = wall

    def note_stored(self, stored: Mapping[str, StoredKey]) -> None:
        """The database's keys by id, as they are now. Imported secrets don't name theirs: a hash finds them."""
        self._stored = stored
        self._foreign = {k.hash: k for k in stored.values() if not k.shown.startswith(PREFIX)}
        for key in stored.values():
            if key.previous_hash is not None:
                self._foreign[key.previous_hash] = key

    def authenticate(self, authorization: str | None) -> str:
        """The id of the key in an Authorization header. Raises ApiError 401, and 503 before the database is read."""
        own = self._own
        if own and authorization:
            found = own.get(_digest(authorization))
            if found is not None:
                key_id, expires_at = found
                if expires_at is not None and self._wall() >= expires_at:
                    raise unauthorized(EXPIRED_KEY)
                return key_id
        elif not own and self._pepper is None:
            return ANONYMOUS
        return self._authenticate_other(authorization or "")

    def _authenticate_other(self, authorization: str) -> str:
        """The same where it isn't a key of the config as clients usually write it."""
        scheme, _, secret = authorization.partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise unauthorized(NO_KEY)
        usual = f"{_BEARER}{secret}"
        if usual != authorization and _digest(usual) in self._own:
            return self.authenticate(usual)
        return self._authenticate_stored(secret)

    def _authenticate_stored(self, secret: str) -> str:
        if self._pepper is None:
            raise unauthorized(WRONG_KEY)
        if self._stored is None:
            raise overloaded("The server is starting.", "starting", STARTING_S)
        given = key_hash(self._pepper, secret)
        key_id = id_of(secret)
        key = self._foreign.get(given) if key_id is None else self._stored.get(key_id)
        right = hmac.compare_digest(given, key.hash if key is not None else NOBODY)
        if key is None:
            raise unauthorized(WRONG_KEY)
        now = self._wall()
        if not right and not _is_previous(key, given, now):
            raise unauthorized(WRONG_KEY)
        if key.revoked_at is not None:
            raise unauthorized(REVOKED_KEY)
        if key.expires_at is not None and now >= key.expires_at:
            raise unauthorized(EXPIRED_KEY)
        return key.id


def _is_previous(key: StoredKey, given: bytes, now: float) -> bool:
    """It is the secret that was rotated out, and its grace isn't over."""
    if key.previous_hash is None or key.previous_until is None or now >= key.previous_until:
        return False
    return hmac.compare_digest(given, key.previous_hash)


def _expiry(key: Key) -> float | None:
    return None if key.expires is None else moment(key.expires)


def _digest(header: str) -> bytes:
    return blake2b(header.encode("utf-8", "surrogateescape")).digest()
