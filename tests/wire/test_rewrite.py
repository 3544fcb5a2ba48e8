"""The model's name changes; nothing else does."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.wire.rewrite import for_upstream


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m","x":1}', b'{"model":"there","x":1}'),
        (b'{ "x" : 1.50 , "model" : "m" }', b'{ "x" : 1.50 , "model" : "there" }'),
        (
            b'{"x":"\\"model\\": \\"m\\"","model":"m"}',
            b'{"x":"\\"model\\": \\"m\\"","model":"there"}',
        ),
        (b'{"x":{"model":"y"},"model":"m"}', b'{"x":{"model":"y"},"model":"there"}'),
        (b'{"x":"model","model":"m"}', b'{"x":"model","model":"there"}'),
        (b'{"mod\\u0065l":"m"}', b'{"model":"there"}'),
        (b'{"mod\\u0065l":"m","x":{"model":"y"}}', b'{"model":"there","x":{"model":"y"}}'),
    ],
)
def test_every_other_byte_stays(body, expected):
    assert for_upstream(body, "there", ask_usage=False) == expected


def test_asking_for_usage_keeps_other_options():
    body = b'{"model":"m","stream":true,"stream_options":{"include_obfuscation":false}}'
    options = json.loads(for_upstream(body, "t", ask_usage=True))["stream_options"]
    assert options == {"include_obfuscation": False, "include_usage": True}


def test_asking_for_usage_overrides_what_was_off_in_escapes():
    body = b'{"model":"m","\\u0073tream_options":{"include_usage":false}}'
    assert b'"stream_options":{"include_usage":true}}' in for_upstream(body, "t", ask_usage=True)
    assert for_upstream(body, "t", ask_usage=True).count(b"tream_options") == 1


@pytest.mark.parametrize("given_", ["null", '{"include_usage":false}', "{}"])
def test_asking_for_usage_overrides_what_was_off(given_):
    body = f'{{"model":"m","stream_options":{given_}}}'.encode()
    assert json.loads(for_upstream(body, "t", ask_usage=True))["stream_options"] == {
        "include_usage": True
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.just("model"), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    fields=st.dictionaries(
        st.text() | st.sampled_from(["messages", "stream_options_", "n"]), json_values, max_size=5
    ),
    name=st.text(min_size=1),
    there=st.text(min_size=1),
    ask=st.booleans(),
    ascii_=st.booleans(),
)
def test_the_meaning_is_the_same_but_for_what_was_asked(fields, name, there, ask, ascii_):
    fields.pop("stream_options", None)
    fields["model"] = name
    text = json.dumps(fields, ensure_ascii=ascii_)
    got = json.loads(for_upstream(text.encode("utf-8", "replace"), there, ask_usage=ask))
    expected = {**json.loads(text.encode("utf-8", "replace")), "model": there}
    if ask:
        expected["stream_options"] = {"include_usage": True}
    assert got == expected
