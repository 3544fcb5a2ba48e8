"""Attempts for tests, and the answers read to their end."""

from __future__ import annotations

import asyncio
from typing import Any

from router.backends.base import Answer, Limits, Order
from router.backends.openai import OpenAIBackend
from router.config.schema import Provider
from router.wire.chat import decode_chat
from tests.upstream import Upstream, encode

LIMITS = Limits(connect_s=5, first_token_s=5, idle_s=5)
CANARY = "sk-canary-0123456789abcdef"


def order(
    *, stream: bool = False, usage: bool = False, limits: Limits = LIMITS, wait_s: float = 10, **fields: Any
) -> Order:
    """A request for model "m", which is called "up" at the target."""
    value: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    if stream:
        value["stream"] = True
    if usage:
        value["stream_options"] = {"include_usage": True}
    body = encode(value)
    deadline = asyncio.get_running_loop().time() + wait_s
    return Order(
        request=decode_chat(body),
        body=body,
        model="up",
        request_id="req-1",
        deadline=deadline,
        limits=limits,
        created=1_700_000_000,
    )


def backend(upstream: Upstream, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend("p", Provider(base_url=upstream.url, api_key=CANARY, **settings))


async def read_all(answer: Answer) -> bytes:
    """Every byte; like the dispatcher it closes in the end, whatever happens."""
    out = b""
    try:
        while piece := await answer.read():
            out += piece
    finally:
        answer.close()
    return out


async def ask(target: OpenAIBackend, wanted: Order) -> bytes:
    return await read_all(await target.open(wanted))
