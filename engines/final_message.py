"""A conversation whose last message is unfinished: what came before it, and its text so far. Pure."""

from __future__ import annotations

import msgspec
from msgspec import Raw, Struct

from engines.base import EngineError


class _Final(Struct, frozen=True):
    role: str
    content: str
    tool_calls: list[Raw] = []


def split(messages: bytes) -> tuple[bytes, str]:
    """The messages before the last, byte for byte as they came, and the last one's text.

    Raises EngineError("invalid") where the last one is no text of the assistant's.
    """
    try:
        last = bytes(msgspec.json.decode(messages, type=list[Raw])[-1])
        final = msgspec.json.decode(last, type=_Final)
    except (msgspec.MsgspecError, IndexError) as error:
        raise EngineError("invalid", f"no message to go on from: {error}") from error
    if final.role != "assistant" or final.tool_calls:
        raise EngineError("invalid", "only a text of the assistant can be gone on from")
    before = messages[: messages.rindex(last)].rstrip().removesuffix(b",")
    return before + b"]", final.content
