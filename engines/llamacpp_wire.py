"""What is said to llama.cpp, as data: which of its two endpoints, and the body. Pure.

Its chat endpoint renders the template, and reads calls and reasoning as the model's template has them; it takes most
requests. The completions endpoint takes those whose prompt must be given in pieces (text that spells control tokens,
prompts that are no conversation), and those under a grammar: the chat endpoint would refuse it beside tools, and look
for thoughts in an answer that can't have any.

Every sampler is set, since llama.cpp's own values (temperature 0.8, top_k 40, min_p 0.05) are not
neutral and a GGUF file may bring yet others. Messages and tools are spliced in as the bytes they came in.

llama.cpp counts the prompt's tokens for its penalties, OpenAI only the answer's. So each token of the prompt gets a
bias against what it would be charged for. For the frequency penalty that is exact. For the presence penalty it is for
tokens the prompt doesn't have; those it has are never charged, where they should be once the answer has them, too.

Source: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from engines import schemas
from engines.base import EngineError, GenerateRequest
from engines.forced_tools import ForcedCall, call_of_any, force, offered
from engines.llamacpp_chunks import Reading
from engines.llamacpp_grammar import Shape

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's seeds have 32 bits, and this one asks for a random one."""


class Plan(Struct, frozen=True):
    """What a request comes to, before its prompt is looked at."""

    request: GenerateRequest
    shape: Shape | None = None
    """What holds the answer, None where nothing does."""
    forced: ForcedCall | None = None
    with_tools: bool = False
    tagged: bool = False
    """The answer may call, and the calls are read here."""

    @property
    def rendered(self) -> bool:
        """Whether the chat endpoint can't take it."""
        request = self.request
        return request.prompt is not None or request.continue_final or self.shape is not None

    @property
    def penalised(self) -> bool:
        """Whether the prompt's tokens must be known."""
        sampling = self.request.sampling
        return bool(sampling.frequency_penalty or sampling.presence_penalty)


class Prompt(Struct, frozen=True):
    """The request's text as it goes to llama.cpp."""

    messages: bytes
    tools: bytes | None
    pieces: Sequence[str | int] | None = None
    """The rendered prompt in text and tokens, for the completions endpoint; None for the chat endpoint."""
    tokens: Sequence[int] = ()
    """Its tokens, where they must be known."""


class Part(Struct, frozen=True):
    """One call of llama.cpp: some or all choices of a request."""

    body: bytes
    reading: Reading
    chat: bool = True


def plan(request: GenerateRequest, *, native: bool) -> Plan:
    """Return the plan. ``native``: the model writes calls in tags. Raises EngineError for what can't be served."""
    if request.max_tokens is not None and request.max_tokens < 1:
        raise EngineError("invalid", f"max_tokens must be at least 1, not {request.max_tokens}")
    if request.prompt is not None and (request.tools is not None or not request.prompt):
        raise EngineError("invalid", "a bare prompt must not be empty, and takes no tools")
    tools = request.tools if offered(request.tools, request.tool_choice) else None
    forced = force(tools, request.tool_choice, parallel=request.parallel_tool_calls)
    if forced is not None:
        if request.continue_final:
            raise EngineError("unsupported", "a grammar can't begin in the middle of an answer")
        shape = Shape(call=forced.schema, must_call=True, several=forced.several, native=native)
        return Plan(request, shape, forced, with_tools=True)
    answer = _answer_schema(request.response_format)
    if request.continue_final and answer is not None:
        raise EngineError("unsupported", "a grammar can't begin in the middle of an answer")
    if tools is None:
        return Plan(request, None if answer is None else Shape(answer=answer))
    if answer is not None or request.continue_final or (request.logprobs and native):
        return read_here(Plan(request, with_tools=True), answer, native=native)
    return Plan(request, with_tools=True)


def read_here(plan: Plan, answer: dict[str, Any] | None = None, *, native: bool) -> Plan:
    """Return the plan with its optional calls under a grammar and read by this package. Raises EngineError."""
    request = plan.request
    if request.tools is None or not plan.with_tools or plan.shape is not None:
        return plan
    if not native:
        raise EngineError(
            "unsupported",
            "this model's tool calls are read by llama.cpp, which can't keep a response_format, "
            "control tokens in the text or an answer's beginning beside them: leave out one, or set "
            "tool_choice",
        )
    shape = Shape(
        answer=answer,
        call=call_of_any(request.tools),
        several=request.parallel_tool_calls,
        native=native,
    )
    return Plan(request, shape, with_tools=True, tagged=True)


class _JsonSchema(Struct):
    schema: Any = UNSET


class _Format(Struct):
    type: str
    json_schema: _JsonSchema | None = None


