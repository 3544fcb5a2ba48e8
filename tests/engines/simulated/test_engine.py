"""The simulated engine's timing and faults, under a clock of its own."""

from __future__ import annotations

import asyncio
import random
from collections import Counter

import pytest

from engines.base import Delta, EngineError, GenerateRequest, Usage
from engines.simulated.engine import SimulatedEngine, Surroundings
from engines.simulated.faults import SLOW_FIRST_TOKEN_S, Fault, Faults
from engines.specs import SimulatedSpec
from tests.engines.until import until

SPEC = SimulatedSpec(ttft_ms=100, tokens_per_s=10, prefill_tokens_per_s=1000, batch_penalty=0)


class World(Surroundings):
    """A clock that moves when somebody sleeps."""

    def __init__(self):
        super().__init__(self.time, self.rest, self.exit)
        self.now_s = 0.0
        self.dead = False

    def time(self):
        return self.now_s

    async def rest(self, seconds):
        self.now_s += seconds
        await asyncio.sleep(0)

    def exit(self):
        self.dead = True


@pytest.fixture
async def start():
    engines = []

    async def start(spec=SPEC):
        world = World()
        engine = SimulatedEngine(spec, world)
        await engine.start()
        engines.append(engine)
        return engine, world

    yield start
    for engine in engines:
        await engine.close()


def request(content="hi", **fields):
    messages = b'[{"role":"user","content":"%s"}]' % content.encode()
    return GenerateRequest(messages=messages, **fields)


def faulty(fault, chance=0.0):
    return SimulatedSpec(faults={fault: chance}, answer_tokens=10)


async def read(engine, request):
    return [event async for event in engine.generate(request)]


async def test_an_answer_takes_as_long_as_the_model_says(start):
    engine, world = await start()
    content = "x" * (4000 - len(request("").messages))
    await read(engine, request(content, max_tokens=11))
    assert world.now_s == pytest.approx(0.1 + 1 + 10 * 0.1)


async def test_a_prefix_is_cached_across_requests(start):
    engine, _ = await start()
    content = "x" * 5000
    assert (await read(engine, request(content)))[-1].cached_input_tokens == 0
    again = (await read(engine, request(content + "y")))[-1]
    assert again.cached_input_tokens == 1024


async def test_choices_share_their_prompt(start):
    engine, world = await start()
    events = await read(engine, request("x" * 8000, n=3, max_tokens=1))
    one_prompt_s = 0.1 + events[-1].input_tokens / 1000
    assert world.now_s < one_prompt_s * 1.5


async def test_failing_before(start):
    engine, _ = await start(faulty("fail_before", 1.0))
    with pytest.raises(EngineError, match="before"):
        await read(engine, request())
    assert engine.health().running == 0


async def test_failing_in_the_middle(start):
    engine, _ = await start(faulty("fail_mid"))
    events = engine.generate(request("please [[fault:fail_mid]]"))
    assert [type(await anext(events)) for _ in range(5)] == [Delta] * 5
    with pytest.raises(EngineError) as raised:
        await anext(events)
    assert raised.value.kind == "internal"
    assert engine.health().running == 0


async def test_a_lack_of_memory(start):
    engine, _ = await start(faulty("oom", 1.0))
    with pytest.raises(EngineError, match="memory"):
        await read(engine, request())


async def test_a_slow_first_token(start):
    engine, world = await start(faulty("slow_first_token", 1.0))
    await read(engine, request())
    assert world.now_s > SLOW_FIRST_TOKEN_S


async def test_dying(start):
    engine, world = await start(faulty("die", 1.0))
    events = engine.generate(request())
    for _ in range(5):
        await anext(events)
    await until(lambda: world.dead)
    await events.aclose()


async def test_a_stall_is_one_requests_own(start):
    engine, _ = await start(faulty("stall"))
    stalled = asyncio.create_task(read(engine, request("[[fault:stall]]")))
    await asyncio.sleep(0)
    assert isinstance((await read(engine, request()))[-1], Usage)
    before = engine.health().iterations
    await read(engine, request())
    assert engine.health().iterations > before
    assert not stalled.done()
    stalled.cancel()


async def test_a_hang_is_everyones(start):
    engine, _ = await start(faulty("hang"))
    hung = asyncio.create_task(read(engine, request("[[fault:hang]]")))
    other = asyncio.create_task(read(engine, request(max_tokens=50)))
    for _ in range(100):
        await asyncio.sleep(0)
    before = engine.health()
    for _ in range(100):
        await asyncio.sleep(0)
    assert engine.health() == before
    assert before.running == 2
    hung.cancel()
    other.cancel()
    await asyncio.gather(hung, other, return_exceptions=True)
    assert engine.health().running == 0


async def test_only_faults_that_the_spec_names_can_be_asked_for(start):
    engine, _ = await start(faulty("stall"))
    assert isinstance((await read(engine, request("[[fault:die]]")))[-1], Usage)


@pytest.mark.parametrize("faults", [{"zork": 0.5}, {"die": 2.0}, {"die": -0.1}])
async def test_bad_faults_are_refused(faults):
    with pytest.raises(EngineError):
        await SimulatedEngine(SimulatedSpec(faults=faults)).start()


def test_chances_are_kept_and_seeded():
    def strikes():
        faults = Faults({"oom": 0.1, "die": 0.0}, random.Random(3))
        return [faults.strike("") for _ in range(1000)]

    counts = Counter(strikes())
    assert 70 < counts[Fault.OOM] < 130
    assert counts[Fault.DIE] == 0
    assert strikes() == strikes()


async def test_an_engine_that_is_closed_answers_nothing(start):
    engine, _ = await start()
    await engine.close()
    with pytest.raises(EngineError) as raised:
        await read(engine, request())
    assert raised.value.kind == "died"


async def test_an_answer_larger_than_the_cache(start):
    engine, _ = await start(SimulatedSpec(kv_tokens=512))
    with pytest.raises(EngineError, match="512") as raised:
        await read(engine, request(max_tokens=1000))
    assert raised.value.kind == "prompt_too_long"
