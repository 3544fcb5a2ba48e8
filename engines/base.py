"""The contract of an engine: what it is asked, what it says while it works, and how it fails.

An engine turns one request, a chat or a bare prompt, into events. It renders the prompt, samples, holds stop
strings back, parses tool calls and counts tokens; it never writes OpenAI's JSON, which is the router's business.
The parts of the request that only a chat template reads (messages, tools, schema) stay JSON bytes, checked by the
caller against OpenAI's schema, so that the process in between never decodes them.

Everything here is data or a protocol: importing it costs nothing but msgspec.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Annotated, Literal, Protocol, runtime_checkable

from msgspec import Meta, Struct

NonNegativeSeconds = Annotated[float, Meta(ge=0)]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]
ErrorKind = Literal["prompt_too_long", "unsupported", "invalid", "busy", "internal", "died"]


Share = Annotated[float, Meta(ge=0, le=1)]
Breaker = Annotated[str, Meta(min_length=1, max_length=40)]


class Samplers(Struct, frozen=True, omit_defaults=True):
    """What OpenAI's API can't set: vLLM's names, and llama.cpp's and ExLlamaV2's beyond those. None is neutral.

    Truncation is in this order: ``top_k``, ``typical_p``, ``top_p``, ``min_p``, then XTC.

    Source: https://docs.vllm.ai/en/latest/api/vllm/sampling_params.html;
    https://github.com/oobabooga/text-generation-webui/pull/5677 (DRY) and 6335 (XTC)
    """

    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    """So many of the likeliest tokens; 0 and -1 are all."""
    min_p: Share | None = None
    """Tokens at least so probable as this share of the likeliest one's."""
    typical_p: Share | None = None
    """The tokens nearest to the expected surprise, up to this mass; 0 and 1 are all."""
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=10)] | None = None
    """Divides the positive logits of tokens that prompt or answer have, and multiplies the negative ones."""
    dry_multiplier: Annotated[float, Meta(ge=0, le=100)] | None = None
    """What a token is charged that would repeat ``dry_allowed_length`` tokens and itself; 0 charges nothing."""
    dry_base: Annotated[float, Meta(ge=1, le=100)] | None = None
    """By what the charge grows with each further token that would be repeated; 1.75."""
    dry_allowed_length: Annotated[int, Meta(ge=1, le=2**16)] | None = None
    """2."""
    dry_sequence_breakers: (
        Annotated[tuple[Breaker, ...], Meta(min_length=1, max_length=64)] | None
    ) = None
    """Texts over which nothing counts as repeated; None takes the engine's own."""
    xtc_probability: Share | None = None
    """How often all tokens above ``xtc_threshold`` but the least probable one are left out; 0 is never."""
    xtc_threshold: Share | None = None
    """0.1; above 0.5 nothing is ever left out."""


class Sampling(Samplers, frozen=True, omit_defaults=True):
    """How the next token is chosen; OpenAI's ranges. None is the engine's neutral value (1, 1, 0, 0)."""

    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None


class GenerateRequest(Struct, frozen=True, omit_defaults=True):
    """One request. The bytes fields are JSON, in the shape of OpenAI's parameters of the same names."""

    messages: bytes
    sampling: Sampling = Sampling()
    max_tokens: int | None = None
    """Most tokens to write per choice; None lets the engine go to the end of its context."""
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    tools: bytes | None = None
    tool_choice: bytes | None = None
    parallel_tool_calls: bool = True
    response_format: bytes | None = None
    prompt: str | None = None
    """Text to go on from, as it is: no chat template. Then ``messages`` is ``[]``, and there are no tools."""
    continue_final: bool = False
    """The last message is the assistant's and unfinished: the answer is what follows its text, from the very next
    character on. An engine that can't do so for the rest of the request says ``unsupported``."""


class TopLogprob(Struct, frozen=True, array_like=True):
    """A token that could have been, and its log-probability."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None


class TokenLogprob(Struct, frozen=True, array_like=True):
    """A token that was written, its log-probability and the most probable ones at its place."""

    token: str
    logprob: float
    bytes: tuple[int, ...] | None = None
    top: tuple[TopLogprob, ...] = ()


class ToolCallDelta(Struct, frozen=True, array_like=True):
    """A piece of a tool call: the first of an index carries id and name, later ones only arguments."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


class Delta(Struct, frozen=True, array_like=True, tag="delta"):
    """What one choice wrote since its last delta."""

    choice: int
    text: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    """What a model thinks before it answers, where the engine can tell the two apart."""


class Finish(Struct, frozen=True, array_like=True, tag="finish"):
    """A choice is complete, and why."""

    choice: int
    reason: FinishReason


class Usage(Struct, frozen=True, array_like=True, tag="usage"):
    """The last event: what the whole request took. Prompt counted once, completions summed over choices."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0


Event = Delta | Finish | Usage


class WorkCosts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What work costs on an engine, in seconds; the model behind it is in docs/balancing.md.

    A prompt of *n* tokens behind *c* cached ones takes ``prefill_token_s`` * n + ``attention_s`` * n * (c + n / 2); a
    step of *b* answers over *t* tokens of context takes ``step_s`` + ``request_s`` * b + ``context_s`` * t.
    """

    prefill_token_s: NonNegativeSeconds
    attention_s: NonNegativeSeconds = 0.0
    step_s: NonNegativeSeconds
    request_s: NonNegativeSeconds = 0.0
    context_s: NonNegativeSeconds = 0.0


class EngineInfo(Struct, frozen=True):
    """What an engine is, known once it is ready."""

    kind: str
    model: str
    context_tokens: int
    """Most tokens of prompt and answer together, per request."""
    slots: int
    """Requests it works on at the same time; more wait inside."""
    kv_tokens: int
    """Tokens the key-value cache holds in all."""
    costs: WorkCosts | None = None
    """What work costs on it, where it was measured."""
    device: str = ""
    """What it computes on: costs measured there hold for no other."""


class Health(Struct, frozen=True, array_like=True):
    """Where an engine stands. Progress is ``iterations``: it grows while work is done, whatever the work is."""

    iterations: int = 0
    running: int = 0
    waiting: int = 0
    kv_tokens_used: int = 0
    """Set aside for running requests; what is cached beside them can be had at once."""
    prompt_tokens_left: int = 0
    """Of running requests, still to be computed before their first token."""
    cached_tokens: int = 0
    """Prompt tokens that were found in the cache, since the start."""


class EngineError(Exception):
    """A request an engine could not serve.

    ``prompt_too_long``, ``unsupported`` and ``invalid`` are the request's fault and would fail again;
    ``busy`` passes; ``internal`` and ``died`` are the engine's.
    """

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.message = message


class Engine(Protocol):
    """A model that answers, in this process or behind a socket."""

    async def start(self) -> EngineInfo:
        """Load the model; returns when requests can be taken. Raises EngineError."""

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        """Events of one request: deltas and finishes of each choice, then one Usage.

        Raises EngineError from the iteration. Closing the iterator early (``aclose``, or cancelling the task
        that waits on it) cancels the work at once, queued or running.
        """

    def health(self) -> Health:
        """A snapshot; cheap, never blocks. Raises EngineError("died") where the engine will never work again."""

    async def close(self) -> None:
        """Stop all work and free the model."""


@runtime_checkable
class SlowLoader(Protocol):
    """An engine that knows how far its loading is."""

    @property
    def loaded(self) -> float | None:
        """Share of the model that is loaded, from 0 to 1."""
