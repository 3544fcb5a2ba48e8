"""What the heads of .safetensors files say: each tensor's type, shape and bytes, without reading a weight.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from msgspec import Struct

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Of a safetensors file, as its own library has it."""

_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I8": 8, "U8": 8, "BOOL": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_POINTER = b"version https://git-lfs"


class Tensor(Struct, frozen=True):
    """One tensor of a file."""

    dtype: str
    shape: tuple[int, ...]
    size: int
    """In bytes."""

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return prod(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether it is a plain weight, in floating point of some width."""
        return self.dtype in {"F64", "F32", "F16", "BF16"}


def header(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Each tensor and its name. Raises OSError, or ValueError where the file isn't whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(_no_header(start + opened.read(len(_POINTER)), size))
        text = opened.read(length)
    if not text.startswith(b"{"):
        raise ValueError(_no_header(start + text, size))
    if len(text) < length:
        raise ValueError("is cut short: download it again")
    try:
        said = json.loads(text)
        tensors = {name: _tensor(one) for name, one in said.items() if name != "__metadata__"}
        ends = [one["data_offsets"][1] for name, one in said.items() if name != "__metadata__"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"has a damaged head ({type(error).__name__} {error})") from error
    if _LENGTH.size + length + max(ends, default=0) > size:
        raise ValueError("is cut short: download it again")
    yield from tensors.items()


def _no_header(start: bytes, size: int) -> str:
    if start.startswith(_POINTER):
        return "is a pointer of Git LFS, not the file itself: run `git lfs pull`"
    if size == 0:
        return "is empty: download it again"
    return "is no safetensors file"


def _tensor(said: dict[str, Any]) -> Tensor:
    """Raises KeyError, TypeError or ValueError."""
    begin, end = (int(at) for at in said["data_offsets"])
    shape = tuple(int(n) for n in said["shape"])
    dtype = str(said["dtype"])
    bits = _BITS.get(dtype)
    if end < begin or (bits is not None and prod(shape) * bits != 8 * (end - begin)):
        raise ValueError("a tensor's shape and bytes disagree")
    return Tensor(dtype, shape, end - begin)
