"""Attention over pages, against attention written out; and the library's wrong branch, which must stay shut."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from engines.exl2 import paged_attention  # noqa: E402 - after the skip


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


@pytest.mark.parametrize("softcap", [0.0, 20.0])
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("count", [1, 5, 130])
def test_masked_is_attention(count, append, window, softcap):
    make = torch.Generator().manual_seed(count)
    heads, kv_heads, dim, past = 4, 2, 16, [5, 300, 255]

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
    for row, length in enumerate(past):  # what no request has written may be anything
        for at in range(length if append else length + count, 768):
            k_cache[table[row, at // 256], at % 256] = float("nan")
            v_cache[table[row, at // 256], at % 256] = float("nan")
        if not append:
            for t in range(count):
                page = table[row, (length + t) // 256]
                k_cache[page, (length + t) % 256] = k[row, t]
                v_cache[page, (length + t) % 256] = v[row, t]
    lengths = torch.tensor(past if append else totals, dtype=torch.int32)
    given = {"k": k, "v": v} if append else {}
    if window is not None:
        given["window_size"] = (window, window)
    got = paged_attention.masked(
        q=q, k_cache=k_cache, v_cache=v_cache, cache_seqlens=lengths, block_table=table,
        causal=True, softmax_scale=0.25, softcap=softcap, **given,
    )  # fmt: skip
    pages = [table[row].long() for row in range(3)]
    keys = [k_cache[p].reshape(-1, kv_heads, dim) for p in pages]
    values = [v_cache[p].reshape(-1, kv_heads, dim) for p in pages]
    wanted = written_out(q, keys, values, totals, 0.25, window, softcap)
    assert torch.allclose(got, wanted, atol=1e-5)


@pytest.fixture
def attn(exl2_harness, monkeypatch):
    from exllamav2 import attn

    import tests.engines.exl2.harness  # noqa: F401 - the stub first

    monkeypatch.setattr(attn, "has_lower_right_sdpa", True)
    monkeypatch.setattr(attn, "has_flash_attn_with_paged", False)
    monkeypatch.setattr(attn, "flash_attn_with_kvcache", None, raising=False)
    return attn


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


def test_the_library_without_flash_attn_is_not_causal(attn):
    """Why the branch is shut: the first token's answer depends on the last."""
    got, (q, k, v) = fallback(attn, sdpa=True)
    wanted = written_out(q, k, v, [6], 0.25)
    assert not torch.allclose(got[:, 0], wanted[:, 0], atol=0.1)
    assert torch.allclose(got[:, 5], wanted[:, 5], atol=1e-5)


def test_installing_shuts_the_wrong_branch(attn, monkeypatch):
    monkeypatch.delenv(paged_attention.NO_SDPA, raising=False)
    assert paged_attention.install() == "masked"
    assert not attn.has_lower_right_sdpa
    assert os.environ[paged_attention.NO_SDPA] == "1"
    assert attn.flash_attn_with_kvcache is paged_attention.masked
    assert attn.has_flash_attn_with_window
    assert attn.has_flash_attn_with_softcap
    assert paged_attention.install() == "masked"  # once more, for another model


def test_flash_attn_stays_where_it_is(attn, monkeypatch):
    theirs = object()
    monkeypatch.setattr(attn, "has_flash_attn_with_paged", True)
    monkeypatch.setattr(attn, "flash_attn_with_kvcache", theirs)
    assert paged_attention.install() == "flash-attn"
    assert attn.flash_attn_with_kvcache is theirs
    assert not attn.has_lower_right_sdpa


@pytest.mark.parametrize("state", [(True, True), (False, False)])
def test_nothing_is_computed_where_attention_would_be_wrong(state):
    sdpa, paged = state
    with pytest.raises(paged_attention.Unsafe):
        paged_attention.check(
            SimpleNamespace(has_lower_right_sdpa=sdpa, has_flash_attn_with_paged=paged)
        )
