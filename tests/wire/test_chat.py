"""What a bad request hears, word for word; and whatever arrives, an ApiError at worst."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ApiError
from router.wire import chat
from router.wire.chat import ChatRequest, decode_chat, unknown_fields, unknown_model
from router.wire.violations import SUPPORTED
from tests.wire.refusals import (
    ANSWERS,
    ASKS,
    CALL,
    DROP,
    GOOD,
    REFUSALS,
    TOOL,
    USER,
    closed,
    schema,
)


@pytest.fixture(autouse=True, scope="module", params=["short", "long"])
def way(request):
    """Every body is decoded in one go, or its messages by themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "LONG_BYTES", 0 if request.param == "long" else chat.LONG_BYTES)
        yield request.param


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
    ("source", "changes", "expected"), REFUSALS, ids=lambda value: str(value)[:60]
)
def test_a_bad_parameter_hears_openais_words(source, changes, expected):
    assert refusal(body(**changes)) == expected


def with_raw(text):
    """A good request with ``text`` behind its last parameter."""
    return body()[:-1] + b"," + text + b"}"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, body() + b"x", b"\xef\xbb\xbf" + body(),
        with_raw(b'"temperature":NaN'), with_raw(b'"logit_bias":{"1":Infinity}'), with_raw(b'"temperature":-Infinity'),
        with_raw(b'"prompt_cache_options":{"x":NaN}'), with_raw(b'"user":"\\ud800"'), with_raw(b'"user":"\\udc00x"'),
        with_raw(b'"prompt_cache_options":{"x":"\\ud800 and more"}'), with_raw(b'"user":"\xff"'),
        with_raw(b'"prompt_cache_options":{"x":"\xff"}'), with_raw(b'"prompt_cache_options":{"\xff":1}'),
        with_raw(b'"tools":' + b"[" * 10_000 + b"]" * 10_000),
        with_raw(b'"prompt_cache_options":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
        with_raw(b'"temperature":3,"tools":' + b"[" * 10_000), with_raw(b'"temperature":3,"tools":nonsense'),
        with_raw(b'"user":"a\nb"'), with_raw(b"'user':'a'"), with_raw(b'"n":1,'), with_raw(b'"n":01'),
        with_raw(b'"n":+1'),
    ],
    ids=lambda raw: repr(raw[-30:]),
)  # fmt: skip
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


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 5000, b"1e400"])
@pytest.mark.parametrize("name", ["temperature", "n", "seed", "max_tokens"])
def test_a_number_beyond_all_measure_is_named(name, number):
    raw = with_raw(b'"%b":%b' % (name.encode(), number))
    message, param, _ = refusal(raw)
    assert param == name
    assert len(message) < 200


@pytest.mark.parametrize(
    "raw",
    [
        b'{"model":"m","messages":[{"role":"robot","content":""}],"messages":[]}',
        b'{"model":"m","messages":[{"role":"user","content":[{"type":"smell"}],"content":[]}]}',
        b'{"model":"m","messages":[{"role":"user","content":[],"content":3}]}',
        b'{"model":"m","messages":[{"role":"user","content":[],"content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"logit_bias":{"1":"x","1":2}}',
        b'{"temperature":3,"temperature":1}', b'{"n":"x","n":{}}', b'{"stop":["a",3],"stop":{}}',
    ],
)  # fmt: skip
def test_a_bad_value_that_another_of_its_name_replaces_is_refused_all_the_same(raw):
    refusal(raw)


@pytest.mark.parametrize("spaced", [False, True])
@pytest.mark.parametrize(
    ("twice", "name"),
    [
        (b'"model":"n"', "model"), (b'"model":"m"', "model"), (b'"stream":true,"stream":false', "stream"),
        (b'"n":1,"n":12', "n"), (b'"n":12,"n":1', "n"), (b'"n":null,"n":1', "n"), (b'"n":1,"user":"x","n":1', "n"),
        (b'"messages":[{"role":"user","content":"other"}]', "messages"), (b'"mod\\u0065l":"n"', "model"),
        (b'"tools":null,"tools":null', "tools"), (b'"user":"\\"n\\":1","user":"n"', "user"),
    ],
)  # fmt: skip
def test_a_parameter_given_twice_is_refused(twice, name, spaced):
    raw = with_raw(twice)
    if spaced:
        raw = raw.replace(b",", b" ,\n\t").replace(b":", b" : ")
    assert refusal(raw) == (f"Duplicate parameter: '{name}'.", name, "invalid_value")