def _answer_schema(response_format: bytes | None) -> dict[str, Any] | None:
    if response_format is None:
        return None
    try:
        wanted = msgspec.json.decode(response_format, type=_Format)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError("invalid", f"response_format: {error}") from error
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return {"type": "object"}
    if wanted.type == "json_schema" and wanted.json_schema is not None:
        schema = wanted.json_schema.schema
        return {"type": "object"} if schema is UNSET else schemas.checked(schema)
    raise EngineError("unsupported", f"response_format {wanted.type!r}")


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _Body(Struct, frozen=True, kw_only=True):
    n: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    """Tokens the two penalties look back on; llama.cpp's own 64 would forget."""
    seed: int
    messages: Raw | UnsetType = UNSET
    prompt: Sequence[str | int] | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    logit_bias: dict[str, float] | UnsetType = UNSET
    n_probs: int | UnsetType = UNSET
    """OpenAI's ``logprobs`` would be refused beside tools."""
    tools: Raw | UnsetType = UNSET
    tool_choice: str | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    grammar: str | UnsetType = UNSET
    timings_per_token: bool | UnsetType = UNSET
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    stream: bool = True
    stream_options: _StreamOptions = _StreamOptions()
    return_progress: bool = True
    """Without it the callback, and with it a cancel, has no turn before the first token."""


class _Conversation(Struct, frozen=True, omit_defaults=True):
    messages: Raw
    tools: Raw | UnsetType = UNSET
    chat_template_kwargs: dict[str, bool] | UnsetType = UNSET


_encoder = msgspec.json.Encoder()
_NO_THINKING = {"enable_thinking": False}
"""Templates that can think ask for this name. Under a grammar there is no room for a thought."""


def conversation(plan: Plan, messages: bytes, tools: bytes | None) -> bytes:
    """Return what llama.cpp is to render."""
    return _encoder.encode(
        _Conversation(
            messages=Raw(messages),
            tools=Raw(tools) if plan.with_tools and tools is not None else UNSET,
            chat_template_kwargs=UNSET if plan.shape is None else _NO_THINKING,
        )
    )


def parts(
    plan: Plan, prompt: Prompt, grammar: str | None, slots: int, context_tokens: int
) -> list[Part]:
    """Return the calls that make up a request: llama.cpp refuses more choices than it has slots."""
    request = plan.request
    stop = request.stop if plan.forced is None else ()
    return [
        Part(
            _body(plan, prompt, grammar, (first, count), context_tokens),
            Reading(
                first_choice=first,
                choices=count,
                forced=plan.forced,
                tagged=plan.tagged,
                stop=stop,
                logprobs=request.logprobs,
                top_logprobs=request.top_logprobs,
            ),
            chat=prompt.pieces is None,
        )
        for first in range(0, request.n, slots)
        for count in [min(slots, request.n - first)]
    ]


def _body(
    plan: Plan, prompt: Prompt, grammar: str | None, span: tuple[int, int], context_tokens: int
) -> bytes:
    request, sampling = plan.request, plan.request.sampling
    first, count = span
    chat = prompt.pieces is None
    with_tools = chat and plan.with_tools and prompt.tools is not None
    probs = request.logprobs and plan.forced is None
    body = _Body(
        messages=Raw(prompt.messages) if chat else UNSET,
        prompt=UNSET if prompt.pieces is None else prompt.pieces,
        n=count,
        temperature=1.0 if sampling.temperature is None else sampling.temperature,
        top_p=1.0 if sampling.top_p is None else sampling.top_p,
        frequency_penalty=sampling.frequency_penalty or 0.0,
        presence_penalty=sampling.presence_penalty or 0.0,
        repeat_last_n=context_tokens,
        seed=_RANDOM_SEED if sampling.seed is None else (sampling.seed + first) % _RANDOM_SEED,
        max_tokens=UNSET if request.max_tokens is None else request.max_tokens,
        logit_bias=_bias(request, prompt.tokens) or UNSET,
        n_probs=max(1, request.top_logprobs) if probs else UNSET,
        timings_per_token=True if request.stop else UNSET,
        tools=Raw(prompt.tools) if with_tools and prompt.tools is not None else UNSET,
        tool_choice="auto" if with_tools else UNSET,
        parallel_tool_calls=request.parallel_tool_calls if with_tools else UNSET,
        grammar=UNSET if grammar is None else grammar,
    )
    return _encoder.encode(body)


def _bias(request: GenerateRequest, prompt_tokens: Sequence[int]) -> dict[str, float]:
    """Return the request's own bias, and one against the penalties of the prompt's tokens."""
    sampling = request.sampling
    bias = dict(sampling.logit_bias or {})
    per_use = sampling.frequency_penalty or 0.0
    once = sampling.presence_penalty or 0.0
    for token, uses in Counter(prompt_tokens).items():
        key = str(token)
        bias[key] = bias.get(key, 0.0) + per_use * uses + once
    return bias
