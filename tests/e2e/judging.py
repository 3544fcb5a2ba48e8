"""A client that trusts nobody: it reads an answer off its socket and says what was promised with it.

aiohttp's client would do for most of it, but hides where the bytes of a broken answer end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any, Self

DONE = "[DONE]"
ERROR_KEYS = ["message", "type", "param", "code"]
PATIENCE_S = 20.0
"""A client that waits longer than this hangs."""


class Got:
    """One answer as it came."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, *, clean: bool):
        self.status = status
        self.headers = headers
        self.body = body
        self.clean = clean
        """The body ended as its framing said it would."""

    @property
    def streamed(self) -> bool:
        return self.headers.get("content-type", "").startswith("text/event-stream")

    @property
    def attempts(self) -> int:
        return int(self.headers["x-nenya-attempts"])

    @property
    def target(self) -> str:
        return self.headers["x-nenya-target"]

    @property
    def data(self) -> list[str]:
        """What the stream's events say, comments left out."""
        assert self.body.endswith(b"\n\n"), self.body[-80:]
        found = [event for event in self.body.decode().split("\n\n") if event]
        found = [event for event in found if not event.startswith(":")]
        assert all(event.startswith("data: ") and "\n" not in event for event in found), found
        return [event.removeprefix("data: ") for event in found]

    @property
    def chunks(self) -> list[Any]:
        """The stream's chunks, decoded; neither its error nor its [DONE]."""
        decoded = [json.loads(data) for data in self.data if data != DONE]
        return [chunk for chunk in decoded if "error" not in chunk]

    @property
    def choices(self) -> list[Any]:
        return [choice for chunk in self.chunks for choice in chunk["choices"]]

    @property
    def text(self) -> str:
        """Of the one choice, from its deltas or its message."""
        if self.streamed:
            return "".join(choice["delta"].get("content") or "" for choice in self.choices)
        return str(json.loads(self.body)["choices"][0]["message"]["content"])

    @property
    def finishes(self) -> list[str]:
        choices = self.choices if self.streamed else json.loads(self.body)["choices"]
        return [one["finish_reason"] for one in choices if one["finish_reason"] is not None]

    @property
    def usage(self) -> Any:
        """None where it wasn't told."""
        if not self.streamed:
            return json.loads(self.body).get("usage")
        return next((c["usage"] for c in reversed(self.chunks) if c.get("usage")), None)

    @property
    def error(self) -> Any:
        """The error object that the client was told; None where there is none."""
        if self.streamed:
            last = self.data[-1] if self.body else "{}"
            return None if last == DONE else json.loads(last).get("error")
        return json.loads(self.body).get("error") if self.status != 200 else None

    def is_whole(self) -> bool:
        """Whether it is a complete answer; asserts that otherwise it is an explicit error, and nothing between."""
        if self.status != 200:
            self._assert_refused()
            return False
        if not self.streamed:
            assert self.clean, self.body
            assert len(self.finishes) == 1, self.body
            return True
        if self.clean:
            self._assert_complete()
            return True
        self._assert_broken_off()
        return False

    def _assert_refused(self) -> None:
        assert self.status >= 400
        assert self.clean, self.body
        assert set(ERROR_KEYS) <= set(self.error), self.body

    def _assert_complete(self) -> None:
        data = self.data
        assert data[-1] == DONE, data[-3:]
        assert data.count(DONE) == 1, data
        assert self.error is None
        assert not [one for one in data if one.startswith('{"error"')], data
        assert len(self.finishes) == 1, data
        assert len({chunk["id"] for chunk in self.chunks}) == 1, data
        assert sum("role" in choice["delta"] for choice in self.choices) == 1, data

    def _assert_broken_off(self) -> None:
        data = self.data
        assert DONE not in data
        assert list(self.error) == ERROR_KEYS, data
        assert self.finishes == [], data
        assert len({chunk["id"] for chunk in self.chunks}) <= 1, data


class Wire:
    """One client's connection; it is opened again where the server closed it."""

    def __init__(self, url: str, secret: str) -> None:
        self._port = int(url.rpartition(":")[2])
        self._secret = secret
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.leave()

    async def send(self, body: Mapping[str, Any], *, request_id: str = "") -> asyncio.StreamReader:
        """Send a request; what comes back is on the reader."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request(body, self._secret, request_id))
        return reader

    async def ask(self, body: Mapping[str, Any], *, request_id: str = "") -> Got:
        """One whole exchange. Raises TimeoutError where the server hangs."""
        async with asyncio.timeout(PATIENCE_S):
            got = await read(await self.send(body, request_id=request_id))
        if not got.clean or got.headers.get("connection") == "close":
            await self.leave()
        return got

    async def leave(self, *, half: bool = False) -> None:
        """Close; or with ``half`` only what it sends."""
        if self._streams is None:
            return
        if half:
            self._streams[1].write_eof()
            return
        writer, self._streams = self._streams[1], None
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def request(body: Mapping[str, Any], secret: str, request_id: str = "") -> bytes:
    """A chat completion's bytes."""
    data = json.dumps(body).encode()
    asked = f"x-request-id: {request_id}\r\n" if request_id else ""
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n{asked}"
        f"content-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def read(reader: asyncio.StreamReader) -> Got:
    """One answer, whole or broken off."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    pairs = (line.partition(": ") for line in lines if line)
    headers = {name.lower(): value for name, _, value in pairs}
    body = bytearray()
    clean = await _read_body(reader, headers, body)
    return Got(int(first.split()[1]), headers, bytes(body), clean=clean)


async def _read_body(
    reader: asyncio.StreamReader, headers: Mapping[str, str], body: bytearray
) -> bool:
    """Fill ``body``; false where it breaks off."""
    try:
        if "content-length" in headers:
            body += await reader.readexactly(int(headers["content-length"]))
            return True
        if headers.get("transfer-encoding") != "chunked":
            body += await reader.read()
            return True
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        body += getattr(error, "partial", b"")
        return False
    return True
