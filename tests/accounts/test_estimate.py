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


def expected(estimator=None, model="m", key_id="k", cap=None):
    return (estimator or Estimator()).expect(model, key_id, cap)


def given(expectation, size):
    return expectation.tokens(size)[0]


def wrote(expectation, size):
    return expectation.tokens(size)[1]


def test_four_bytes_a_token_until_the_model_says_otherwise():
    estimator = Estimator()
    size, ours = Size(4000, 4), expected(estimator)
    assert given(ours, size) == 1004
    for _ in range(200):
        ours.learn_input(size, 2004)
    assert given(ours, size) == pytest.approx(2004, rel=0.02)
    assert given(expected(estimator, key_id="other"), size) == given(ours, size)
    assert given(expected(estimator, model="n"), size) == 1004


def test_short_prompts_teach_little():
    ours = expected()
    for _ in range(20):
        ours.learn_input(Size(2, 4), 40)
    assert given(ours, Size(4000, 4)) < 1100


def test_outputs_are_the_80th_percentile_of_the_keys_own():
    estimator, size = Estimator(), Size(10, 4, 4096)
    ours = expected(estimator)
    assert wrote(ours, size) == PRIOR_OUTPUT
    for tokens in range(10, 40):
        ours.learn_output(size, tokens)
    assert 30 <= wrote(ours, size) <= 36
    assert wrote(expected(estimator, key_id="other"), size) == PRIOR_OUTPUT
    assert wrote(ours, Size(10, 4, 64)) == 64, "another kind of request"


def test_limits_bound_the_guess():
    estimator = Estimator()
    ours = expected(estimator)
    assert wrote(ours, Size(10, 4, 5)) == 5
    assert wrote(expected(estimator, cap=7), Size(10, 4)) == 7
    assert wrote(ours, Size(10, 4, 5, choices=3)) == 15
    assert wrote(ours, Size(10, 4, 0)) == 0
    for _ in range(LEAST_SAMPLES):
        ours.learn_output(Size(10, 4, 100), 2**70)
    assert wrote(ours, Size(10, 4, 100)) == 100


@pytest.mark.parametrize("nonsense", [-(2**70), -1, 0])
def test_what_an_upstream_says_may_be_nonsense(nonsense):
    ours, size = expected(), Size(0, 0)
    for _ in range(LEAST_SAMPLES):
        ours.learn_input(size, nonsense)
        ours.learn_output(size, nonsense)
    assert ours.tokens(size) == (1, 1)


def test_what_is_remembered_is_bounded():
    estimator = Estimator()
    for number in range(MOST_KINDS + 100):
        expected(estimator, key_id=f"k{number}").learn_output(Size(1), 5)
    assert len(estimator._outputs) == MOST_KINDS
    assert ("m", "k0", 0) not in estimator._outputs
