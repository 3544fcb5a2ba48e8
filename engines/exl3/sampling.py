"""The sampler of one job of ExLlamaV3, which calls it for each token it accepts.

The library's own are kernels over logits on the GPU; its filters are masks. What a request asks of its tokens is done
by `engines.exl2.steering` and `engines.exl2.samplers`, on the CPU, as it is for exllamav2. A request that asks for
nothing but temperature and truncation stays on the GPU, in torch.

Source: exllamav3 1.6.5, generator/job.py (``receive_logits``) and generator/sampler/sampler.py
"""

from __future__ import annotations

from typing import Any

import torch

from engines.exl2.samplers import Truncation, truncate
from engines.exl2.steering import Steering

WORD = 1 << 32
"""Of the random numbers that a job draws."""

MOST = 1 - 2**-23
"""Below one also in single precision: one would be beyond the last token."""


class Sampling:
    """Duck-typed: exllamav3's ``Sampler``."""

    reqs_torch_seed = False

    def __init__(
        self,
        settings: dict[str, Any],
        vocabulary: int,
        steering: Steering | None,
        *,
        guesses: bool,
    ) -> None:
        """``settings`` as engines.exl2.prompt makes them. ``guesses``: a draft model guesses ahead."""
        # Without it all places of a guess are sampled before any is accepted, and a filter would see what never was.
        self.reqs_past_ids = guesses and steering is not None
        self._vocabulary = vocabulary
        self._steering = steering
        self._begun = False
        self._greedy = settings["top_k"] == 1
        self._temperature: float = settings["temperature"]
        rules = Truncation(
            temperature=self._temperature,
            top_k=settings["top_k"],
            typical_p=0.0,
            top_p=settings["top_p"],
            min_p=settings["min_p"],
            xtc_probability=0.0,
            xtc_threshold=0.1,
            spared=frozenset(),
        )
        truncates = bool(rules.top_k or rules.top_p or rules.min_p)
        self._rules = rules if truncates else None

    def forward(self, logits: Any, sequence_ids: Any = None, rand_u32: int = 0, *_: Any, **__: Any) -> Any:  # fmt: skip
        """Return the next token, (1, 1)."""
        del sequence_ids
        row = logits.reshape(-1, logits.shape[-1])[0, : self._vocabulary].float()
        steering = self._steering
        if steering is not None:
            row = self._steered(row.cpu(), steering)
        token = self._chosen(row, rand_u32 / WORD)
        if steering is not None:
            steering.feed(token)
        return token.view(1, 1)

    def _steered(self, row: Any, steering: Steering) -> Any:
        if not self._begun:
            self._begun = True
            steering.begin("")
        steering.get_next()
        return steering.mask_logits(row)

    def _chosen(self, row: Any, drawn: float) -> Any:
        if self._greedy:
            return row.argmax()
        if self._rules is not None:
            row = row.clone()
            truncate(row, self._rules, lambda: 1.0)
        reach = (row / self._temperature).softmax(-1).cumsum(-1)
        return torch.searchsorted(reach, reach[-1:] * min(drawn, MOST), right=True)
