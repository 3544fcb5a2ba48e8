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
from msgspec import Struct
from torch.nn import functional

NO_SDPA = "EXLLAMA_NO_SDPA"
"""Set before the library is imported, it leaves the wrong branch out."""

Attention = Callable[..., Any]
UNLIMITED = (-1, -1)


class Unsafe(RuntimeError):  # noqa: N818 - the name says the state
    """Attention would be wrong; nothing may be computed."""


class Paged(Struct, frozen=True):
    """What is to be attended to: new queries, and pages that hold everything up to them."""

    q: Any
    """(rows, new tokens, heads, dim)"""
    k_cache: Any
    """(pages, tokens of a page, heads of keys, dim)"""
    v_cache: Any
    table: Any
    """Each row's pages, in their order."""
    totals: Any
    """Each row's tokens, the new ones included."""
    causal: bool
    scale: float | None
    window: int | None
    """How far back a query sees; None is all the way."""
    softcap: float

    @property
    def span(self) -> int:
        """Tokens that a row's pages hold."""
        return int(self.table.shape[1] * self.k_cache.shape[1])

    def copied(self) -> tuple[Any, Any]:
        """Return keys and values of each row, copied out of its pages: (rows, span, heads of keys, dim)."""
        pages = self.table.long()
        return self.k_cache[pages].flatten(1, 2), self.v_cache[pages].flatten(1, 2)


def _like_flash_attn(attend: Callable[[Paged], Any]) -> Attention:
    """Return ``attend`` as the library calls it: with flash-attn's signature, the new keys and values not yet there."""

    def attention(  # noqa: PLR0913 - flash-attn's signature
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
        window_size: tuple[int | None, int | None] = UNLIMITED,
        softcap: float = 0.0,
    ) -> Any:
        totals = cache_seqlens
        if k is not None:
            size, count = k_cache.shape[1], k.shape[1]
            at = totals.long()[:, None] + torch.arange(count, device=k.device)
            page = block_table.long().gather(1, at // size)
            k_cache[page, at % size] = k
            v_cache[page, at % size] = v
            totals = totals + count
        back = window_size[0]
        window = None if back is None or back < 0 else back
        return attend(
            Paged(q, k_cache, v_cache, block_table, totals, causal, softmax_scale, window, softcap)
        )

    attention.__name__ = attend.__name__.lstrip("_")
    attention.__doc__ = attend.__doc__
    return attention


def _masked(paged: Paged) -> Any:
    """Attend by torch's SDPA under a mask, on any device. Copies the pages that the batch uses."""
    q, totals = paged.q, paged.totals.long()
    count, heads, dim = q.shape[1:]
    keys, values = (copy.transpose(1, 2) for copy in paged.copied())
    group = heads // keys.shape[1]
    there = torch.arange(paged.span, device=q.device)
    here = (totals[:, None] - count + torch.arange(count, device=q.device))[..., None]
    last = here if paged.causal else totals[:, None, None] - 1
    seen = (there <= last).expand(-1, count, -1)
    if paged.window is not None:
        seen = seen & (there >= here - paged.window)
    seen = seen[:, None]
    # Pages hold whatever was there before, NaN perhaps, which no weight of zero makes harmless.
    beyond = (there >= totals[:, None])[:, None, :, None]
    keys, values = keys.masked_fill(beyond, 0), values.masked_fill(beyond, 0)
    queries = q.transpose(1, 2)
    if paged.softcap:
        scale = dim**-0.5 if paged.scale is None else paged.scale
        keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
        scores = (queries.float() @ keys.transpose(-1, -2).float()) * scale
        capped = torch.tanh(scores / paged.softcap) * paged.softcap
        mixed = capped.masked_fill(~seen, float("-inf")).softmax(-1).to(q.dtype) @ values
    else:
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, seen, scale=paged.scale, enable_gqa=group > 1
        )
    return mixed.transpose(1, 2).contiguous()


def _gathered(paged: Paged) -> Any:
    """Attend by torch's own FlashAttention kernel over copied pages; CUDA only, no mask, no wait for the GPU."""
    if paged.softcap:
        return _masked(paged)
    q, span = paged.q, paged.span
    rows, count = q.shape[:2]
    keys, values = paged.copied()
    limits = {}
    if paged.window is not None:
        limits = {"window_size_left": paged.window, "window_size_right": 0}
    starts = {"device": q.device, "dtype": torch.int32}
    mixed = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - the only name it has
        q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1),
        torch.arange(0, (rows + 1) * count, count, **starts),
        torch.arange(0, (rows + 1) * span, span, **starts),
        count, span, 0.0, paged.causal, False,  # noqa: FBT003 - torch's signature
        scale=paged.scale, seqused_k=paged.totals.int(), **limits,
    )[0]  # fmt: skip
    return mixed.view(q.shape)


def _by_table(paged: Paged) -> Any:
    """Attend by torch's ``varlen_attn`` with a block table, of torch 2.13 on: nothing is copied."""
    if paged.softcap or not paged.causal:
        return _masked(paged)
    attend = importlib.import_module("torch.nn.attention.varlen").varlen_attn
    q = paged.q
    rows, count = q.shape[:2]
    starts = torch.arange(0, (rows + 1) * count, count, device=q.device, dtype=torch.int32)
    mixed = attend(
        q.flatten(0, 1), paged.k_cache, paged.v_cache, starts, None, count, paged.span,
        scale=paged.scale, window_size=(-1 if paged.window is None else paged.window, 0),
        seqused_k=paged.totals.int(), block_table=paged.table,
    )  # fmt: skip
    return mixed.view(q.shape)


masked = _like_flash_attn(_masked)
gathered = _like_flash_attn(_gathered)
by_table = _like_flash_attn(_by_table)


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
    if attention is None and has_flash_attn():
        return "flash-attn"
    chosen = attention or best()
    if attention is None and not works(chosen):
        chosen = masked
    attn.flash_attn_with_kvcache = chosen
    attn.has_flash_attn_with_paged = True
    attn.has_flash_attn_with_window = attn.has_flash_attn_with_softcap = True
    check(attn)
    return chosen.__name__


def has_flash_attn() -> bool:
    """Whether the library found flash-attn itself, with pages; not one of these."""
    attn: Any = importlib.import_module("exllamav2.attn")
    ours = getattr(attn, "flash_attn_with_kvcache", None) in {masked, gathered, by_table}
    return bool(attn.has_flash_attn_with_paged) and not ours


def check(attn: Any) -> None:
    """See that nothing but causal attention is left. Raises Unsafe."""
    if attn.has_lower_right_sdpa:
        raise Unsafe("exllamav2 would attend by SDPA, which is not causal there")
    if not attn.has_flash_attn_with_paged:
        raise Unsafe("exllamav2 has no paged attention")


def works(attention: Attention) -> bool:
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
