"""A provider whose every answer can be scripted, byte by byte: what tests put behind the router.

    async with Upstream(stream(3), status(503), reset()) as upstream:
        ...  # requests get these answers, in order; then `upstream.default`
        upstream.requests[0].json["model"]

An answer is an async function of a `Call`; those below are made by the functions that tests call. It listens on a
real socket, speaks HTTP/1.1 by hand (so that it can speak it wrongly) and notes when its peer goes.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Self

CREATED = 1_700_000_000
USAGE = {
    "prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13, "prompt_tokens_details": {"cached_tokens": 4},
}  # fmt: skip


class Seen:
    """A request as it came."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.head = head
        self.line = lines[0]
        self.headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        self.body = body

    @property
    def json(self) -> Any:
        return jsonlib.loads(self.body)

    @property
    def streams(self) -> bool:
        return bool(self.json.get("stream"))


class Call:
    """One request under way, as an answer sees it."""

    def __init__(self, upstream: Upstream, connection: _Connection, seen: Seen) -> None:
        self.upstream = upstream
        self.seen = seen
        self._connection = connection

    @property
    def gone(self) -> asyncio.Event:
        """Set when the peer has closed the connection."""
        return self._connection.gone

    async def write(self, data: bytes, pieces: Segments | None = None) -> None:
        """Send ``data``, cut by ``pieces``; returns when the network has taken it. Silent once the peer is gone."""
        for piece in pieces(data) if pieces is not None else [data]:
            await self._connection.write(piece)
            if pieces is not None:
                await asyncio.sleep(0)

    def close(self) -> None:
        """End the connection in order: what was written arrives, then FIN."""
        self._connection.transport.close()

    def reset(self) -> None:
        """End it with a RST."""
        sock = self._connection.transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.transport.abort()


Script = Callable[[Call], Awaitable[None]]
Segments = Callable[[bytes], Iterable[bytes]]


