"""Samplers that OpenAI doesn't have, on their way to an engine."""

from __future__ import annotations

import json

import msgspec
import pytest

from engines.base import Samplers, Sampling
from router.backends.base import Limits, Order
from router.backends.engine_request import engine_requests
from router.errors import ApiError
from router.wire.chat import decode_chat
from router.wire.legacy import decode_completion

LIMITS = Limits(1.0, 1.0, 1.0)
NAMES = frozenset(Samplers.__struct_fields__)
EVERY = {
    "top_k": 7, "min_p": 0.1, "typical_p": 0.9, "repetition_penalty": 1.5, "dry_multiplier": 1,
    "dry_base": 2, "dry_allowed_length": 3, "dry_sequence_breakers": ["\n", "."],
    "xtc_probability": 0.5, "xtc_threshold": 0.2,
}  # fmt: skip


def sampling(**fields):
    body = json.dumps(
        {
            "model": "m",
            "messages": [{"role": "user", "content": "hi"}],
            "temperature": 0.5,
            **fields,
        }
    ).encode()
    request = decode_chat(body, NAMES)
    (asked,) = engine_requests(Order(request, body, "there", "req", 1.0, LIMITS, 1))
    return asked.sampling


def test_each_arrives():
    assert set(EVERY) == NAMES
    got = json.loads(msgspec.json.encode(sampling(**EVERY)))
    assert got == {**EVERY, "temperature": 0.5}


def test_null_is_unset_and_so_is_none():
    assert sampling(top_k=None, min_p=None) == sampling() == Sampling(temperature=0.5)


def test_a_completion_has_them_too():
    body = b'{"model":"m","prompt":["a","b"],"top_k":5,"seed":3}'
    request = decode_completion(body, NAMES)
    asked = engine_requests(Order(request, body, "there", "req", 1.0, LIMITS, 1))
    assert [one.sampling for one in asked] == [Sampling(top_k=5, seed=3)] * 2


@pytest.mark.parametrize(
    ("fields", "message", "code"),
    [
        ({"top_k": -2}, "integer below minimum value. Expected a value >= -1", "integer_below_min_value"),
        ({"min_p": 1.5}, "decimal above maximum value. Expected a value <= 1", "decimal_above_max_value"),
        ({"repetition_penalty": 0}, "Expected a value >= 0.01", "decimal_below_min_value"),
        ({"dry_base": 0.5}, "Expected a value >= 1", "decimal_below_min_value"),
        ({"dry_sequence_breakers": []}, "empty array", "empty_array"),
        ({"dry_sequence_breakers": "\n"}, "expected an array, but got a string", "invalid_type"),
        ({"dry_sequence_breakers": ["a", ""]}, "dry_sequence_breakers[1]", "empty_string"),
        ({"top_k": "7"}, "expected an integer, but got a string", "invalid_type"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_out_of_range_is_named(fields, message, code):
    with pytest.raises(ApiError) as raised:
        sampling(**fields)
    error = raised.value.error
    assert raised.value.status == 400
    assert message in error.message
    assert error.code == code
    assert error.param.startswith(next(iter(fields)))
