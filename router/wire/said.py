"""What a client was told by a stream that broke off, read from the bytes that it got. Pure.

Only a stream of one choice that can be gone on with is read; everything else is None.

Source: OpenAI's published API specification, CreateChatCompletionStreamResponse; `reasoning_content` and `reasoning`
are DeepSeek's and OpenRouter's names for what a model thinks first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from router.wire import sse

Chunk = dict[str, Any]
IDENTITY = ("id", "object", "created", "model", "system_fingerprint", "service_tier")
"""What every chunk of one answer says of itself."""
THOUGHTS = frozenset({"reasoning_content", "reasoning", "reasoning_details"})


class Said(Struct):
    """An answer so far."""

    identity: Chunk
    text: str = ""
    pieces: int = 0
    """Chunks with text: about one a token."""
    finished: bool = False
    """Its finish_reason was sent."""
    told: Chunk | None = None
    """The last usage that was sent."""
    role: bool = False
    """Its first chunk, which has the role, was sent."""
    beyond: bool = False
    """Something was said that no text goes on from: calls, a refusal, sounds, thoughts that were not over."""

    @property
    def written(self) -> int:
        """Tokens of the text: as told, else one a chunk."""
        told = self.told.get("completion_tokens") if self.told is not None else None
        return told if isinstance(told, int) else self.pieces

    @property
    def nothing(self) -> bool:
        """No word yet."""
        return not self.text.strip() and not self.beyond


def load(data: bytes) -> Chunk | None:
    """A chunk's JSON; None where it is no object. Half a character (an escaped surrogate alone) is let through."""
    try:
        chunk = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return chunk if isinstance(chunk, dict) else None


def text_of(choice: Chunk) -> Any:
    """A choice's text, in chat's form or the older one."""
    delta = choice.get("delta")
    return delta.get("content") if isinstance(delta, dict) else choice.get("text")


def read(blobs: Iterable[bytes]) -> Said | None:
    """What ``blobs``, whole events, have said; None where that can't be told, or not gone on with by anybody."""
    said = Said({})
    thought = False
    texts: list[str] = []
    for event in sse.split(b"".join(blobs)):
        data = sse.data_of(event)
        if data is None or data.strip() in {b"", b"[DONE]"}:
            continue
        chunk = load(data)
        if chunk is None:
            return None
        if (
            not said.identity or not said.role
        ):  # some begin with a chunk that has no choice and no name
            said.identity = {key: chunk[key] for key in IDENTITY if key in chunk}
        said.told = chunk.get("usage") or said.told
        for choice in chunk.get("choices") or ():
            if choice.get("index", 0) != 0:
                return None
            thought = _hear(said, choice, texts) or thought
    text = joined("".join(texts))
    if text is None or not said.identity:
        return None
    said.text = text
    said.beyond = said.beyond or (thought and not text)
    return said


def _hear(said: Said, choice: Chunk, texts: list[str]) -> bool:
    """Take in one choice of a chunk; whether it had thoughts."""
    said.finished = said.finished or choice.get("finish_reason") is not None
    said.role = True
    delta = choice.get("delta") or {}
    said.beyond = said.beyond or any(
        value for key, value in delta.items() if key not in {"role", "content", *THOUGHTS}
    )
    text = text_of(choice)
    if text and isinstance(text, str):
        texts.append(text)
        said.pieces += 1
    elif text:
        said.beyond = True
    return any(delta.get(key) for key in THOUGHTS)


def joined(text: str) -> str | None:
    """``text`` with halves of characters put together; None where one has lost its other half."""
    try:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError:
        return None