class Upstream:
    """Listens, answers, remembers. Requests take the scripts in order, then `default`."""

    def __init__(
        self, *scripts: Script, default: Script | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.scripts: list[Script] = list(scripts)
        self.default: Script = default if default is not None else normal()
        self.requests: list[Seen] = []
        self.connections = 0
        """How many were ever accepted."""
        self.closed_at: list[float] = []
        """The loop's time, whenever a peer closed (or lost) its connection."""
        self.greeting = b""
        """Sent on every connection before any request."""
        self.host = "127.0.0.1"
        self.port = 0
        self._tls = tls
        self._open: set[_Connection] = set()
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Connection(self), self.host, self.port, ssl=self._tls
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for connection in list(self._open):
            connection.transport.abort()
        for connection in list(self._open):
            await connection.over()
        await self._server.wait_closed()

    @property
    def url(self) -> str:
        """A provider's base_url."""
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    def script(self, *scripts: Script) -> None:
        """The next requests get these."""
        self.scripts.extend(scripts)

    async def until_gone(self, count: int = 1, timeout_s: float = 5) -> float:
        """Wait until ``count`` connections have been closed; the time of the last, on the loop's clock."""
        async with asyncio.timeout(timeout_s):
            while len(self.closed_at) < count:
                await asyncio.sleep(0.001)
        return self.closed_at[count - 1]

    async def until_requests(self, count: int = 1, timeout_s: float = 5) -> None:
        """Wait until that many requests have come."""
        async with asyncio.timeout(timeout_s):
            while len(self.requests) < count:
                await asyncio.sleep(0.001)

    def close_idle(self) -> None:
        """Close every connection now, as a server that restarts does."""
        for connection in list(self._open):
            connection.transport.close()

    def next_script(self) -> Script:
        return self.scripts.pop(0) if self.scripts else self.default


class _Connection(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.gone = asyncio.Event()
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport) -> None:
        self.transport = transport
        self.upstream.connections += 1
        self.upstream._open.add(self)
        if self.upstream.greeting:
            transport.write(self.upstream.greeting)

    def connection_lost(self, exc) -> None:
        self._note_gone()
        self._writable.set()
        self.upstream._open.discard(self)
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> None:
        self._note_gone()

    def _note_gone(self) -> None:
        if not self.gone.is_set():
            self.gone.set()
            self.upstream.closed_at.append(asyncio.get_running_loop().time())

    async def over(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
            await self._writable.wait()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None or self._task.done():
            self._next()

    def _next(self, _: object = None) -> None:
        if self.transport.is_closing():
            return
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        seen = Seen(self._buffer[:end], b"")
        size = int(seen.headers.get("content-length", 0))
        rest = self._buffer[end + 4 :]
        if len(rest) < size:
            return
        seen.body, self._buffer = rest[:size], rest[size:]
        self.upstream.requests.append(seen)
        self._task = asyncio.ensure_future(self._serve(Call(self.upstream, self, seen)))
        self._task.add_done_callback(self._next)

    async def _serve(self, call: Call) -> None:
        await self.upstream.next_script()(call)


# Segments.


def whole(data: bytes) -> list[bytes]:
    return [data]


def by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def at_random(seed: int, longest: int = 40) -> Segments:
    """Cuts of 1 to ``longest`` bytes, always the same for a seed."""

    def cut(data: bytes) -> list[bytes]:
        rng = random.Random(seed)
        pieces = []
        while data:
            size = rng.randint(1, longest)
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    return cut


# Bytes.


def http(
    status: int,
    body: bytes,
    *,
    headers: dict[str, str] | None = None,
    kind: str = "application/json",
    framing: str = "length",
) -> bytes:
    """A whole response; ``framing`` is length, chunked or close."""
    lines = [f"HTTP/1.1 {status} X", f"content-type: {kind}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if framing == "length":
        lines.append(f"content-length: {len(body)}")
    elif framing == "chunked":
        lines.append("transfer-encoding: chunked")
        body = (chunked(body) if body else b"") + b"0\r\n\r\n"
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode(value: Any) -> bytes:
    return jsonlib.dumps(value, separators=(",", ":")).encode()


def completion(
    text: str = "Hello there.", *, finish: str | None = "stop", usage: Any = USAGE, n: int = 1
) -> bytes:
    """The JSON of a whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choices = [
        {"index": index, "message": message, "logprobs": None, "finish_reason": finish}
        for index in range(n)
    ]
    value = {
        "id": "chatcmpl-up", "object": "chat.completion", "created": CREATED, "model": "up", "choices": choices,
    }  # fmt: skip
    return encode({**value, "usage": usage} if usage is not None else value)


def error_body(
    message: str = "It went wrong.",
    *,
    kind: str = "server_error",
    param: str | None = None,
    code: Any = None,
) -> bytes:
    """OpenAI's error object."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def event(value: Any, newline: str = "\n") -> bytes:
    return b"data: " + encode(value) + (newline * 2).encode()


DONE = b"data: [DONE]\n\n"


def chunk(
    delta: dict[str, Any] | None, *, finish: str | None = None, index: int = 0, **extra: Any
) -> dict[str, Any]:
    """One chunk; without ``delta`` it has no choices."""
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
    base = {
        "id": "chatcmpl-up", "object": "chat.completion.chunk", "created": CREATED, "model": "up",
    }  # fmt: skip
    return {**base, "choices": [] if delta is None else [choice], **extra}


def words(count: int) -> list[str]:
    return [f"word{i} " for i in range(count)]


def events(
    count: int = 3,
    *,
    usage: str | None = None,
    finish: str | None = "stop",
    done: bool = True,
    texts: Sequence[str] | None = None,
) -> list[bytes]:
    """A stream's events: role, ``count`` contents, finish, usage, [DONE].

    ``usage``: "chunk" (OpenAI: null elsewhere), "last" (in the last choice chunk), "every", "groq" or None.
    """
    nulls: dict[str, Any] = {"usage": None} if usage == "chunk" else {}
    each: dict[str, Any] = {"usage": USAGE} if usage == "every" else nulls
    last = {"usage": USAGE} if usage in {"last", "every"} else nulls
    if usage == "groq":
        last = {"x_groq": {"id": "req_1", "usage": USAGE}}
    found = [event(chunk({"role": "assistant", "content": "", "refusal": None}, **each))]
    found += [event(chunk({"content": text}, **each)) for text in texts or words(count)]
    if finish is not None:
        found.append(event(chunk({}, finish=finish, **last)))
    if usage == "chunk":
        found.append(event(chunk(None, usage=USAGE)))
    return [*found, DONE] if done else found


# Answers that are right.


def normal(text: str = "Hello there.", count: int = 3) -> Script:
    """A stream where it is asked for (with usage where that is asked for), else a whole answer."""

    async def answer(call: Call) -> None:
        if not call.seen.streams:
            await call.write(http(200, completion(text)))
            return
        options = call.seen.json.get("stream_options") or {}
        await stream(count, usage="chunk" if options.get("include_usage") else None)(call)

    return answer


def json_answer(
    body: bytes | None = None, *, status: int = 200, pieces: Segments | None = None, **how: Any
) -> Script:
    """A response with ``body``; ``how`` is `http`'s."""

    async def answer(call: Call) -> None:
        await call.write(http(status, completion() if body is None else body, **how), pieces)
        if how.get("framing") == "close":
            call.close()

    return answer


def stream(
    count: int = 3,
    *,
    headers: dict[str, str] | None = None,
    gate: asyncio.Semaphore | None = None,
    pieces: Segments | None = None,
    framing: str = "chunked",
    **how: Any,
) -> Script:
    """A stream of `events`; with ``gate``, each event waits for one release of it."""
    return stream_of(
        events(count, **how), headers=headers, gate=gate, pieces=pieces, framing=framing
    )


def stream_of(
    parts: Sequence[bytes],
    *,
    headers: dict[str, str] | None = None,
    gate: asyncio.Semaphore | None = None,
    pieces: Segments | None = None,
    framing: str = "chunked",
    then: Script | None = None,
) -> Script:
    """A stream of these bytes. ``then`` replaces its proper end."""

    async def answer(call: Call) -> None:
        waiting = [stream_head(headers, chunked=framing == "chunked")]
        for part in parts:
            if gate is not None:
                await call.write(b"".join(waiting), pieces)
                waiting.clear()
                await gate.acquire()
            waiting.append(chunked(part) if framing == "chunked" else part)
        if then is None and framing == "chunked":
            waiting.append(b"0\r\n\r\n")
        await call.write(b"".join(waiting), pieces)
        if then is not None:
            await then(call)
        elif framing != "chunked":
            call.close()

    return answer


def stream_head(headers: dict[str, str] | None = None, *, chunked: bool = True) -> bytes:
    lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream; charset=utf-8"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    lines += ["transfer-encoding: chunked"] if chunked else ["connection: close"]
    return "\r\n".join([*lines, "", ""]).encode()


# Faults.


def raw(data: bytes, *, pieces: Segments | None = None, then: Script | None = None) -> Script:
    """Exactly these bytes, then ``then``."""

    async def answer(call: Call) -> None:
        await call.write(data, pieces)
        if then is not None:
            await then(call)

    return answer


def status(code: int, body: bytes | None = None, **how: Any) -> Script:
    """A refusal."""
    return json_answer(error_body() if body is None else body, status=code, **how)


def rate_limited(retry_after: str | None = "1") -> Script:
    headers = {"retry-after": retry_after} if retry_after is not None else {}
    body = error_body("Rate limit reached.", kind="requests", code="rate_limit_exceeded")
    return status(429, body, headers=headers)


def context_too_long() -> Script:
    message = "This model's maximum context length is 8192 tokens."
    code = "context_length_exceeded"
    body = error_body(message, kind="invalid_request_error", param="messages", code=code)
    return status(400, body)


def refuses_prefix() -> Script:
    """What a target answers that doesn't continue an assistant's message."""
    message = "The last message must not be from the assistant."
    return status(400, error_body(message, kind="invalid_request_error", param="messages"))


def content_filtered(count: int = 2) -> Script:
    """An answer that ends with content_filter, streamed or not."""

    async def answer(call: Call) -> None:
        if call.seen.streams:
            await stream(count, finish="content_filter")(call)
        else:
            await call.write(http(200, completion(finish="content_filter")))

    return answer


def reset() -> Script:
    """RST before the head."""
    return _ending(lambda call: call.reset())


def hang_up() -> Script:
    """FIN before the head."""
    return _ending(lambda call: call.close())


def silent() -> Script:
    """Accepts and never answers."""
    return waits(asyncio.Event())


def waits(gate: asyncio.Event, then: Script | None = None) -> Script:
    """Nothing until ``gate`` is set, then ``then``."""

    async def answer(call: Call) -> None:
        await gate.wait()
        if then is not None:
            await then(call)

    return answer


def cut(count: int = 2, *, rst: bool = False) -> Script:
    """Breaks off after ``count`` contents, in the middle of a chunked body; without streaming, of the JSON."""
    after = reset() if rst else hang_up()

    async def answer(call: Call) -> None:
        if call.seen.streams:
            await stream_of(events(count, finish=None, done=False), then=_settled(after))(call)
        else:
            await call.write(http(200, completion())[:-10])
            await _settled(after)(call)

    return answer


def stall(count: int = 2, *, heartbeat_s: float | None = None) -> Script:
    """Stops after ``count`` contents and keeps the connection; with comments every ``heartbeat_s``."""

    async def then(call: Call) -> None:
        while not call.gone.is_set():
            await asyncio.sleep(heartbeat_s if heartbeat_s is not None else 3600)
            await call.write(chunked(b": keep-alive\n\n"))

    async def answer(call: Call) -> None:
        if call.seen.streams:
            await stream_of(events(count, finish=None, done=False), then=then)(call)
        else:
            await call.write(http(200, completion())[:-10])
            await asyncio.sleep(3600)

    return answer


def malformed(count: int = 2, bad: bytes = b'data: {"choices": [{"delta": {"con\n\n') -> Script:
    """Good contents, then an event that is none; without streaming, something that isn't JSON."""

    async def answer(call: Call) -> None:
        if call.seen.streams:
            await stream_of([*events(count, finish=None, done=False), bad, *events(1)])(call)
        else:
            await call.write(http(200, b"<html>oops</html>"))

    return answer


def error_event(count: int = 0, body: bytes | None = None) -> Script:
    """An error inside a 200, after ``count`` contents (0: as the first event)."""
    error = error_body() if body is None else body
    before = events(count, finish=None, done=False) if count else []
    return stream_of([*before, b"data: " + error + b"\n\n"])


def no_done(count: int = 2, *, finish: str | None = "stop") -> Script:
    """A stream that ends in order but without [DONE]."""
    return stream(count, finish=finish, done=False)


def flapping(*scripts: Script) -> Script:
    """These in turn, for ever."""
    turn = 0

    async def answer(call: Call) -> None:
        nonlocal turn
        turn += 1
        await scripts[(turn - 1) % len(scripts)](call)

    return answer


def _ending(act: Callable[[Call], None]) -> Script:
    async def answer(call: Call) -> None:
        act(call)

    return answer


def _settled(after: Script) -> Script:
    """``after``, once what was written has arrived: a RST overtakes what is still on its way."""

    async def answer(call: Call) -> None:
        await asyncio.sleep(0.02)
        await after(call)

    return answer
