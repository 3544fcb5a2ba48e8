"""An engine as a backend: what it is asked, what comes out, what its failures become, and that nothing is left."""

import asyncio
import json

import msgspec
import pytest

from engines.base import Delta, EngineError, EngineInfo, Finish, GenerateRequest, Health, Usage
from router.backends.base import Limits, Order
from router.backends.engine import EngineBackend, fault_of
from router.backends.engine_request import IGNORED, REFUSED, engine_requests
from router.errors import ApiError, Fault, FaultKind, api_error
from router.wire import sse
from router.wire.chat import ChatRequest, decode_chat

HELLO = [Delta(0, "Hel"), Delta(0, "lo"), Finish(0, "stop"), Usage(5, 2, 4)]


class ScriptedEngine:
    """Plays events; an exception in the script is raised, None waits for ever, a float waits."""

    def __init__(self, *script):
        self.script = script
        self.requests: list[GenerateRequest] = []
        self.open = 0

    async def start(self):
        return EngineInfo("scripted", "m", 1, 1, 1)

    async def generate(self, request):
        self.requests.append(request)
        self.open += 1
        try:
            for step in self.script:
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    await asyncio.Event().wait()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                else:
                    yield step
        finally:
            self.open -= 1

    def health(self):
        return Health()

    async def close(self):
        pass


def order(*, deadline_s=10.0, first_token_s=5.0, idle_s=5.0, **fields):
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return order_of(msgspec.json.encode(body), deadline_s, first_token_s, idle_s)


def order_of(body: bytes, deadline_s=10.0, first_token_s=5.0, idle_s=5.0):
    try:
        now = asyncio.get_running_loop().time()
    except RuntimeError:
        now = 0.0
    limits = Limits(1.0, first_token_s, idle_s)
    return Order(decode_chat(body), body, "there", "req", now + deadline_s, limits, 1700000000)


def generate_request(order):
    (request,) = engine_requests(order)
    return request


async def read_all(answer) -> bytes:
    blobs = []
    while blob := await answer.read():
        blobs.append(blob)
    return b"".join(blobs)


async def fault_in(awaitable) -> Fault:
    with pytest.raises(Fault) as caught:
        await awaitable
    return caught.value


async def test_a_whole_answer():
    backend = EngineBackend("e", ScriptedEngine(*HELLO))
    answer = await backend.open(order(service_tier="auto"))
    assert answer.facts.first_token_at is not None
    body = json.loads(await answer.read())
    assert await answer.read() == b""
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["model"] == "m"
    assert body["created"] == 1700000000
    assert body["id"].startswith("chatcmpl-")
    assert body["service_tier"] == "default"
    facts = answer.facts
    assert (facts.input_tokens, facts.cached_input_tokens, facts.output_tokens) == (5, 4, 2)
    assert facts.finished
    assert dict(answer.headers) == {}


async def test_a_stream_comes_as_it_is_made():
    backend = EngineBackend("e", ScriptedEngine(HELLO[0], 0.01, *HELLO[1:]))
    answer = await backend.open(order(stream=True, stream_options={"include_usage": True}))
    first = await answer.read()
    assert b"Hel" in first
    assert not answer.facts.finished
    assert answer.facts.input_tokens is None
    rest = await read_all(answer)
    assert b'"lo"' in rest
    assert rest.endswith(sse.DONE)
    assert b'"total_tokens":7' in rest
    assert answer.facts.finished


async def test_what_was_written_is_said_once_whole():
    said = []
    backend = EngineBackend("e", ScriptedEngine(HELLO[0], 0.01, *HELLO[1:]), emit=said.append)
    cut = await backend.open(order(stream=True))
    await cut.read()
    cut.close()
    assert said == []
    await read_all(await backend.open(order(stream=True)))
    (event,) = said
    assert (event.engine, event.input_tokens, event.output_tokens) == ("e", 5, 2)
    assert event.cached_input_tokens == 4
    assert 0 <= event.first_token_s < event.duration_s
    assert event.duration_s >= 0.01


async def test_ids_are_unique_and_the_fingerprint_is_the_engines():
    backend = EngineBackend("e", ScriptedEngine(*HELLO))
    bodies = [json.loads(await (await backend.open(order())).read()) for _ in range(2)]
    assert len({body["id"] for body in bodies}) == 2
    assert len({body["system_fingerprint"] for body in bodies}) == 1


async def test_several_choices():
    script = [Delta(1, "b"), Delta(0, "a"), Finish(0, "stop"), Finish(1, "length"), Usage(1, 2)]
    engine = ScriptedEngine(*script)
    answer = await EngineBackend("e", engine).open(order(n=2))
    choices = json.loads(await answer.read())["choices"]
    assert [choice["message"]["content"] for choice in choices] == ["a", "b"]
    assert engine.requests[0].n == 2


