"""The two writers: exact bytes of small answers, and the order that every answer keeps."""

import json
import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Delta, Finish, TokenLogprob, ToolCallDelta, TopLogprob, Usage
from router.errors import invalid_request
from router.wire import sse
from router.wire.completion import (
    ChatCompletion,
    ChatCompletionChunk,
    ChunkEncoder,
    CompletionBuilder,
    Identity,
    OutOfOrder,
    error_event,
    new_id,
)

ME = Identity("chatcmpl-1", 1700000000, 'a"model', "fp_1")
HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,'
    b'"model":"a\\"model","system_fingerprint":"fp_1","choices":['
)
USAGE = (
    b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
    b'"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
HELLO = [Delta(0, 'Hé"'), Delta(0, "llo"), Finish(0, "stop"), Usage(7, 2, 3)]
LOGPROB = TokenLogprob(
    "Hé", -0.5, (72, 195, 169), (TopLogprob("Hé", -0.5), TopLogprob("x", -math.inf))
)
CALLS = [
    Delta(0, tool_calls=(ToolCallDelta(0, "call_1", "f"),)),
    Delta(0, tool_calls=(ToolCallDelta(0, arguments='{"a":'),)),
    Delta(0, tool_calls=(ToolCallDelta(0, arguments="1}"), ToolCallDelta(1, "call_2", "g", "{}"))),
    Finish(0, "tool_calls"),
    Usage(7, 2),
]


def chunks(stream: bytes) -> list[dict]:
    """The JSON of a stream's events, [DONE] left out, which must be last and once."""
    events = sse.split(stream)
    assert events[-1] == b"data: [DONE]"
    assert stream.endswith(b"data: [DONE]\n\n")
    assert stream.count(b"[DONE]") == 1
    return [json.loads(sse.data_of(event)) for event in events[:-1]]


def test_a_stream_to_the_byte():
    encoder = ChunkEncoder(ME)
    tail = b'"logprobs":null,"finish_reason":null}]}\n\n'
    assert encoder.feed(HELLO[:1]) == (
        HEAD + b'{"index":0,"delta":{"role":"assistant","content":"","refusal":null},' + tail
        + HEAD + '{"index":0,"delta":{"content":"Hé\\""},'.encode() + tail
    )  # fmt: skip
    assert encoder.feed(HELLO[1:2]) == HEAD + b'{"index":0,"delta":{"content":"llo"},' + tail
    assert encoder.feed(HELLO[2:]) == (
        HEAD
        + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )


def test_choices_begin_in_their_order_whatever_the_engine_does():
    events = [Delta(2, "c"), Delta(0, "a"), Finish(1, "stop"), Finish(2, "stop"), Finish(0, "stop")]
    encoder = ChunkEncoder(ME, n=3)
    choices = [one["choices"][0] for one in chunks(encoder.feed([*events, Usage(1, 2)]))]
    roles = [one["index"] for one in choices if one["delta"].get("role")]
    assert roles == [0, 1, 2]
    assert [one["index"] for one in choices] == [0, 1, 2, 2, 0, 1, 2, 0]


def test_usage_comes_last_and_is_null_before():
    stream = ChunkEncoder(ME, include_usage=True).feed(HELLO)
    assert stream.endswith(HEAD + b'],"usage":' + USAGE + b"}\n\ndata: [DONE]\n\n")
    *before, last = chunks(stream)
    assert [chunk["usage"] for chunk in before] == [None] * 4
    assert last["choices"] == []


def test_a_completion_to_the_byte():
    builder = CompletionBuilder(ME)
    assert builder.feed(HELLO[:3]) == b""
    assert builder.feed(HELLO[3:]) == (
        b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"a\\"model",'
        b'"system_fingerprint":"fp_1","choices":[{"index":0,"message":{"role":"assistant",'
        + '"content":"Hé\\"llo","refusal":null},'.encode()
        + b'"logprobs":null,"finish_reason":"stop"}],"usage":'
        + USAGE
        + b"}"
    )


def test_service_tier_only_where_it_was_asked_for():
    tiered = Identity("chatcmpl-1", 1, "m", None, "default")
    assert json.loads(CompletionBuilder(tiered).feed(HELLO))["service_tier"] == "default"
    assert all(
        chunk["service_tier"] == "default" for chunk in chunks(ChunkEncoder(tiered).feed(HELLO))
    )
    assert b"service_tier" not in ChunkEncoder(ME).feed(HELLO)


def test_tool_calls_in_a_stream():
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(ChunkEncoder(ME).feed(CALLS))]
    function = {"name": "f", "arguments": ""}
    assert deltas == [
        {"role": "assistant", "content": None, "refusal": None},
        {"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "1}"}}]},
        {
            "tool_calls": [
                {
                    "index": 1,
                    "id": "call_2",
                    "type": "function",
                    "function": {"name": "g", "arguments": ""},
                }
            ]
        },
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {},
    ]


