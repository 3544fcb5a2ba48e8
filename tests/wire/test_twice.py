"""A parameter given twice is refused and one given once is not, however the body is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.errors import ApiError
from router.wire.chat import decode_chat
from tests.wire.refusals import ANSWERS, ASKS, TOOL, USER

MESSAGES = [
    [USER], [USER, {"role": "assistant", "content": 'He said: "x":1, "n":2'}, USER], [USER, ASKS, ANSWERS],
    [{"role": "assistant", "audio": {}}], [{"role": "assistant", "content": None, "refusal": 'é\\"'}],
    [{"role": "user", "content": [{"type": "text", "text": '","n":3'}]}], [{"role": "function", "name": "f"}],
    [{"role": "user", "content": '"\u0022 {}[]:, \n'}],
]  # fmt: skip
VALUES = {
    "stream": [True], "temperature": [1, 0.5, 1e-3], "max_tokens": [1, 12, 123], "n": [1, 12],
    "stream_options": [{}, {"include_usage": True}, {"include_usage": None}], "seed": [1, 11], "top_p": [1],
    "user": ["u", '"', '","n":1,"', "é"], "stop": ["a", ["a", '"']], "metadata": [{"model": "x"}, {}],
    "tools": [[TOOL], None], "logprobs": [True, None], "logit_bias": [{"1": 1}], "modalities": [["text"]],
    "model": ["m", "n", "model"], "parallel_tool_calls": [True, False],
}  # fmt: skip
GAPS = [("", ""), (" ", " "), ("", " "), ("\n\t", "  "), (" ", "")]


@st.composite
def bodies(draw):
    """The parameters of a good request, and how they are spelt."""
    names = draw(
        st.lists(st.sampled_from(sorted({*VALUES} - {"model", "stream"})), unique=True, max_size=5)
    )
    fields = [("model", "m"), ("stream", True), ("messages", draw(st.sampled_from(MESSAGES)))]
    fields += [(name, draw(st.sampled_from(VALUES[name]))) for name in names]
    return draw(st.permutations(fields)), draw(st.sampled_from(GAPS)), draw(st.booleans())


def write(fields, gaps, ascii_):
    before, after = gaps
    separators = ("," + after, before + ":" + after)
    parts = [
        json.dumps({name: value}, separators=separators, ensure_ascii=ascii_)[1:-1]
        for name, value in fields
    ]
    return ("{" + f"{before},{after}".join(parts) + "}").encode()


@given(bodies())
def test_once_is_taken(body):
    assert decode_chat(write(*body)).model == "m"


@given(bodies(), st.data())
def test_twice_is_refused(body, data):
    fields, gaps, ascii_ = body
    name, value = data.draw(st.sampled_from(fields))
    value = data.draw(st.sampled_from([value, *VALUES.get(name, [])]))
    at = data.draw(st.integers(0, len(fields)))
    with pytest.raises(ApiError, match="Duplicate parameter") as caught:
        decode_chat(write([*fields[:at], (name, value), *fields[at:]], gaps, ascii_))
    assert caught.value.error.param == name
