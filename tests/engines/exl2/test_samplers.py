"""The samplers that are computed here, against their definitions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from engines import starter  # noqa: E402 - after the skip
from engines.base import Sampling  # noqa: E402
from engines.exl2 import prompt  # noqa: E402
from engines.exl2.samplers import (  # noqa: E402
    LONGEST,
    Dry,
    Repeats,
    Truncation,
    repetition,
    truncate,
)
from engines.exl2.steering import Steer, Steering  # noqa: E402
from engines.exl2.vocabulary import Tokens  # noqa: E402

ALL = Truncation(
    temperature=1.0, top_k=0, typical_p=0.0, top_p=1.0, min_p=0.0,
    xtc_probability=0.0, xtc_threshold=0.1, spared=frozenset(),
)  # fmt: skip
FIVE = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])


def left(shares, drawn=0.0, **rules):
    """Which tokens are left of a distribution."""
    import msgspec

    logits = shares.log()
    truncate(logits, msgspec.structs.replace(ALL, **rules), lambda: drawn)
    return [at for at, value in enumerate(logits.tolist()) if value > float("-inf")]


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 2}, [0, 1]),
        ({"top_p": 0.6}, [0, 1]),
        ({"top_p": 0.71}, [0, 1, 2]),
        ({"min_p": 0.3}, [0, 1, 2]),
        ({"top_k": 4, "top_p": 0.9}, [0, 1, 2, 3]),  # of the four's 0.95
        ({"xtc_probability": 1.0}, [3, 4]),
        ({"xtc_probability": 1.0, "xtc_threshold": 0.35}, [0, 1, 2, 3, 4]),  # one alone stays
        ({"xtc_probability": 1.0, "top_k": 3, "xtc_threshold": 0.15}, [2]),
        ({"xtc_probability": 1.0, "spared": frozenset({0, 3})}, [0, 2, 3, 4]),
        ({"temperature": 0.1, "min_p": 0.1}, [0]),
    ],
    ids=str,
)
def test_what_is_left(rules, wanted):
    assert left(FIVE, **rules) == wanted


def test_xtc_happens_as_often_as_asked():
    assert left(FIVE, drawn=0.49, xtc_probability=0.5) == [3, 4]
    assert left(FIVE, drawn=0.5, xtc_probability=0.5) == [0, 1, 2, 3, 4]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=12), st.floats(0.05, 0.99))
def test_typical_is_the_least_surprisingly_surprising(weights, mass):
    shares = torch.tensor(weights) / sum(weights)
    entropy = -(shares * shares.log()).sum()
    order = sorted(range(len(weights)), key=lambda at: abs(float(-shares[at].log() - entropy)))
    kept = left(shares, typical_p=mass)
    distances = [abs(float(-shares[at].log() - entropy)) for at in range(len(weights))]
    farthest = max(distances[at] for at in kept)
    assert all(distances[at] >= farthest - 1e-4 for at in order if at not in kept)
    total = float(shares[kept].sum())
    assert total >= mass - 1e-4
    assert len(kept) == 1 or total - float(shares[kept].min()) < mass + float(shares[kept].max())


def charged(dry, ids, size):
    """DRY by its definition: for each token, the longest repetition that it would go on with."""
    charges = [0.0] * size
    for token in range(size):
        if token in dry.breakers:
            continue
        for at in range(1, len(ids)):
            if ids[at] != token:
                continue
            length = 0
            while (
                length < at
                and ids[at - 1 - length] == ids[-1 - length]
                and ids[-1 - length] not in dry.breakers
            ):
                length += 1
            if length >= dry.allowed_length:
                exponent = min(length, LONGEST) - dry.allowed_length
                charges[token] = max(charges[token], dry.multiplier * dry.base**exponent)
    return charges


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.lists(st.integers(0, 4), max_size=20),
    st.integers(1, 4),
    st.sampled_from([frozenset(), frozenset({2})]),
)
def test_dry_is_its_definition(begun, written, allowed, breakers):
    dry = Dry(multiplier=0.5, base=1.5, allowed_length=allowed, breakers=breakers)
    repeats = Repeats(dry, begun)
    for token in written:
        repeats.append(token)
    logits = torch.zeros(5, dtype=torch.float64)
    repeats.charge(logits)
    wanted = [-charge for charge in charged(dry, begun + written, 5)]
    assert logits.tolist() == pytest.approx(wanted)


def test_a_long_prompt_is_read_from_its_end_alone():
    ids = [1, 2, 3] * 2000
    dry = Dry(multiplier=1.0, base=2.0, allowed_length=2, breakers=frozenset())
    logits = torch.zeros(5, dtype=torch.float64)
    Repeats(dry, ids).charge(logits)
    assert logits.tolist() == [0, -(2.0 ** (LONGEST - 2)), 0, 0, 0]


def test_repetition_scales_what_was_seen():
    logits = torch.tensor([2.0, -2.0, 2.0, -2.0])
    repetition(logits, torch.tensor([0, 1]), 2.0)
    assert logits.tolist() == [1.0, -4.0, 2.0, -2.0]


def test_penalties_see_prompt_and_answer_and_logprobs_see_neither():
    steering = Steering(
        Steer(repetition_penalty=2.0, top_logprobs=0), 4, [3], prompt=[0, 9], seed=1
    )
    steering.begin("")
    given = torch.tensor([2.0, 2.0, 2.0, 2.0, 7.0])  # the last is padding
    assert steering.mask_logits(given).tolist() == [1.0, 2.0, 2.0, 2.0, 7.0]
    steering.feed(torch.tensor([[1]]))
    assert steering.mask_logits(given).tolist() == [1.0, 1.0, 2.0, 2.0, 7.0]
    assert steering.noted[0].logprob == pytest.approx(float(torch.tensor(0.25).log()))
    assert given.tolist() == [2.0, 2.0, 2.0, 2.0, 7.0]


@pytest.mark.parametrize(
    ("sampling", "library", "here"),
    [
        (Sampling(), (1.0, 0, 0.0, 0.0), None),
        (Sampling(top_k=7, min_p=0.1, top_p=0.9, temperature=0.5), (0.5, 7, 0.9, 0.1), None),
        (Sampling(top_k=-1, typical_p=1, xtc_probability=0), (1.0, 0, 0.0, 0.0), None),
        (Sampling(min_p=1, xtc_probability=1), (1.0, 1, 0.0, 0.0), None),
        (Sampling(temperature=0, typical_p=0.5, top_k=9), (1.0, 1, 0.0, 0.0), None),
        (
            Sampling(temperature=0.5, top_k=7, top_p=0.9, min_p=0.1, typical_p=0.8),
            (0.5, 0, 0.0, 0.0),
            Truncation(0.5, 7, 0.8, 0.9, 0.1, 0.0, 0.1, frozenset({5})),
        ),
    ],
    ids=str,
)
def test_what_the_library_does_and_what_is_done_here(sampling, library, here):
    settings = prompt.settings(sampling)
    names = ("temperature", "top_k", "top_p", "min_p")
    assert tuple(settings[name] for name in names) == library
    assert settings["token_repetition_penalty"] == 1.0
    assert prompt.truncation(sampling, frozenset({5})) == here


def test_breakers_are_tokens_that_have_the_text():
    tokens = Tokens(starter.hf_path(), 1536, [2])
    lines = tokens.having(["\n"]) - tokens.hidden
    assert lines == {at for at, token in enumerate(tokens.bytes) if b"\n" in token}
    assert lines
    rare = "no token has all of this"
    assert tokens.having([rare]) - tokens.hidden == {tokens.encode([rare], begin=False)[-1]}
