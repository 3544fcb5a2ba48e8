"""Samplers that are computed here: repetition penalty, DRY, typical sampling and XTC.

ExLlamaV2 has all four, and two of them wrong (0.3.2): its XTC looks at the next token's probability instead of a
token's own and never spares the least probable one; its typical sampling adds a probability to its logarithm. The other
two it applies before anything can note the model's own log-probabilities. So the library is left the truncation that it
does right (top_k, top_p, min_p), and all of it is done here where typical sampling or XTC stand in its middle.

Logits are torch's, one row, on the CPU; they are changed in place.

Source: exllamav2_ext/cpp/sampling.cpp, ``typical_cpu`` and ``xtc_cpu``; https://arxiv.org/abs/2202.00666 (typical);
https://github.com/oobabooga/text-generation-webui/pull/5677 (DRY) and 6335 (XTC), by their author
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from msgspec import Struct

from engines.base import Samplers

LONGEST = 64
"""Repeated tokens that are counted; the charge is beyond any logit long before."""

NEGLIGIBLE = 1e-8
"""A probability that isn't worth sorting: 128 Ki such tokens are written once in 760."""

BREAKERS = ("\n", ":", '"', "*")
"""DRY's own: what structures prose and lists. The author's defaults, and llama.cpp's."""


class Dry(Struct, frozen=True):
    """What repeating is charged."""

    multiplier: float
    base: float
    allowed_length: int
    breakers: frozenset[int]
    """Tokens over which nothing counts as repeated; they are never charged."""


class Truncation(Struct, frozen=True):
    """Which tokens are left to choose from."""

    temperature: float
    top_k: int
    typical_p: float
    top_p: float
    min_p: float
    xtc_probability: float
    xtc_threshold: float
    spared: frozenset[int]
    """Tokens that take no part in XTC: the ends of lines and turns."""


def dry_of(samplers: Samplers, breakers: Callable[[Sequence[str]], frozenset[int]]) -> Dry | None:
    """Return what a request's repetitions are charged; None for nothing. ``breakers``: tokens that have such texts."""
    if not samplers.dry_multiplier:
        return None
    return Dry(
        multiplier=samplers.dry_multiplier,
        base=1.75 if samplers.dry_base is None else samplers.dry_base,
        allowed_length=samplers.dry_allowed_length or 2,
        breakers=breakers(samplers.dry_sequence_breakers or BREAKERS),
    )


class Repeats:
    """A text's repetitions of itself, kept up token by token. DRY's charge for each token that could come next."""

    def __init__(self, dry: Dry, ids: Sequence[int]) -> None:
        """``ids``: the prompt."""
        self._dry = dry
        first = max(1, len(ids) - LONGEST)
        self._ids = np.array(ids[:first], dtype=np.int64)
        # For each token but the last: how many up to it are the text's last ones, too.
        self._lengths = np.zeros(first - 1, dtype=np.int64)
        for token in ids[first:]:
            self.append(token)

    def append(self, token: int) -> None:
        """The text goes on with ``token``."""
        if token in self._dry.breakers:
            self._lengths = np.zeros(len(self._ids), dtype=np.int64)
        else:
            longer = np.append(0, self._lengths) + 1
            self._lengths = np.where(self._ids == token, longer, 0)
        self._ids = np.append(self._ids, token)

    def charge(self, logits: Any) -> None:
        """Take what each token would repeat from its logit."""
        dry = self._dry
        places = np.flatnonzero(self._lengths >= dry.allowed_length)
        longest: dict[int, int] = {}
        for token, length in zip(
            self._ids[places + 1].tolist(), self._lengths[places].tolist(), strict=True
        ):
            if token not in dry.breakers and token < len(logits):
                longest[token] = max(longest.get(token, 0), min(length, LONGEST))
        for token, length in longest.items():
            logits[token] -= dry.multiplier * dry.base ** (length - dry.allowed_length)


def repetition(logits: Any, seen: Any, penalty: float) -> None:
    """Make the tokens in ``seen``, each once, less probable, as CTRL does: https://arxiv.org/abs/1909.05858."""
    own = logits[seen]
    logits[seen] = torch.where(own > 0, own / penalty, own * penalty)


def truncate(logits: Any, rules: Truncation, draw: Callable[[], float]) -> None:
    """Leave what ``rules`` leave; the rest becomes -inf. ``draw`` gives a number from 0 to 1."""
    shares = (logits / rules.temperature).softmax(-1)
    ids = torch.nonzero(shares > NEGLIGIBLE).flatten()
    if 0 < rules.top_k < len(ids):
        shares, ids = shares.topk(rules.top_k)
    else:
        shares, order = shares[ids].sort(descending=True, stable=True)
        ids = ids[order]
    shares = shares / shares.sum()
    if 0 < rules.typical_p < 1:
        surprise = -shares.log()
        order = (surprise - (shares * surprise).sum()).abs().argsort(stable=True)
        kept = order[: _reach(shares[order], rules.typical_p)].sort().values
        shares, ids = shares[kept] / shares[kept].sum(), ids[kept]
    if 0 < rules.top_p < 1:
        count = _reach(shares, rules.top_p)
        shares, ids = shares[:count], ids[:count]
    kept = shares >= rules.min_p * shares[0]
    shares, ids = shares[kept] / shares[kept].sum(), ids[kept]
    if rules.xtc_probability > 0:
        ids = _without_top(shares, ids, rules, draw())
    left = logits[ids]
    logits.fill_(float("-inf"))
    logits[ids] = left


def _reach(shares: Any, mass: float) -> int:
    """How many of the first ones come to ``mass``."""
    return min(len(shares), int((shares.cumsum(0) < mass).sum()) + 1)


def _without_top(shares: Any, ids: Any, rules: Truncation, drawn: float) -> Any:
    """Exclude top choices: all above the threshold but the least probable one."""
    if drawn >= rules.xtc_probability:
        return ids
    above = [
        at
        for at, id_ in enumerate(ids[shares >= rules.xtc_threshold].tolist())
        if id_ not in rules.spared
    ]
    kept = torch.ones_like(shares, dtype=torch.bool)
    kept[above[:-1]] = False
    return ids[kept]