def test_tool_calls_in_a_completion():
    choice = json.loads(CompletionBuilder(ME).feed(CALLS))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
            {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
        ],
    }


def test_text_before_a_tool_call_is_kept():
    events = [Delta(0, "well", (ToolCallDelta(0, "c", "f"),)), Finish(0, "tool_calls"), Usage(1, 1)]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(ChunkEncoder(ME).feed(events))]
    assert deltas[0]["content"] == ""
    assert deltas[1] == {"content": "well"}
    assert (
        json.loads(CompletionBuilder(ME).feed(events))["choices"][0]["message"]["content"] == "well"
    )


def test_logprobs_only_where_they_were_asked_for():
    events = [Delta(0, "Hé", (), (LOGPROB,)), Delta(0, "", (), (LOGPROB,)), *HELLO[2:]]
    entry = {
        "token": "Hé",
        "logprob": -0.5,
        "bytes": [72, 195, 169],
        "top_logprobs": [
            {"token": "Hé", "logprob": -0.5, "bytes": None},
            {"token": "x", "logprob": -9999.0, "bytes": None},
        ],
    }
    asked = [
        c["choices"][0]["logprobs"] for c in chunks(ChunkEncoder(ME, logprobs=True).feed(events))
    ]
    assert asked == [None, *[{"content": [entry], "refusal": None}] * 2, None]
    whole = json.loads(CompletionBuilder(ME, logprobs=True).feed(events))["choices"][0]["logprobs"]
    assert whole == {"content": [entry, entry], "refusal": None}
    plain = [c["choices"][0]["logprobs"] for c in chunks(ChunkEncoder(ME).feed(events))]
    assert plain == [None] * 4
    assert json.loads(CompletionBuilder(ME).feed(events))["choices"][0]["logprobs"] is None


def test_an_empty_answer_has_its_role_and_finish():
    found = chunks(ChunkEncoder(ME).feed([Finish(0, "length"), Usage(1, 0)]))
    assert [c["choices"][0]["finish_reason"] for c in found] == [None, "length"]
    assert found[0]["choices"][0]["delta"]["role"] == "assistant"


@pytest.mark.parametrize(
    "events",
    [
        [Usage(1, 1)],
        [Delta(0, "a"), Usage(1, 1)],
        [Finish(0, "stop"), Delta(0, "a")],
        [Finish(0, "stop"), Finish(0, "stop")],
        [Finish(0, "stop"), Usage(1, 1), Usage(1, 1)],
        [Delta(1, "a")],
        [Delta(-1, "a")],
        [Delta(0, tool_calls=(ToolCallDelta(0, arguments="{}"),))],
    ],
)
@pytest.mark.parametrize("writer", [ChunkEncoder, CompletionBuilder])
def test_what_breaks_the_contract_is_not_written(events, writer):
    it = writer(ME)
    for event in events[:-1]:
        it.feed([event])
    with pytest.raises(OutOfOrder):
        it.feed(events[-1:])


def test_the_public_structs_read_what_is_written():
    decoded = msgspec.json.decode(
        CompletionBuilder(ME, logprobs=True).feed(CALLS), type=ChatCompletion
    )
    calls = decoded.choices[0].message.tool_calls
    assert [call.function.name for call in calls] == ["f", "g"]
    assert decoded.usage.total_tokens == 9
    text = ""
    for event in sse.split(ChunkEncoder(ME, include_usage=True).feed(HELLO))[:-1]:
        chunk = msgspec.json.decode(sse.data_of(event), type=ChatCompletionChunk)
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == 'Hé"llo'
    assert chunk.usage.prompt_tokens_details.cached_tokens == 3


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[],"id":"","model":"","object":"","created":0,"prompt_filter_results":[{}]}',
        b'{"choices":[{"delta":{"reasoning_content":"x","content":null},"x":1}],"citations":["u"]}',
        b'{"choices":[{"delta":{"tool_calls":[{"function":{"name":"f","arguments":"{}"},"id":"i"}]}}]}',
        b'{"usage":{"prompt_tokens":1,"completion_tokens_details":null,"queue_time":0.1},"x_groq":{}}',
    ],
)
def test_the_public_structs_are_lenient(body):
    msgspec.json.decode(body, type=ChatCompletionChunk)


