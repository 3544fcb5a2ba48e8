"""Rotary positions as the model was trained with them, whatever context it is served with.

ExLlamaV2 derives YaRN's and LongRoPE's frequencies from ``max_seq_len``, which is also the length of its tables and so
what a user may shorten: served with less context, or with its cache's, such a model would compute other positions
without a word, and YaRN none at all up to its original length. What transformers computes is what models were trained
with: YaRN by the original length, always; LongRoPE scaled by the trained length, with the short factors where the
served context stays within the original one.

Source: transformers, modeling_rope_utils.py; exllamav2 0.3.2, rope.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

TRAINED = "nenya_trained_seq_len"
"""The attribute of a config that keeps what ``max_seq_len`` was in the file."""

ABOVE = 1e-6
"""The library asks whether a length is above the original one, before it takes its logarithm."""


class _As:
    """A config as it is but for a few attributes."""

    def __init__(self, config: Any, **other: Any) -> None:
        self._config = config
        self.__dict__.update(other)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def trained(config: Any) -> Any:
    """Return the config that the library's formulas are to see."""
    method = getattr(config, "alt_rope_method", None)
    if method == "yarn":
        return _As(config, max_seq_len=config.yarn_rope_original_max_position_embeddings + ABOVE)
    if method == "su":
        within = config.max_seq_len <= config.original_max_seq_len
        return _As(
            config,
            max_seq_len=getattr(config, TRAINED, config.max_seq_len),
            scale_long_factor=config.scale_short_factor if within else config.scale_long_factor,
        )
    return config


def install() -> None:
    """Put these positions into the library; once is enough, more do no harm."""
    rope: Any = importlib.import_module("exllamav2.rope")
    original: Callable[..., Any] = rope.get_rope_params
    if getattr(original, "__module__", None) == __name__:
        return

    def get_rope_params(device: Any, cfg: Any, base: float) -> Any:
        return original(device, trained(cfg), base)

    rope.get_rope_params = get_rope_params
