"""What a bad request hears, word for word; and whatever arrives, an ApiError at worst."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ApiError
from router.wire.chat import ChatRequest, decode_chat, unknown_model

GOOD = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
DROP = object()


def body(**changes):
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not DROP}
    return json.dumps(fields).encode()


def refusal(raw):
    with pytest.raises(ApiError) as caught:
        decode_chat(raw)
    error = json.loads(caught.value.body)["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["type"] == "invalid_request_error"
    assert caught.value.status == 400
    return error["message"], error["param"], error["code"]


@pytest.mark.parametrize(
    ("changes", "message", "param", "code"),
    [
        (
            {"temperature": 200},
            "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 200 instead.",
            "temperature", "decimal_above_max_value",
        ),
        (
            {"temperature": -0.5},
            "Invalid 'temperature': decimal below minimum value. Expected a value >= 0, but got -0.5 instead.",
            "temperature", "decimal_below_min_value",
        ),
        (
            {"n": 0}, "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 instead.",
            "n", "integer_below_min_value",
        ),
        (
            {"n": "3"}, "Invalid type for 'n': expected an integer, but got a string instead.", "n", "invalid_type",
        ),
        (
            {"parallel_tool_calls": None},
            "Invalid type for 'parallel_tool_calls': expected a boolean, but got null instead.",
            "parallel_tool_calls", "invalid_type",
        ),
        (
            {"messages": []},
            ("Invalid 'messages': empty array. Expected an array with minimum length 1, but got an empty array "
             "instead."),
            "messages", "empty_array",
        ),
        (
            {"messages": DROP}, "Missing required parameter: 'messages'.", "messages", "missing_required_parameter",
        ),
        (
            {"messages": [{"role": "user", "content": 3}]},
            "Invalid type for 'messages[0].content': expected a string or an array, but got an integer instead.",
            "messages[0].content", "invalid_type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "smell"}]}]},
            "Invalid value: 'smell'.", "messages[0].content[0].type", "invalid_value",
        ),
        (
            {"stop": list("abcde")},
            ("Invalid 'stop': array too long. Expected an array with maximum length 4, but got an array with "
             "length 5 instead."),
            "stop", "array_above_max_length",
        ),
        (
            {"logit_bias": {"AI": 1}},
            "Invalid key in 'logit_bias': AI. You should only be submitting non-negative integers.",
            "logit_bias", None,
        ),
        (
            {"stream_options": {"include_usage": True}},
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", "stream_options", None,
        ),
        (
            {"tool_choice": "auto"},
            "Invalid value for 'tool_choice': 'tool_choice' is only allowed when 'tools' are specified.",
            "tool_choice", None,
        ),
        (
            {"top_logprobs": 3}, "The 'top_logprobs' parameter is only allowed when 'logprobs' is enabled.",
            "top_logprobs", None,
        ),
        ({"model": DROP}, "you must provide a model parameter", None, None),
        ({"colour": "red"}, "Unrecognized request argument supplied: colour", None, None),
        ({"api_base": "http://evil.test"}, "Unrecognized request argument supplied: api_base", None, None),
    ],
)  # fmt: skip
def test_a_bad_parameter_hears_openais_words(changes, message, param, code):
    assert refusal(body(**changes)) == (message, param, code)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_hears_one_constant_sentence(raw):
    message, param, code = refusal(raw)
    assert message.startswith("We could not parse the JSON body of your request.")
    assert (param, code) == (None, None)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"messages":[],"model":', b'{"messages":[{"role":"x"}],"n":1e999}', b'{"n":' + b"9" * 5000 + b"}",
        b'{"model":' + b"[" * 10_000, b'{"messages":[{"role":"user","content":' + b'{"a":' * 10_000,
        b'{"messages":[{"role":"user","content":"\xff"}],"n":0}',
    ],
)  # fmt: skip
def test_what_is_wrong_twice_is_a_400_all_the_same(raw):
    refusal(raw)


def test_null_is_unset():
    names = set(ChatRequest.__struct_fields__) - {"messages", "model", "parallel_tool_calls"}
    assert decode_chat(body(**dict.fromkeys(names))) == decode_chat(body())


def test_every_kind_of_message_is_taken():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "developer", "content": [{"type": "text", "text": "d"}]},
        {"role": "user", "name": "ada", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
        {
            "role": "assistant", "content": None, "reasoning_content": "passes through",
            "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "12"},
    ]  # fmt: skip
    assert [message.role for message in decode_chat(body(messages=messages)).messages][
        3
    ] == "assistant"


def test_an_unknown_model_is_404():
    error = unknown_model("gpt-9")
    assert (error.status, error.error.code) == (404, "model_not_found")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(ChatRequest.__struct_fields__) | st.text(), values, max_size=6)
)
def test_any_json_is_a_request_or_an_api_error(fields):
    with contextlib.suppress(ApiError):
        decode_chat(json.dumps({**GOOD, **fields}).encode())


@given(st.binary(max_size=60))
def test_any_bytes_are_an_api_error(raw):
    with pytest.raises(ApiError):
        decode_chat(raw)
