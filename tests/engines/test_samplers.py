"""Samplers beyond OpenAI's, on every engine: what each promises, by what comes out."""

from __future__ import annotations

import pytest

from engines.base import EngineError, Sampling
from tests.engines.asking import ask, saying, text_of, tokens_of

COUNTING = saying("Count from 1 to 20.")


async def said(engine, messages=COUNTING, max_tokens=40, **sampling):
    given = Sampling(seed=3, **sampling)
    return await ask(
        engine, messages=messages, max_tokens=max_tokens, sampling=given, logprobs=True
    )


def tokens(events):
    return [bytes(token.bytes) for token in tokens_of(events)]


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"min_p": 1.0}, {"typical_p": 0.0, "top_k": 1}], ids=str
)
async def test_the_narrowest_choice_is_the_likeliest_token(engine, narrow):
    if engine.info.kind == "simulated":
        pytest.skip("no effect there")
    greedy = text_of(await said(engine, temperature=0))
    assert text_of(await said(engine, temperature=2, **narrow)) == greedy


async def test_all_at_once_and_neutral_is_as_if_unset(engine):
    neutral = {
        "top_k": -1, "min_p": 0.0, "typical_p": 1.0, "repetition_penalty": 1.0,
        "dry_multiplier": 0.0, "xtc_probability": 0.0,
    }  # fmt: skip
    assert text_of(await said(engine, **neutral)) == text_of(await said(engine))


async def test_all_at_once_is_an_answer(engine):
    events = await said(
        engine, top_k=40, min_p=0.01, typical_p=0.95, repetition_penalty=1.1, dry_multiplier=0.8,
        dry_base=1.75, dry_allowed_length=3, dry_sequence_breakers=("\n", "."), xtc_probability=0.5,
        xtc_threshold=0.1, top_p=0.95, temperature=1.2,
    )  # fmt: skip
    assert text_of(events)


async def test_repetition_penalty_makes_words_rarer(engine):
    if engine.info.kind == "simulated":
        pytest.skip("no effect there")
    plain = tokens(await said(engine, temperature=0))
    charged = tokens(await said(engine, temperature=0, repetition_penalty=5.0))
    assert len(set(charged)) / len(charged) > len(set(plain)) / len(plain)


async def test_dry_repeats_nothing_longer_than_allowed(engine):
    if engine.info.kind == "simulated":
        pytest.skip("no effect there")
    echo = saying("Say this: red bear red bear red bear red bear red bear")
    most = {"dry_multiplier": 100.0, "dry_base": 2.0, "dry_allowed_length": 2}
    plain = tokens(await said(engine, echo, temperature=0))
    charged = tokens(await said(engine, echo, temperature=0, **most, dry_sequence_breakers=("\n",)))
    assert repeated(plain, 3)
    assert not repeated(charged, 3)


def repeated(said, length):
    runs = [tuple(said[at : at + length]) for at in range(len(said) - length + 1)]
    return [run for run in runs if runs.count(run) > 1]


async def test_xtc_leaves_the_likeliest_out(engine):
    if engine.info.kind == "simulated":
        pytest.skip("no effect there")
    events = await ask(
        engine, messages=COUNTING, max_tokens=30, logprobs=True, top_logprobs=3,
        sampling=Sampling(seed=1, top_k=2, xtc_probability=1.0, xtc_threshold=1e-30),
    )  # fmt: skip
    for token in tokens_of(events):
        ends = any(b"\n" in bytes(top.bytes) for top in token.top)  # lines and turns are spared
        if not ends and token.top[1].logprob > -15:  # what is next to nothing may count as nothing
            assert token.logprob <= token.top[1].logprob + 1e-3


async def test_llamacpp_has_no_three_penalties_at_once(engine):
    if engine.info.kind != "llamacpp":
        pytest.skip("the others have")
    with pytest.raises(EngineError, match="repetition_penalty") as raised:
        await said(engine, repetition_penalty=1.1, frequency_penalty=0.5)
    assert raised.value.kind == "unsupported"
    await said(engine, repetition_penalty=1.0, frequency_penalty=0.5, max_tokens=3)
