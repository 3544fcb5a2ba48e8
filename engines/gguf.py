"""What the head of a GGUF file says, read before llama.cpp opens it.

llama.cpp refuses a bad file without a reason, and serves a shorter context than asked for where the
model was trained on less, without a word to its caller. Both are in the first bytes of the file.
So are the names of its control tokens and its chat template, which llama.cpp keeps to itself.
The ``gguf`` package would read them too, with numpy behind it; this is the small part of it that is
needed.

Doesn't look at tensors: a file cut short after its head passes here and fails in llama.cpp.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from msgspec import Struct

MAGIC = b"GGUF"
VERSIONS = range(2, 4)
"""Version 1 had 32-bit counts and was gone within weeks; 3 is the current one."""

MAX_STRING_BYTES = 1 << 24
"""No key or value comes near; more means that the file is broken."""

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UNSIGNED = {4: _UINT32, 10: _UINT64}
_UINT32_KIND, _STRING, _ARRAY = 4, 8, 9
_CONTROL_KINDS = (2, 3)  # unknown, control: special to every tokenizer
_USER_DEFINED = 4


class GgufError(ValueError):
    """The file is no GGUF file that llama.cpp could load; the message says why."""


class GgufHead(Struct, frozen=True):
    """The part of the metadata that an engine needs before it loads."""

    version: int
    context_tokens: int | None = None
    """Tokens the model was trained on, where the file says it."""
    template: str = ""
    """The chat template."""
    control_tokens: tuple[str, ...] = ()
    added_tokens: tuple[str, ...] = ()
    """What else has a token whatever stands around it."""
    end_token: str = ""
    """What the model writes at the end of its turn."""


def read_head(path: Path) -> GgufHead:
    """Read the head of the file at ``path``; a fraction of a second for a large vocabulary. Raises GgufError."""
    try:
        with path.open("rb") as file:
            return _read(file, path)
    except FileNotFoundError as error:
        raise GgufError(f"there is no file {path}") from error
    except OSError as error:
        raise GgufError(f"{path} can't be read: {error.strerror}") from error
    except (EOFError, struct.error) as error:
        raise GgufError(f"{path} ends within its head: is it cut short?") from error


def _read(file: BinaryIO, path: Path) -> GgufHead:
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise GgufError(f"{path} is no GGUF file: it starts with {magic!r}, not {MAGIC!r}")
    version = _number(file, _UINT32)
    if version not in VERSIONS:
        raise GgufError(f"{path} has GGUF version {version}; versions 2 and 3 can be read")
    _number(file, _UINT64)  # the count of tensors
    context_tokens: int | None = None
    template = b""
    tokens: list[bytes] = []
    kinds: list[int] = []
    end: int | None = None
    for _ in range(_number(file, _UINT64)):
        key, kind = _string(file), _number(file, _UINT32)
        if key.endswith(b".context_length") and kind in _UNSIGNED and context_tokens is None:
            context_tokens = _number(file, _UNSIGNED[kind])
        elif key == b"tokenizer.chat_template" and kind == _STRING:
            template = _string(file)
        elif key == b"tokenizer.ggml.tokens" and kind == _ARRAY:
            tokens = _strings(file)
        elif key == b"tokenizer.ggml.eos_token_id" and kind == _UINT32_KIND:
            end = _number(file, _UINT32)
        elif key == b"tokenizer.ggml.token_type" and kind == _ARRAY:
            kinds = _int32s(file)
        else:
            _skip(file, kind)
    return GgufHead(
        version=version,
        context_tokens=context_tokens,
        template=template.decode(errors="replace"),
        control_tokens=_of_kinds(tokens, kinds, _CONTROL_KINDS),
        added_tokens=_of_kinds(tokens, kinds, (_USER_DEFINED,)),
        end_token="" if end is None or end >= len(tokens) else tokens[end].decode(errors="replace"),
    )


def _of_kinds(tokens: list[bytes], kinds: list[int], wanted: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(
        token.decode(errors="replace")
        for token, kind in zip(tokens, kinds, strict=False)
        if kind in wanted
    )


def _strings(file: BinaryIO) -> list[bytes]:
    inner, count = _number(file, _UINT32), _number(file, _UINT64)
    if inner != _STRING:
        raise EOFError
    return [_string(file) for _ in range(count)]


def _int32s(file: BinaryIO) -> list[int]:
    inner, count = _number(file, _UINT32), _number(file, _UINT64)
    size = 4 * count
    if inner not in (4, 5) or size > MAX_STRING_BYTES:
        raise EOFError
    data = file.read(size)
    return list(struct.unpack(f"<{count}i", data))


def _number(file: BinaryIO, shape: struct.Struct) -> int:
    value: int = shape.unpack(file.read(shape.size))[0]
    return value


def _string(file: BinaryIO) -> bytes:
    size = _number(file, _UINT64)
    if size > MAX_STRING_BYTES:
        raise EOFError
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _skip(file: BinaryIO, kind: int) -> None:
    if kind in _SCALAR_BYTES:
        file.seek(_SCALAR_BYTES[kind], 1)
    elif kind == _STRING:
        _string(file)
    elif kind == _ARRAY:
        inner, count = _number(file, _UINT32), _number(file, _UINT64)
        if inner in _SCALAR_BYTES:
            file.seek(_SCALAR_BYTES[inner] * count, 1)
        else:
            for _ in range(count):
                _skip(file, inner)
    else:
        raise EOFError
