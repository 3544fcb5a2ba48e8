"""An upstream that costs next to nothing: the other end for measuring what stands between.

    python -m benchmarks.upstream PORT [PACE_MS]

Whole answers and streams of 64 chunks, made once; a stream goes out in one write, or a chunk every PACE_MS.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any, cast

CHUNKS = 64
BACKLOG = 4096
"""Connections that come at once."""
_BASE = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
PACED_EVENTS = CHUNKS + 4
"""Of a stream: the role, the words, the end, the usage, and [DONE]."""
_USAGE = {"prompt_tokens": 200, "completion_tokens": CHUNKS, "total_tokens": 200 + CHUNKS}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def whole() -> bytes:
    """An answer's JSON."""
    message = {"role": "assistant", "content": "word " * CHUNKS}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    answer = {**_BASE, "object": "chat.completion", "choices": [choice], "usage": _USAGE}
    return json.dumps(answer).encode()


def events() -> list[bytes]:
    """A stream's events."""

    def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
        chunk = {**_BASE, "object": "chat.completion.chunk", "choices": choices, **more}
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"

    def choice(delta: dict[str, str], reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "finish_reason": reason}

    words = [event([choice({"content": f"word{number} "})]) for number in range(CHUNKS)]
    first = event([choice({"role": "assistant", "content": ""})])
    return [
        first,
        *words,
        event([choice({}, "stop")]),
        event([], usage=_USAGE),
        b"data: [DONE]\n\n",
    ]


def _responses() -> tuple[bytes, list[bytes]]:
    body = whole()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: "
    chunks = [b"%x\r\n%b\r\n" % (len(one), one) for one in events()]
    return (
        head + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body,
        [head + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks[0], *chunks[1:-1],
         chunks[-1] + b"0\r\n\r\n"],
    )  # fmt: skip


class Connection(asyncio.Protocol):
    """Answers requests, one after the other."""

    WHOLE, CHUNKS = _responses()
    STREAM = b"".join(CHUNKS)

    def __init__(self, pace_s: float = 0.0) -> None:
        self._pace_s = pace_s
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._missing = 0
        """So much, at least, until a request is whole."""
        self._pieces: list[bytes] = []
        """What came of it since."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        if self._missing > 0:
            self._missing -= len(data)
            self._pieces.append(data)
            if self._missing > 0:
                return
            data = b"".join(self._pieces)
            self._pieces.clear()
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            size = _size(self._buffer[:end].lower())
            request, rest = self._buffer[: end + 4 + size], self._buffer[end + 4 + size :]
            self._missing = end + 4 + size - len(request)
            if self._missing > 0:
                return
            self._buffer = rest
            assert self._transport is not None
            streams = b'"stream":true' in request or b'"stream": true' in request
            if streams and self._pace_s:
                self._go_on(0, asyncio.get_running_loop().time())
            else:
                self._transport.write(self.STREAM if streams else self.WHOLE)

    def _go_on(self, number: int, due: float) -> None:
        """Write the chunk of that number, and the next in its time; late ones don't delay those after them."""
        assert self._transport is not None
        if self._transport.is_closing():
            return
        self._transport.write(self.CHUNKS[number])
        if number + 1 < len(self.CHUNKS):
            due += self._pace_s
            asyncio.get_running_loop().call_at(due, self._go_on, number + 1, due)


def _size(head: bytes) -> int:
    text = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return int(text) if text else 0


async def serve(port: int, pace_s: float = 0.0) -> None:
    """Until it is killed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(pace_s), "127.0.0.1", port, backlog=BACKLOG
    )
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    if len(sys.argv) not in {2, 3} or not all(word.isdecimal() for word in sys.argv[1:]):
        sys.exit(__doc__)
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]) / 1000 if sys.argv[2:] else 0.0))
