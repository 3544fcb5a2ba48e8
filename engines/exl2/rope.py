"""The base and the scaling of a model's rotary positions, and whether exllamav2 finds them where they stand.

It reads ``rope_theta`` and ``rope_scaling`` at the top of config.json (or of ``text_config``). transformers 5 writes
both under ``rope_parameters``; there it sees nothing, takes the usual base, and answers nonsense without a word.

Source: https://github.com/turboderp-org/exllamav2, exllamav2/config.py at 0.3.2;
https://huggingface.co/docs/transformers/main/en/internal/rope_utils
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from msgspec import Struct

DEFAULT_THETA = {"Gemma3ForConditionalGeneration": 1e6}
"""Where exllamav2's own default is not 10000."""

_NEEDED: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "su": ("long_factor", "short_factor"),
    "longrope": ("long_factor", "short_factor"),
    "yarn": ("factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "mrope": ("mrope_section",),
}
"""The kinds of scaling that exllamav2 knows, and what it must find of each."""


class Rope(Struct, frozen=True):
    """How positions are turned into angles."""

    theta: float
    found_at: str
    """``rope_theta``, ``rope_parameters`` (where exllamav2 doesn't look) or ``default``."""
    scaling: str = "default"
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def at_top(self) -> bool:
        """Whether exllamav2 reads the right base by itself."""
        return self.found_at != "rope_parameters"


def rope_of(config: Mapping[str, Any], architecture: str) -> Rope:
    """Read it. Raises TypeError, ValueError or AttributeError where a value is of another kind."""
    text = config.get("text_config") or {}
    inner = _first(config, text, "rope_parameters") or {}
    inner = inner.get("full_attention", inner)  # some write a set for each kind of layer
    default = DEFAULT_THETA.get(architecture, 10_000.0)
    top = _first(config, text, "rope_theta")
    theta = float(top or inner.get("rope_theta") or default)
    found_at = "default"
    warnings: list[str] = []
    if top is not None:
        found_at = "rope_theta"
    elif theta != default:
        found_at = "rope_parameters"
        warnings.append(
            f"rope_theta {theta:g} stands under rope_parameters, where exllamav2 doesn't look; "
            "it is set when the model is loaded"
        )
    scaling = _first(config, text, "rope_scaling") or {}
    missed = str(inner.get("rope_type") or "default")
    if not scaling and missed != "default":
        return Rope(theta, found_at, missed, (_move(inner, theta, missed),))
    kind = str(scaling.get("rope_type") or scaling.get("type") or "default")
    problems = tuple(_scaling_problems(config, scaling, kind))
    return Rope(theta, found_at, kind, problems, tuple(warnings))


def _first(config: Mapping[str, Any], text: Mapping[str, Any], name: str) -> Any:
    return config[name] if config.get(name) is not None else text.get(name)


def _scaling_problems(
    config: Mapping[str, Any], scaling: Mapping[str, Any], kind: str
) -> Iterator[str]:
    if scaling.get("rope_type") and scaling.get("type"):
        yield "rope_scaling has both `type` and `rope_type`: remove one"
    needed = _NEEDED.get(kind)
    if needed is None:
        yield f"exllamav2 doesn't know the rope_scaling {kind!r}"
        return
    for name in needed:
        if name not in scaling:
            yield f"rope_scaling {kind!r} lacks {name}"
    if kind in {"su", "longrope"} and "original_max_position_embeddings" not in config:
        yield (
            f"rope_scaling {kind!r} needs original_max_position_embeddings at the top of config.json"
        )


def _move(inner: Mapping[str, Any], theta: float, kind: str) -> str:
    rest = {name: value for name, value in inner.items() if name != "rope_theta"}
    lines = f'"rope_theta": {json.dumps(theta)}, "rope_scaling": {json.dumps(rest)}'
    return (
        f"its positions are scaled ({kind}) under rope_parameters, as transformers 5 writes it, where exllamav2 "
        f"doesn't look: put this at the top of config.json: {lines}"
    )
