"""What a folder's tensors are together: which format, how many parameters, what goes onto GPUs, what is missing.

Pure, over the heads that engines.exl2.tensors read. Names are Hugging Face's; the few architectures that have others
are counted whole and not checked.

Source: https://github.com/turboderp-org/exllamav2, exllamav2/module.py (which tensors make a weight) and model.py
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct

from engines.exl2.tensors import Tensor

Format = Literal["exl2", "gptq", "fp16", "exl3", "other"]
"""``fp16`` is any plain floating point: the library takes all of it at half precision."""

Tensors = Mapping[str, Tensor]

_EXL2 = (
    ".q_weight",
    ".q_invperm",
    ".q_scale",
    ".q_scale_max",
    ".q_groups",
    ".q_perm",
    ".q_group_map",
)
_GPTQ = (".qweight", ".qzeros", ".scales", ".g_idx")
_EMBEDDING = ("embed_tokens.weight", "tok_embeddings.weight", "wte.weight")
_NOT_OF_TEXT = (
    "visual.", "vision_tower.", "vision_encoder.", "vision_language_adapter.", "multi_modal_projector.",
    "patch_merger.",
)  # fmt: skip
_HEAD = ("lm_head.", "model.output.", "output.weight")
_LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
_WIDTHS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
_READABLE = {"I32", "I16", "F16", "BF16", "F32"}
"""What the library's own reader of files knows."""


class Shape(Struct, frozen=True):
    """What config.json says of the sizes; 0 where it doesn't."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int


def of_text(tensors: Tensors) -> dict[str, Tensor]:
    """What is of the language model, which is all that is loaded of a model that also sees."""
    return {
        name: one
        for name, one in tensors.items()
        if not name.removeprefix("model.").startswith(_NOT_OF_TEXT)
    }


def format_of(tensors: Tensors, method: str | None) -> Format:
    """How the weights are kept; ``method`` is what config.json says of quantisation."""
    if any(name.endswith(".q_weight") for name in tensors):
        return "exl2"
    if any(name.endswith(".trellis") for name in tensors):
        return "exl3"
    if any(name.endswith(".qweight") for name in tensors):
        return "gptq" if method in {None, "gptq"} else "other"
    return "fp16" if method is None else "other"


def dtype_of(tensors: Tensors) -> str:
    """The floating point of most plain weights, by its usual name; empty where there are none."""
    counts: Counter[str] = Counter()
    for one in tensors.values():
        if one.is_float:
            counts[one.dtype] += one.elements
    return _WIDTHS[counts.most_common(1)[0][0]] if counts else ""


def parameters_of(tensors: Tensors, bits: float) -> int:
    """How many numbers the model has, quantised ones counted as what they stand for."""
    return sum(_parameters(tensors, name, one, bits) for name, one in tensors.items())


def _parameters(tensors: Tensors, name: str, one: Tensor, bits: float) -> int:
    base, _, kind = name.rpartition(".")
    if kind == "q_weight":
        rows = tensors.get(f"{base}.q_invperm")
        return one.shape[1] * rows.elements if rows is not None else 0
    if kind == "qweight":
        return int(one.elements * 32 / (bits or 4))
    if kind == "trellis":  # tiles of 16 by 16
        return one.shape[0] * one.shape[1] * 256
    if name.endswith((*_EXL2, *_GPTQ, ".suh", ".svh")):
        return 0
    return one.elements if one.is_float or one.dtype.startswith("F8") else 0


def quantized_bits(tensors: Tensors) -> float:
    """Bits of a quantised weight on average, its scales included; 0 where none is."""
    held = count = 0
    for name, one in tensors.items():
        if name.endswith((*_EXL2, *_GPTQ, ".trellis", ".suh", ".svh")):
            held += one.size
            count += _parameters(tensors, name, one, 0) if not name.endswith(".qweight") else 0
    return 8 * held / count if count else 0.0


def is_tied(tensors: Tensors) -> bool:
    """Whether the embedding is the head, too: there is no other head."""
    return embedding(tensors) is not None and not any(
        name.removeprefix("language_model.").startswith(_HEAD) for name in tensors
    )


def embedding(tensors: Tensors) -> Tensor | None:
    """The tensor with a row for each token."""
    return next((one for name, one in tensors.items() if name.endswith(_EMBEDDING)), None)


def gpu_bytes(tensors: Tensors) -> int:
    """What the weights take on GPUs: plain ones at half precision, the embedding only where it is the head, too."""
    total = sum(2 * one.elements if one.is_float else one.size for one in tensors.values())
    rows = embedding(tensors)
    return total if rows is None or is_tied(tensors) else total - 2 * rows.elements


def unreadable(tensors: Tensors) -> str | None:
    """The first type that exllamav2 can't read."""
    return next((one.dtype for one in tensors.values() if one.dtype not in _READABLE), None)


def flaws(tensors: Tensors, shape: Shape) -> Iterator[str]:
    """What doesn't fit together. Says nothing about what it can't judge."""
    there = {int(found[1]) for name in tensors if (found := _LAYER.search(name))}
    missing = sorted(set(range(shape.layers)) - there) if there else []
    if missing:
        yield f"{len(missing)} of {shape.layers} layers have no tensors, the first is layer {missing[0]}"
    rows = embedding(tensors)
    if rows is not None and len(rows.shape) == 2 and shape.hidden:
        yield from _embedding_flaws(rows, shape)
    for name, heads in (("q_proj", shape.heads), ("k_proj", shape.kv_heads)):
        width = _width(tensors, name)
        if width and heads * shape.head_dim not in {0, width}:
            yield (
                f"{name} is {width} wide, config.json says {heads} heads of {shape.head_dim}: "
                "config.json is of another model"
            )


def _embedding_flaws(rows: Tensor, shape: Shape) -> Iterator[str]:
    if rows.shape[1] != shape.hidden:
        yield (
            f"tokens are {rows.shape[1]} wide, config.json says hidden_size {shape.hidden}: "
            "config.json is of another model"
        )
    elif rows.shape[0] < shape.vocabulary:
        yield f"{rows.shape[0]} tokens have weights, config.json says vocab_size {shape.vocabulary}"


def _width(tensors: Tensors, projection: str) -> int:
    """The outputs of the first layer's projection; 0 where there is none by that name."""
    for name, one in tensors.items():
        if f"layers.0.self_attn.{projection}." in name:
            if name.endswith((".q_weight", ".qweight")):
                return one.shape[1]
            if name.endswith(".weight"):
                return one.shape[0]
    return 0
