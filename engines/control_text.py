"""A user's text that spells a control token: found, and kept text.

llama.cpp reads a rendered conversation with its control tokens in it as one string, so ``<|im_end|>`` typed by a user
would end the user's turn, and a ``<|im_start|>system`` after it would be believed. Each such spelling is replaced by
a placeholder before the template is rendered; afterwards the text is cut there and the spelling put back in two
halves, one on either side of the cut. Pieces are read apart, so nothing in them is a control token, and put together
they are, to the byte, what the user wrote.

What counts: the vocabulary's control tokens everywhere, and those of its other added tokens that the template writes
itself (``<tool_call>``, ``<think>``) everywhere but in what the assistant said, where templates look for them.

Pure: rendering and tokenising are the engine's part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from msgspec import Struct

from engines.base import EngineError


class Spellings:
    """A set of strings that are looked for all at once."""

    def __init__(self, spellings: Iterable[str]) -> None:
        self._all = frozenset(spelling for spelling in spellings if spelling.strip())
        self._sizes = sorted({len(spelling) for spelling in self._all}, reverse=True)
        first = "".join(sorted({re.escape(spelling[0]) for spelling in self._all}))
        self._first = re.compile(f"[{first}]") if first else None

    def spans(self, text: str) -> Iterator[tuple[int, int]]:
        """Where one stands in ``text``, the longest at each place, left to right, none within another."""
        if self._first is None:
            return
        at = 0
        while (match := self._first.search(text, at)) is not None:
            start = match.start()
            found = (text[start : start + size] for size in self._sizes)
            size = next((len(spelling) for spelling in found if spelling in self._all), 0)
            if size:
                yield start, start + size
            at = start + (size or 1)

    def first(self, text: str) -> str | None:
        """The first one in ``text``."""
        return next((text[start:end] for start, end in self.spans(text)), None)


class Vocabulary(Struct, frozen=True):
    """What of a model's vocabulary may not be typed."""

    control: Spellings
    structure: Spellings
    """Control tokens, and what else the template writes."""

    @classmethod
    def of(cls, control: Iterable[str], added: Iterable[str], template: str) -> Vocabulary:
        """Take control tokens, other added tokens, and the chat template."""
        control = tuple(control)
        written = [token for token in added if token in template]
        return cls(Spellings(control), Spellings([*control, *written]))


class Masked(Struct, frozen=True):
    """A request's text with placeholders where it spelt control tokens."""

    messages: bytes
    tools: bytes | None
    originals: dict[str, str]
    """Placeholder to what it stands for."""

    def pieces(self, rendered: str) -> list[str]:
        """Cut the rendered text so that no piece has a whole spelling of the user's."""
        if not self.originals:
            return [rendered]
        pieces = [""]
        for part in re.split("(" + "|".join(self.originals) + ")", rendered):
            original = self.originals.get(part)
            if original is None:
                pieces[-1] += part
            else:
                pieces[-1] += original[0]
                pieces.append(original[1:])
        return pieces


def mask(messages: bytes, tools: bytes | None, vocabulary: Vocabulary, mark: str) -> Masked:
    """Replace what spells a control token. ``mark``: random letters, so that nobody can have typed a placeholder.

    Raises EngineError("invalid") where it can't be told from a control token: in a key, across two parts of a
    message, or one character long.
    """
    masker = _Masker(vocabulary, mark)
    masked = masker.messages(_decoded(messages, "messages"))
    if tools is not None:
        masked_tools = masker.value(_decoded(tools, "tools"), vocabulary.structure)
    if not masker.originals:
        return Masked(messages, tools, {})
    encode = msgspec.json.encode
    return Masked(encode(masked), None if tools is None else encode(masked_tools), masker.originals)


class _Masker:
    def __init__(self, vocabulary: Vocabulary, mark: str) -> None:
        self._vocabulary = vocabulary
        self._mark = mark
        self.originals: dict[str, str] = {}

    def messages(self, messages: Any) -> Any:
        if not isinstance(messages, list):
            raise EngineError("invalid", "messages must be an array")
        return [self._message(message) for message in messages]

    def _message(self, message: Any) -> Any:
        vocabulary = self._vocabulary
        own = isinstance(message, dict) and message.get("role") == "assistant"
        spellings = vocabulary.control if own else vocabulary.structure
        masked = self.value(message, spellings)
        content = masked.get("content") if isinstance(masked, dict) else None
        if isinstance(content, list):  # templates join the parts
            texts = [part.get("text") for part in content if isinstance(part, dict)]
            self._refuse(spellings.first("".join(text for text in texts if isinstance(text, str))))
        return masked

    def value(self, value: Any, spellings: Spellings) -> Any:
        if isinstance(value, str):
            return self._text(value, spellings)
        if isinstance(value, list):
            return [self.value(item, spellings) for item in value]
        if isinstance(value, dict):
            for key in value:
                self._refuse(spellings.first(key))
            return {key: self.value(item, spellings) for key, item in value.items()}
        return value

    def _text(self, text: str, spellings: Spellings) -> str:
        spans = list(spellings.spans(text))
        if not spans:
            return text
        kept, at = [], 0
        for start, end in spans:
            kept += [text[at:start], self._placeholder(text[start:end], spellings)]
            at = end
        return "".join([*kept, text[at:]])

    def _placeholder(self, spelling: str, spellings: Spellings) -> str:
        if len(spelling) == 1 or spellings.first(spelling[1:]) is not None:
            self._refuse(spelling)
        placeholder = f"{self._mark}x{len(self.originals)}x"
        self.originals[placeholder] = spelling
        return placeholder

    @staticmethod
    def _refuse(spelling: str | None) -> None:
        if spelling is not None:
            raise EngineError(
                "invalid", f"{spelling!r} is a control token of this model and can't stand there"
            )


def _decoded(data: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise EngineError("invalid", f"{name}: {error}") from error
