"""A router that answers from a script, and what stands around it in tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import msgspec

from router.app import EngineStats, ModelCard, Stats, TargetStats
from router.config.schema import Config, Key, Model, Server, Target
from router.errors import ApiError, invalid_request, unauthorized
from router.pool import build
from router.server.serving import Serving
from router.wire.chat import ChatRequest

SECRET = "sk-canary-0123456789"
BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STREAM_BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}'
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion"}'

Piece = bytes | ApiError | Exception | float | int | asyncio.Event


class FakeReply:
    """Gives what the script says: bytes, an error to raise, seconds or an event to wait for."""

    def __init__(
        self, script: list[Piece], *, streaming: bool, headers: Mapping[str, str] | None = None
    ) -> None:
        self.streaming = streaming
        self.target = "fake/m"
        self.attempts = 1
        self.overhead_s = 0.000125
        self.upstream_headers: Mapping[str, str] = headers or {}
        self.limits = ""
        self.closed = asyncio.Event()
        self.reads = 0
        self._script = list(script)
        self._whole = b""

    async def begin(self) -> None:
        """What an open reply has in hand: all of an answer that isn't a stream."""
        while not self.streaming and (piece := await self.read()):
            self._whole += piece

    def whole(self) -> bytes:
        return self._whole

    async def read(self) -> bytes:
        self.reads += 1
        while self._script:
            piece = self._script.pop(0)
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, int | float):
                await asyncio.sleep(piece)
            elif isinstance(piece, asyncio.Event):
                await piece.wait()
            else:
                return piece
        return b""

    async def pour(self, _sink: Callable[[bytes], bool]) -> None:
        """Every piece is read."""

    def close(self) -> None:
        self.closed.set()


Open = Callable[[ChatRequest, bytes], Awaitable[FakeReply]]


class FakeRouter:
    """What the server sees of a router."""

    def __init__(self, config: Config, open_: Open | None = None) -> None:
        self.config = config
        self.pool = build(config)
        self.listeners = []
        self.replies: list[FakeReply] = []
        self.opened: list[tuple[str, str]] = []
        self.is_ready = True
        self.extra_fields: frozenset[str] = frozenset()
        self.tracing = None
        self.cancelled = asyncio.Event()
        self.script: list[Piece] = [ANSWER]
        self._open = open_

    def authenticate(self, authorization: str | None) -> str:
        secrets = {f"Bearer {key.secret}": key.id for key in self.config.keys}
        if not secrets:
            return "anonymous"
        key_id = secrets.get(authorization or "")
        if key_id is None:
            raise unauthorized("Incorrect API key provided.")
        return key_id

    def admit(
        self, request: ChatRequest, body: bytes, *, key_id: str, request_id: str, **_: object
    ) -> tuple[ChatRequest, bytes]:
        self.opened.append((key_id, request_id))
        return request, body

    async def send(self, call: tuple[ChatRequest, bytes]) -> FakeReply:
        request, body = call
        try:
            if self._open is not None:
                reply = await self._open(request, body)
            else:
                reply = FakeReply(self.script, streaming=bool(request.stream))
            self.replies.append(reply)
            try:
                await reply.begin()
            except BaseException:
                reply.close()
                raise
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return reply

    def models(self, key_id: str) -> list[ModelCard]:
        return [self.model(name, key_id) for name in ("m", "org/big:8b")]

    def model(self, name: str, key_id: str) -> ModelCard:
        if name not in {"m", "org/big:8b"}:
            raise invalid_request(f"no `{name}`", code="model_not_found", status=404)
        return ModelCard(name, 1, "nenya", name, 8192, None)

    def ready(self) -> bool:
        return self.is_ready

    def stop_waiting(self) -> None:
        pass

    def listen(self, listener) -> None:
        self.listeners.append(listener)

    def engines(self) -> list[EngineStats]:
        return []

    def stats(self) -> Stats:
        return Stats(0, (TargetStats("fake/m", ("m",), "fake", "admitting", 0),))


def page(_accept: str) -> Callable[[], tuple[str, bytes]]:
    return lambda: ("text/plain; version=0.0.4; charset=utf-8", b"# nothing\n")


def config(*, keys: bool = True, **server: object) -> Config:
    return Config(
        models={"m": Model(targets=[Target(engine="e")])},
        server=Server(**{"listen": "127.0.0.1:0", "admin": "127.0.0.1:0", **server}),
        keys=[Key(id="me", secret=SECRET)] if keys else [],
    )


class Running:
    """A server under test."""

    def __init__(self, serving: Serving, router: FakeRouter) -> None:
        self.serving = serving
        self.router = router
        self.url = serving.url
        self.admin_url = serving.admin_url or ""

    @property
    def reply(self) -> FakeReply:
        return self.router.replies[-1]


@asynccontextmanager
async def running(open_: Open | None = None, **knobs: object) -> AsyncIterator[Running]:
    router = FakeRouter(config(**knobs), open_)
    serving = Serving(router, page)
    await serving.start()
    try:
        yield Running(serving, router)
    finally:
        await serving.stop(0)


async def until(holds: Callable[[], object], within_s: float = 1.0) -> None:
    """Return when ``holds`` does. Raises TimeoutError."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.002)


# Raw HTTP


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port_of(url))


class Answer(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes
    closed: bool

    @property
    def error(self) -> dict[str, str | None]:
        return msgspec.json.decode(self.body)["error"]


def request(
    body: bytes = BODY,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    key: str | None = SECRET,
    headers: str = "",
) -> bytes:
    """An ordinary request's bytes; ``headers`` are whole lines with their CRLF."""
    auth = f"authorization: Bearer {key}\r\n" if key else ""
    length = f"content-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: x\r\n{auth}{length}{headers}\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader, *, head_only: bool = False) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    lines = head.split("\r\n")
    status = int(lines[0].split()[1])
    pairs = (line.partition(": ") for line in lines[1:] if line)
    headers = {name.lower(): value for name, _, value in pairs}
    body = b""
    if not head_only and "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    elif not head_only and headers.get("transfer-encoding") == "chunked":
        body = await _read_chunks(reader)
    return Answer(status, headers, body, closed=headers.get("connection") == "close")


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n"))[:-2], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return body


async def ask(url: str, data: bytes, *, head_only: bool = False) -> Answer:
    """Send bytes on a new connection and read one answer."""
    reader, writer = await connect(url)
    try:
        writer.write(data)
        return await asyncio.wait_for(read_answer(reader, head_only=head_only), 5)
    finally:
        writer.close()
