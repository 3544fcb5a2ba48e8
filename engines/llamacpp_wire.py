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

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from engines.answer_plan import Plan
from engines.base import GenerateRequest
from engines.llamacpp_chunks import Reading

_RANDOM_SEED = 0xFFFFFFFF
"""llama.cpp's seeds have 32 bits, and this one asks for a random one."""


SAMPLERS = ("penalties", "dry", "temperature", "top_k", "typ_p", "top_p", "min_p", "xtc")
"""Truncation sees the probabilities that the temperature makes, as OpenAI's and vLLM's does; llama.cpp's own order has
the temperature last."""


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


class _StreamOptions(Struct, frozen=True):
    include_usage: bool = True


class _Body(Struct, frozen=True, kw_only=True):
    n: int
    temperature: float
    top_p: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    """Tokens that penalties look back on; llama.cpp's own 64 would forget."""
    dry_penalty_last_n: int
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
    samplers: Sequence[str] = SAMPLERS
    top_k: int = 0
    min_p: float = 0.0
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_sequence_breakers: Sequence[str] | UnsetType = UNSET
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
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
        dry_penalty_last_n=context_tokens,
        seed=_RANDOM_SEED if sampling.seed is None else (sampling.seed + first) % _RANDOM_SEED,
        max_tokens=UNSET if request.max_tokens is None else request.max_tokens,
        logit_bias=_bias(request, prompt.tokens) or UNSET,
        n_probs=max(1, request.top_logprobs) if probs else UNSET,
        timings_per_token=True if request.stop else UNSET,
        tools=Raw(prompt.tools) if with_tools and prompt.tools is not None else UNSET,
        tool_choice="auto" if with_tools else UNSET,
        parallel_tool_calls=request.parallel_tool_calls if with_tools else UNSET,
        grammar=UNSET if grammar is None else grammar,
        top_k=max(0, sampling.top_k or 0),
        min_p=sampling.min_p or 0.0,
        typical_p=sampling.typical_p or 1.0,
        repeat_penalty=sampling.repetition_penalty or 1.0,
        dry_multiplier=sampling.dry_multiplier or 0.0,
        dry_base=sampling.dry_base or 1.75,
        dry_allowed_length=sampling.dry_allowed_length or 2,
        dry_sequence_breakers=sampling.dry_sequence_breakers or UNSET,
        xtc_probability=sampling.xtc_probability or 0.0,
        xtc_threshold=0.1 if sampling.xtc_threshold is None else sampling.xtc_threshold,
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
