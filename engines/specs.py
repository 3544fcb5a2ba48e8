"""What each kind of engine is told at its start: the shape of `engines:` in a config and of a node's orders."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engines.base import WorkCosts

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
    costs: WorkCosts | None = None
    """What work costs on it, for balancing; None takes the router's guess."""


CacheFormat = Literal["fp16", "q8", "q6", "q4"]


class ExLlamaSpec(Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind"):
    """What both of ExLlama's libraries are told. Sizes of the cache are rounded up to pages of 256 tokens."""

    model: str
    """A folder of what the library reads."""
    gpus: Annotated[tuple[int, ...], Meta(min_length=1)] = (0,)
    """As nvidia-smi numbers them. Several are filled one after another, as far as the model needs them."""
    gpu_split_gib: tuple[NonNegative, ...] | None = None
    """GiB of the model for each of ``gpus``; None fills each in turn."""
    tensor_parallel: bool = False
    """Every layer over all ``gpus``, instead of whole layers on each."""
    cache_tokens: Positive = 16384
    """Tokens the paged cache holds for all requests together."""
    cache: CacheFormat = "fp16"
    """How keys and values are kept. q8 and q6 halve the cache and more at hardly a loss, q4 quarters it."""
    context_tokens: Positive | None = None
    """Most tokens of prompt and answer together, per request; None takes the model's, as far as the cache holds it."""
    slots: Annotated[int, Meta(ge=1, le=256)] = 16
    """Answers written at the same time; more wait inside."""
    answer_tokens: Positive = 4096
    """Tokens of an answer whose request sets no limit: pages are set aside for them when it starts."""
    prefill_chunk_tokens: Annotated[int, Meta(ge=256, le=8192)] = 512
    """Of each prompt that are computed between two steps of the running answers. More is faster for prompts, and
    makes answers stutter."""
    draft_model: str | None = None
    """A folder with a small model of the same vocabulary, which guesses ahead. For few requests at a time."""
    draft_tokens: Annotated[int, Meta(ge=1, le=7)] = 4
    """How far ahead is guessed."""
    template: str | None = None
    """A file with a chat template, instead of the model's own."""
    costs: WorkCosts | None = None
    """What work costs on it, for balancing; None measures it when the model is loaded, and remembers."""


class ExLlamaV2Spec(ExLlamaSpec, frozen=True, forbid_unknown_fields=True, tag="exllamav2"):
    """ExLlamaV2 on NVIDIA GPUs: EXL2, GPTQ and half-precision models. ``tensor_parallel`` needs flash-attn."""

    ngram_draft: bool = False
    """Guess ahead from what the text has repeated so far; instead of ``draft_model``."""
    loras: tuple[str, ...] = ()
    """Folders of adapters, applied to every request."""


class ExLlamaV3Spec(ExLlamaSpec, frozen=True, forbid_unknown_fields=True, tag="exllamav3"):
    """ExLlamaV3 on NVIDIA GPUs: EXL3 and half-precision models."""


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
    costs: WorkCosts | None = None
    """What work costs on it, for balancing; None takes the figures above."""


AnyExLlama = ExLlamaV2Spec | ExLlamaV3Spec
EngineSpec = LlamaCppSpec | ExLlamaV2Spec | ExLlamaV3Spec | SimulatedSpec
