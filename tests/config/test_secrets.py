"""A secret shows nowhere: not in a message, not in a repr."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.config import environment
from router.config.reader import parse
from router.errors import ConfigError

CANARY = "sk-canary-4711"
GOOD = """\
keys: [{id: dev, secret: "${KEY}"}]
providers:
  p: {base_url: "http://h/v1", api_key: "${KEY}", headers: {x-org: "${KEY}"}}
accounts: {database: x.db, pepper: "${KEY}-and-more"}
server: {admin_key: "${KEY}-for-admins"}
models: {m: {targets: [{provider: p}]}}
"""

FIELDS = [
    "server: {listen: '%s'}",
    "server: {drain_s: '%s'}",
    "server: {admin_key: 'x%s and spaces'}",
    "keys: [{id: '%s', secret: short}]",
    "keys: [{id: a, secret: '%s and spaces'}]",
    "keys: [{id: a, secret: '%s'}, {id: b, secret: '%s'}]",
    "providers: {p: {base_url: '%s'}}",
    "providers: {p: {base_url: 'http://h', api_key: ' %s'}}",
    "providers: {p: {base_url: 'http://h', headers: {'a b': '%s'}}}",
    "providers: {p: {base_url: 'http://h', headers: '%s'}}",
    "providers: {p: {base_url: 'http://h', kind: '%s'}}",
    "engines: {e: {kind: llamacpp, model: '%s', slots: x}}",
    "models: {m: {targets: '%s'}}",
    "models: {m: {targets: [{engine: '%s'}]}}",
    "models: {m: {targets: [{provider: '%s'}]}}",
    "models: {m: {policy: '%s'}}",
    "models: {m: {targets: [{provider: p}], aliases: ['%s', '%s']}}",
    "keys: [{id: '%s', secret: 12345678}, {id: '%s', secret: 87654321}]",
]


@pytest.mark.parametrize("field", FIELDS)
def test_no_message_shows_what_a_variable_holds(field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(field.replace("%s", "${KEY}"), "a test", {"KEY": CANARY})
    error = caught.value
    assert CANARY not in f"{error!s} {error!r} {error.problems!r}"


@pytest.mark.parametrize(
    "text",
    [
        f"keys: [{{id: a, secret: {CANARY}, secrt: b}}]",
        f"keys: [{{id: a, secret: '{CANARY}' x}}]",
        f'keys: [{{id: a, secret: "{CANARY}',
        f"keys: [{{id: a, secret: {CANARY} and more}}]",
        f"keys: {CANARY}",
        f"providers: {{p: {{base_url: 'http://h', api_key: [{CANARY}]}}}}",
        f"providers: {{p: {{base_url: 'http://user:{CANARY}@h', api_key: a}}}}",
        f"keys:\n- id: a\n  secret: {CANARY}\n bad: x",
        f"keys: [{{id: a, secret: '${{{CANARY}'}}]",
    ],
)
def test_no_message_shows_a_secret_that_stands_in_the_file(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "a test", {})
    assert CANARY not in f"{caught.value!s} {caught.value.problems!r}"


def test_no_repr_shows_one() -> None:
    config = parse(GOOD, "a test", {"KEY": CANARY})
    assert config.keys[0].secret == CANARY
    assert config.server.admin_key == f"{CANARY}-for-admins"
    assert config.providers["p"].headers == {"x-org": CANARY}
    assert CANARY not in f"{config!r} {config!s} {config.keys!r} {config.providers!r}"
    assert CANARY not in repr(environment.fill("${KEY}", {"KEY": CANARY}))


@given(before=st.text(max_size=20), after=st.text(max_size=20))
@settings(max_examples=100, deadline=None)
def test_filling_escapes_and_fills(before: str, after: str) -> None:
    text = before.replace("$", "") + "${K}$${K}" + after.replace("$", "")
    filled = environment.fill(text, {"K": "v"})
    assert filled.text == before.replace("$", "") + "v${K}" + after.replace("$", "")
    assert not filled.complaints
