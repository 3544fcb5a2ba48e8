"""The kernels and what stands beside them: compiled, causal, and alike in every version."""

from __future__ import annotations

import itertools

import pytest

from tests.engines.asking import GREEDY, ask, saying, tokens_of

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(300)]
LONG = saying("There was a red bear in a wood. " * 150)


def test_the_extension_is_compiled(kernels):
    from exllamav2 import ext

    assert ext.exllamav2_ext.__file__.endswith(".so")


@pytest.mark.parametrize("version", ["masked", "gathered", "by_table"])
def test_paged_attention_is_attention(kernels, version):
    """Every version against attention written out; what this torch lacks is skipped."""
    import torch

    from engines.exl2 import paged_attention
    from tests.engines.exl2.attention import case, written_out

    attention = getattr(paged_attention, version)
    if version != "masked" and not paged_attention.works(attention):
        pytest.skip(f"{torch.__version__} has no {version}")
    device = torch.device("cuda")
    for count, append, window, softcap in itertools.product(
        (1, 2, 5, 130), (True, False), (None, 64), (0.0, 20.0)
    ):
        given, wanted = case(count, append=append, window=window, softcap=softcap, dim=64)
        moved = {
            name: value.to(device, torch.half if value.is_floating_point() else value.dtype)
            if isinstance(value, torch.Tensor)
            else value
            for name, value in given.items()
        }
        got = attention(**moved).float().cpu()
        expected = written_out(*wanted)
        assert (got - expected).abs().max() < 1e-2, (count, append, window, softcap)


async def test_only_causal_attention_is_left(make_engine):
    """A prompt in one chunk or in many: where a token saw those behind it, the answers would differ."""
    from exllamav2 import attn

    first = []
    for chunk in (256, 2048):
        engine = await make_engine(prefill_chunk_tokens=chunk)
        assert attn.has_lower_right_sdpa is False
        assert engine._worker._generator.paged
        events = await ask(
            engine, messages=LONG, max_tokens=8, sampling=GREEDY, logprobs=True, top_logprobs=5
        )
        first.append(tokens_of(events))
        await engine.close()
    small, large = first
    assert [token.bytes for token in small] == [token.bytes for token in large]
    for a, b in zip(small, large, strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=0.05)


def test_the_library_alone_would_not_be_causal(kernels):
    """Why its branch over SDPA is shut: this is what it answers where flash-attn isn't installed."""
    from exllamav2 import attn

    from tests.engines.exl2.attention import fallback, written_out

    shut = attn.has_lower_right_sdpa
    try:
        got, (q, k, v) = fallback(attn, sdpa=True)
    finally:
        attn.has_lower_right_sdpa = shut
    wanted = written_out(q, k, v, [6], 0.25)
    assert not ((got - wanted).abs() < 0.1).all()
