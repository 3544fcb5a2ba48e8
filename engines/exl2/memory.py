"""What a model needs of a GPU's memory, estimated before anything is loaded, and what to change where it doesn't fit.

The weights but for the embedding, the cache, one layer's worth of plain cache beside a quantised one, the library's
scratch space, and what CUDA takes for itself. Weights and cache are exact; the rest is a margin.
"""

from __future__ import annotations

import shutil
import subprocess

from msgspec import Struct
from msgspec.structs import replace

from engines.exl2.folder import ModelFolder
from engines.specs import CacheFormat, ExLlamaV2Spec

PAGE_TOKENS = 256
"""Of the generator's pages; a cache is a whole number of them."""

GIB = 1 << 30
CUDA_BYTES = GIB // 2
"""A CUDA context with torch's kernels, on each GPU; 0.3 to 0.6 GiB from one version to the next."""

SCRATCH_BYTES = GIB // 2
"""For a quantised model the library dequantises up to 512 Mi elements at a time, in pieces; half a GiB stays."""

CACHE_BYTES: dict[CacheFormat, float] = {
    "fp16": 4.0,
    "q8": 2.0 + 4 / 32,
    "q6": 1.5 + 4 / 32,
    "q4": 1.0 + 4 / 32,
}
"""Of one element's key and value together; quantised ones have a half-precision scale for each 32 elements."""


class Estimate(Struct, frozen=True):
    """Bytes, over all GPUs together."""

    weights: int
    cache: int
    beside: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.cache + self.beside


def cache_bytes(folder: ModelFolder, tokens: int, form: CacheFormat) -> int:
    """Return what the keys and values of so many tokens take."""
    elements = folder.kv_heads * folder.head_dim
    plain = 0 if form == "fp16" else int(CACHE_BYTES["fp16"] * elements) * tokens
    return int(folder.layers * elements * CACHE_BYTES[form]) * tokens + plain


def pages_of(tokens: int) -> int:
    """Return how many pages hold so many tokens."""
    return -(-tokens // PAGE_TOKENS)


def estimate(
    folder: ModelFolder, spec: ExLlamaV2Spec, draft: ModelFolder | None = None
) -> Estimate:
    """Return what ``spec`` takes."""
    tokens = pages_of(spec.cache_tokens) * PAGE_TOKENS
    weights = folder.weight_bytes - folder.embedding_bytes
    cache = cache_bytes(folder, tokens, spec.cache)
    if draft is not None:
        weights += draft.weight_bytes - draft.embedding_bytes
        cache += cache_bytes(draft, tokens, spec.cache)
    rows = max(spec.prefill_chunk_tokens, 8 * spec.slots)
    states = 2 * rows * (8 * folder.hidden + folder.vocabulary // 8)
    return Estimate(weights, cache, len(spec.gpus) * (CUDA_BYTES + SCRATCH_BYTES) + states)


def most_cache_tokens(folder: ModelFolder, spec: ExLlamaV2Spec, free: int) -> int:
    """Return the largest ``cache_tokens`` that leaves the model room in ``free`` bytes; 0 for none."""
    bare = estimate(folder, replace(spec, cache_tokens=PAGE_TOKENS))
    one_page = cache_bytes(folder, PAGE_TOKENS, spec.cache)
    left = free - bare.weights - bare.beside
    return max(0, left // one_page) * PAGE_TOKENS


def advice(folder: ModelFolder, spec: ExLlamaV2Spec, free: int) -> str:
    """Return what to change so that it fits into ``free`` bytes; empty where it fits."""
    needed = estimate(folder, spec).total
    if needed <= free:
        return ""
    said = f"it needs about {needed / GIB:.1f} GiB and {free / GIB:.1f} GiB are free"
    forms: list[CacheFormat] = ["fp16", "q8", "q6", "q4"]
    for form in forms[forms.index(spec.cache) :]:
        tokens = most_cache_tokens(folder, replace(spec, cache=form), free)
        if tokens >= min(spec.cache_tokens, folder.context_tokens or spec.cache_tokens):
            return f"{said}: set `cache: {form}`"
        if tokens >= 2048 and form == "q4":
            return f"{said}: set `cache: q4` and `cache_tokens: {tokens}`"
    return f"{said}: add a GPU to `gpus`, or take a model with fewer bits"


def free_bytes(gpus: tuple[int, ...]) -> int | None:
    """Return what is free on these GPUs, by nvidia-smi; None where nobody says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603 - the driver's tool
        rows = [line.split(",") for line in done.stdout.splitlines()]
        free = {int(index): int(mib) << 20 for index, mib in rows}
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return sum(free.get(gpu, 0) for gpu in gpus)
