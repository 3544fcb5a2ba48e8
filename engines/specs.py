"""What each kind of engine is told at its start: the shape of `engines:` in a config and of a node's orders."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

Positive = Annotated[int, Meta(ge=1)]
NonNegative = Annotated[float, Meta(ge=0)]


class LlamaCppSpec(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="llamacpp"
):
    """llama.cpp on CPU (or whatever backend its wheel was built for)."""

    model: str
    """A .gguf file, or ``starter`` for the small model that comes with the package."""
    slots: Positive = 4
    """Requests served at the same time; more wait inside."""
    context_tokens: Positive = 4096
    """Most tokens of prompt and answer together, per request."""
    threads: Positive | None = None
    """Threads for inference; None takes the cores this process may use."""


class ExLlamaV2Spec(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="exllamav2"
):
    """ExLlamaV2 on NVIDIA GPUs."""

    model: str
    """A folder with an EXL2 or FP16 model."""
    gpus: tuple[int, ...] = (0,)
    cache_tokens: Positive = 16384
    """Tokens the paged cache holds for all requests together."""
    context_tokens: Positive | None = None
    slots: Positive = 16


class SimulatedSpec(
    Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="simulated"
):
    """A model of an engine: right in its timing, not in its words. For tests and capacity planning."""

    ttft_ms: NonNegative = 50.0
    """Time of one prefill step of an empty batch, beside what ``prefill_tokens_per_s`` adds."""
    tokens_per_s: Annotated[float, Meta(gt=0)] = 100.0
    """Decoding speed of one request alone in the batch."""
    prefill_tokens_per_s: Annotated[float, Meta(gt=0)] = 20_000.0
    batch_penalty: NonNegative = 0.02
    """Share by which each further request in the batch lengthens a decode step."""
    slots: Positive = 32
    context_tokens: Positive = 8192
    kv_tokens: Positive = 131_072
    prefill_chunk_tokens: Positive = 2048
    answer_tokens: Positive = 64
    """Tokens of an answer where the request sets no limit."""
    seed: int = 0
    faults: dict[str, float] = {}
    """Fault name to probability per request; see engines.simulated.faults."""


EngineSpec = LlamaCppSpec | ExLlamaV2Spec | SimulatedSpec
