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


class One:
    """What is known of one key's requests to one model."""

    def __init__(self, estimator=None, model="m", key_id="k", cap=None):
        self.estimator = estimator or Estimator()
        self.guess = lambda size: self.estimator.guess(model, key_id, size, cap)

    def learn(self, size, given=None, wrote=None):
        self.estimator.learn(self.guess(size).kind, size, given, wrote)


def test_four_bytes_a_token_until_the_model_says_otherwise():
    size, ours = Size(4000, 4), One()
    assert ours.guess(size).input == 1004
    for _ in range(200):
        ours.learn(size, 2004)
    assert ours.guess(size).input == pytest.approx(2004, rel=0.02)
    assert One(ours.estimator, key_id="other").guess(size).input == ours.guess(size).input
    assert One(ours.estimator, model="n").guess(size).input == 1004


def test_short_prompts_teach_little():
    ours = One()
    for _ in range(20):
        ours.learn(Size(2, 4), 40)
    assert ours.guess(Size(4000, 4)).input < 1100


def test_outputs_are_the_80th_percentile_of_the_keys_own():
    ours, size = One(), Size(10, 4, 4096)
    assert ours.guess(size).output == PRIOR_OUTPUT
    for tokens in range(10, 40):
        ours.learn(size, wrote=tokens)
    assert 30 <= ours.guess(size).output <= 36
    assert One(ours.estimator, key_id="other").guess(size).output == PRIOR_OUTPUT
    assert ours.guess(Size(10, 4, 64)).output == 64, "another kind of request"


def test_limits_bound_the_guess():
    ours = One()
    assert ours.guess(Size(10, 4, 5)).output == 5
    assert One(cap=7).guess(Size(10, 4)).output == 7
    assert ours.guess(Size(10, 4, 5, choices=3)).output == 15
    assert ours.guess(Size(10, 4, 0)).output == 0
    for _ in range(LEAST_SAMPLES):
        ours.learn(Size(10, 4, 100), wrote=2**70)
    assert ours.guess(Size(10, 4, 100)).output == 100


@pytest.mark.parametrize("nonsense", [-(2**70), -1, 0])
def test_what_an_upstream_says_may_be_nonsense(nonsense):
    ours, size = One(), Size(0, 0)
    for _ in range(LEAST_SAMPLES):
        ours.learn(size, nonsense, nonsense)
    assert (ours.guess(size).input, ours.guess(size).output) == (1, 1)


def test_what_is_remembered_is_bounded():
    estimator = Estimator()
    for number in range(MOST_KINDS + 100):
        One(estimator, key_id=f"k{number}").learn(Size(1), wrote=5)
    assert len(estimator._outputs) == MOST_KINDS
    assert ("m", "k0", 0) not in estimator._outputs
