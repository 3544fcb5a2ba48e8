"""Attention over a paged cache: what ExLlamaV2 asks of flash-attn, without flash-attn.

The generator calls one function, ``flash_attn_with_kvcache``, in one way: new keys and values (or none, where they
are in the cache already) are put behind what the cache holds, then each query attends to everything up to itself. Three
versions of it, from any device to the newest torch; ``install`` puts the best into the library.

**The library's own fallback is not causal**: its branch over torch's SDPA passes a block-diagonal mask, which is None,
wherever it should be causal, and answers wrongly without a word (exllamav2 0.3.2, attn.py, ``_attn_torch``). It is
switched off here, by name and by environment, before anything is computed; the branch it falls back to is right.

Windows and soft caps are honoured by these versions, so the library is told so: else it would drop them silently.

Source: https://github.com/Dao-AILab/flash-attention, flash_attn_interface.py
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

NO_SDPA = "EXLLAMA_NO_SDPA"
"""Set before the library is imported, it leaves the wrong branch out."""

Attention = Callable[..., Any]
UNLIMITED = (-1, -1)


class Unsafe(RuntimeError):  # noqa: N818 - the name says the state
    """Attention would be wrong; nothing may be computed."""


def _append(k: Any, v: Any, k_cache: Any, v_cache: Any, lengths: Any, table: Any) -> Any:
    """Put new keys and values into their pages; returns each row's length with them."""
    if k is None:
        return lengths
    size, count = k_cache.shape[1], k.shape[1]
    at = lengths.long()[:, None] + torch.arange(count, device=k.device)
    page = table.long().gather(1, at // size)
    k_cache[page, at % size] = k
    v_cache[page, at % size] = v
    return lengths + count


def masked(  # noqa: PLR0913 - flash-attn's signature
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    *,
    cache_seqlens: Any,
    block_table: Any,
    causal: bool = True,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> Any:
    """Attend by torch's SDPA under a mask, on any device. Copies the pages that the batch uses."""
    rows, count, heads, dim = q.shape
    size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    total = _append(k, v, k_cache, v_cache, cache_seqlens, block_table).long()
    span = block_table.shape[1] * size
    pages = block_table.long()
    keys = k_cache[pages].view(rows, span, kv_heads, dim).transpose(1, 2)
    values = v_cache[pages].view(rows, span, kv_heads, dim).transpose(1, 2)
    there = torch.arange(span, device=q.device)
    here = (total[:, None] - count + torch.arange(count, device=q.device))[..., None]
    seen = there <= here if causal else (there < total[:, None, None]).expand(rows, count, span)
    if window_size[0] is not None and window_size[0] >= 0:
        seen = seen & (there >= here - window_size[0])
    seen = seen[:, None]
    # Pages hold whatever was there before, NaN perhaps, which no weight of zero makes harmless.
    beyond = (there >= total[:, None])[:, None, :, None]
    keys, values = keys.masked_fill(beyond, 0), values.masked_fill(beyond, 0)
    queries = q.transpose(1, 2)
    if softcap:
        scale = dim**-0.5 if softmax_scale is None else softmax_scale
        keys = keys.repeat_interleave(heads // kv_heads, 1)
        values = values.repeat_interleave(heads // kv_heads, 1)
        scores = (queries.float() @ keys.transpose(-1, -2).float()) * scale
        scores = (torch.tanh(scores / softcap) * softcap).masked_fill(~seen, float("-inf"))
        mixed = scores.softmax(-1).to(q.dtype) @ values
    else:
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, seen, scale=softmax_scale, enable_gqa=heads != kv_heads
        )
    return mixed.transpose(1, 2).contiguous()


def gathered(  # noqa: PLR0913 - flash-attn's signature
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    *,
    cache_seqlens: Any,
    block_table: Any,
    causal: bool = True,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> Any:
    """Attend by torch's own FlashAttention kernel over copied pages; CUDA only, no mask, no wait for the GPU."""
    if softcap:
        return masked(
            q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, block_table=block_table,
            causal=causal, softmax_scale=softmax_scale, window_size=window_size, softcap=softcap,
        )  # fmt: skip
    rows, count, heads, dim = q.shape
    size, kv_heads = k_cache.shape[1], k_cache.shape[2]
    total = _append(k, v, k_cache, v_cache, cache_seqlens, block_table).int()
    span = block_table.shape[1] * size
    pages = block_table.long()
    keys = k_cache[pages].view(rows * span, kv_heads, dim)
    values = v_cache[pages].view(rows * span, kv_heads, dim)
    starts = {"device": q.device, "dtype": torch.int32}
    window = {}
    if window_size[0] is not None and window_size[0] >= 0:
        window = {"window_size_left": window_size[0], "window_size_right": 0}
    mixed = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - the only name it has
        q.reshape(rows * count, heads, dim), keys, values,
        torch.arange(0, (rows + 1) * count, count, **starts),
        torch.arange(0, (rows + 1) * span, span, **starts),
        count, span, 0.0, causal, False,  # noqa: FBT003 - torch's signature
        scale=softmax_scale, seqused_k=total, **window,
    )[0]  # fmt: skip
    return mixed.view(rows, count, heads, dim)


def by_table(  # noqa: PLR0913 - flash-attn's signature
    q: Any,
    k_cache: Any,
    v_cache: Any,
    k: Any = None,
    v: Any = None,
    *,
    cache_seqlens: Any,
    block_table: Any,
    causal: bool = True,
    softmax_scale: float | None = None,
    window_size: tuple[int, int] = UNLIMITED,
    softcap: float = 0.0,
) -> Any:
    """Attend by torch's ``varlen_attn`` with a block table, of torch 2.13 on: nothing is copied."""
    if softcap or not causal:
        return masked(
            q, k_cache, v_cache, k, v, cache_seqlens=cache_seqlens, block_table=block_table,
            causal=causal, softmax_scale=softmax_scale, window_size=window_size, softcap=softcap,
        )  # fmt: skip
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    rows, count, heads, dim = q.shape
    total = _append(k, v, k_cache, v_cache, cache_seqlens, block_table).int()
    starts = torch.arange(0, (rows + 1) * count, count, device=q.device, dtype=torch.int32)
    limited = window_size[0] is not None and window_size[0] >= 0
    mixed = attend(
        q.reshape(rows * count, heads, dim), k_cache, v_cache, starts, None,
        count, block_table.shape[1] * k_cache.shape[1],
        scale=softmax_scale, window_size=(window_size[0], 0) if limited else (-1, 0),
        seqused_k=total, block_table=block_table,
    )  # fmt: skip
    return mixed.view(rows, count, heads, dim)


def best() -> Attention:
    """Return the fastest version that this torch and this machine can run."""
    if not torch.cuda.is_available():
        return masked
    try:
        attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
        if "block_table" in inspect.signature(attend).parameters:
            return by_table
    except (ImportError, AttributeError):
        pass
    schema = str(torch.ops.aten._flash_attention_forward.default._schema)  # noqa: SLF001
    return gathered if "seqused_k" in schema else masked


def install(attention: Attention | None = None) -> str:
    """Make the library attend rightly; returns by what: ``flash-attn``, or the version's name.

    With flash-attn 2.5.7 or newer that stays in its place. Where a version that torch offers doesn't work on this
    machine (``best`` only asks for names), ``masked`` takes its place. Raises Unsafe.
    """
    os.environ[NO_SDPA] = "1"
    attn: Any = importlib.import_module("exllamav2.attn")
    attn.has_lower_right_sdpa = False
    ours = getattr(attn, "flash_attn_with_kvcache", None) in {masked, gathered, by_table}
    if attn.has_flash_attn_with_paged and attention is None and not ours:
        return "flash-attn"
    chosen = attention or best()
    if attention is None and not _works(chosen):
        chosen = masked
    attn.flash_attn_with_kvcache = chosen
    attn.has_flash_attn_with_paged = True
    attn.has_flash_attn_with_window = attn.has_flash_attn_with_softcap = True
    check(attn)
    return chosen.__name__


def check(attn: Any) -> None:
    """See that nothing but causal attention is left. Raises Unsafe."""
    if attn.has_lower_right_sdpa:
        raise Unsafe("exllamav2 would attend by SDPA, which is not causal there")
    if not attn.has_flash_attn_with_paged:
        raise Unsafe("exllamav2 has no paged attention")


def _works(attention: Attention) -> bool:
    """Whether a version agrees with ``masked`` on this machine."""
    if attention is masked:
        return True
    device, half = torch.device("cuda"), torch.half
    make = torch.Generator(device="cpu").manual_seed(0)

    def random(*shape: int) -> Any:
        return torch.randn(*shape, generator=make).to(device, half)

    keys, values = random(4, 256, 2, 64), random(4, 256, 2, 64)
    q, k, v = random(2, 3, 4, 64), random(2, 3, 2, 64), random(2, 3, 2, 64)
    table = torch.tensor([[1, 0], [3, 2]], dtype=torch.int32, device=device)
    lengths = torch.tensor([300, 5], dtype=torch.int32, device=device)

    def answer(version: Attention) -> Any:
        return version(
            q, keys.clone(), values.clone(), k, v,
            cache_seqlens=lengths, block_table=table, softmax_scale=0.125,
        )  # fmt: skip

    try:
        got, want = answer(attention), answer(masked)
        return bool((got.float() - want.float()).abs().max().item() < 1e-2)
    except (RuntimeError, TypeError):
        return False
