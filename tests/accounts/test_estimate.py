"""Guesses, and what makes them better."""

from __future__ import annotations

import msgspec
import pytest

from router.accounts.estimate import (
    LEAST_SAMPLES,
    MOST_KINDS,
    PRIOR_OUTPUT,
    TOKENS_PER_PART,
    Estimator,
    Size,
    request_size,
)
from router.wire.chat import decode_chat


def size_of(**fields):
    body = msgspec.json.encode({"model": "m", **fields})
    return request_size(decode_chat(body), body), len(body)


def said(content):
    return [{"role": "user", "content": content}]


def test_the_size_of_a_request_is_its_bodys():
    size, length = size_of(messages=said("x" * 400), max_tokens=7, n=2)
    assert size == Size(length, 0, 7, 2)
    size, length = size_of(messages=said([{"type": "text", "text": "what?"}]))
    assert size == Size(length)


def test_an_images_bytes_are_no_text():
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    text = {"type": "text", "text": "wh\u00fct?"}
    messages = [*said([text, image]), *said("four")]
    assert size_of(messages=messages)[0] == Size(6 + 4, TOKENS_PER_PART)


def test_four_bytes_a_token_until_the_model_says_otherwise():
    estimator = Estimator()
    size = Size(4000, 4)
    assert estimator.input_tokens("m", size) == 1004
    for _ in range(200):
        estimator.learn_input("m", size, 2004)
    assert estimator.input_tokens("m", size) == pytest.approx(2004, rel=0.02)
    assert estimator.input_tokens("n", size) == 1004


def test_short_prompts_teach_little():
    estimator = Estimator()
    for _ in range(20):
        estimator.learn_input("m", Size(2, 4), 40)
    assert estimator.input_tokens("m", Size(4000, 4)) < 1100


def test_outputs_are_the_80th_percentile_of_the_keys_own():
    estimator, size = Estimator(), Size(10, 4, 4096)
    assert estimator.output_tokens("m", "k", size, None) == PRIOR_OUTPUT
    for tokens in range(10, 40):
        estimator.learn_output("m", "k", size, None, tokens)
    assert 30 <= estimator.output_tokens("m", "k", size, None) <= 36
    assert estimator.output_tokens("m", "other", size, None) == PRIOR_OUTPUT
    assert estimator.output_tokens("m", "k", Size(10, 4, 64), None) == 64, "another kind of request"


def test_limits_bound_the_guess():
    estimator = Estimator()
    assert estimator.output_tokens("m", "k", Size(10, 4, 5), None) == 5
    assert estimator.output_tokens("m", "k", Size(10, 4), 7) == 7
    assert estimator.output_tokens("m", "k", Size(10, 4, 5, choices=3), None) == 15
    assert estimator.output_tokens("m", "k", Size(10, 4, 0), None) == 0
    for _ in range(LEAST_SAMPLES):
        estimator.learn_output("m", "k", Size(10, 4, 100), None, 2**70)
    assert estimator.output_tokens("m", "k", Size(10, 4, 100), None) == 100


def test_what_is_remembered_is_bounded():
    estimator = Estimator()
    for number in range(MOST_KINDS + 100):
        estimator.learn_output("m", f"k{number}", Size(1), None, 5)
    assert len(estimator._outputs) == MOST_KINDS
    assert ("m", "k0", 0) not in estimator._outputs
