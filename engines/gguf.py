"""What the head of a GGUF file says, read before llama.cpp opens it.

llama.cpp refuses a bad file without a reason, and serves a shorter context than asked for where the
model was trained on less, without a word to its caller. Both are in the first bytes of the file.
So are the names of its control tokens and its chat template, which llama.cpp keeps to itself.
The ``gguf`` package would read them too, with numpy behind it; this is the small part of it that is
needed.

Of the tensors it reads the list, so that a file that is cut short is known before it fails without a word.

Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from msgspec import Struct

MAGIC = b"GGUF"
VERSIONS = range(2, 4)
"""Version 1 had 32-bit counts and was gone within weeks; 3 is the current one."""

MAX_STRING_BYTES = 1 << 24
"""No key or value comes near; more means that the file is broken."""

_UINT32 = struct.Struct("<I")
_UINT64 = struct.Struct("<Q")
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_NUMBERS = {
    kind: struct.Struct(f"<{form}")
    for kind, form in {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}.items()
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_NAME, _ARCHITECTURE, _TEMPLATE = (
    b"general.name",
    b"general.architecture",
    b"tokenizer.chat_template",
)
_MOST_DIMENSIONS = 8
_ALIGNMENT = 32
"""Of the tensors, where the file says no other."""
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
    end_id: int | None = None
    vocabulary: int = 0
    name: str = ""
    architecture: str = ""
    figures: dict[str, float] = {}
    """The numbers of the metadata, by key."""

    def figure(self, name: str) -> int:
        """A number of this architecture, such as ``block_count``; 0 where the file doesn't say it."""
        return int(self.figures.get(f"{self.architecture}.{name}", 0))


class GgufFile(Struct, frozen=True):
    """A whole file."""

    head: GgufHead
    size: int
    """In bytes."""
    parameters: int
    weight_bytes: int
    parts: int
    """Files that the model is split into; this is one of them."""


def read_gguf(path: Path) -> GgufFile:
    """Read the head and the list of tensors; a fraction of a second for a large vocabulary. Raises GgufError."""
    with _opened(path) as file:
        head, count = _read(file, path)
        parameters, last = _tensors(file, count)
        alignment = int(head.figures.get("general.alignment", _ALIGNMENT))
        begin = -(-file.tell() // alignment) * alignment
        size = path.stat().st_size
        if count and begin + last >= size:
            raise GgufError(f"{path} is cut short: download it again")
        parts = int(head.figures.get("split.count", 1)) or 1
        return GgufFile(head, size, parameters, max(0, size - begin), parts)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise GgufError(f"there is no file {path}") from error
    except OSError as error:
        raise GgufError(f"{path} can't be read: {error.strerror}") from error
    except (EOFError, struct.error) as error:
        raise GgufError(f"{path} ends within its head: is it cut short?") from error


def _read(file: BinaryIO, path: Path) -> tuple[GgufHead, int]:
    """The head, and how many tensors are behind it."""
    magic = file.read(len(MAGIC))
    if magic != MAGIC:
        raise GgufError(f"{path} is no GGUF file: it starts with {magic!r}, not {MAGIC!r}")
    version = _number(file, _UINT32)
    if version not in VERSIONS:
        raise GgufError(f"{path} has GGUF version {version}; versions 2 and 3 can be read")
    count = _number(file, _UINT64)
    context_tokens: int | None = None
    texts: dict[bytes, bytes] = dict.fromkeys((_NAME, _ARCHITECTURE, _TEMPLATE), b"")
    figures: dict[str, float] = {}
    tokens: list[bytes] = []
    kinds: list[int] = []
    end: int | None = None
    for _ in range(_number(file, _UINT64)):
        key, kind = _string(file), _number(file, _UINT32)
        if kind in _NUMBERS:
            value = _number(file, _NUMBERS[kind])
            figures[key.decode(errors="replace")] = value
            if key.endswith(b".context_length") and context_tokens is None:
                context_tokens = int(value)
            elif key == b"tokenizer.ggml.eos_token_id":
                end = int(value)
        elif key in texts and kind == _STRING:
            texts[key] = _string(file)
        elif key == b"tokenizer.ggml.tokens" and kind == _ARRAY:
            tokens = _strings(file)
        elif key == b"tokenizer.ggml.token_type" and kind == _ARRAY:
            kinds = _int32s(file)
        else:
            _skip(file, kind)
    name, architecture, template = (text.decode(errors="replace") for text in texts.values())
    head = GgufHead(
        version=version,
        context_tokens=context_tokens,
        template=template,
        control_tokens=_of_kinds(tokens, kinds, _CONTROL_KINDS),
        added_tokens=_of_kinds(tokens, kinds, (_USER_DEFINED,)),
        end_token="" if end is None or end >= len(tokens) else tokens[end].decode(errors="replace"),
        end_id=end,
        vocabulary=len(tokens),
        name=name,
        architecture=architecture,
        figures=figures,
    )
    return head, count


def _tensors(file: BinaryIO, count: int) -> tuple[int, int]:
    """How many numbers the tensors have together, and where the last of them begins."""
    parameters = last = 0
    for _ in range(count):
        _string(file)
        dimensions = _number(file, _UINT32)
        if dimensions > _MOST_DIMENSIONS:
            raise EOFError
        parameters += prod(_number(file, _UINT64) for _ in range(dimensions))
        _number(file, _UINT32)
        last = max(last, _number(file, _UINT64))
    return parameters, last


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


def _number(file: BinaryIO, shape: struct.Struct) -> Any:
    return shape.unpack(file.read(shape.size))[0]


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
