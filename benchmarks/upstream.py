"""An upstream that costs next to nothing: the other end for measuring what stands between.

    python -m benchmarks.upstream PORT

Whole answers and streams of 64 chunks, each in one write, made once.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any, cast

CHUNKS = 64
_BASE = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "m"}
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


def _responses() -> tuple[bytes, bytes]:
    body = whole()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: "
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events())
    return (
        head + b"application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body,
        head + b"text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n",
    )


class Connection(asyncio.Protocol):
    """Answers requests, one after the other."""

    WHOLE, STREAM = _responses()

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep it."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Answer what is whole."""
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            size = _size(self._buffer[:end].lower())
            request, rest = self._buffer[: end + 4 + size], self._buffer[end + 4 + size :]
            if len(request) < end + 4 + size:
                return
            self._buffer = rest
            assert self._transport is not None
            streams = b'"stream":true' in request or b'"stream": true' in request
            self._transport.write(self.STREAM if streams else self.WHOLE)


def _size(head: bytes) -> int:
    text = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
    return int(text) if text else 0


async def serve(port: int) -> None:
    """Until it is killed."""
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    import uvloop

    uvloop.run(serve(int(sys.argv[1])))
