"""Attention written out, cases of it over pages, and the library's own without flash-attn."""

from __future__ import annotations

from types import SimpleNamespace

import torch


def written_out(q, keys, values, totals, scale, window=None, softcap=0.0):  # noqa: PLR0917
    outs = []
    for row in range(q.shape[0]):
        total, count = totals[row], q.shape[1]
        group = q.shape[2] // keys[row].shape[1]
        k = keys[row][:total].repeat_interleave(group, 1)
        v = values[row][:total].repeat_interleave(group, 1)
        scores = torch.einsum("thd,shd->hts", q[row], k) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        i, j = torch.arange(count)[:, None] + total - count, torch.arange(total)[None]
        seen = j <= i
        if window is not None:
            seen &= j >= i - window
        scores = scores.masked_fill(~seen, float("-inf"))
        outs.append(torch.einsum("hts,shd->thd", scores.softmax(-1), v))
    return torch.stack(outs)


def case(count, *, append, window=None, softcap=0.0, dim=16):
    """Arguments of flash-attn's function over three rows in pages, and those of `written_out` for the same."""
    make = torch.Generator().manual_seed(count)
    heads, kv_heads, past = 4, 2, [5, 300, 255]

    def random(*shape):
        return torch.randn(*shape, generator=make)

    k_cache, v_cache = random(12, 256, kv_heads, dim), random(12, 256, kv_heads, dim)
    table = torch.randperm(12, generator=make)[:9].view(3, 3).int()
    q, k, v = (
        random(3, count, heads, dim),
        random(3, count, kv_heads, dim),
        random(3, count, kv_heads, dim),
    )
    totals = [length + count for length in past]
    pages = [table[row].long() for row in range(3)]
    keys = [k_cache[p].reshape(-1, kv_heads, dim) for p in pages]
    values = [v_cache[p].reshape(-1, kv_heads, dim) for p in pages]
    for row, length in enumerate(past):  # what no request has written may be anything
        keys[row][length : totals[row]], values[row][length : totals[row]] = k[row], v[row]
        for at in range(length, 768):
            there = table[row, at // 256], at % 256
            new = not append and at < totals[row]
            k_cache[there] = k[row, at - length] if new else float("nan")
            v_cache[there] = v[row, at - length] if new else float("nan")
    given = {
        "q": q, "k_cache": k_cache, "v_cache": v_cache, "block_table": table, "causal": True,
        "cache_seqlens": torch.tensor(past if append else totals, dtype=torch.int32),
        "softmax_scale": 0.25, "softcap": softcap,
    }  # fmt: skip
    if append:
        given |= {"k": k, "v": v}
    if window is not None:
        given["window_size"] = (window, window)
    return given, (q, keys, values, totals, 0.25, window, softcap)


def fallback(attn, sdpa):
    """The library's own attention over 6 tokens, without flash-attn."""
    make = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 6, 2, 16, generator=make) for _ in range(3))
    layer = SimpleNamespace(
        num_key_value_groups=1, sliding_window=0, layer_idx=0, scaling=0.25,
        repeat_kv=lambda states, count: states,
    )  # fmt: skip
    attn.has_lower_right_sdpa = sdpa
    config = SimpleNamespace(no_sdpa=False, attn_logit_softcapping=None)
    params = attn.ExLlamaV2Attention.Params(1, 6, 0, None, None)
    got = attn.ExLlamaV2Attention._attn_torch(layer, 1, 6, q, k, v.half() if not sdpa else v,
                                              params, config)  # fmt: skip
    return got.view(1, 6, 2, 16), (q, k, v)
