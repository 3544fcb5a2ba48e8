"""Guesses, and what makes them better."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.accounts.estimate import (
    LEAST_SAMPLES,
    LOOK_EVERY,
    MOST_MAGNITUDE,
    PERCENTILE,
    PRIOR_OUTPUT,
    SAMPLES,
    TOKENS_PER_PART,
    Estimator,
    Ratio,
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

    def __init__(self, ratio=None, cap=None):
        self.ratio = ratio or Ratio()
        self.estimator = Estimator(self.ratio, cap)

    def input(self, size):
        return self.estimator.guess(size)[0]

    def output(self, size):
        return self.estimator.guess(size)[1]

    def learn(self, size, given=None, wrote=None):
        _, _, past = self.estimator.guess(size)
        if given is not None:
            self.ratio.learn(size, given)
        if wrote is not None:
            past.learn(wrote)


def test_four_bytes_a_token_until_the_model_says_otherwise():
    size, ours = Size(4000, 4), One()
    assert ours.input(size) == 1004
    for _ in range(200):
        ours.learn(size, 2004)
    assert ours.input(size) == pytest.approx(2004, rel=0.02)
    assert One(ours.ratio).input(size) == ours.input(size)
    assert One().input(size) == 1004


def test_short_prompts_teach_little():
    ours = One()
    for _ in range(20):
        ours.learn(Size(2, 4), 40)
    assert ours.input(Size(4000, 4)) < 1100


def test_outputs_are_the_80th_percentile_of_the_keys_own():
    ours, size = One(), Size(10, 4, 4096)
    assert ours.output(size) == PRIOR_OUTPUT
    for tokens in range(10, 40):
        ours.learn(size, wrote=tokens)
    assert 30 <= ours.output(size) <= 36
    assert One(ours.ratio).output(size) == PRIOR_OUTPUT
    assert ours.output(Size(10, 4, 64)) == 64, "another kind of request"


def test_limits_bound_the_guess():
    ours = One()
    assert ours.output(Size(10, 4, 5)) == 5
    assert One(cap=7).output(Size(10, 4)) == 7
    assert ours.output(Size(10, 4, 5, choices=3)) == 15
    assert ours.output(Size(10, 4, 0)) == 0
    for _ in range(LEAST_SAMPLES):
        ours.learn(Size(10, 4, 100), wrote=2**70)
    assert ours.output(Size(10, 4, 100)) == 100


@pytest.mark.parametrize("nonsense", [-(2**70), -1, 0])
def test_what_an_upstream_says_may_be_nonsense(nonsense):
    ours, size = One(), Size(0, 0)
    for _ in range(LEAST_SAMPLES):
        ours.learn(size, nonsense, nonsense)
    assert (ours.input(size), ours.output(size)) == (1, 1)


def test_what_is_remembered_is_bounded():
    ours = One()
    for bits in range(60):
        for tokens in range(SAMPLES + 10):
            ours.learn(Size(1, 0, 2**bits), wrote=tokens)
    kinds = ours.estimator._outputs.values()
    assert len(kinds) == MOST_MAGNITUDE
    assert all(len(past._samples) == SAMPLES for past in kinds)


@given(st.lists(st.integers(0, 2000), min_size=LEAST_SAMPLES, max_size=100))
def test_the_percentile_is_that_of_the_last_answers_but_a_few(wrote):
    ours, size = One(), Size(10)
    for tokens in wrote:
        ours.learn(size, wrote=tokens)
    seen = [wrote[:end] for end in range(len(wrote) - LOOK_EVERY + 1, len(wrote) + 1)]
    ranks = [sorted(past[-SAMPLES:]) for past in seen if len(past) >= LEAST_SAMPLES]
    assert ours.output(size) in {max(1, past[int(PERCENTILE * len(past))]) for past in ranks}
