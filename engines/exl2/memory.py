"""What a model needs of GPUs' memory, known before anything is loaded, and what to change where it doesn't fit.

The weights, but for an embedding that stays in the machine's own memory; the cache, and one layer's worth of plain
cache beside a quantised one, on each GPU. These are exact (of exllamav3 the weights alone): what doesn't hold them is
refused. The rest is the library's own arithmetic where it has one (its scratch space, what it keeps free while it
loads), and a margin for what CUDA takes for itself: where only that is lacking it is tried, for a margin is no reason
to refuse a model that may fit.

Source: https://github.com/turboderp-org/exllamav2 at 0.3.2: cache.py, model.py (load_autosplit_gen),
``scratch_space_fixed`` of linear.py, attn.py and mlp.py
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, get_args

from msgspec import Struct
from msgspec.structs import replace

from engines.base import EngineError
from engines.exl2.folder import ModelFolder
from engines.gpus import NoAnswer, gpus
from engines.specs import CacheFormat, ExLlamaSpec, ExLlamaV2Spec

PAGE_TOKENS = 256
"""Of the generator's pages; a cache is a whole number of them."""

STEP_TOKENS = 8
"""Of one request in one step, guesses counted: the library's own ``max_q_size``."""

MIB, GIB = 1 << 20, 1 << 30
CUDA_BYTES = GIB // 2
"""A CUDA context with torch's kernels, on each GPU; 0.3 to 0.6 GiB from one version to the next."""

LOADING_BYTES = (192 + 256) * MIB
"""What the library keeps free on a GPU while it loads onto it; attention and the sampler have it afterwards."""

MAX_DEQUANTIZED = 512 * 1024 * 1024
"""Elements that it makes plain at a time; room for them stays, where weights are quantised."""

CACHE_BYTES: dict[CacheFormat, float] = {
    "fp16": 4.0,
    "q8": 2.0 + 4 / 32,
    "q6": 1.5 + 4 / 32,
    "q4": 1.0 + 4 / 32,
}
"""Of one element's key and value together; quantised ones have a half-precision scale for each 32 elements."""

LEAST_TOKENS = 2048
"""A smaller cache serves nobody; it isn't advised."""


class Estimate(Struct, frozen=True):
    """Bytes, over all GPUs together."""

    weights: int
    cache: int
    beside: int
    """Scratch space, a step's states, and the margin."""
    sure: int
    """What it takes at the very least."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.beside


Room = Literal["fits", "tight", "too big"]
"""``tight``: weights and cache have room, what is needed beside them perhaps not."""


class Verdict(Struct, frozen=True):
    """Whether a model fits into what is free."""

    room: Room
    needed: Estimate
    free: int
    advice: str = ""
    """What to change; empty where it fits."""


def token_bytes(folder: ModelFolder, form: CacheFormat) -> int:
    """What a token's keys and values take in all layers."""
    return int(folder.layers * folder.kv_heads * folder.head_dim * CACHE_BYTES[form])


def cache_bytes(folder: ModelFolder, tokens: int, form: CacheFormat, gpus: int = 1) -> int:
    """What the keys and values of so many tokens take, with the plain layer beside a quantised cache."""
    plain = 0 if form == "fp16" else int(CACHE_BYTES["fp16"]) * folder.kv_heads * folder.head_dim
    return (token_bytes(folder, form) + gpus * plain) * tokens


def scratch_bytes(folder: ModelFolder, rows: int) -> int:
    """The library's fixed scratch space on one GPU, for forward passes of so many tokens; plain weights need none."""
    if folder.format == "fp16":
        return 0
    wide = max(folder.hidden, folder.intermediate)
    head = 2 * min(folder.hidden * folder.vocabulary, MAX_DEQUANTIZED)
    block = 2 * min(folder.hidden * wide, MAX_DEQUANTIZED) + 2 * rows * (folder.hidden + 2 * wide)
    return max(head, block)