# What the engine is asked.


def test_the_request_is_passed_on_byte_for_byte():
    body = (
        b'{ "messages" : [ {"role":"user", "content":"h\\u00e9 json", "x_extra": 1.50} ],"model":"m",'
        b'"tools":[ {"type":"function","function":{"name":"f"}}],"tool_choice": "auto",'
        b'"response_format" : {"type": "json_object"},"stop":["a","b"],"temperature":0.5,"top_p":0.25,'
        b'"seed":7,"logit_bias":{"5":-1},"presence_penalty":1,"frequency_penalty":-1,"max_tokens":9,'
        b'"logprobs":true,"top_logprobs":2,"parallel_tool_calls":false,"n":3,"user":"u"}'
    )
    asked = generate_request(order_of(body))
    assert asked.messages == b'[ {"role":"user", "content":"h\\u00e9 json", "x_extra": 1.50} ]'
    assert asked.tools == b'[ {"type":"function","function":{"name":"f"}}]'
    assert asked.tool_choice == b'"auto"'
    assert asked.response_format == b'{"type": "json_object"}'
    assert asked.stop == ("a", "b")
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed) == (0.5, 0.25, 7)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1, -1)
    assert sampling.logit_bias == {"5": -1}
    assert (asked.max_tokens, asked.n, asked.logprobs, asked.top_logprobs) == (9, 3, True, 2)
    assert not asked.parallel_tool_calls


def test_null_is_unset():
    nothing = dict.fromkeys(
        ["tools", "tool_choice", "response_format", "stop", "seed", "n", "audio"]
    )
    asked = generate_request(order(**nothing))
    assert asked == generate_request(order())
    assert asked.tools is None
    assert asked.stop == ()


def test_an_empty_stop_stops_nothing_and_either_limit_counts():
    asked = generate_request(order(stop=["", "x"], max_completion_tokens=4))
    assert asked.stop == ("x",)
    assert asked.max_tokens == 4
    assert generate_request(order(max_tokens=5)).max_tokens == 5


def content(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"moderation": {"model": "x"}}, "moderation"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "custom", "custom": {"name": "c"}}]}, "tools[0].type"),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f"}}],
                "tool_choice": {
                    "type": "allowed_tools",
                    "allowed_tools": {"mode": "auto", "tools": []},
                },
            },
            "tool_choice.type",
        ),
        (content({"type": "image_url", "image_url": {"url": "x"}}), "messages[0].content[0].type"),
        (
            content(
                {"type": "text", "text": "a"},
                {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
            ),
            "messages[0].content[1].type",
        ),
        (content({"type": "file", "file": {}}), "messages[0].content[0].type"),
    ],
)
async def test_what_no_engine_can_do_is_refused_by_name(fields, param):
    engine = ScriptedEngine(*HELLO)
    fault = await fault_in(EngineBackend("e", engine).open(order(**fields)))
    assert fault.kind is FaultKind.CLIENT_ERROR
    assert not fault.retryable
    told = api_error(fault)
    assert (told.status, told.error.type, told.error.param) == (400, "invalid_request_error", param)
    assert engine.requests == []


def test_harmless_parameters_are_ignored():
    harmless = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": True,
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "prompt_cache_options": {"mode": "implicit"},
        "prediction": {"type": "content", "content": "x"},
        "reasoning_effort": "low",
        "verbosity": "low",
    }
    assert set(harmless) == set(IGNORED)
    more = {"modalities": ["text"], "service_tier": "flex"}
    assert generate_request(order(**harmless, **more)) == generate_request(order())


def test_every_parameter_was_decided_upon():
    honoured = {
        "model",
        "messages",
        "stream",
        "stream_options",
        "temperature",
        "top_p",
        "frequency_penalty",
        "presence_penalty",
        "logit_bias",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "seed",
        "stop",
        "response_format",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "modalities",
        "service_tier",
    }
    decided = [*honoured, *IGNORED, *REFUSED]
    assert sorted(decided) == sorted(ChatRequest.__struct_fields__)


# What goes wrong.


@pytest.mark.parametrize(
    ("kind", "fault_kind", "status"),
    [
        ("prompt_too_long", FaultKind.CONTEXT_LENGTH, 400),
        ("unsupported", FaultKind.CLIENT_ERROR, 400),
        ("invalid", FaultKind.CLIENT_ERROR, 400),
        ("busy", FaultKind.ENGINE_BUSY, 503),
        ("died", FaultKind.ENGINE_DIED, 503),
        ("internal", FaultKind.ENGINE_ERROR, 500),
    ],
)
async def test_an_engines_errors_before_the_first_event_are_faults_of_open(
    kind, fault_kind, status
):
    engine = ScriptedEngine(EngineError(kind, "because"))
    fault = await fault_in(EngineBackend("e", engine).open(order()))
    assert fault.kind is fault_kind
    told = api_error(fault)
    assert told.status == status
    assert "because" in told.error.message
    if kind == "prompt_too_long":
        assert (told.error.code, told.error.param) == ("context_length_exceeded", "messages")


