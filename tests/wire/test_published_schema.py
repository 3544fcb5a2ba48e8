"""Every answer made here against OpenAI's published schema, closed: a field too many is as wrong as one too few."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import jsonschema
import pytest

from engines.base import Delta, Finish, TokenLogprob, ToolCallDelta, TopLogprob, Usage
from router.errors import (
    ApiError,
    ErrorObject,
    Fault,
    FaultKind,
    api_error,
    invalid_request,
    overloaded,
    unauthorized,
)
from router.wire import sse
from router.wire.chat import unknown_model
from router.wire.completion import ChunkEncoder, CompletionBuilder, Identity, error_event
from router.wire.text_completion import Form, TextChunkEncoder, TextCompletionBuilder
from router.wire.violations import missing, not_json, unknown_field

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "openai_answers.json").read_text())
TOP = (TopLogprob("a", -0.5, (97,)), TopLogprob("b", float("-inf")))
LOGPROBS = (TokenLogprob("a", -0.5, (97,), TOP), TokenLogprob("", -9.0))
TEXT = [Delta(0, "He"), Delta(0, "llo", logprobs=LOGPROBS), Finish(0, "stop")]
OTHER = [Delta(1, "Other"), Finish(1, "length")]
CALLS = [
    Delta(0, tool_calls=(ToolCallDelta(0, "call_1", "f"), ToolCallDelta(1, "call_2", "g", "{}"))),
    Delta(0, tool_calls=(ToolCallDelta(0, arguments='{"a":1}'),)),
    Finish(0, "tool_calls"),
]
USAGE = Usage(7, 5, 3)
ANSWERS = {
    "text": (1, [*TEXT, USAGE]),
    "two choices": (2, [TEXT[0], OTHER[0], *TEXT[1:], OTHER[1], USAGE]),
    "calls": (1, [*CALLS, USAGE]),
    "text and calls": (1, [Delta(0, "Well."), *CALLS, USAGE]),
    "nothing": (1, [Finish(0, "content_filter"), USAGE]),
}


def closed(node, name=""):
    """The schema as JSON Schema: OpenAPI's ``nullable`` resolved, objects that name their properties closed."""
    if isinstance(node, list):
        return [closed(one) for one in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(value, key) for key, value in node.items()}
    if name == "properties":
        return node
    if "properties" in node:
        node.setdefault("additionalProperties", False)
    if node.pop("nullable", False):
        return {"anyOf": [node, {"type": "null"}]}
    return node


def validator(name):
    schema = {"$ref": f"#/components/schemas/{name}", "components": closed(PUBLISHED["components"])}
    return jsonschema.Draft202012Validator(schema)


def chunks(stream):
    *events, done = sse.split(stream)
    assert done == b"data: [DONE]"
    return [json.loads(sse.data_of(event)) for event in events]


@pytest.mark.parametrize("tier", [None, "default"])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_whole_answer(answer, logprobs, tier):
    n, events = ANSWERS[answer]
    identity = Identity("chatcmpl-1", 1_700_000_000, "m", "fp_1", tier)
    body = json.loads(CompletionBuilder(identity, n=n, logprobs=logprobs).feed(events))
    validator("CreateChatCompletionResponse").validate(body)
    assert len(body["choices"]) == n
    assert ("service_tier" in body) == (tier is not None)


@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_stream_chunk_by_chunk(answer, logprobs, usage):
    n, events = ANSWERS[answer]
    identity = Identity("chatcmpl-1", 1_700_000_000, "m", "fp_1")
    encoder = ChunkEncoder(identity, n=n, include_usage=usage, logprobs=logprobs)
    sent = chunks(b"".join(encoder.feed([event]) for event in events))
    check = validator("CreateChatCompletionStreamResponse")
    for chunk in sent:
        check.validate(chunk)
        assert ("usage" in chunk) == usage
    assert {(chunk["id"], chunk["created"]) for chunk in sent} == {("chatcmpl-1", 1_700_000_000)}
    last = sent.pop() if usage else None
    assert last is None or (last["choices"], last["usage"]["total_tokens"]) == ([], 12)
    assert all(len(chunk["choices"]) == 1 for chunk in sent)
    assert not usage or all(chunk["usage"] is None for chunk in sent)
    for index in range(n):
        of_choice = [c["choices"][0] for c in sent if c["choices"][0]["index"] == index]
        assert of_choice[0]["delta"].keys() == {"role", "content", "refusal"}
        assert [one["finish_reason"] for one in of_choice[:-1]] == [None] * (len(of_choice) - 1)
        assert (of_choice[-1]["delta"], of_choice[-1]["logprobs"]) == ({}, None)
        assert of_choice[-1]["finish_reason"]


@pytest.mark.parametrize("logprobs", [False, True])
@pytest.mark.parametrize("answer", ["text", "two choices", "nothing"])
def test_a_text_completion_whole_and_in_chunks(answer, logprobs):
    n, events = ANSWERS[answer]
    identity = Identity("cmpl-1", 1_700_000_000, "m", "fp_1")
    form = Form(("Say:",), n=n, echo=True, logprobs=logprobs)
    check = validator("CreateCompletionResponse")
    body = json.loads(TextCompletionBuilder(identity, form).feed(events))
    check.validate(body)
    assert len(body["choices"]) == n
    *sent, last = chunks(TextChunkEncoder(identity, form, include_usage=True).feed(events))
    check.validate(last)
    for chunk in sent:
        # The schema is of whole answers; OpenAI sends null for both in all chunks but the last ones.
        assert chunk.pop("usage") is None
        chunk["choices"][0]["finish_reason"] = chunk["choices"][0]["finish_reason"] or "stop"
        check.validate(chunk)


def test_a_tool_calls_first_delta_names_it_and_the_others_do_not():
    n, events = ANSWERS["calls"]
    encoder = ChunkEncoder(Identity("chatcmpl-1", 1, "m"), n=n)
    deltas = [c["choices"][0]["delta"] for c in chunks(encoder.feed(events))]
    assert deltas[0] == {"role": "assistant", "content": None, "refusal": None}
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    for _, pieces in itertools.groupby(
        sorted(calls, key=lambda c: c["index"]), lambda c: c["index"]
    ):
        first, *rest = pieces
        assert first.keys() == {"index", "id", "type", "function"}
        assert first["function"].keys() == {"name", "arguments"}
        assert first["function"]["arguments"] == ""
        assert all(one.keys() == {"index", "function"} for one in rest)
        assert all(one["function"].keys() == {"arguments"} for one in rest)


ERRORS = [
    not_json(), missing("messages"), unknown_field("x"), unknown_model("m"), unauthorized("No."),
    overloaded("Later.", "busy", 0.2), invalid_request("Bad.", param="x", code="y"),
    ApiError(500, ErrorObject("Broken.", "server_error")),
    *(api_error(Fault(kind, "It broke.")) for kind in FaultKind),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: str(error)[:40])
def test_every_error(error):
    check = validator("ErrorResponse")
    for body in (error.body, sse.data_of(error_event(error).strip(b"\n"))):
        value = json.loads(body)
        check.validate(value)
        assert list(value["error"]) == ["message", "type", "param", "code"]
        assert re.fullmatch(r"[a-z_]+", value["error"]["type"])
