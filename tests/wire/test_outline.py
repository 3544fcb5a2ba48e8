"""A long request is what a short one is, wherever its messages stand, and whatever pretends to be their end."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ApiError
from router.wire import chat, continuation, outline
from router.wire.chat import LONG_BYTES, ChatRequest, LongChatRequest, decode_chat
from router.wire.rewrite import for_upstream, pieces_for_upstream

TEXT = "long " * LONG_BYTES
USER = {"role": "user", "content": TEXT}
PARTS = {"role": "user", "content": [{"type": "text", "text": TEXT}]}
CALLS = [
    {"role": "assistant", "content": None, "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "tool_call_id": "1", "content": TEXT},
]  # fmt: skip
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {
                "type": "object",
                "properties": {"model": {"anyOf": [{"type": "null"}]}},
            },
        },
    }
]


def decoded_whole(body: bytes) -> ChatRequest:
    return chat.decode(body, chat._strict, None, chat.rules.check, ())


def same(one: ChatRequest, other: ChatRequest) -> bool:
    names = ChatRequest.__struct_fields__
    return all(getattr(one, name) == getattr(other, name) for name in names)


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "m", "messages": [USER]},
        {"messages": [USER], "model": "m"},
        {"messages": [PARTS, USER], "model": "m", "stream": True, "tools": TOOLS},
        {"messages": [USER, *CALLS], "model": "m", "stop": ["a", "b"], "n": 1},
        {"tools": TOOLS, "messages": [USER], "model": "m", "tool_choice": "auto"},
        {"metadata": {"messages": "x"}, "model": "m", "messages": [USER], "stream": True},
        {"stream": True, "stream_options": {"include_usage": False}, "messages": [USER], "model": "m"},
        {"model": "m", "messages": [USER], "stream": True, "stream_options": None},
        {"model": "m", "messages": [{"role": "user", "content": TEXT + '}],"model":"n"} Zo\u00eb'}]},
    ],
)  # fmt: skip
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
def test_the_usual_orders_are_found_and_mean_the_same(fields, separators):
    body = json.dumps(fields, separators=separators, ensure_ascii=False).encode()
    request = decode_chat(body)
    assert isinstance(request, LongChatRequest)
    assert same(request, decoded_whole(body))
    ask = bool(request.stream)
    pieces = pieces_for_upstream(request, body, "up", ask_usage=ask)
    assert len(pieces) == 3
    assert bytes(pieces[1]) == body[slice(*request.messages_at)]
    there = json.loads(b"".join(pieces))
    assert there == json.loads(for_upstream(body, "up", ask_usage=ask))
    assert there["model"] == "up"


@pytest.mark.parametrize(
    "text",
    [
        '{"model":"m","messages":[%s],"stop":["a"],"messages":[%s]}',
        '{"model":"m","messages":[%s],"messages":[%s],"n":1}',
        '{"model":"m","messages":[%s],"model":"n","user":"%.1s"}',
        '{"model":"m","messages":[%s]],"n":[1}%.0s',
        '{"model":"m","messages":[%s],"tools":[{}],"n":1}%.0s',
        '{"model":"m","messages":[%s],"messages_at":[1,2]}%.0s',
        '{"model":"m","messages":[%s],"messages_at":null}%.0s',
        '{"model":"m","messages":[%s,{"role":"nobody"}]}%.0s',
        '{"model":"m","messages":[],"n":1,"user":"%.100000s"}%.0s',
        '{"messages":[%s]}%.0s',
    ],
)
def test_what_is_wrong_hears_what_a_short_one_hears(text):
    user = json.dumps(USER)
    body = (text % (user, user)).encode()
    said = []
    for decode in (decode_chat, decoded_whole):
        with pytest.raises(ApiError) as caught:
            decode(body)
        said.append(caught.value.body)
    assert said[0] == said[1]


def test_bytes_that_are_no_utf8_are_found_where_nobody_decodes_them():
    odd = (
        b'{"model":"m","messages":[{"role":"user","content":"%b","other":"\xff"}]}' % TEXT.encode()
    )
    with pytest.raises(ApiError):
        decode_chat(odd)


@given(
    order=st.permutations(["model", "messages", "stream", "stop", "user", "metadata"]),
    user=st.text(),
    contents=st.lists(st.text(min_size=1), min_size=1, max_size=4),
    ascii_=st.booleans(),
)
def test_any_order_means_the_same(order, user, contents, ascii_):
    values = {
        "model": "m", "stream": True, "stop": ["]", "}]"], "user": user, "metadata": {"messages": "[{}]"},
        "messages": [{"role": "user", "content": one} for one in contents],
    }  # fmt: skip
    text = json.dumps({name: values[name] for name in order}, ensure_ascii=ascii_)
    body = text.encode("utf-8", "replace")
    at = outline.messages_at(body)
    try:
        expected = decoded_whole(body)
    except ApiError:
        return
    request = chat._decode_long(body)
    if request is not None:
        assert request.messages_at == at
        assert same(request, expected)
        pieces = pieces_for_upstream(request, body, "up", ask_usage=True)
        wanted = json.loads(for_upstream(body, "up", ask_usage=True))
        assert json.loads(b"".join(pieces)) == wanted


def test_the_rest_of_an_answer_is_asked_for_with_another_body():
    body = json.dumps({"model": "m", "stream": True, "messages": [USER], "max_tokens": 9}).encode()
    request, rest = continuation.rest(decode_chat(body), body, "said", 4)
    pieces = pieces_for_upstream(request, rest, "up", ask_usage=False)
    assert json.loads(b"".join(pieces)) == {**json.loads(body), "model": "up", "max_tokens": 5}
    assert same(request, decoded_whole(rest))