@pytest.mark.parametrize(
    "raw",
    [
        body(), json.dumps(GOOD, indent=3).encode(), b" \n" + body() + b"\t",
        with_raw(b'"mod\\u0061lities":["text"]'), with_raw(b'"metadata":{"model":"m","messages":"","a\\"b":"c"}'),
        with_raw(b'"user":"\\",\\"model\\":\\"n"'), with_raw('"user":"Zo\u00eb \U0001f600"'.encode()),
        with_raw(b'"user":"\\ud83d\\ude00"'), with_raw(b'"seed":-9223372036854775808,"temperature":2,"top_p":1e-9'),
        with_raw(b'"prompt_cache_options":' + b"[" * 0 + b'{"a":' * 50 + b"1e999" + b"}" * 50),
    ],
    ids=lambda raw: repr(raw[-40:]),
)  # fmt: skip
def test_unusual_writing_of_a_good_request_is_taken(raw):
    assert decode_chat(raw).model == "m"


def test_null_is_unset():
    names = set(ChatRequest.__struct_fields__) - {"messages", "model", "parallel_tool_calls"}
    nulls = decode_chat(body(**dict.fromkeys(names)))
    unset = decode_chat(body())
    assert all(getattr(nulls, name) == getattr(unset, name) for name in names)


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


@pytest.mark.parametrize(
    "changes",
    [
        {"messages": [USER, ASKS, ANSWERS, USER]},
        {"messages": [USER, {**ASKS, "content": "Wait."}, {**ANSWERS, "content": [{"type": "text", "text": "12"}]}]},
        {"messages": [USER, {"role": "assistant", "content": None, "function_call": CALL["function"]},
                      {"role": "function", "name": "f", "content": None}]},
        {"messages": [USER, {"role": "assistant", "refusal": "No."}, USER]},
        {"messages": [USER, {"role": "assistant", "audio": {"id": "a"}}, USER]},
        {"messages": [{"role": "user", "content": [
            {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            {"type": "file", "file": {"file_id": "f"}}]}]},
        {"tools": [TOOL, {"type": "custom", "custom": {"name": "c", "format": {"type": "text"}}}],
         "tool_choice": {"type": "custom", "custom": {"name": "c"}}},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"functions": [{"name": "f"}], "function_call": {"name": "f"}},
        {"response_format": {"type": "text"}},
        {"messages": [{"role": "user", "content": "As JSON please"}], "response_format": {"type": "json_object"}},
        schema(), schema(schema={}), schema(schema=None),
        schema(strict=True, schema=closed(
            a={"type": ["string", "null"]}, b={"anyOf": [closed(), {"$ref": "#/$defs/d"}]}, c={"enum": [1]},
            d={"type": "array", "items": closed()})),
        {"stop": "x"}, {"stop": ["a", "b", "c", "d"]}, {"logit_bias": {"50256": -100, "0": 100}},
        {"metadata": {"k" * 64: "v" * 512}},
        {"modalities": ["text", "audio"], "audio": {"voice": "v", "format": "wav"}},
        {"modalities": ["text"], "audio": {"voice": {"id": "v"}, "format": "pcm16"}},
        {"prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]}},
        {"web_search_options": {"user_location": {"type": "approximate", "approximate": {"city": "Lyon"}}}},
        {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"seed": 2**63 - 1, "n": 128, "temperature": 2, "top_p": 0, "logprobs": True, "top_logprobs": 20},
        {"frequency_penalty": -2, "presence_penalty": 2.0, "max_completion_tokens": 1},
    ],
    ids=lambda value: str(value)[:60],
)  # fmt: skip
def test_what_openai_takes_is_taken(changes):
    assert decode_chat(body(**changes)).messages


def test_what_has_fewer_quotes_than_usual_hides_no_parameter():
    silent = {"role": "assistant", "audio": {}}
    raw = body(messages=[USER, silent], stream=True)
    assert decode_chat(raw).stream
    assert refusal(raw[:-1] + b',"stream":false}')[0] == "Duplicate parameter: 'stream'."
    assert refusal(raw[:-1] + b',"top_logprobs":3}')[1] == "top_logprobs"
    raw = body(stream=True, stream_options={})
    assert refusal(raw[:-1] + b',"stream":false}')[0] == "Duplicate parameter: 'stream'."


def test_every_supported_value_is_supported():
    for name, values in SUPPORTED.items():
        if (
            "." in name
            or "[" in name
            or name in {"function_call", "tool_choice", "encoding_format"}
        ):
            continue
        for value in values:
            assert getattr(decode_chat(body(**{name: value})), name) == value


def test_extra_fields_pass_where_somebody_takes_them():
    raw = body(top_k=5, min_p=0.1)
    request = decode_chat(raw, {"top_k", "min_p", "other"})
    assert unknown_fields(request, raw) == ["top_k", "min_p"]
    assert unknown_fields(decode_chat(body()), body()) == []
    with pytest.raises(ApiError, match="supplied: min_p"):
        decode_chat(raw, {"top_k"})
    with pytest.raises(ApiError, match="decimal above"):
        decode_chat(body(top_k=5, temperature=3), {"top_k"})
    with pytest.raises(ApiError, match="Duplicate parameter: 'top_k'"):
        decode_chat(raw[:-1] + b',"top_k":6}', {"top_k", "min_p"})


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
