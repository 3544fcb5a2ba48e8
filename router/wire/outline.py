"""A long chat request is nearly all messages. Where they are, so that what is around them can be looked at by itself.

It is a guess from bytes, which costs next to nothing, and whoever makes it has it confirmed: the messages decode as one
array, and the rest as an object with an empty array in their place. Then that is where they are, for a JSON text stays
one when one value in it is put for another. A wrong guess decodes as neither.

Source: RFC 8259, section 2.
"""

from __future__ import annotations

import re

HEAD_BYTES = 16 * 1024
"""So far in front they are looked for; system prompts are messages, and other long parameters mostly come behind."""

TAIL_BYTES = 128 * 1024
"""So far from the end their end is looked for: as much as tools may take that are given behind them."""

EMPTY = b"[]"
"""What stands for them in the outline."""

_START = re.compile(rb'"messages"\s*:\s*(?=\[)')
_END = re.compile(
    rb"\}\s*\](?=\s*(?:\}\s*\Z|,\s*"
    rb'"(?:model|stream|stream_options|temperature|top_p|n|stop|max_tokens|max_completion_tokens|seed|tools|tool_choice'
    rb"|response_format|parallel_tool_calls|frequency_penalty|presence_penalty|logit_bias|logprobs|top_logprobs|user"
    rb'|metadata|store|reasoning_effort|service_tier)"))'
)
"""A list of objects that is the last in its own object, or followed by a parameter's name."""


def messages_at(body: bytes) -> tuple[int, int] | None:
    """Where they probably are in ``body``; None where that can't be told at a glance."""
    start = _START.search(body, 0, HEAD_BYTES)
    if start is None:
        return None
    end = _END.search(body, max(start.end(), len(body) - TAIL_BYTES))
    return None if end is None else (start.end(), end.end())


def around(body: bytes, at: tuple[int, int]) -> bytes:
    """The outline: ``body`` without what is ``at`` that place."""
    return b"%b%b%b" % (body[: at[0]], EMPTY, body[at[1] :])


def halves(outline: bytes) -> tuple[bytes, bytes]:
    """What is before the messages in an outline, and what is behind them."""
    start = _START.search(outline)
    assert start is not None, "an outline has their name"
    return outline[: start.end()], outline[start.end() + len(EMPTY) :]
