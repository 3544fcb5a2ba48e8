"""What the engine answers on a GPU, against transformers in single precision on the CPU."""

from __future__ import annotations

import asyncio

import pytest

from engines import starter
from engines.base import EngineError, GenerateRequest
from tests.engines.asking import GREEDY, STORY, ask, saying, text_of, tokens_of
from tests.engines.until import until

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
QUESTIONS = [
    STORY,
    saying("What is 7 + 8?"),
    saying("What is the capital of Japan?"),
    saying("Hello!", "Hello!", "Count from 1 to 8."),
    saying("There was a red bear in a wood. " * 100),
]
ANSWER = 24
CLOSE = 0.1
"""Half precision against single: what a log-probability may be off."""


def reference(folder, engine):
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logprobs(ids):
        with torch.inference_mode():
            return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)

    return logprobs


@pytest.mark.parametrize("which", ["starter", "random"])
async def test_greedy_is_what_transformers_says(make_engine, random_folder, which):
    """Each token is transformers' likeliest at its place, or as good as it, and so is its log-probability."""
    folder = starter.hf_path() if which == "starter" else random_folder
    engine = await make_engine(model=str(folder))
    logprobs = reference(folder, engine)
    answers = await asyncio.gather(
        *(
            ask(engine, messages=question, max_tokens=ANSWER, sampling=GREEDY, logprobs=True)
            for question in QUESTIONS
        )
    )
    tokens = engine._preparer.tokens
    exact = written = 0
    for question, events in zip(QUESTIONS, answers, strict=True):
        prompt = engine._preparer.prepare(GenerateRequest(messages=question)).ids
        said = tokens_of(events)
        ids = [tokens.bytes.index(bytes(token.bytes)) for token in said]
        theirs = logprobs(prompt + ids)[len(prompt) - 1 :]
        for id_, token, row in zip(ids, said, theirs, strict=False):
            assert row[id_] >= row.max() - CLOSE
            assert token.logprob == pytest.approx(float(row[id_]), abs=CLOSE)
            exact += int(id_ == int(row.argmax()))
            written += 1
    assert written > 40
    assert exact >= 0.95 * written


@pytest.mark.parametrize(("cache", "close"), [("q8", 0.1), ("q6", 0.25), ("q4", 1.0)])
async def test_a_quantised_cache_is_near_the_plain_one(kernels, make_engine, cache, close):
    plain = await make_engine()
    wanted = [
        tokens_of(await ask(plain, messages=question, max_tokens=1, sampling=GREEDY, logprobs=True))
        for question in QUESTIONS
    ]
    await plain.close()
    engine = await make_engine(cache=cache)
    for question, (first,) in zip(QUESTIONS, wanted, strict=True):
        events = await ask(
            engine, messages=question, max_tokens=ANSWER, sampling=GREEDY, logprobs=True, top_logprobs=20
        )  # fmt: skip
        same = [top for top in tokens_of(events)[0].top if top.token == first.token]
        assert same
        assert same[0].logprob == pytest.approx(first.logprob, abs=close)
    together = await asyncio.gather(
        *(ask(engine, messages=question, sampling=GREEDY, max_tokens=64) for question in QUESTIONS)
    )
    assert all(text_of(events) for events in together)


async def test_a_full_batch_says_what_each_says_alone(make_engine):
    engine = await make_engine()
    alone = [text_of(await ask(engine, messages=q, sampling=GREEDY, max_tokens=16)) for q in QUESTIONS]  # fmt: skip
    together = await asyncio.gather(
        *(ask(engine, messages=q, sampling=GREEDY, max_tokens=16) for q in QUESTIONS * 2)
    )
    same = sum(text_of(events) == said for events, said in zip(together, alone * 2, strict=True))
    assert same >= 8  # a batch of another size rounds otherwise, and may break a tie


@pytest.mark.parametrize("guessing", [{"ngram_draft": True}, {"draft_model": str(starter.hf_path())}])  # fmt: skip
async def test_guesses_change_nothing(make_engine, guessing):
    plain = await make_engine()
    wanted = await ask(plain, max_tokens=48, sampling=GREEDY, logprobs=True)
    await plain.close()
    engine = await make_engine(**guessing)
    events = await ask(engine, max_tokens=48, sampling=GREEDY, logprobs=True)
    pairs = zip(tokens_of(wanted), tokens_of(events), strict=False)
    assert sum(a.bytes == b.bytes for a, b in pairs) >= 40


async def test_who_leaves_frees_its_pages(make_engine):
    engine = await make_engine()
    request = GenerateRequest(messages=QUESTIONS[-1], n=3)
    events = engine.generate(request)
    await anext(events)
    assert engine.health().kv_tokens_used >= 3 * 2048
    await events.aclose()
    await until(lambda: engine.health().kv_tokens_used == 0)
    assert not engine._worker._generator.num_remaining_jobs()


async def test_what_does_not_fit_is_refused_with_advice(kernels, make_engine):
    with pytest.raises(EngineError, match="doesn't fit") as raised:
        await make_engine(cache_tokens=2**31, context_tokens=1024)
    assert raised.value.kind == "invalid"
    engine = await make_engine()  # and nothing of it stays behind
    assert text_of(await ask(engine, max_tokens=4, sampling=GREEDY))


async def test_a_gpu_out_of_memory_ends_the_engine_and_says_so(kernels, make_engine, random_folder):
    import torch

    engine = await make_engine(model=str(random_folder))
    assert text_of(await ask(engine, max_tokens=4, sampling=GREEDY))
    torch.cuda.empty_cache()
    held = torch.cuda.memory_reserved() / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, held))
    try:
        hoard = []
        with pytest.raises(torch.OutOfMemoryError):  # what is reserved and free, too
            while True:
                hoard.append(torch.empty(1 << 16, dtype=torch.uint8, device="cuda"))
        with pytest.raises(EngineError, match="out of memory") as raised:
            await ask(engine, messages=QUESTIONS[-1], max_tokens=64)
        assert raised.value.kind == "died"
        with pytest.raises(EngineError, match="out of memory"):
            engine.health()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    del hoard
    await engine.close()
    again = await make_engine(model=str(random_folder))
    assert text_of(await ask(again, max_tokens=4, sampling=GREEDY))
