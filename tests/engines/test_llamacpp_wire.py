"""The body that llama.cpp gets and the chunks it sends, without it."""

from __future__ import annotations

import json

import pytest

from engines import llamacpp_wire as wire
from engines.base import Delta, EngineError, Finish, GenerateRequest, Sampling, ToolCallDelta

MESSAGES = b'[ {"role": "user", "content": "h\\u0069"} ]'
TOOLS = b'[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'


def body_of(slots=4, **request):
    request = GenerateRequest(messages=MESSAGES, **request)
    (part,) = wire.parts(request, wire.forced_call(request), slots, 1000)
    return part.body, json.loads(part.body)


def chunk(**fields):
    return json.dumps({"id": "x", **fields}).encode()


def choice(index=0, reason=None, **delta):
    return {"index": index, "delta": delta, "finish_reason": reason}


def reader(choices=1, first=0, forced=None):
    return wire.ChunkReader(wire.Part(b"", first, choices), forced)


def test_messages_are_not_encoded_again():
    assert MESSAGES in body_of()[0]


def test_unset_sampling_is_neutral():
    body = body_of()[1]
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (1, 1, 0, 0)
    assert body["repeat_penalty"] == 1
    assert body["repeat_last_n"] == 1000
    assert "max_tokens" not in body


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**32 - 1])
def test_any_seed_fits(seed):
    assert 0 <= body_of(sampling=Sampling(seed=seed))[1]["seed"] < 2**32 - 1


def test_more_choices_than_slots_go_in_turns_with_their_seeds():
    request = GenerateRequest(messages=MESSAGES, n=7, sampling=Sampling(seed=5))
    parts = wire.parts(request, None, 3, 1000)
    assert [(part.first_choice, part.choices) for part in parts] == [(0, 3), (3, 3), (6, 1)]
    assert [json.loads(part.body)["seed"] for part in parts] == [5, 8, 11]


def test_tools_are_withheld_with_tool_choice_none():
    assert "tools" not in body_of(tools=TOOLS, tool_choice=b'"none"')[1]
    assert body_of(tools=TOOLS)[1]["tools"]


def test_a_forced_call_is_a_schema_and_drops_what_would_cut_it():
    body = body_of(tools=TOOLS, tool_choice=b'"required"', stop=("}",), logprobs=True)[1]
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["tools"]
    assert "stop" not in body
    assert "logprobs" not in body


def schema_of(pattern):
    schema = {"type": "object", "properties": {"p": {"type": "string", "pattern": pattern}}}
    return json.dumps({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def test_patterns_that_would_not_be_kept_are_refused():
    assert body_of(response_format=schema_of("^a+$").encode())
    assert body_of(response_format=b'{"enum":[{"pattern":"a"}]}')
    with pytest.raises(EngineError) as raised:
        body_of(response_format=schema_of("a+").encode())
    assert raised.value.kind == "unsupported"


def test_a_response_format_that_is_no_json():
    with pytest.raises(EngineError) as raised:
        body_of(response_format=b"{")
    assert raised.value.kind == "invalid"


def test_the_first_chunk_has_null_content():
    assert reader().read(chunk(choices=[choice(role="assistant", content=None)])) == []


def test_choices_count_from_their_first():
    read = reader(choices=2, first=3)
    events = read.read(chunk(choices=[choice(1, content="a"), choice(0, "length")]))
    assert events == [Delta(4, "a"), Finish(3, "length")]
    assert not read.complete
    read.read(chunk(choices=[choice(1, "stop")]))
    assert read.complete


def test_tool_calls_of_the_model_itself():
    function = {"name": "f", "arguments": ""}
    first = [{"index": 0, "id": "call_1", "type": "function", "function": function}]
    later = [{"index": 0, "function": {"arguments": "{}"}}]
    read = reader()
    (opening,) = read.read(chunk(choices=[choice(tool_calls=first)]))
    (rest, finish) = read.read(chunk(choices=[choice(reason="tool_calls", tool_calls=later)]))
    assert opening.tool_calls == (ToolCallDelta(0, "call_1", "f", ""),)
    assert rest.tool_calls == (ToolCallDelta(0, arguments="{}"),)
    assert finish == Finish(0, "tool_calls")


def test_usage_of_several_choices_counts_the_prompt_once():
    read = reader(choices=2)
    for cached in (4, 9):
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": details}
        read.read(chunk(choices=[], usage=usage))
    assert (read.input_tokens, read.output_tokens, read.cached_tokens) == (10, 6, 4)


def test_a_token_without_probability():
    content = [{"token": "a", "bytes": [97], "logprob": None, "top_logprobs": []}]
    (event,) = reader().read(
        chunk(choices=[choice(content="a") | {"logprobs": {"content": content}}])
    )
    assert event.logprobs[0].logprob == -9999


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 400, "message": "m", "type": "exceed_context_size_error",
          "n_prompt_tokens": 12, "n_ctx": 9}, "prompt_too_long"),
        ({"code": 400, "message": "bad"}, "invalid"),
        ({"code": 400, "message": "audio is not supported"}, "unsupported"),
        ({"code": 503, "message": "later"}, "busy"),
        ({"code": 500, "message": "oops"}, "internal"),
    ],
)  # fmt: skip
def test_errors_say_whose_fault(error, kind):
    with pytest.raises(EngineError) as raised:
        reader().read(chunk(error=error))
    assert raised.value.kind == kind
    if kind == "prompt_too_long":
        assert raised.value.message == "the prompt has 12 tokens; the context holds 9"


def test_junk_from_llamacpp_is_its_fault():
    with pytest.raises(EngineError) as raised:
        reader().read(b"data: x")
    assert raised.value.kind == "internal"
