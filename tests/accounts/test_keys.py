"""Who gets in."""

from __future__ import annotations

import pytest

from router.accounts.keys import ANONYMOUS, KeyRing
from router.config.schema import Key
from router.errors import ApiError

CANARY = "sk-canary-1234567890"


@pytest.fixture
def ring():
    return KeyRing([Key(id="dev", secret=CANARY), Key(id="ops", secret="sk-other-secret")])


@pytest.mark.parametrize("header", [f"Bearer {CANARY}", f"bearer {CANARY}", f"Bearer  {CANARY} "])
def test_a_right_key_names_its_owner(ring, header):
    assert ring.authenticate(header) == "dev"


@pytest.mark.parametrize(
    "header",
    [
        None, "", "Bearer", "Bearer ", CANARY, f"Basic {CANARY}", f"Bearer {CANARY}x", f"Bearer {CANARY[:-1]}",
        f"Bearer {CANARY.upper()}", "Bearer ' OR 1=1 --", "Bearer \udcff\udcfe", "Bearer dev",
    ],
)  # fmt: skip
def test_anything_else_is_401_and_quotes_nothing(ring, header):
    with pytest.raises(ApiError) as caught:
        ring.authenticate(header)
    error = caught.value
    assert (error.status, error.error.code) == (401, "invalid_api_key")
    assert CANARY[:-1] not in str(error) + error.body.decode()


def test_without_keys_everybody_is_anonymous():
    assert KeyRing([]).authenticate(None) == ANONYMOUS


def test_the_ring_holds_no_secret(ring):
    assert CANARY not in repr(vars(ring))
    assert CANARY not in repr(Key(id="dev", secret=CANARY))
