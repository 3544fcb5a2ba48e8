"""How a model would be served for so many requests of such a length: settings that fit, as near to the wish as can be.

Pure. Where what is wished doesn't fit, the least loss comes first: a cache of 8 or 6 bits on the same GPU, more GPUs,
a cache of 4 bits, and only then fewer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from engines import starter
from engines.exl2 import memory
from engines.exl2.folder import ModelFolder
from engines.exl2.memory import LEAST_TOKENS, PAGE_TOKENS, estimate, pages_of
from engines.gpus import Gpu
from engines.probe import STARTER, Report
from engines.specs import AnyExLlama, CacheFormat, ExLlamaV2Spec, LlamaCppSpec

CONTEXT_TOKENS = 8192
"""Of a request, where nobody wishes another; no more than the model has."""

LLAMACPP_BYTES = 256 << 20
"""What llama.cpp takes beside weights and cache for buffers and itself; more for large vocabularies and batches."""


class Wish(Struct, frozen=True):
    """What is to be served."""

    parallel: int = 4
    """Requests at the same time."""
    context_tokens: int | None = None
    """Most tokens of each, prompt and answer together."""
    cache: CacheFormat = "fp16"

    def context_of(self, model_tokens: int) -> int:
        """What a model with so long a context gives of it."""
        return min(self.context_tokens or CONTEXT_TOKENS, model_tokens or CONTEXT_TOKENS)


class Need(Struct, frozen=True):
    """Bytes that a form of the cache would take."""

    cache: str
    weights: int
    keys_and_values: int
    beside: int
    total: int


class Plan(Struct, frozen=True, kw_only=True):
    """Settings, and what they take."""

    spec: AnyExLlama | LlamaCppSpec
    wished_tokens: int
    """Of context, as far as the model has them."""
    context_tokens: int
    parallel: int
    needs: tuple[Need, ...]
    """As wished, for each form of the cache that the engine has."""
    total: int
    """What ``spec`` takes."""
    free: int | None
    """On the GPUs of ``spec``, or in memory; None where nobody says."""
    room: Literal["fits", "too big", "unknown"]
    changes: tuple[str, ...] = ()
    """How ``spec`` differs from the wish."""


def on_gpus(
    folder: ModelFolder,
    wish: Wish,
    gpus: Sequence[Gpu],
    kind: type[AnyExLlama] = ExLlamaV2Spec,
) -> Plan:
    """Plan for one of ExLlama's libraries; ``gpus`` empty: nobody knows what there is."""
    context = wish.context_of(folder.context_tokens)
    spec: AnyExLlama = kind(
        model=str(folder.path.resolve()),
        cache_tokens=pages_of(context * wish.parallel) * PAGE_TOKENS,
        cache=wish.cache,
        context_tokens=context,
        slots=wish.parallel,
    )
    free = {gpu.index: gpu.free_bytes for gpu in gpus}
    chosen = spec if not gpus else next(_fitting(folder, spec, free), None)
    changes = () if chosen is None else tuple(_changes(spec, chosen))
    final = chosen or replace(spec, gpus=tuple(sorted(free)))
    return Plan(
        spec=final,
        wished_tokens=context,
        context_tokens=min(context, final.cache_tokens),
        parallel=wish.parallel,
        needs=tuple(_needs(folder, spec)),
        total=estimate(folder, final).total,
        free=sum(free[index] for index in final.gpus) if gpus else None,
        room="unknown" if not gpus else "too big" if chosen is None else "fits",
        changes=changes,
    )


def _needs(folder: ModelFolder, spec: AnyExLlama) -> Iterator[Need]:
    for form in get_args(CacheFormat):
        found = estimate(folder, replace(spec, cache=form))
        yield Need(form, found.weights, found.cache, found.beside, found.total)


def _fitting(folder: ModelFolder, spec: AnyExLlama, free: dict[int, int]) -> Iterator[AnyExLlama]:
    """Settings that fit, the best first."""
    forms = get_args(CacheFormat)[get_args(CacheFormat).index(spec.cache) :]
    good = [form for form in forms if form != "q4"] or ["q4"]
    roomy = sorted(free, key=lambda index: (-free[index], index))
    counts = range(1, len(roomy) + 1)
    tries = [(count, form) for count in counts for form in good] + [(n, "q4") for n in counts]
    for count, form in tries:
        gpus = tuple(sorted(roomy[:count]))
        one = replace(spec, gpus=gpus, cache=form)
        if estimate(folder, one).total <= sum(free[index] for index in gpus):
            yield one
    every = replace(spec, gpus=tuple(sorted(free)), cache="q4")
    most = memory.most_cache_tokens(folder, every, sum(free.values()))
    if most >= LEAST_TOKENS:
        context = min(spec.context_tokens or most, most)
        yield replace(every, cache_tokens=most, context_tokens=context)


def _changes(wished: AnyExLlama, spec: AnyExLlama) -> Iterator[str]:
    if spec.cache != wished.cache:
        yield f"cache {spec.cache} instead of {wished.cache}"
    if len(spec.gpus) > 1:
        yield f"over {len(spec.gpus)} GPUs"
    if spec.cache_tokens != wished.cache_tokens:
        yield f"{spec.cache_tokens} tokens of cache instead of {wished.cache_tokens}"
    if spec.context_tokens != wished.context_tokens:
        yield f"{spec.context_tokens} tokens of context instead of {wished.context_tokens}"


def in_memory(report: Report, wish: Wish, free: int | None) -> Plan:
    """Plan for llama.cpp, of what a probed file is; ``free`` bytes of this machine's memory."""
    wished = wish.context_of(report.context_tokens)
    per_token = report.token_bytes["fp16"] * wish.parallel
    bare = report.weight_bytes + LLAMACPP_BYTES
    context = wished
    if free is not None and per_token and bare + per_token * wished > free:
        context = max(0, (free - bare) // per_token) // PAGE_TOKENS * PAGE_TOKENS
    fits = context >= min(wished, LEAST_TOKENS)
    context = context if fits else wished
    total = bare + per_token * context
    changes = (f"{context} tokens of context instead of {wished}",) if context != wished else ()
    held = per_token * wished
    needs = Need("fp16", report.weight_bytes, held, LLAMACPP_BYTES, bare + held)
    return Plan(
        spec=LlamaCppSpec(model=_named(report), slots=wish.parallel, context_tokens=context),
        wished_tokens=wished,
        context_tokens=context,
        parallel=wish.parallel,
        needs=(needs,),
        total=total,
        free=free,
        room="unknown" if free is None else "fits" if fits else "too big",
        changes=changes,
    )


def _named(report: Report) -> str:
    """As a config names it."""
    return STARTER if report.path == str(starter.gguf_path()) else report.path
