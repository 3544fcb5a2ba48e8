"""The older endpoint at an engine: what the engine is asked, what is refused, and several prompts in turn."""

import asyncio
import json

import pytest

from engines.base import (
    Delta,
    EngineError,
    EngineInfo,
    Finish,
    GenerateRequest,
    Health,
    Sampling,
    Usage,
)
from router.backends.base import Order
from router.backends.engine import EngineBackend
from router.backends.engine_request import engine_requests
from router.errors import ApiError, Fault, FaultKind, api_error
from router.wire.embeddings import decode_embedding
from router.wire.legacy import CompletionRequest, decode_completion
from tests.backends.orders import LIMITS


class Echoing:
    """Answers each prompt with itself, in capitals, a letter a delta; ``scripts`` by prompt stand instead."""

    def __init__(self, **scripts):
        self.scripts = scripts
        self.requests: list[GenerateRequest] = []
        self.open = 0

    async def start(self):
        return EngineInfo("echoing", "m", 1, 1, 1)

    async def generate(self, request):
        self.requests.append(request)
        self.open += 1
        try:
            for step in self.scripts.get(request.prompt, list(self.said(request))):
                if isinstance(step, Exception):
                    raise step
                if step is None:
                    await asyncio.Event().wait()
                yield step
        finally:
            self.open -= 1

    def said(self, request):
        for choice in range(request.n):
            for letter in request.prompt.upper():
                yield Delta(choice, letter)
            yield Finish(choice, "stop")
        yield Usage(3, request.n, 1)

    def health(self):
        return Health()

    async def close(self):
        pass


def order(wait_s=10.0, **fields):
    body = json.dumps({"model": "m", "prompt": "hi", **fields}).encode()
    try:
        now = asyncio.get_running_loop().time()
    except RuntimeError:
        now = 0.0
    return Order(decode_completion(body), body, "up", "req", now + wait_s, LIMITS, 1700000000)


async def answered(engine, **fields) -> bytes:
    answer = await EngineBackend("e", engine).open(order(**fields))
    pieces = []
    while piece := await answer.read():
        pieces.append(piece)
    return b"".join(pieces)


def asked(**fields):
    (request,) = engine_requests(order(**fields))
    return request


BARE = GenerateRequest(messages=b"[]", prompt="hi", max_tokens=16)


@pytest.mark.parametrize(
    ("fields", "want"),
    [
        ({}, {}),
        ({"prompt": ["hi"]}, {}),
        ({"max_tokens": 3}, {"max_tokens": 3}),
        ({"max_tokens": None, "stop": None, "n": None}, {}),
        ({"n": 3}, {"n": 3}),
        ({"n": 2, "best_of": 2}, {"n": 2}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["", "b"]}, {"stop": ("b",)}),
        ({"logprobs": 0}, {"logprobs": True}),
        ({"logprobs": 5}, {"logprobs": True, "top_logprobs": 5}),
        ({"temperature": 0.5}, {"sampling": Sampling(temperature=0.5)}),
        ({"top_p": 0.25}, {"sampling": Sampling(top_p=0.25)}),
        ({"frequency_penalty": 1}, {"sampling": Sampling(frequency_penalty=1)}),
        ({"presence_penalty": -1}, {"sampling": Sampling(presence_penalty=-1)}),
        ({"logit_bias": {"5": -1}}, {"sampling": Sampling(logit_bias={"5": -1})}),
        ({"seed": 7}, {"sampling": Sampling(seed=7)}),
        ({"echo": True}, {}),
        ({"suffix": ""}, {}),
        ({"user": "u"}, {}),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}),
    ],
    ids=str,
)
def test_what_an_engine_is_asked(fields, want):
    told = {"messages": b"[]", "prompt": "hi", "max_tokens": 16, **want}
    assert asked(**fields) == GenerateRequest(**told)


def test_every_parameter_was_decided_upon():
    decided = {
        "model", "prompt", "suffix", "max_tokens", "temperature", "top_p", "n", "best_of", "stream",
        "stream_options", "logprobs", "echo", "stop", "frequency_penalty", "presence_penalty",
        "logit_bias", "seed", "user",
    }  # fmt: skip
    assert decided == set(CompletionRequest.__struct_fields__)


EMPTY = "Expected a string with minimum length 1, but got an empty string instead."
REFUSALS = [
    ({"suffix": "x"}, "suffix", "invalid_value", "This model does not support suffix."),
    (
        {"best_of": 3, "n": 2},
        "best_of",
        "invalid_value",
        "This model makes no more choices than it returns: 'best_of' must be at most 'n'.",
    ),
    (
        {"echo": True, "logprobs": 0},
        "logprobs",
        "invalid_value",
        "This model can't tell the prompt's logprobs: 'echo' and 'logprobs' exclude each other.",
    ),
    (
        {"max_tokens": 0},
        "max_tokens",
        "integer_below_min_value",
        "Invalid 'max_tokens': integer below minimum value. Expected a value >= 1, but got 0 instead.",
    ),
    (
        {"prompt": None},
        "prompt",
        "missing_required_parameter",
        "Missing required parameter: 'prompt'.",
    ),
    (
        {"prompt": [1, 2]},
        "prompt",
        "invalid_value",
        "This model takes prompts as text, not as tokens.",
    ),
    (
        {"prompt": [[1], [2]]},
        "prompt",
        "invalid_value",
        "This model takes prompts as text, not as tokens.",
    ),
    ({"prompt": ""}, "prompt", "empty_string", f"Invalid 'prompt': empty string. {EMPTY}"),
    (
        {"prompt": ["a", ""]},
        "prompt[1]",
        "empty_string",
        f"Invalid 'prompt[1]': empty string. {EMPTY}",
    ),
]


