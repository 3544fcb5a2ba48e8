"""A node process and the smallest router that can speak to it, as an Engine for the contract."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncGenerator
from itertools import count
from pathlib import Path

import msgspec

from engines import protocol
from engines.base import EngineError, EngineInfo, Event, GenerateRequest, Health, Usage
from engines.specs import EngineSpec

ROOT = Path(__file__).parents[2]


class NodeProcess:
    """A node as its parent sees it."""

    def __init__(self, spec: EngineSpec | bytes) -> None:
        self.line = spec if isinstance(spec, bytes) else msgspec.json.encode(spec) + b"\n"
        self.folder = tempfile.TemporaryDirectory(prefix="nenya-")
        self.path = Path(self.folder.name) / "n.sock"

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engines.node", "--socket", str(self.path),
            cwd=ROOT, stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self.process.stdin.write(self.line)

    async def connect(self) -> Connection:
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(str(self.path))
            except OSError:
                assert self.process.returncode is None, await self.process.stderr.read()
                await asyncio.sleep(0.01)
            else:
                return Connection(reader, writer)

    async def stop(self) -> int:
        """Close standard input, as a parent that dies does; returns the exit code."""
        self.process.stdin.close()
        _, code = await asyncio.gather(self.process.stderr.read(), self.process.wait())
        self.folder.cleanup()
        await asyncio.sleep(0)  # the pipes' transports close in the next turn
        return code


class Connection:
    """Frames out, messages in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.decoder = protocol.FrameDecoder(protocol.ToRouter)
        self.ready: list[protocol.ToRouter] = []

    def send(self, *messages: protocol.ToNode) -> None:
        self.writer.write(b"".join(map(protocol.encode, messages)))

    async def next(self, *kinds: type) -> protocol.ToRouter | None:
        """The next message, of these kinds if any are named; None at the end."""
        while True:
            while self.ready:
                message = self.ready.pop(0)
                if not kinds or isinstance(message, kinds):
                    return message
            with contextlib.suppress(ConnectionResetError):
                data = await self.reader.read(65536)
                if data:
                    self.ready += self.decoder.feed(data)
                    continue
            return None

    async def greet(self) -> EngineInfo:
        self.send(protocol.Hello())
        message = await self.next(protocol.Ready, protocol.Failed)
        if isinstance(message, protocol.Failed):
            raise EngineError(message.kind, message.message)
        return message.info

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class NodeEngine:
    """The Engine protocol over a node process."""

    def __init__(self, spec: EngineSpec) -> None:
        self.node = NodeProcess(spec)
        self.ids = count(1)
        self.queues: dict[int, asyncio.Queue[protocol.Events | protocol.Failed]] = {}
        self.last = Health()

    async def start(self) -> EngineInfo:
        await self.node.start()
        self.link = await self.node.connect()
        info = await self.link.greet()
        self.reading = asyncio.create_task(self.read())
        return info

    async def read(self) -> None:
        while (message := await self.link.next()) is not None:
            if isinstance(message, protocol.Status):
                self.last = message.health
            elif message.id in self.queues:
                self.queues[message.id].put_nowait(message)
        for id_, queue in self.queues.items():
            queue.put_nowait(protocol.Failed(id_, "died", "the node is gone"))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Event, None]:
        id_ = next(self.ids)
        queue = self.queues[id_] = asyncio.Queue()
        self.link.send(protocol.Generate(id_, request))
        event = None
        try:
            while not isinstance(event, Usage):
                message = await queue.get()
                if isinstance(message, protocol.Failed):
                    event = Usage(0, 0)
                    raise EngineError(message.kind, message.message)
                for event in message.events:
                    yield event
        finally:
            del self.queues[id_]
            if not isinstance(event, Usage):
                self.link.send(protocol.Cancel(id_))

    def health(self) -> Health:
        """The last heartbeat: up to a quarter of a second old."""
        return self.last

    async def close(self) -> None:
        await self.node.stop()
        await self.reading
        await self.link.close()
