from __future__ import annotations

import json

import jsonschema
import pytest

from engines.base import EngineError, GenerateRequest, Sampling
from engines.simulated.instances import smallest
from engines.simulated.text import Limit, last_message, prompt_of, write

MESSAGES = b'[{"role":"user","content":"hi"}]'
LIMIT = Limit(30, cuts=True)


def script(limit=LIMIT, choice=0, **request):
    request.setdefault("messages", MESSAGES)
    return write(GenerateRequest(**request), choice, limit, 0)


def text_of(script):
    return "".join(delta.text for delta in script.deltas)


def test_prose_has_as_many_tokens_as_it_may():
    assert len(script().deltas) == 30
    assert script().reason == "length"
    assert script(Limit(30, cuts=False)).reason == "stop"


def test_the_same_request_is_answered_the_same():
    assert text_of(script()) == text_of(script())
    others = [
        script(choice=1),
        script(sampling=Sampling(seed=9)),
        script(messages=b'[{"role":"user","content":"ho"}]'),
    ]
    assert len({text_of(script()), *map(text_of, others)}) == 4


def test_a_stop_string_cuts_within_a_token():
    whole = text_of(script())
    stop = whole[20:27]
    cut = script(stop=("nowhere", stop))
    assert text_of(cut) == whole[: whole.index(stop)]
    assert cut.reason == "stop"
    assert len(cut.deltas) < 30


def test_logprobs_are_plausible():
    for delta in script(logprobs=True, top_logprobs=3).deltas:
        (token,) = delta.logprobs
        falling = [other.logprob for other in token.top]
        assert token.token == token.top[0].token == delta.text
        assert falling == sorted(falling, reverse=True)
        assert token.logprob == falling[0] <= 0


def test_json_too_long_for_its_limit_is_cut():
    wanted = b'{"type":"json_object"}'
    assert json.loads(text_of(script(response_format=wanted)))
    short = script(Limit(2, cuts=True), response_format=wanted)
    assert (len(short.deltas), short.reason) == (2, "length")


@pytest.mark.parametrize("wanted", [b'{"type":"xml"}', b"[]", b'{"type":"json_schema"}'])
def test_unknown_formats_are_refused(wanted):
    with pytest.raises(EngineError):
        script(response_format=wanted)


def test_messages_that_are_no_array():
    with pytest.raises(EngineError):
        last_message(GenerateRequest(messages=b"{}"))


def test_a_conversation_starts_with_its_beginning():
    first = b'[{"role":"user","content":"' + b"a" * 100 + b'"}]'
    longer = first[:-1] + b',{"role":"assistant","content":"b"}]'
    one = prompt_of(GenerateRequest(messages=first), 10)
    two = prompt_of(GenerateRequest(messages=longer), 10)
    assert one.tokens == -(-len(first) // 4)
    assert len(one.pages) == len(first) // 40
    assert two.pages[: len(one.pages)] == one.pages


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "minLength": 12},
        {"type": "string", "maxLength": 2},
        {"type": ["integer", "null"], "minimum": 3.5},
        {"type": "integer", "maximum": -2},
        {"type": "integer", "exclusiveMinimum": 4, "multipleOf": 5},
        {"type": "integer", "exclusiveMaximum": -5, "multipleOf": 5},
        {"type": "number", "exclusiveMinimum": 0},
        {"type": "boolean"},
        {"const": [1]},
        {"enum": ["x", "y"]},
        {"anyOf": [{"type": "null"}, {"type": "string"}]},
        {"type": "array", "items": {"type": "null"}, "minItems": 2},
        {"allOf": [{"required": ["a"]}, {"$ref": "#/$defs/b"}], "type": "object",
         "$defs": {"b": {"properties": {"a": {"type": "string"}}, "required": ["b"]}}},
        {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"],
         "$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}},
        {"type": "object", "required": ["any"]},
        True,
    ],
)  # fmt: skip
def test_the_smallest_value_is_valid(schema):
    jsonschema.validate(smallest(schema), schema)


@pytest.mark.parametrize(
    ("schema", "kind"),
    [
        ("x", "invalid"),
        ({"type": "zork"}, "invalid"),
        ({"anyOf": []}, "invalid"),
        ({"$ref": "#/$defs/none"}, "invalid"),
        ({"$ref": "https://example.com/"}, "unsupported"),
        ({"type": "string", "pattern": "a+"}, "unsupported"),
        ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "unsupported"),
    ],
)
def test_schemas_beyond_it_are_refused(schema, kind):
    with pytest.raises(EngineError) as raised:
        smallest(schema)
    assert raised.value.kind == kind
