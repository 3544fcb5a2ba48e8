"""The writers of the older endpoint: exact bytes of small answers, and what they hold engines to."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.base import Delta, Finish, TokenLogprob, ToolCallDelta, TopLogprob, Usage
from router.wire import sse
from router.wire.completion import Identity, OutOfOrder, new_id
from router.wire.text_completion import (
    ID_PREFIX,
    Form,
    TextChunkEncoder,
    TextCompletionBuilder,
    text_writer,
)

ME = Identity("cmpl-1", 1700000000, 'a"model', "fp_1")
OBJECT = (
    b'{"id":"cmpl-1","object":"text_completion","created":1700000000,'
    b'"model":"a\\"model","system_fingerprint":"fp_1","choices":['
)
HEAD = b"data: " + OBJECT
USAGE = (
    b'{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,'
    b'"prompt_tokens_details":{"cached_tokens":3,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":0,"audio_tokens":0,'
    b'"accepted_prediction_tokens":0,"rejected_prediction_tokens":0}}'
)
HELLO = [Delta(0, 'Hé"'), Delta(0, ""), Delta(0, "llo"), Finish(0, "stop"), Usage(7, 2, 3)]
PLAIN = Form(("Say:",))
ONE = TokenLogprob("Hé", -0.5, None, (TopLogprob("Hé", -0.5), TopLogprob("x", -math.inf)))
TWO = TokenLogprob("!", -math.inf, None, (TopLogprob("y", -0.25),))


def chunks(stream: bytes) -> list[dict]:
    *events, done = sse.split(stream)
    assert done == b"data: [DONE]"
    return [json.loads(sse.data_of(event)) for event in events]


def test_a_stream_to_the_byte():
    encoder = TextChunkEncoder(ME, PLAIN)
    tail = b',"index":0,"logprobs":null,"finish_reason":null}]}\n\n'
    assert encoder.feed(HELLO[:1]) == HEAD + '{"text":"Hé\\""'.encode() + tail
    assert encoder.feed(HELLO[1:2]) == b""
    assert encoder.feed(HELLO[2:3]) == HEAD + b'{"text":"llo"' + tail
    assert encoder.feed(HELLO[3:]) == (
        HEAD + b'{"text":"","index":0,"logprobs":null,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )


def test_usage_comes_last_and_is_null_before():
    stream = TextChunkEncoder(ME, PLAIN, include_usage=True).feed(HELLO)
    assert stream.endswith(HEAD + b'],"usage":' + USAGE + b"}\n\ndata: [DONE]\n\n")
    *before, last = chunks(stream)
    assert [chunk["usage"] for chunk in before] == [None] * 3
    assert last["choices"] == []


def test_a_whole_object_to_the_byte():
    builder = TextCompletionBuilder(ME, PLAIN)
    assert builder.feed(HELLO[:4]) == b""
    assert builder.feed(HELLO[4:]) == (
        OBJECT
        + '{"text":"Hé\\"llo","index":0,"logprobs":null,"finish_reason":"stop"}],"usage":'.encode()
        + USAGE
        + b"}"
    )


def test_logprobs_stand_in_columns_and_offsets_count_from_the_prompts_start():
    events = [Delta(0, "Hé", (), (ONE,)), Delta(0, "!", (), (TWO,)), *HELLO[3:]]
    form = Form(("Say:",), logprobs=True)
    top = [{"Hé": -0.5, "x": -9999.0}, {"!": -9999.0, "y": -0.25}]
    whole = json.loads(TextCompletionBuilder(ME, form).feed(events))["choices"][0]["logprobs"]
    assert whole == {
        "tokens": ["Hé", "!"],
        "token_logprobs": [-0.5, -9999.0],
        "top_logprobs": top,
        "text_offset": [4, 6],
    }
    first, second, last = (
        chunk["choices"][0]["logprobs"] for chunk in chunks(TextChunkEncoder(ME, form).feed(events))
    )
    assert last is None
    assert {name: first[name] + second[name] for name in whole} == whole
    unasked = json.loads(TextCompletionBuilder(ME, PLAIN).feed(events))
    assert unasked["choices"][0]["logprobs"] is None
    assert b"token_logprobs" not in TextChunkEncoder(ME, PLAIN).feed(events)


def test_tokens_that_read_alike_keep_the_most_probable():
    token = TokenLogprob("?", -3.0, None, (TopLogprob("?", -0.5), TopLogprob("?", -2.0)))
    events = [Delta(0, "?", (), (token,)), *HELLO[3:]]
    answer = json.loads(TextCompletionBuilder(ME, Form(("a",), logprobs=True)).feed(events))
    assert answer["choices"][0]["logprobs"]["top_logprobs"] == [{"?": -0.5}]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == [-3.0]


def test_echo_puts_its_prompt_before_each_choice():
    form = Form(("a", "b"), n=2, echo=True)
    events = [Delta(2, "x"), Finish(0, "length"), Delta(1, "y"), Delta(1, "z")]
    events += [Finish(3, "stop"), Finish(1, "stop"), Finish(2, "stop"), Usage(1, 1)]
    whole = json.loads(TextCompletionBuilder(ME, form).feed(events))["choices"]
    assert [one["text"] for one in whole] == ["a", "ayz", "bx", "b"]
    streamed = [one["choices"][0] for one in chunks(TextChunkEncoder(ME, form).feed(events))]
    for choice in whole:
        mine = [one for one in streamed if one["index"] == choice["index"]]
        assert "".join(one["text"] for one in mine) == choice["text"]
        assert mine[-1]["finish_reason"] == choice["finish_reason"]


def test_ids_say_what_they_name():
    assert new_id(bytes(18), ID_PREFIX) == "cmpl-" + "A" * 24


@pytest.mark.parametrize(
    "events",
    [
        [Usage(1, 1)],
        [Delta(0, "a"), Usage(1, 1)],
        [Finish(0, "stop"), Delta(0, "a")],
        [Finish(0, "stop"), Usage(1, 1), Usage(1, 1)],
        [Delta(1, "a")],
        [Delta(0, tool_calls=(ToolCallDelta(0, "c", "f"),))],
        [Delta(0, reasoning="Hm")],
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_what_breaks_the_contract_is_not_written(events, stream):
    writer = text_writer(ME, PLAIN, stream=stream, include_usage=False)
    for event in events[:-1]:
        writer.feed([event])
    with pytest.raises(OutOfOrder):
        writer.feed(events[-1:])


@given(st.lists(st.lists(st.text(max_size=4), max_size=4), min_size=1, max_size=3), st.data())
def test_a_stream_adds_up_to_the_whole_however_it_is_fed(texts, data):
    queues = [
        [*(Delta(at, piece) for piece in pieces), Finish(at, "stop")]
        for at, pieces in enumerate(texts)
    ]
    order = data.draw(st.permutations([at for at, queue in enumerate(queues) for _ in queue]))
    iterators = [iter(queue) for queue in queues]
    events = [*(next(iterators[at]) for at in order), Usage(1, 1)]
    form = Form(("p",), n=len(texts), echo=data.draw(st.booleans()))
    one_by_one = TextChunkEncoder(ME, form)
    stream = b"".join(one_by_one.feed([event]) for event in events)
    assert stream == TextChunkEncoder(ME, form).feed(events)
    whole = json.loads(TextCompletionBuilder(ME, form).feed(events))["choices"]
    sums = [""] * len(texts)
    for chunk in chunks(stream):
        sums[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert sums == [choice["text"] for choice in whole]
    assert sums == [("p" if form.echo else "") + "".join(pieces) for pieces in texts]