async def test_an_error_midway_is_a_fault_of_read_once():
    engine = ScriptedEngine(HELLO[0], 0.01, EngineError("died", "gone"))
    answer = await EngineBackend("e", engine).open(order(stream=True))
    assert b"Hel" in await answer.read()
    assert (await fault_in(answer.read())).kind is FaultKind.ENGINE_DIED
    assert await answer.read() == b""
    assert not answer.facts.finished


@pytest.mark.parametrize(
    "script", [[], HELLO[:1], HELLO[:3], HELLO[3:], [*HELLO[:3], *HELLO]], ids=repr
)
@pytest.mark.parametrize("stream", [True, False])
async def test_an_engine_that_breaks_its_contract_never_looks_whole(script, stream):
    backend = EngineBackend("e", ScriptedEngine(*script))

    async def ask():
        await read_all(await backend.open(order(stream=stream)))

    assert (await fault_in(ask())).kind is FaultKind.ENGINE_ERROR


async def test_a_bug_in_an_engine_is_an_engine_error():
    fault = await fault_in(EngineBackend("e", ScriptedEngine(KeyError("k"))).open(order()))
    assert fault.kind is FaultKind.ENGINE_ERROR
    assert "KeyError" in fault.message
    assert isinstance(fault.__cause__.__cause__, KeyError)


async def test_the_first_token_has_its_limit():
    engine = ScriptedEngine(None)
    fault = await fault_in(EngineBackend("e", engine).open(order(first_token_s=0.01)))
    assert fault.kind is FaultKind.TIMEOUT_FIRST_BYTE
    await asyncio.sleep(0)
    assert engine.open == 0


async def test_silence_has_its_limit():
    answer = await EngineBackend("e", ScriptedEngine(HELLO[0], None)).open(
        order(stream=True, idle_s=0.01)
    )
    await answer.read()
    assert (await fault_in(answer.read())).kind is FaultKind.TIMEOUT_IDLE


async def test_the_deadline_is_above_the_limits():
    engine = ScriptedEngine(HELLO[0], None)
    backend = EngineBackend("e", engine)
    answer = await backend.open(order(deadline_s=0.02))
    assert (await fault_in(answer.read())).kind is FaultKind.DEADLINE
    fault = await fault_in(backend.open(order(deadline_s=-1)))
    assert fault.kind is FaultKind.DEADLINE
    assert len(engine.requests) == 1


# Letting go.


async def test_close_cancels_at_once_and_may_be_called_twice():
    engine = ScriptedEngine(HELLO[0], None)
    answer = await EngineBackend("e", engine).open(order(stream=True))
    answer.close()
    answer.close()
    await asyncio.sleep(0)
    assert engine.open == 0
    assert await answer.read() == b""


async def test_cancelling_read_cancels_only_the_wait():
    engine = ScriptedEngine(HELLO[0], 0.03, *HELLO[1:])
    answer = await EngineBackend("e", engine).open(order(stream=True))
    await answer.read()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            await answer.read()
    assert engine.open == 1
    assert (await read_all(answer)).endswith(sse.DONE)


@pytest.mark.parametrize("turns", range(6))
async def test_cancelling_open_leaves_nothing(turns):
    engine = ScriptedEngine(0.0, 0.0, None)
    backend = EngineBackend("e", engine)
    task = asyncio.create_task(backend.open(order()))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    assert engine.open == 0
    assert len(asyncio.all_tasks()) == 1


async def test_closing_the_backend_cancels_what_runs():
    engine = ScriptedEngine(HELLO[0], None)
    backend = EngineBackend("e", engine)
    for _ in range(3):
        await backend.open(order(stream=True))
    await backend.close()
    await asyncio.sleep(0)
    assert engine.open == 0


async def test_an_answer_that_nobody_reads_ends():
    engine = ScriptedEngine(*[Delta(0, "x" * 1_000_000)] * 6, None)
    answer = await EngineBackend("e", engine).open(order(stream=True))
    await asyncio.sleep(0)
    assert engine.open == 0
    assert len(await answer.read()) > 1_000_000
    assert (await fault_in(answer.read())).kind is FaultKind.CLIENT_SLOW


def test_a_clients_mistake_is_its_own():
    fault = fault_of(EngineError("invalid", "no"))
    assert isinstance(fault.answer, ApiError)
    assert not fault.blames_target
