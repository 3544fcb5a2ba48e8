"""Attention over pages, against attention written out; and the library's wrong branch, which must stay shut."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from engines.exl2 import paged_attention  # noqa: E402 - after the skip
from tests.engines.exl2.attention import case, fallback, written_out  # noqa: E402


@pytest.mark.parametrize("softcap", [0.0, 20.0])
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("append", [True, False])
@pytest.mark.parametrize("count", [1, 5, 130])
def test_masked_is_attention(count, append, window, softcap):
    given, wanted = case(count, append=append, window=window, softcap=softcap)
    got = paged_attention.masked(**given)
    assert torch.allclose(got, written_out(*wanted), atol=1e-5)


@pytest.fixture
def attn(exl2_harness, monkeypatch):
    from exllamav2 import attn

    import tests.engines.exl2.harness  # noqa: F401 - the stub first

    monkeypatch.setattr(attn, "has_lower_right_sdpa", True)
    monkeypatch.setattr(attn, "has_flash_attn_with_paged", False)
    monkeypatch.setattr(attn, "flash_attn_with_kvcache", None, raising=False)
    return attn


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
