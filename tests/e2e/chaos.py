"""Upstreams that go wrong at random, always the same for a seed: any fault at any byte of any answer.

Every request says its number, and all targets mean to answer it with the same text, so a client can tell a whole
answer from a part, from one with a part twice, and from another client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from tests import upstream as up

INPUT_TOKENS = 7
FAULTY = 0.3
"""The share of attempts that go wrong at a target in a good hour; in a bad one nearly all do."""
BAD_HOUR = 40
"""Requests; every third such stretch is one in which the flapping target fails."""

Bytes = list[bytes]
Plan = Callable[[up.Call, random.Random, "Bytes"], Any]


def text_of(number: int) -> str:
    """What everybody means to answer to the request of that number."""
    rng = random.Random(number)
    odd = rng.choice(["", "{", '"}', "é中😀", 'data: {"x":1}', "[DONE]", '"finish_reason":"stop"'])
    return "".join(f"r{number}w{i} " for i in range(rng.randint(1, 6))) + odd


def pieces_of(text: str) -> list[str]:
    """As a model would write it."""
    return [piece + " " for piece in text.split(" ")[:-1]] + [text.rpartition(" ")[2]]


def question(number: int) -> dict[str, str]:
    """The message that asks for `text_of` that number."""
    return {"role": "user", "content": f"say {number}"}


class Chaos:
    """The answers of one upstream."""

    def __init__(self, seed: int, name: str, *, flaps: bool) -> None:
        self._seed = seed
        self._name = name
        self._flaps = flaps
        self._tries: Counter[int] = Counter()
        self.continued: set[int] = set()
        """Requests whose beginning came from somebody else."""
        self.faults: Counter[str] = Counter()

    async def __call__(self, call: up.Call) -> None:
        messages = call.seen.json["messages"]
        number = int(messages[0]["content"].split()[1])
        self._tries[number] += 1
        rng = random.Random(f"{self._seed}/{self._name}/{number}/{self._tries[number]}")
        text = text_of(number)
        if messages[-1]["role"] == "assistant":
            self.continued.add(number)
            assert text.startswith(messages[-1]["content"])
            text = text[len(messages[-1]["content"]) :]
        bad_hour = self._flaps and number // BAD_HOUR % 3 == 0
        share = 0.95 if bad_hour else FAULTY
        streams = call.seen.streams
        faults = STREAM_FAULTS if streams else WHOLE_FAULTS
        fault = rng.choice(faults) if rng.random() < share else right
        self.faults[fault.__name__] += 1
        answer = Streamed(call, rng, text) if streams else Whole(call, rng, text)
        await fault(answer)


class Answer:
    """One answer about to be sent, rightly or not."""

    def __init__(self, call: up.Call, rng: random.Random, parts: list[bytes], kind: str) -> None:
        self.call = call
        self.rng = rng
        self.parts = parts
        """The body: a stream's events, or the one JSON."""
        self._kind = kind
        self._chunked = rng.random() < 0.7

    @property
    def wire(self) -> bytes:
        """All the bytes of a proper answer."""
        lines = ["HTTP/1.1 200 OK", f"content-type: {self._kind}"]
        if self._chunked:
            parts = b"".join(up.chunked(part) for part in self.parts if part) + b"0\r\n\r\n"
            lines.append("transfer-encoding: chunked")
        else:
            parts = b"".join(self.parts)
            lines.append(f"content-length: {len(parts)}")
        return "\r\n".join([*lines, "", ""]).encode() + parts

    async def send(self, data: bytes) -> None:
        """In segments of any size, or at once."""
        segments = up.at_random(self.rng.getrandbits(30), 400) if self.rng.random() < 0.3 else None
        await self.call.write(data, segments)

    def part(self) -> bytes:
        """The answer's first bytes, at least one missing."""
        wire = self.wire
        return wire[: self.rng.randrange(len(wire))]


class Streamed(Answer):
    """A stream of the text."""

    def __init__(self, call: up.Call, rng: random.Random, text: str) -> None:
        options = call.seen.json.get("stream_options") or {}
        pieces = pieces_of(text)
        events = up.events(texts=pieces, usage=None)
        if options.get("include_usage"):
            events.insert(-1, up.event(up.chunk(None, usage=usage_of(pieces))))
        if rng.random() < 0.3:
            events.insert(rng.randrange(len(events)), b": keep-alive\n\n")
        if rng.random() < 0.2:
            events = [event.replace(b"\n", b"\r\n") for event in events]
        super().__init__(call, rng, events, "text/event-stream")


class Whole(Answer):
    """The text as one JSON."""

    def __init__(self, call: up.Call, rng: random.Random, text: str) -> None:
        body = up.completion(text, usage=usage_of(pieces_of(text)))
        super().__init__(call, rng, [body], "application/json")


