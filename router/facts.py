"""What balancing needs to know of a decoded request: about how long it is, and how it begins.

The router doesn't tokenise: that would cost more than all of its other work. Only policies that weigh requests ask
for these facts; a request under round robin pays nothing.
"""

from __future__ import annotations

import sys
from typing import get_args

import msgspec

from router.load import Facts
from router.prefix import blocks_of
from router.wire.chat import ChatRequest
from router.wire.legacy import CompletionRequest
from router.wire.messages import FunctionCall, Part, RefusalPart, Role, TextPart
from router.wire.request import Request

CHARS_PER_TOKEN = 4
"""English prose and code under today's vocabularies; other scripts have fewer, and are then underestimated alike
for every target.
"""
ATTACHMENT_TOKENS = 765
"""An image of 1024 x 1024 at high detail. Source: OpenAI's guide to images and vision."""


def facts_of(request: Request, most_blocks: int = sys.maxsize) -> Facts:
    """The facts of ``request``, with at most so many blocks of its beginning."""
    if isinstance(request, ChatRequest):
        pieces, attachments = _pieces(request)
        return _facts(pieces, attachments * ATTACHMENT_TOKENS, request, most_blocks)
    given = request.prompt if isinstance(request, CompletionRequest) else request.input
    if given is None or isinstance(given, str):
        return _facts([given or ""], 0, request, most_blocks)
    text = "\n".join(one for one in given if isinstance(one, str))
    ids = sum(len(one) if isinstance(one, list) else isinstance(one, int) for one in given)
    return _facts([text], ids, request, most_blocks)


def size_of(request: Request, body_bytes: int) -> Facts:
    """About how long it is, told at a glance: a body is mostly text, but for what is attached."""
    tokens = body_bytes // CHARS_PER_TOKEN
    if isinstance(request, ChatRequest):
        for message in request.messages:
            if type(message.content) is list:  # perhaps with attachments, whose bytes say nothing
                pieces, attachments = _pieces(request)
                if attachments:
                    tokens = sum(map(len, pieces)) // CHARS_PER_TOKEN
                    tokens += attachments * ATTACHMENT_TOKENS
                break
    return Facts(max(1, tokens), (), request.output_limit)


def _facts(pieces: list[str], tokens_beside: int, request: Request, most_blocks: int) -> Facts:
    text = "".join(pieces)
    tokens = len(text) // CHARS_PER_TOKEN + tokens_beside
    return Facts(tokens or 1, blocks_of(text, most_blocks), request.output_limit)


def _pieces(request: ChatRequest) -> tuple[list[str], int]:
    """What the model reads, about in its order: tools come first in most templates, and many requests share them.

    And how many attachments are among it.
    """
    pieces: list[str] = []
    if request.tools:
        pieces = [msgspec.json.encode(tool).decode() for tool in request.tools]
    attachments = 0
    for message in request.messages:
        content = message.content
        pieces += (_HEADS[message.role], content if type(content) is str else "")
        if type(content) is list:
            for part in content:
                attachments += not isinstance(part, TextPart | RefusalPart)
                pieces.append(_said(part))
        if message.tool_calls:
            for call in message.tool_calls:
                called = call.function if isinstance(call, FunctionCall) else call.custom
                pieces.append(msgspec.json.encode(called).decode())
    return pieces, attachments


_HEADS = {role: f"\n{role}:" for role in get_args(Role)}
"""What stands before a message, about as templates have it."""


def _said(part: Part) -> str:
    if isinstance(part, TextPart):
        return part.text
    if isinstance(part, RefusalPart):
        return part.refusal
    return f"<{hash(msgspec.json.encode(part))}>"