@pytest.mark.parametrize(("fields", "param", "code", "message"), REFUSALS, ids=str)
async def test_what_no_engine_can_do_is_refused_by_name(fields, param, code, message):
    engine = Echoing()
    with pytest.raises(Fault) as caught:
        await EngineBackend("e", engine).open(order(**fields))
    assert caught.value.kind is FaultKind.CLIENT_ERROR
    assert not caught.value.retryable
    told = api_error(caught.value)
    assert told.status == 400
    error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
    assert json.loads(told.body) == {"error": error}
    assert engine.requests == []


def test_an_engine_makes_no_embeddings():
    body = b'{"model":"m","input":"a"}'
    with pytest.raises(ApiError) as caught:
        engine_requests(Order(decode_embedding(body), body, "up", "r", 1.0, LIMITS, 1))
    assert caught.value.status == 404


async def test_a_whole_answer():
    body = json.loads(await answered(Echoing(), echo=True))
    assert body.pop("id").startswith("cmpl-")
    assert body.pop("system_fingerprint").startswith("fp_")
    assert body.pop("usage")["total_tokens"] == 4
    choice = {"text": "hiHI", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert body == {
        "object": "text_completion", "created": 1700000000, "model": "m", "choices": [choice],
    }  # fmt: skip


async def test_several_prompts_go_in_turn_and_their_choices_are_numbered_through():
    engine = Echoing()
    body = json.loads(await answered(engine, prompt=["a", "bc", "d"], n=2))
    assert [(one["index"], one["text"]) for one in body["choices"]] == [
        (0, "A"), (1, "A"), (2, "BC"), (3, "BC"), (4, "D"), (5, "D"),
    ]  # fmt: skip
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (9, 6)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3
    assert [one.prompt for one in engine.requests] == ["a", "bc", "d"]
    assert engine.open == 0
    stream = await answered(engine, prompt=["a", "bc"], stream=True)
    events = [json.loads(line[6:]) for line in stream.split(b"\n\n")[:-2]]
    assert [event["choices"][0]["index"] for event in events] == [0, 0, 1, 1, 1]
    assert stream.endswith(b"data: [DONE]\n\n")


async def test_facts_count_every_prompt():
    answer = await EngineBackend("e", Echoing()).open(order(prompt=["a", "b"]))
    await answer.read()
    facts = answer.facts
    assert (facts.input_tokens, facts.cached_input_tokens, facts.output_tokens) == (6, 2, 2)
    assert facts.finished


@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ([EngineError("died", "gone")], FaultKind.ENGINE_DIED),
        ([EngineError("busy", "full")], FaultKind.ENGINE_BUSY),
        ([Delta(0, "x")], FaultKind.ENGINE_ERROR),
        ([Usage(1, 1)], FaultKind.ENGINE_ERROR),
        ([Delta(1, "x"), Finish(0, "stop"), Usage(1, 1)], FaultKind.ENGINE_ERROR),
        ([Delta(-1, "x"), Finish(0, "stop"), Usage(1, 1)], FaultKind.ENGINE_ERROR),
    ],
    ids=str,
)
@pytest.mark.parametrize("bad", ["a", "b"])
async def test_one_prompt_that_fails_fails_the_answer(script, kind, bad):
    engine = Echoing(**{bad: script})
    with pytest.raises(Fault) as caught:
        await answered(engine, prompt=["a", "b", "c"])
    assert caught.value.kind is kind
    await asyncio.sleep(0)
    assert engine.open == 0


async def test_a_prompt_that_is_too_long_is_named():
    engine = Echoing(b=[EngineError("prompt_too_long", "too long")])
    with pytest.raises(Fault) as caught:
        await answered(engine, prompt=["a", "b"])
    told = api_error(caught.value)
    assert (told.status, told.error.param, told.error.code) == (
        400,
        "prompt",
        "context_length_exceeded",
    )


async def test_letting_go_stops_the_prompt_that_runs_and_those_behind_it():
    engine = Echoing(b=[Delta(0, "x"), None])
    answer = await EngineBackend("e", engine).open(order(prompt=["a", "b", "c"], stream=True))
    while b'"x"' not in await answer.read():
        pass
    answer.close()
    await asyncio.sleep(0)
    assert engine.open == 0
    assert await answer.read() == b""
    assert [one.prompt for one in engine.requests] == ["a", "b"]
