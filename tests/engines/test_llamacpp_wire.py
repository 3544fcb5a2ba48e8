"""The body that llama.cpp gets and the chunks it sends, without it."""

from __future__ import annotations

import json

import pytest

from engines import llamacpp_wire as wire
from engines.answer_plan import plan
from engines.base import (
    Delta,
    EngineError,
    Finish,
    GenerateRequest,
    Sampling,
    ToolCallDelta,
    Usage,
)
from engines.llamacpp_chunks import ChunkReader, Reading

MESSAGES = b'[ {"role": "user", "content": "h\\u0069"} ]'
TOOLS = b'[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]'


def parts_of(request, slots=4, pieces=None, tokens=()):
    planned = plan(request, native=True)
    prompt = wire.Prompt(request.messages, request.tools, pieces, tokens)
    return wire.parts(planned, prompt, "g" if planned.shape else None, slots, 1000)


def body_of(slots=4, pieces=None, tokens=(), **request):
    request = GenerateRequest(messages=MESSAGES, **request)
    (part,) = parts_of(request, slots, pieces, tokens)
    return part.body, json.loads(part.body)


def chunk(**fields):
    return json.dumps({"id": "x", **fields}).encode()


def choice(index=0, reason=None, **delta):
    return {"index": index, "delta": delta, "finish_reason": reason}


def reader(**reading):
    return ChunkReader(Reading(**reading))


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
    parts = parts_of(request, slots=3)
    readings = [(part.reading.first_choice, part.reading.choices) for part in parts]
    assert readings == [(0, 3), (3, 3), (6, 1)]
    assert [json.loads(part.body)["seed"] for part in parts] == [5, 8, 11]


def test_tools_are_withheld_with_tool_choice_none():
    assert "tools" not in body_of(tools=TOOLS, tool_choice=b'"none"')[1]
    assert body_of(tools=TOOLS)[1]["tools"]


def test_a_forced_call_is_a_grammar_and_drops_what_would_cut_it():
    pieces = ["<|im_start|>"]
    body = body_of(
        tools=TOOLS, tool_choice=b'"required"', stop=("}",), logprobs=True, pieces=pieces
    )[1]
    assert body["grammar"]
    assert body["prompt"] == pieces
    assert not body.keys() & {"tools", "stop", "n_probs", "messages"}


def test_stop_strings_are_for_us_to_find():
    request = GenerateRequest(messages=MESSAGES, stop=("x",), logprobs=True, top_logprobs=3)
    (part,) = parts_of(request)
    assert part.reading.stop == ("x",)
    body = json.loads(part.body)
    assert "stop" not in body
    assert body["n_probs"] == 3
    assert body["timings_per_token"]


def test_penalties_are_taken_back_from_the_prompts_tokens():
    sampling = Sampling(
        frequency_penalty=0.5, presence_penalty=1, logit_bias={"7": -100.0, "9": 1.0}
    )
    body = body_of(sampling=sampling, tokens=[7, 8, 8])[1]
    assert body["logit_bias"] == {"7": -98.5, "9": 1, "8": 2}
    assert "logit_bias" not in body_of(sampling=Sampling())[1]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"response_format": b"{"}, "invalid"),
        ({"response_format": b'{"type":"xml"}'}, "unsupported"),
        ({"response_format": b'{"type":"json_schema","json_schema":{"schema":[]}}'}, "invalid"),
        ({"prompt": ""}, "invalid"),
        ({"prompt": "a", "tools": TOOLS}, "invalid"),
        ({"max_tokens": 0}, "invalid"),
    ],
)
def test_what_cannot_be_planned(fields, kind):
    with pytest.raises(EngineError) as raised:
        plan(GenerateRequest(messages=MESSAGES, **fields), native=True)
    assert raised.value.kind == kind


def test_optional_calls_beside_a_format_need_tags():
    request = GenerateRequest(
        messages=MESSAGES, tools=TOOLS, response_format=b'{"type":"json_object"}'
    )
    assert plan(request, native=True).tagged
    with pytest.raises(EngineError) as raised:
        plan(request, native=False)
    assert raised.value.kind == "unsupported"


def test_the_first_chunk_has_null_content():
    assert reader().read(chunk(choices=[choice(role="assistant", content=None)])) == []


def test_choices_count_from_their_first():
    read = reader(choices=2, first_choice=3)
    events = read.read(chunk(choices=[choice(1, content="a"), choice(0, "length")]))
    assert events == [Delta(4, "a"), Finish(3, "length")]
    assert not read.complete
    read.read(chunk(choices=[choice(1, "stop")]))
    assert read.complete


def test_tool_calls_of_the_model_itself():
    function = {"name": "f", "arguments": ""}
    first = [{"index": 0, "id": "abc", "type": "function", "function": function}]
    later = [{"index": 0, "function": {"arguments": "{}"}}]
    read = reader()
    (opening,) = read.read(chunk(choices=[choice(tool_calls=first)]))
    (rest, finish) = read.read(chunk(choices=[choice(reason="tool_calls", tool_calls=later)]))
    (call,) = opening.tool_calls
    assert (call.index, call.name, call.arguments) == (0, "f", "")
    assert call.id.startswith("call_")
    assert rest.tool_calls == (ToolCallDelta(0, arguments="{}"),)
    assert finish == Finish(0, "tool_calls")


def test_usage_of_several_choices_counts_the_prompt_once():
    read = reader(choices=2)
    for index, cached in enumerate((4, 9)):
        read.read(chunk(choices=[choice(index, "stop")]))
        details = {"cached_tokens": cached}
        usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": details}
        read.read(chunk(choices=[], usage=usage))
    assert read.usage == Usage(10, 6, 4)


def test_a_token_without_probability():
    content = [{"token": "a", "bytes": [97], "logprob": None, "top_logprobs": []}]
    (event,) = reader(logprobs=True).read(
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


def test_reasoning_is_apart_and_has_no_logprobs():
    logprobs = {"content": [{"token": "Hm", "bytes": [72, 109], "logprob": -1.0}]}
    (event,) = reader(logprobs=True).read(
        chunk(choices=[choice(reasoning_content="Hm") | {"logprobs": logprobs}])
    )
    assert event == Delta(0, reasoning="Hm")


def test_a_call_that_we_cut_short_is_counted_by_its_timings():
    read = reader(stop=("!",), logprobs=True)
    timings = {"cache_n": 3, "prompt_n": 2, "predicted_n": 1}
    assert read.read(chunk(choices=[choice(content="a")], timings=timings)) == [Delta(0, "a")]
    timings |= {"predicted_n": 2}
    assert read.read(chunk(choices=[choice(content="!b")], timings=timings)) == [Finish(0, "stop")]
    assert read.complete
    usage = {"prompt_tokens": 5, "completion_tokens": 9}
    assert read.read(chunk(choices=[choice(reason="stop")], usage=usage)) == []
    assert read.usage == Usage(5, 2, 3)