def test_an_error_in_a_stream():
    event = error_event(invalid_request("no\nway", param="p", code="c"))
    assert event == (
        b'data: {"error":{"message":"no\\nway","type":"invalid_request_error","param":"p","code":"c"}}\n\n'
    )


def test_ids():
    assert new_id(bytes(18)) == "chatcmpl-" + "A" * 24
    assert new_id(b"\xff" * 18) == "chatcmpl-" + "_" * 24
    with pytest.raises(ValueError, match="17 random bytes"):
        new_id(bytes(17))


@st.composite
def answers(draw):
    """Events of an answer with some choices, interleaved, and what its texts and arguments add up to."""
    n = draw(st.integers(1, 3))
    queues, texts = [], []
    for choice in range(n):
        pieces = draw(st.lists(st.text(max_size=5), max_size=4))
        queue = [Delta(choice, piece) for piece in pieces]
        for index in range(draw(st.integers(0, 2))):
            queue.append(
                Delta(
                    choice, "", (ToolCallDelta(index, f"c{index}", "f", draw(st.text(max_size=3))),)
                )
            )
            queue.append(
                Delta(choice, "", (ToolCallDelta(index, arguments=draw(st.text(max_size=3))),))
            )
        reason = draw(st.sampled_from(["stop", "length", "tool_calls", "content_filter"]))
        queues.append([*queue, Finish(choice, reason)])
        texts.append("".join(pieces))
    order = draw(st.permutations([i for i, queue in enumerate(queues) for _ in queue]))
    iterators = [iter(queue) for queue in queues]
    return [next(iterators[i]) for i in order] + [Usage(3, 4)], texts


@given(answers(), st.booleans(), st.booleans(), st.text())
def test_every_stream_keeps_the_order_and_the_text(answer, include_usage, together, model):
    events, texts = answer
    n = len(texts)
    encoder = ChunkEncoder(Identity("i", 1, model), n=n, include_usage=include_usage)
    stream = encoder.feed(events) if together else b"".join(encoder.feed([e]) for e in events)
    found = chunks(stream)
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in found} == {
        ("i", 1, model, "chat.completion.chunk")
    }
    if include_usage:
        last = found.pop()
        assert last["choices"] == []
        assert last["usage"]["total_tokens"] == 7
        assert all(c["usage"] is None for c in found)
    else:
        assert all("usage" not in c for c in found)
    assert all(len(c["choices"]) == 1 for c in found)
    whole = json.loads(CompletionBuilder(Identity("i", 1, model), n=n).feed(events))
    for index in range(n):
        mine = [c["choices"][0] for c in found if c["choices"][0]["index"] == index]
        deltas = [choice["delta"] for choice in mine]
        assert [i for i, delta in enumerate(deltas) if "role" in delta] == [0]
        assert [bool(choice["finish_reason"]) for choice in mine] == [False] * (len(mine) - 1) + [
            True
        ]
        assert "".join(delta.get("content") or "" for delta in deltas) == texts[index]
        choice = whole["choices"][index]
        assert (choice["message"]["content"] or "") == texts[index]
        assert choice["finish_reason"] == mine[-1]["finish_reason"]
        arguments: dict[int, str] = {}
        for delta in deltas:
            for call in delta.get("tool_calls", ()):
                at = call["index"]
                arguments[at] = arguments.get(at, "") + call["function"]["arguments"]
        calls = choice["message"].get("tool_calls", [])
        assert [call["function"]["arguments"] for call in calls] == list(arguments.values())


def test_reasoning_goes_before_the_answer_and_only_where_there_is_some():
    events = [
        Delta(0, reasoning="Hm"),
        Delta(0, reasoning="."),
        Delta(0, "4"),
        Finish(0, "stop"),
        Usage(1, 3),
    ]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks(ChunkEncoder(ME, n=1).feed(events))]
    assert deltas[1:4] == [
        {"reasoning_content": "Hm"},
        {"reasoning_content": "."},
        {"content": "4"},
    ]
    (choice,) = json.loads(CompletionBuilder(ME).feed(events))["choices"]
    assert choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["content"] == "4"
    assert b"reasoning_content" not in CompletionBuilder(ME).feed(HELLO)