def usage_of(pieces: list[str]) -> dict[str, int]:
    count = len(pieces)
    return {
        "prompt_tokens": INPUT_TOKENS,
        "completion_tokens": count,
        "total_tokens": INPUT_TOKENS + count,
    }


# What may happen to an answer of either kind.


async def right(answer: Answer) -> None:
    await answer.send(answer.wire)


async def then_closed(answer: Answer) -> None:
    """Right, but the connection that the router keeps is gone."""
    await answer.send(answer.wire)
    answer.call.close()


async def cut_by_fin(answer: Answer) -> None:
    await answer.send(answer.part())
    answer.call.close()


async def cut_by_rst(answer: Answer) -> None:
    await answer.send(answer.part())
    answer.call.reset()


async def stalled(answer: Answer) -> None:
    await answer.send(answer.part())
    await answer.call.gone.wait()


async def ends_too_soon(answer: Answer) -> None:
    """In perfect order as far as HTTP can tell: the fault that looks most like an answer."""
    body = b"".join(answer.parts)
    short = body[: answer.rng.randrange(len(body))]
    if isinstance(answer, Streamed) and answer.rng.random() < 0.5:
        short = b"".join(answer.parts[: answer.rng.randrange(len(answer.parts))])
    answer.parts = [short]
    await answer.send(answer.wire)


async def noise(answer: Answer) -> None:
    """Bytes that belong to no protocol, somewhere in the head or between two chunks."""
    wire = answer.wire
    at = answer.rng.choice([0, 5, wire.index(b"\r\n\r\n") + 4])
    await answer.send(wire[:at] + b"\x00\xff\r\nGARBAGE\r\n" + wire[at:])


async def more_behind(answer: Answer) -> None:
    """A second answer that nobody asked for, on the heels of the first: HTTP/1.1 can't tell one that comes later from
    the answer to the next request.
    """
    await answer.call.write(answer.wire * 2)


async def refused(answer: Answer) -> None:
    code = answer.rng.choice([500, 502, 503, 529, 401, 404, 302])
    await answer.send(up.http(code, up.error_body()))


async def limited(answer: Answer) -> None:
    """Seldom without a time: the pause that follows is a second and more, and everybody waits."""
    after = {"retry-after-ms": str(answer.rng.randrange(20))} if answer.rng.random() < 0.95 else {}
    await answer.send(up.http(429, up.error_body(code="rate_limit_exceeded"), headers=after))


async def too_long(answer: Answer) -> None:
    await up.context_too_long()(answer.call)


async def not_json(answer: Answer) -> None:
    await answer.send(up.http(200, b"<html>Bad gateway</html>", kind="text/html"))


async def error_in_200(answer: Answer) -> None:
    await answer.send(up.http(200, up.error_body()))


BOTH = [
    then_closed, cut_by_fin, cut_by_fin, cut_by_rst, stalled, ends_too_soon, ends_too_soon, noise, more_behind,
    refused, refused, limited, limited, too_long, not_json, error_in_200,
]  # fmt: skip


# What may happen to a stream alone.


async def torn_event(answer: Answer) -> None:
    """An event that ends anywhere, followed by the others. (An empty ``data:`` is some providers' heartbeat.)"""
    events = answer.parts
    at = answer.rng.randrange(len(events))
    size = answer.rng.choice([1, 2, 3, 4, *range(7, len(events[at].strip()))])
    events[at] = events[at][:size] + b"\n\n"
    await answer.send(answer.wire)


async def error_event(answer: Answer) -> None:
    at = answer.rng.randrange(len(answer.parts))
    answer.parts.insert(at, b"data: " + up.error_body() + b"\n\n")
    await answer.send(answer.wire)


async def no_done(answer: Answer) -> None:
    answer.parts = [part for part in answer.parts if b"[DONE]" not in part[:14]]
    await answer.send(answer.wire)


async def no_finish(answer: Answer) -> None:
    answer.parts = [part for part in answer.parts if b'"finish_reason":"stop"' not in part]
    await answer.send(answer.wire)


async def heartbeats(answer: Answer) -> None:
    """A stall that pretends to be busy."""
    part = b"".join(answer.parts[: answer.rng.randrange(len(answer.parts) - 2)])
    await answer.send(up.stream_head() + (up.chunked(part) if part else b""))
    while not answer.call.gone.is_set():
        await answer.call.write(up.chunked(b": keep-alive\n\n"))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await answer.call.gone.wait()


WHOLE_FAULTS = BOTH
STREAM_FAULTS = [*BOTH, torn_event, torn_event, error_event, no_done, no_finish, heartbeats]


def body_of(number: int, model: str, *, streaming: bool) -> dict[str, Any]:
    """A client's request; one in three streams asks for usage."""
    body = {"model": model, "messages": [question(number)], "stream": streaming}
    if streaming and number % 3 == 0:
        body["stream_options"] = {"include_usage": True}
    return json.loads(json.dumps(body))
