"""What balancing needs to know of a decoded request: about how long it is, and how it begins.

The router doesn't tokenise: that would cost more than all of its other work. Only policies that weigh requests ask
for these facts; a request under round robin pays nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from router.load import Facts
from router.prefix import blocks_of
from router.wire.chat import ChatRequest, ImagePart, Message, Part, RefusalPart, TextPart

CHARS_PER_TOKEN = 4
"""English prose and code under today's vocabularies; other scripts have fewer, and are then underestimated alike
for every target.
"""
ATTACHMENT_TOKENS = 765
"""An image of 1024 x 1024 at high detail. Source: OpenAI's guide to images and vision."""


def facts_of(request: ChatRequest) -> Facts:
    """The facts of ``request``. Tools come first, as in every chat template; they are what many requests share."""
    text = "".join(_pieces(request))
    attachments = sum(map(_attachments, request.messages))
    tokens = len(text) // CHARS_PER_TOKEN + attachments * ATTACHMENT_TOKENS
    return Facts(max(1, tokens), blocks_of(text), request.output_limit)


def _pieces(request: ChatRequest) -> Iterator[str]:
    for tool in request.tools or ():
        for value in tool.values():
            yield bytes(value).decode(errors="replace")
    for message in request.messages:
        yield f"\n{message.role}:"
        content = message.content
        if isinstance(content, str):
            yield content
        elif content is not None:
            yield from map(_said, content)
        for call in message.tool_calls or ():
            if call.function is not None:
                yield call.function.name
                yield call.function.arguments


def _said(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, RefusalPart):
        return part.refusal
    raw = part.image_url if isinstance(part, ImagePart) else {}
    return f"<{hash(tuple(bytes(value) for value in raw.values()))}>"


def _attachments(message: Message) -> int:
    content = message.content
    if content is None or isinstance(content, str):
        return 0
    return sum(not isinstance(part, TextPart | RefusalPart) for part in content)
