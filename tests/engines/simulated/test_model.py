"""The arithmetic of steps and memory, with a virtual clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.simulated.model import (
    Costs,
    Finished,
    NeverFits,
    Prompt,
    Started,
    StepModel,
    Token,
    chained,
)
from engines.specs import SimulatedSpec

COSTS = Costs(
    prefill_step_s=1.0,
    prefill_token_s=0.01,
    decode_step_s=0.1,
    batch_penalty=0.5,
    slots=4,
    context_tokens=1000,
    kv_tokens=100,
    prefill_chunk_tokens=50,
    page_tokens=10,
)


def prompt(tokens, *, says="p"):
    return Prompt(tokens, chained(f"{says}{at}" for at in range(tokens // 10)))


def run(model):
    """Every (seconds, event) until the model rests."""
    now_s, log = 0.0, []
    while (result := model.step()) is not None:
        now_s += result.duration_s
        log += [(round(now_s, 6), event) for event in result.events]
    return log


def cached(log):
    return {event.id: event.cached_tokens for _, event in log if isinstance(event, Started)}


def ends(log):
    return {event.id: now_s for now_s, event in log if isinstance(event, Finished)}


def test_one_request_alone():
    model = StepModel(COSTS)
    model.submit(1, prompt(20), 3, 3)
    assert run(model) == [
        (1.2, Started(1, 0)),
        (1.2, Token(1, 0)),
        (1.3, Token(1, 1)),
        (1.4, Token(1, 2)),
        (1.4, Finished(1)),
    ]
    assert (model.running, model.waiting, model.kv_tokens_used, model.busy) == (0, 0, 0, False)


def test_a_step_with_prefill_and_answers_costs_both():
    model = StepModel(COSTS)
    model.submit(1, prompt(10, says="a"), 5, 5)
    model.submit(2, prompt(10, says="b"), 5, 5)
    model.step()
    model.submit(3, prompt(20, says="c"), 5, 5)
    result = model.step()
    assert result.duration_s == pytest.approx(1 + 20 * 0.01 + 0.1 * 1.5)
    assert (result.prefill_tokens, result.answers) == (20, 2)


def test_a_long_prompt_is_computed_in_chunks_that_share_a_budget():
    model = StepModel(COSTS)
    model.submit(1, prompt(60, says="a"), 1, 1)
    model.submit(2, prompt(20, says="b"), 1, 1)
    first, second = model.step(), model.step()
    assert (first.prefill_tokens, first.events) == (50, ())
    assert second.prefill_tokens == 30
    assert {event.id for event in second.events if isinstance(event, Started)} == {1, 2}


def test_answers_go_on_while_a_prompt_is_computed():
    model = StepModel(COSTS)
    model.submit(1, prompt(10, says="a"), 9, 9)
    model.step()
    model.submit(2, prompt(80, says="b"), 5, 5)
    assert [event for event in model.step().events if isinstance(event, Token)] == [Token(1, 1)]


def test_memory_is_reserved_for_the_longest_answer():
    model = StepModel(COSTS)
    model.submit(1, prompt(20, says="a"), 35, 1)
    model.submit(2, prompt(20, says="b"), 35, 1)
    model.step()
    assert (model.running, model.waiting) == (0, 1)  # 6 pages each of 10
    log = run(model)
    assert ends(log) == {2: 1.2}


def test_nobody_overtakes():
    model = StepModel(COSTS)
    model.submit(1, prompt(20, says="a"), 40, 9)
    model.submit(2, prompt(20, says="b"), 40, 9)
    model.submit(3, prompt(10, says="c"), 10, 1)  # would fit beside the first
    model.step()
    assert (model.running, model.waiting) == (1, 2)
    assert model.kv_tokens_used == 60


def test_slots_bound_the_batch():
    model = StepModel(COSTS)
    for id_ in range(6):
        model.submit(id_, prompt(5), 5, 5)
    model.step()
    assert (model.running, model.waiting) == (4, 2)


def test_a_prefix_is_computed_once():
    model = StepModel(COSTS)
    model.submit(1, prompt(45), 1, 1)
    assert cached(run(model)) == {1: 0}
    model.submit(2, prompt(48), 1, 1)
    assert cached(run(model)) == {2: 40}


def test_the_last_token_is_always_computed():
    model = StepModel(COSTS)
    for id_ in (1, 2):
        model.submit(id_, prompt(40), 1, 1)
        log = run(model)
    assert cached(log) == {2: 30}


def test_running_requests_share_what_one_of_them_computed():
    model = StepModel(COSTS)
    for id_ in (1, 2, 3):
        model.submit(id_, prompt(25), 3, 3)
    result = model.step()
    assert cached([(0, event) for event in result.events]) == {1: 0, 2: 20, 3: 20}
    assert result.prefill_tokens == 25 + 5 + 5
    assert model.kv_tokens_used == 20 + 3 * 10


def test_a_prompt_that_differs_early_shares_nothing():
    model = StepModel(COSTS)
    model.submit(1, Prompt(30, chained("abc")), 1, 1)
    run(model)
    model.submit(2, Prompt(30, chained("xbc")), 1, 1)
    assert cached(run(model)) == {2: 0}


def test_the_least_recently_used_goes_first_and_its_end_before_its_start():
    model = StepModel(COSTS)
    for id_, says in enumerate("abab"):  # b is older than a, once a has been used again
        if id_ == 3:
            break
        model.submit(id_, prompt(39, says=says), 1, 1)
        run(model)
    model.submit(10, prompt(50, says="c"), 10, 1)  # 6 of 10 pages: two of b's three go
    run(model)
    model.submit(11, prompt(39, says="a"), 1, 1)
    model.submit(12, prompt(19, says="b"), 1, 1)
    assert cached(run(model)) == {11: 30, 12: 10}


def test_cancel_frees_what_was_reserved():
    model = StepModel(COSTS)
    model.submit(1, prompt(20, says="a"), 60, 60)
    model.submit(2, prompt(20, says="b"), 60, 60)
    model.step()
    assert model.cancel(2)
    assert model.cancel(1)
    assert not model.cancel(1)
    assert (model.running, model.waiting, model.kv_tokens_used) == (0, 0, 0)
    assert model.step() is None


@pytest.mark.parametrize("tokens", [991, 91])
def test_what_never_fits_is_refused(tokens):
    with pytest.raises(NeverFits):
        StepModel(COSTS).submit(1, Prompt(tokens), 10, 10)


def test_senseless_numbers_are_refused():
    model = StepModel(COSTS)
    model.submit(1, Prompt(5), 5, 5)
    for arguments in [(1, Prompt(5), 5, 5), (2, Prompt(0), 5, 5), (2, Prompt(5), 5, 6)]:
        with pytest.raises(ValueError, match="request"):
            model.submit(*arguments)


def test_costs_of_a_spec():
    costs = Costs.of(SimulatedSpec(ttft_ms=20, tokens_per_s=50, batch_penalty=0.1))
    assert costs.step_s(0, 0) == 0
    assert costs.step_s(2000, 0) == pytest.approx(0.02 + 0.1)
    assert costs.step_s(0, 3) == pytest.approx(0.02 * 1.2)


works = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 30), st.integers(0, 2), st.integers(0, 9)),
    max_size=12,
)


@given(works)
def test_every_request_ends_and_memory_balances(works):
    model = StepModel(COSTS)
    finished, cancelled = set(), set()
    for id_, (tokens, output, says, steps) in enumerate(works):
        model.submit(id_, prompt(tokens, says=str(says)), output, output)
        for _ in range(steps):
            result = model.step()
            if result is None:
                break
            finished |= {event.id for event in result.events if isinstance(event, Finished)}
            assert model.kv_tokens_used <= COSTS.kv_tokens
            assert model.running <= COSTS.slots
        if steps == 9 and model.cancel(id_):
            cancelled.add(id_)
    finished |= ends(run(model)).keys()
    assert finished | cancelled == set(range(len(works)))
    assert not finished & cancelled
    assert model.kv_tokens_used == 0
