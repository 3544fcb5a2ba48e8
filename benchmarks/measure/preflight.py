"""A look at the server before any load: is it there, does it speak OpenAI's API, which model, how long is a word.

Two short questions are asked whose lengths differ; the server's count of their tokens is the ruler for prompts.
"""

from __future__ import annotations

import asyncio
import time

import msgspec
from msgspec import Struct

from benchmarks.measure.client import CONNECT, Asking, Endpoint, Reading, Refused, Usage
from benchmarks.measure.prompts import Message, Ruler, Writer
from benchmarks.measure.records import OK, Record

SHORT_WORDS, LONG_WORDS = 16, 144
"""A difference of 128 words gives tokens a word within 1 %, and still fits a context of a few hundred tokens."""
ANSWER_TOKENS = 16
PATIENCE_S = 120.0
"""A model may have to be loaded first."""
LEAST_SLOPE, MOST_SLOPE = 0.2, 20.0
"""Tokens a word that can be: outside, the server doesn't count what it was sent."""


class Unusable(Exception):  # noqa: N818 - read as a sentence where it is caught
    """There is no server to measure; the text says why."""


class Found(Struct, frozen=True):
    """What the look found."""

    model: str
    ruler: Ruler
    counts_tokens: bool
    """The server reports usage of streams."""
    answer_s: float
    """How long an answer of a few tokens took, alone."""


class _Model(Struct, frozen=True):
    id: str


class _Models(Struct, frozen=True):
    data: list[_Model]


class _Choice(Struct, frozen=True):
    index: int = 0


class _Answer(Struct, frozen=True):
    choices: list[_Choice]
    usage: Usage | None = None


async def look(endpoint: Endpoint, asking: Asking | None, extra: Asking) -> Found:
    """Look. Without ``asking`` the first model that the server lists is taken, with the fields of ``extra``.

    Raises Unusable.
    """
    until = asyncio.get_running_loop().time() + PATIENCE_S
    try:
        if asking is None:
            asking = msgspec.structs.replace(extra, model=await first_model(endpoint, until))
        counts = [
            await _count(endpoint, asking, words, until) for words in (SHORT_WORDS, LONG_WORDS)
        ]
        answer_s, counted = await _stream(endpoint, asking)
    except Refused as refused:
        raise Unusable(explained(endpoint.url, refused)) from refused
    return Found(asking.model, _ruler(*counts), counted, answer_s)


async def first_model(endpoint: Endpoint, until: float) -> str:
    """The model that the server lists first. Raises Refused, Unusable."""
    body = await endpoint.get("/v1/models", until)
    try:
        listed = msgspec.json.decode(body, type=_Models).data
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unusable(f"{endpoint.url} does not speak OpenAI's API") from None
    if not listed:
        raise Unusable(f"{endpoint.url} has no models")
    return listed[0].id


async def _count(endpoint: Endpoint, asking: Asking, words: int, until: float) -> int | None:
    """The prompt tokens of so many words, by the server's count."""
    text = Writer(Ruler(tokens_per_word=1.0)).text(f"ruler {words}", words)
    body = asking.body([Message("user", text)], 1, stream=False)
    answer = await endpoint.post(body, until)
    try:
        usage = msgspec.json.decode(answer, type=_Answer).usage
    except (msgspec.MsgspecError, UnicodeDecodeError):
        raise Unusable(f"{endpoint.url} does not speak OpenAI's API") from None
    return usage.prompt_tokens if usage is not None else None


def _ruler(short: int | None, long: int | None) -> Ruler:
    if not short or not long:
        return Ruler()
    slope = (long - short) / (LONG_WORDS - SHORT_WORDS)
    if not LEAST_SLOPE <= slope <= MOST_SLOPE:
        return Ruler()
    return Ruler(slope, max(0.0, short - slope * SHORT_WORDS), measured=True)


async def _stream(endpoint: Endpoint, asking: Asking) -> tuple[float, bool]:
    """Seconds of a short streamed answer, and whether its tokens were counted. Raises Refused."""
    record = Record(0, 0.0, SHORT_WORDS, ANSWER_TOKENS)
    reading = Reading(record, time.perf_counter())
    text = Writer(Ruler()).text("stream", SHORT_WORDS)
    body = asking.body([Message("user", text)], ANSWER_TOKENS)
    await endpoint.stream(body, reading, PATIENCE_S)
    reading.conclude(OK)
    return max(record.end_s, 1e-3), record.by_usage


def explained(url: str, refused: Refused) -> str:
    """One line on why a server can't be measured."""
    words = f": {refused}" if str(refused) else ""
    if refused.kind == CONNECT:
        return f"nothing answers at {url}{words}"
    if refused.kind == "401":
        return f"401{words}; the key comes from the environment, see --key-env"
    if refused.kind == "404" and not words:
        return f"404: {url} does not speak OpenAI's API"
    return f"{url} answered {refused.kind}{words}"
