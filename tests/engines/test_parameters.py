"""OpenAI's parameters, on every engine: what each promises, by what comes out."""

from __future__ import annotations

import asyncio
import json
import math

import jsonschema
import pytest

from engines.base import Delta, EngineError, Finish, Sampling
from tests.engines.asking import (
    TOOLS,
    ask,
    calls_of,
    format_of,
    reason_of,
    saying,
    text_of,
    tokens_of,
)

PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "name": {"enum": ["Ada", "Bo"]}},
    "required": ["age", "name"],
    "additionalProperties": False,
}
SCHEMAS = {
    "a boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "enum of all types": {"enum": ["a b", 2, 3.5, None, True, {"k": [1]}, 'q"\n']},
    "const": {"const": {"a": [1, "b"]}},
    "an object": PERSON,
    "nested objects": {
        "type": "object",
        "properties": {"who": PERSON, "tags": {"type": "array", "items": {"enum": ["x", "y"]},
                                               "minItems": 1, "maxItems": 3}},
        "required": ["who", "tags"],
        "additionalProperties": False,
    },
    "references": {
        "$defs": {"leaf": {"type": "object", "properties": {"v": {"type": "boolean"}},
                           "required": ["v"], "additionalProperties": False}},
        "type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 2, "maxItems": 2,
    },
    "a list of any of two": {
        "type": "array", "minItems": 2, "maxItems": 2,
        "items": {"anyOf": [{"const": 1}, {"type": "object", "properties": {"b": {"const": 2}},
                                           "required": ["b"], "additionalProperties": False}]},
    },
    "recursion": {
        "$defs": {"node": {"type": "object", "additionalProperties": False,
                           "properties": {"v": {"type": "boolean"},
                                          "next": {"anyOf": [{"type": "null"},
                                                             {"$ref": "#/$defs/node"}]}},
                           "required": ["v", "next"]}},
        "$ref": "#/$defs/node",
    },
    "several types": {"type": ["null", "boolean"]},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 5},
    "whole numbers in a range": {"type": "integer", "minimum": 17, "maximum": 23},
    "numbers in a range": {"type": "number", "exclusiveMinimum": 2, "maximum": 3,
                            "multipleOf": 0.25},
    "multiples": {"type": "integer", "multipleOf": 7, "minimum": 50, "maximum": 80},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"type": "integer", "maximum": 4}]},
    "a pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}(\\w|é)$"},
    "a loose pattern": {"type": "string", "pattern": "ab", "maxLength": 6},
    "an object by pattern": {"type": "object", "patternProperties": {"^n[0-9]$": {"const": 1}},
                             "additionalProperties": False, "minProperties": 1,
                             "maxProperties": 2},
    "a tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": "x"}],
                "items": False, "minItems": 2},
    "a date": {"type": "string", "format": "date"},
    "notes": {"type": "boolean", "title": "t", "description": "d", "default": True,
              "examples": [False], "$comment": "c",
              "$schema": "https://json-schema.org/draft/2020-12/schema"},
}  # fmt: skip
BEYOND_THE_SIMULATION = {
    "a pattern", "a loose pattern", "an object by pattern", "a tuple", "a date",
}  # fmt: skip
REFUSED = {
    "not": {"type": "string", "not": {"const": "x"}},
    "uniqueItems": {"type": "array", "items": {"type": "boolean"}, "uniqueItems": True},
    "contains": {"type": "array", "contains": {"const": 1}},
    "if": {"type": "object", "if": {}, "then": {"required": ["x"]}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
    "propertyNames": {"type": "object", "propertyNames": {"maxLength": 1}},
    "unevaluatedProperties": {"type": "object", "unevaluatedProperties": False},
    "format": {"type": "string", "format": "uri"},
}


@pytest.mark.parametrize("name", SCHEMAS)
async def test_answers_are_valid_under_their_schema(engine, name):
    wanted = format_of(SCHEMAS[name], strict=True)
    if engine.info.kind == "simulated" and name in BEYOND_THE_SIMULATION:
        with pytest.raises(EngineError) as raised:
            await ask(engine, response_format=wanted)
        assert raised.value.kind == "unsupported"
        return
    for seed in range(6):  # a small model may go on and on where the schema lets it
        sampling = Sampling(seed=seed)
        events = await ask(engine, response_format=wanted, max_tokens=300, sampling=sampling)
        if reason_of(events) == "stop":
            break
    assert reason_of(events) == "stop"
    jsonschema.validate(json.loads(text_of(events)), SCHEMAS[name])


@pytest.mark.parametrize("name", REFUSED)
async def test_what_cannot_be_kept_is_refused_by_name(engine, name):
    with pytest.raises(EngineError, match=name) as raised:
        await ask(engine, response_format=format_of(REFUSED[name]))
    assert raised.value.kind == "unsupported"


async def test_any_object(engine):
    wanted = b'{"type":"json_object"}'
    events = await ask(engine, response_format=wanted, max_tokens=400, sampling=Sampling(seed=1))
    text = text_of(events)
    assert text.startswith("{")
    if reason_of(events) == "stop":
        assert isinstance(json.loads(text), dict)


async def test_the_greedy_answer(engine):
    greedy = text_of(await ask(engine, max_tokens=8, sampling=Sampling(temperature=0)))
    for sampling in (
        Sampling(temperature=0, seed=1),
        Sampling(top_p=0, temperature=0),
        Sampling(top_p=0),
    ):
        again = text_of(await ask(engine, max_tokens=8, sampling=sampling))
        assert sampling.seed or again == greedy or engine.info.kind == "simulated"


async def test_logprobs_are_the_answers(engine):
    sampling = Sampling(seed=2, temperature=0)
    events = await ask(engine, max_tokens=8, logprobs=True, top_logprobs=5, sampling=sampling)
    tokens = tokens_of(events)
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == text_of(events)
    for token in tokens:
        assert len(token.top) == 5
        assert token.top == tuple(sorted(token.top, key=lambda top: -top.logprob))
        assert sum(math.exp(top.logprob) for top in token.top) <= 1.0001
        (same,) = [top for top in token.top if top.bytes == token.bytes]
        assert same.logprob == pytest.approx(token.logprob)


async def test_logprobs_without_others(engine):
    events = await ask(engine, max_tokens=4, logprobs=True)
    assert [token.top for token in tokens_of(events)] == [()] * 4
    assert not tokens_of(await ask(engine, max_tokens=4))


async def test_logprobs_with_stop_strings(engine):
    request = {"max_tokens": 12, "logprobs": True, "sampling": Sampling(seed=3)}
    whole = text_of(await ask(engine, **request))
    for stop in (whole[9:11], whole[3:17], whole[-3:]):
        events = await ask(engine, **request, stop=("\0", stop, "\1", "\2"), n=2)
        assert text_of(events) == whole[: whole.index(stop)]
        for choice in range(2):
            told = b"".join(bytes(token.bytes) for token in tokens_of(events, choice))
            assert told.decode() == text_of(events, choice)
            assert stop not in text_of(events, choice)
        assert 2 <= events[-1].output_tokens <= 24


async def test_a_beginning_of_a_stop_string_is_not_swallowed(engine):
    sampling = Sampling(seed=3)
    whole = text_of(await ask(engine, max_tokens=12, sampling=sampling))
    for logprobs in (False, True):
        never = (whole[-4:] + "\0", whole[5:9] + "\0")
        events = await ask(engine, max_tokens=12, sampling=sampling, stop=never, logprobs=logprobs)
        assert text_of(events) == whole
        assert reason_of(events) == "length"
        assert len(tokens_of(events)) == 12 * logprobs


async def test_no_piece_of_a_stream_has_a_part_of_the_stop_string(engine):
    whole = text_of(await ask(engine, max_tokens=10, sampling=Sampling(seed=5)))
    for start in range(1, len(whole) - 4, 3):
        stop = whole[start : start + 4]
        cut = whole[: whole.index(stop)]
        events = await ask(engine, max_tokens=10, sampling=Sampling(seed=5), stop=(stop,))
        sent = ""
        for event in events:
            if isinstance(event, Delta):
                sent += event.text
                assert cut.startswith(sent)
        assert sent == cut


async def test_choices_share_the_prompt(engine):
    messages = saying("A question of many words. " * 160)
    alone = (await ask(engine, messages=messages, max_tokens=3))[-1]
    events = await ask(
        engine, messages=messages, max_tokens=3, n=3, sampling=Sampling(seed=4, temperature=2)
    )
    usage = events[-1]
    assert usage.input_tokens == alone.input_tokens
    assert 3 <= usage.output_tokens <= 9
    assert usage.cached_input_tokens > usage.input_tokens // 2
    assert len({text_of(events, choice) for choice in range(3)}) > 1
    assert sorted(e.choice for e in events if isinstance(e, Finish)) == [0, 1, 2]


async def test_several_calls_where_they_are_allowed(engine):
    events = await ask(engine, tools=TOOLS, tool_choice=b'"required"', max_tokens=400)
    calls = calls_of(events)
    assert 1 <= len(calls) <= 16
    assert reason_of(events) == "tool_calls"
    assert len({id_ for id_, _, _ in calls}) == len(calls)
    for id_, name, arguments in calls:
        assert id_.startswith("call_")
        assert name in ("weather", "time")
        assert json.loads(arguments)["city"] in ("Paris", "Rome")


async def test_every_choice_calls(engine):
    events = await ask(
        engine,
        tools=TOOLS,
        tool_choice=b'{"type":"function","function":{"name":"time"}}',
        max_tokens=200,
        n=2,
        stop=("}",),
    )
    ids = set()
    for choice in range(2):
        ((id_, name, arguments),) = calls_of(events, choice)
        assert (name, set(json.loads(arguments))) == ("time", {"city"})
        ids.add(id_)
    assert len(ids) == 2


async def test_a_call_that_is_cut_says_so(engine):
    events = await ask(engine, tools=TOOLS, tool_choice=b'"required"', max_tokens=2)
    assert reason_of(events) == "length"
    assert events[-1].output_tokens == 2


async def test_a_call_and_its_result_in_the_next_turn(engine):
    call = {"name": "weather", "arguments": '{"city":"Paris"}'}
    messages = [
        {"role": "user", "content": "How is the weather in Paris?"},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": "call_1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny, 21 degrees"},
    ]  # fmt: skip
    events = await ask(
        engine,
        messages=json.dumps(messages).encode(),
        tools=TOOLS,
        tool_choice=b'"none"',
        max_tokens=20,
    )
    assert text_of(events)
    longer = (await ask(engine, messages=json.dumps(messages).encode(), max_tokens=1))[-1]
    shorter = (await ask(engine, messages=json.dumps(messages[:1]).encode(), max_tokens=1))[-1]
    assert longer.input_tokens > shorter.input_tokens + 5


async def test_a_bare_prompt(engine):
    events = await ask(engine, messages=b"[]", prompt="Once upon a time", max_tokens=5, n=2)
    assert {reason_of(events, 0), reason_of(events, 1)} <= {"length", "stop"}
    assert text_of(events, 0) + text_of(events, 1)
    assert 2 <= events[-1].output_tokens <= 10
    chat = (await ask(engine, messages=saying("Once upon a time"), max_tokens=1))[-1]
    assert 0 < events[-1].input_tokens < chat.input_tokens
    other = {"messages": b"[]", "max_tokens": 8, "sampling": Sampling(seed=1)}
    words = await asyncio.gather(*(ask(engine, prompt=p, **other) for p in ("One", "The sea is")))
    assert text_of(words[0]) != text_of(words[1])
