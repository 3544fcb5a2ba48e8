"""Bearer keys: who is asking.

Secrets are kept as SHA-256 digests and looked up by digest: the time of a look-up tells something of a digest at most,
and nothing of the secret behind it. Keys are random and long, so a slow hash would protect nothing that a fast one
doesn't.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from router.config.schema import Key
from router.errors import unauthorized

ANONYMOUS = "anonymous"
"""The id of everybody where no keys are configured, which is possible on loopback alone."""

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)
WRONG_KEY = "Incorrect API key provided."  # never quotes it, not even its ends


class KeyRing:
    """The keys of a config."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._ids = {_digest(key.secret): key.id for key in keys}

    def authenticate(self, authorization: str | None) -> str:
        """The id of the key in an Authorization header. Raises ApiError 401."""
        if not self._ids:
            return ANONYMOUS
        if not authorization:
            raise unauthorized(NO_KEY)
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret.strip():
            raise unauthorized(NO_KEY)
        key_id = self._ids.get(_digest(secret.strip()))
        if key_id is None:
            raise unauthorized(WRONG_KEY)
        return key_id


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