def pages_of(tokens: int) -> int:
    """How many pages hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


def estimate(folder: ModelFolder, spec: ExLlamaSpec, draft: ModelFolder | None = None) -> Estimate:
    """What ``spec`` takes."""
    tokens = pages_of(spec.cache_tokens) * PAGE_TOKENS
    count = len(spec.gpus)
    rows = max(pages_of(spec.prefill_chunk_tokens) * PAGE_TOKENS, STEP_TOKENS * spec.slots)
    weights = cache = beside = 0
    for one in (folder, draft):
        if one is not None:
            weights += one.gpu_bytes
            cache += cache_bytes(one, tokens, spec.cache, count)
            angles = 4 * one.head_dim * min(one.context_tokens, tokens)
            beside += count * (scratch_bytes(one, rows) + angles)
    states = 2 * rows * (folder.vocabulary + 8 * folder.hidden + 2 * folder.intermediate)
    beside += count * (CUDA_BYTES + LOADING_BYTES) + states
    # exllamav3 knows layers that cache less, or nothing, and attends without a plain layer.
    sure = weights + cache if isinstance(spec, ExLlamaV2Spec) else weights
    return Estimate(weights, cache, beside, sure)


def most_cache_tokens(
    folder: ModelFolder, spec: ExLlamaSpec, free: int, draft: ModelFolder | None = None
) -> int:
    """The largest ``cache_tokens`` that fits into ``free`` bytes beside the model; 0 for none."""
    one, two = (
        estimate(folder, replace(spec, cache_tokens=pages * PAGE_TOKENS), draft).total
        for pages in (1, 2)
    )
    if one == two:  # of a model that doesn't say its sizes
        return 0
    return max(0, (free - one) // (two - one) + 1) * PAGE_TOKENS


def judge(
    folder: ModelFolder, spec: ExLlamaSpec, free: int, draft: ModelFolder | None = None
) -> Verdict:
    """Whether it fits into ``free`` bytes, those of all its GPUs together, and what to change where it doesn't."""
    needed = estimate(folder, spec, draft)
    if needed.total <= free:
        return Verdict("fits", needed, free)
    said = f"it needs about {gib(needed.total)} and {gib(free)} are free"
    ways = list(_ways(folder, spec, free, draft))
    ways = ways or ["add a GPU to `gpus`, or take a model with fewer bits"]
    room: Room = "tight" if needed.sure <= free else "too big"
    return Verdict(room, needed, free, f"{said}: {', or '.join(ways)}")


def _ways(
    folder: ModelFolder, spec: ExLlamaSpec, free: int, draft: ModelFolder | None
) -> Iterator[str]:
    """What to set, the least loss first."""
    smaller = get_args(CacheFormat)[get_args(CacheFormat).index(spec.cache) + 1 :]
    most = {
        form: most_cache_tokens(folder, replace(spec, cache=form), free, draft)
        for form in (spec.cache, *smaller)
    }
    enough = next((form for form in smaller if most[form] >= spec.cache_tokens), None)
    if enough is not None:
        yield f"set `cache: {enough}`"
    if most[spec.cache] >= LEAST_TOKENS:
        yield f"set `cache_tokens: {most[spec.cache]}`"
    elif enough is None and most["q4"] >= LEAST_TOKENS:
        yield f"set `cache: q4` and `cache_tokens: {most['q4']}`"


def demand_room(
    folder: ModelFolder, spec: ExLlamaSpec, free: int | None, draft: ModelFolder | None = None
) -> str:
    """A warning where it is tight, else nothing. Raises EngineError("invalid") where it can't fit.

    ``free`` None: nobody knows, so nothing is said.
    """
    if free is None:
        return ""
    verdict = judge(folder, spec, free, draft)
    if verdict.room == "too big":
        raise EngineError("invalid", f"{folder.name} doesn't fit: {verdict.advice}")
    return f"{folder.name} may not fit: {verdict.advice}" if verdict.room == "tight" else ""


def free_bytes(wanted: Sequence[int]) -> int | None:
    """What is free on these GPUs, by the driver; None where nobody says."""
    try:
        found = gpus()
    except NoAnswer:
        return None
    if found is None:
        return None
    free = {gpu.index: gpu.free_bytes for gpu in found}
    return sum(free.get(index, 0) for index in wanted)


def gib(count: int) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GiB"
