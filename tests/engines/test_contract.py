"""What every engine does, whatever is behind it."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import aclosing

import pytest

from engines.base import (
    Delta,
    EngineError,
    Finish,
    GenerateRequest,
    Sampling,
    Usage,
)
from tests.engines.asking import STORY, TOOLS, ask, call_of, reason_of, text_of
from tests.engines.node_client import NodeEngine
from tests.engines.until import until

SLOW = GenerateRequest(
    messages=STORY,
    response_format=json.dumps(
        {
            "type": "json_schema",
            "json_schema": {
                "name": "many",
                "schema": {"type": "array", "items": {"type": "boolean"}, "minItems": 400},
            },
        }
    ).encode(),
)
"""An answer long enough to be cut off in its middle, on any engine."""


def idle(engine):
    """Wait until nothing runs or waits; returns the seconds it took."""
    return until(lambda: not (engine.health().running or engine.health().waiting))


def limit_s(engine):
    """How long a cancel may take to be seen: 100 ms, and a heartbeat where health comes by one."""
    return 0.1 + (0.3 if isinstance(engine, NodeEngine) else 0)


async def test_deltas_then_finish_then_usage(engine):
    events = await ask(engine, max_tokens=5)
    assert [type(event) for event in events] == [Delta] * 5 + [Finish, Usage]
    assert reason_of(events) == "length"
    assert events[-1].output_tokens == 5
    assert events[-1].input_tokens > 5


async def test_an_answer_ends_by_itself(engine):
    events = await ask(engine, sampling=Sampling(temperature=0))
    assert reason_of(events) == "stop"
    assert text_of(events)


async def test_a_stop_string_never_leaks(engine):
    whole = text_of(await ask(engine, max_tokens=12, sampling=Sampling(seed=3)))
    for stop in (whole[9:11], whole[3:17], whole[:2]):
        events = await ask(engine, max_tokens=12, sampling=Sampling(seed=3), stop=("\0", stop))
        assert text_of(events) == whole[: whole.index(stop)]
        assert reason_of(events) == "stop"


async def test_two_choices(engine):
    events = await ask(engine, max_tokens=30, n=2, sampling=Sampling(seed=1, temperature=2))
    assert reason_of(events, 0) == reason_of(events, 1) == "length"
    assert text_of(events, 0) != text_of(events, 1)
    assert [type(event) for event in events].index(Usage) == len(events) - 1
    assert events[-1].output_tokens == 60


async def test_more_choices_than_slots(engine):
    events = await ask(engine, max_tokens=2, n=engine.info.slots + 2)
    assert sorted(e.choice for e in events if isinstance(e, Finish)) == list(range(6))
    assert events[-1].output_tokens == 12


async def test_the_same_seed_says_the_same(engine):
    await ask(engine, max_tokens=1)  # so that all find the same prefix in the cache
    sampling = Sampling(seed=7, temperature=1.5)
    first, again = [text_of(await ask(engine, max_tokens=8, sampling=sampling)) for _ in "12"]
    assert first == again
    others = [
        text_of(await ask(engine, max_tokens=8, sampling=Sampling(seed=seed, temperature=1.5)))
        for seed in range(3)
    ]
    assert len({first, *others}) > 1


async def best_idle(engine, leave):
    """The shortest of three waits: a busy machine may delay one, a wait of ours would delay all."""
    delays = []
    for _ in range(3):
        await leave(engine)
        delays.append(await idle(engine))
    return min(delays)


async def closing(engine):
    async with aclosing(engine.generate(SLOW)) as events:
        await anext(events)


async def cancelling(engine):
    events = engine.generate(SLOW)
    await anext(events)

    async def read():
        async for _ in events:
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancelling_in_the_line(engine):
    running = [engine.generate(SLOW) for _ in range(engine.info.slots)]
    await asyncio.gather(*map(anext, running))
    waiting = asyncio.create_task(anext(engine.generate(SLOW)))
    await asyncio.sleep(0.02)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for events in running:
        await events.aclose()


@pytest.mark.parametrize("leave", [closing, cancelling, cancelling_in_the_line])
async def test_who_leaves_is_cancelled_at_once(engine, leave):
    assert await best_idle(engine, leave) < limit_s(engine)
    assert text_of(await ask(engine, max_tokens=3))


async def test_a_prompt_over_the_context(engine):
    words = "word " * engine.info.context_tokens
    messages = json.dumps([{"role": "user", "content": words}]).encode()
    with pytest.raises(EngineError, match=str(engine.info.context_tokens)) as raised:
        await ask(engine, messages=messages)
    assert raised.value.kind == "prompt_too_long"


async def test_no_tokens_are_no_answer(engine):
    with pytest.raises(EngineError) as raised:
        await ask(engine, max_tokens=0)
    assert raised.value.kind == "invalid"


async def test_json_of_a_schema(engine):
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer"}, "name": {"enum": ["Ada", "Bo"]}},
        "required": ["age", "name"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    events = await ask(engine, response_format=json.dumps(wanted).encode(), max_tokens=200)
    assert reason_of(events) == "stop"
    answer = json.loads(text_of(events))
    assert isinstance(answer["age"], int)
    assert answer["name"] in ("Ada", "Bo")


async def test_a_schema_that_is_none(engine):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "zork"}}}
    with pytest.raises(EngineError) as raised:
        await ask(engine, response_format=json.dumps(wanted).encode())
    assert raised.value.kind == "invalid"


async def test_a_required_tool_is_called(engine):
    required = {"tools": TOOLS, "tool_choice": b'"required"', "parallel_tool_calls": False}
    events = await ask(engine, **required, max_tokens=200)
    name, arguments = call_of(events)
    assert name in ("weather", "time")
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    assert text_of(events) == ""
    assert reason_of(events) == "tool_calls"


async def test_a_named_tool_is_called(engine):
    choice = b'{"type":"function","function":{"name":"time"}}'
    events = await ask(engine, tools=TOOLS, tool_choice=choice, max_tokens=200)
    name, arguments = call_of(events)
    assert name == "time"
    assert json.loads(arguments)["city"] in ("Paris", "Rome")
    assert reason_of(events) == "stop"  # as OpenAI has it where the function is named


async def test_logprobs_of_every_token(engine):
    events = await ask(engine, max_tokens=6, logprobs=True, top_logprobs=20)
    logprobs = [token for e in events if isinstance(e, Delta) for token in e.logprobs]
    assert len(logprobs) == events[-1].output_tokens == 6
    assert all(token.logprob <= 0 and len(token.top) == 20 for token in logprobs)
    assert b"".join(bytes(token.bytes) for token in logprobs).decode() == text_of(events)


async def test_more_requests_than_slots(engine):
    requests = [asyncio.create_task(ask(engine, max_tokens=60)) for _ in range(8)]
    most_running = most_waiting = 0
    while not all(request.done() for request in requests):
        health = engine.health()
        most_running = max(most_running, health.running)
        most_waiting = max(most_waiting, health.waiting)
        await asyncio.sleep(0)
    answers = await asyncio.gather(*requests)
    assert all(isinstance(events[-1], Usage) for events in answers)
    if not isinstance(engine, NodeEngine):  # its heartbeat is too slow to see them
        assert most_running == engine.info.slots
        assert most_waiting >= 1


async def test_iterations_grow(engine):
    before = engine.health().iterations
    await ask(engine, max_tokens=10)
    if isinstance(engine, NodeEngine):
        await asyncio.sleep(0.3)
    assert engine.health().iterations >= before + 10


async def test_closing_the_engine_ends_its_answers(engine):
    events = engine.generate(SLOW)
    await anext(events)

    async def read():
        async for _ in events:
            pass

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(EngineError) as raised:
        await reading
    assert raised.value.kind == "died"


async def test_the_loop_is_never_blocked(engine):
    lags = []

    async def watch():
        while True:
            since = time.perf_counter()
            await asyncio.sleep(0.001)
            lags.append(time.perf_counter() - since)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(ask(engine, max_tokens=40) for _ in range(6)))
    watching.cancel()
    assert statistics.median(lags) < 0.02  # a busy machine delays some, a blocking engine all
