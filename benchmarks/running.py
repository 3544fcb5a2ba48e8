"""Processes under measurement: started, pinned to a core, read from /proc and ended; and raw requests to them.

Linux. CPU and memory are a process' own with its children's, so they hold on a busy machine where rates don't.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

UP_WITHIN_S = 60.0
"""Some peers take half a minute to import themselves."""
PROMPT = "Tell me something about load balancing. " * 20

_TICKS_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def options(name: str, about: str | None) -> argparse.ArgumentParser:
    """The options of ``python -m benchmarks.NAME``, of which every one has ``--json``."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}",
        description=about,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    return parser


def keep(figures: object, file: Path | None) -> None:
    """Write ``figures`` as JSON where ``--json`` says, if it says so."""
    if file is not None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))


@contextmanager
def process(command: Sequence[str], core: int, log: Path) -> Iterator[int]:
    """The id of a process that runs on ``core`` and is ended with its children afterwards."""
    with log.open("wb") as out:
        started = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )
        try:
            yield started.pid
        finally:
            os.killpg(started.pid, signal.SIGTERM)
            try:
                started.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(started.pid, signal.SIGKILL)
                started.wait()


def cpu_s(pid: int) -> float:
    """Seconds of CPU of a process and its children; 0 is nobody."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / _TICKS_S
    return own + sum(cpu_s(child) for child in _children(pid))


def resident_bytes(pid: int) -> int:
    """Memory of a process and its children; 0 is nobody."""
    if not pid:
        return 0
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * _PAGE_BYTES + sum(resident_bytes(child) for child in _children(pid))


def _children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text(encoding="ascii").split())


def said(command: Sequence[str]) -> str:
    """The first line that a command says, such as its version."""
    if not command:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=UP_WITHIN_S)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0] if lines else ""


def chat(key: str, *, stream: bool) -> bytes:
    """A chat completion's request for the model ``m``, head and body."""
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def until_up(port: int, request: bytes) -> bool:
    """Whether ``request`` is answered before long."""
    until = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < until:
        try:
            await asyncio.wait_for(_ask(port, request), 10)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.1)
        else:
            return True
    return False


async def _ask(port: int, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await answer(reader, writer, request)
    finally:
        writer.close()


async def answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
) -> bytes:
    """The body of one request's answer, as it was framed. Raises ValueError unless it is a whole 200."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:16]:
        raise ValueError(head.split(b"\r\n")[0].decode())
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if length:
        return await reader.readexactly(int(length))
    body = await reader.readuntil(b"\r\n0\r\n\r\n")
    if b"data: [DONE]" not in body[-64:]:
        raise ValueError("the stream has no end")
    return body
