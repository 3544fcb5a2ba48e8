"""What ExLlamaV2's generator and sampler call of their compiled extension, in torch on a CPU.

With it in the place of the extension, the library's own scheduler, page table, sampler and filters run on a machine
without CUDA. Kernels that compute a model aren't here: see `harness`.
"""

import itertools
import sys
import types

import torch


def count_match(a, b, most):
    count = min(int(most), a.shape[-1], b.shape[-1])
    return int((a[0, :count] == b[0, :count]).int().cumprod(0).sum())


def fast_fill_cpu_ones_bool(tensor):
    tensor.fill_(True)


def sample_basic(  # noqa: PLR0917 - the extension's signature
                 logits, temperature, top_k, top_p, top_a, min_p, tfs, typical, random, tokens,
                 probs, top_probs, top_tokens, allowed, *rest):  # fmt: skip
    scores = logits.view(-1).float().clone()
    if temperature < 0.01:
        temperature, top_k = 1.0, 1
    shares, ids = (scores / temperature).softmax(-1).sort(descending=True, stable=True)
    if 0 < top_k < len(shares):
        shares, ids = shares[:top_k], ids[:top_k]
    shares = shares / shares.sum()
    if 0 < top_p < 1:
        count = int((shares.cumsum(0) < top_p).sum()) + 1
        shares, ids = shares[:count] / shares[:count].sum(), ids[:count]
    at = int(torch.searchsorted(shares.cumsum(0), torch.tensor(random * 0.9998)))
    at = min(at, len(shares) - 1)
    tokens[0, 0], probs[0, 0] = ids[at], shares[at]
    return []


def cache_rotate(cache, order, buffer):
    """Move each page to where the one before it in ``order`` was."""
    pages = order.tolist()
    first = cache[pages[0]].clone()
    for target, source in itertools.pairwise(pages):
        cache[target] = cache[source]
    cache[pages[-1]] = first


def _beyond(name):
    def absent(*_, **__):
        raise NotImplementedError(f"{name} is not in the stub of exllamav2_ext")

    return absent


class _Extension(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _beyond(name)


def install():
    """Take the compiled extension's place; before exllamav2 is imported."""
    module = _Extension("exllamav2_ext")
    for function in (count_match, fast_fill_cpu_ones_bool, sample_basic, cache_rotate):
        setattr(module, function.__name__, function)
    sys.modules["exllamav2_ext"] = module
