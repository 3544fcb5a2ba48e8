"""What long prompts cost, and how long they keep others waiting.

    python -m benchmarks.large_bodies [--mib 1,8,31] [--at-once 100]

A router with a limited key in front of an upstream that answers at once. For each size, once as one message and once as
messages of 5,000 characters: CPU a body, one after another. Then bodies are sent over so many connections at once while
short requests go on beside them, one every 10 ms, whose p50, p99 and most are printed with and without; and the
longest time for which the router's event loop turned to nothing else, taken by a beat of 1 ms in it. Who sends and who
answers share the other core, so that much of what the short ones wait for is theirs: compare with the line ``quiet``.
Linux, best two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from benchmarks.overhead import KEY, ROUTER
from benchmarks.running import answer, chat, cpu_s, process, until_up
from benchmarks.upstream import free_port

TEXT = 'Tell me something about load balancing, "please".\n'
SERIAL = 20
"""Bodies one after another."""
ROUNDS = 2
"""Bodies of each connection at once."""
APART_S = 0.01
"""Between short requests."""
BEAT_S = 0.001
MIB = 1 << 20


class Figures(msgspec.Struct, frozen=True):
    """One row."""

    what: str
    cpu_ms: float
    """A body."""
    stall_ms: float
    short_ms: tuple[float, float, float]
    """Short requests beside: p50, p99, most."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large_bodies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--mib", default="1,8,31", help="sizes of bodies")
    parser.add_argument("--at-once", type=int, default=100, help="connections that send them")
    parser.add_argument("--serve", metavar="CONFIG", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        return serve(arguments.serve)
    sizes = [int(float(size) * MIB) for size in arguments.mib.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    upstream, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        config = Path(home, "nenya.yaml")
        config.write_text(
            ROUTER.format(port=port, home=home, key=KEY, upstream=upstream), encoding="utf-8"
        )
        up = (sys.executable, "-m", "benchmarks.upstream", str(upstream))
        router = (sys.executable, "-m", "benchmarks.large_bodies", "--serve", str(config))
        with (
            process(up, cores[-1], Path(home, "up.out")),
            process(router, cores[0], Path(home, "out")) as pid,
        ):
            asyncio.run(_measure(port, pid, config, sizes, arguments.at_once))
    return 0


async def _measure(port: int, pid: int, config: Path, sizes: list[int], at_once: int) -> None:
    if not await until_up(port, chat(KEY, stream=False)):
        raise SystemExit("the router does not answer")
    print(f"{'':24}{'CPU ms':>9}{'stall ms':>10}{'short: p50':>12}{'p99':>8}{'most ms':>9}")
    quiet = asyncio.create_task(_short(port))
    await asyncio.sleep(2)
    quiet.cancel()
    _print(Figures("quiet", 0.0, stall_ms(config, pid), await quiet))
    for size in sizes:
        for shape, characters in (("one message", size), ("many messages", 5000)):
            request = body(size, characters)
            await _send(port, request, 3)
            before = cpu_s(pid)
            await _send(port, request, SERIAL)
            cpu_ms = (cpu_s(pid) - before) / SERIAL * 1e3
            stall_ms(config, pid)
            beside = asyncio.create_task(_short(port))
            many = max(1, at_once * MIB // size)
            await asyncio.gather(*(_send(port, request, ROUNDS) for _ in range(many)))
            beside.cancel()
            what = f"{size // MIB} MiB, {shape}"
            _print(Figures(what, cpu_ms, stall_ms(config, pid), await beside))


def body(size: int, characters: int) -> bytes:
    """A request of about so many bytes in messages of so many characters."""
    text = (TEXT * (characters // len(TEXT) + 1))[:characters]
    message = {"role": "user", "content": text}
    data = json.dumps(
        {"model": "m", "messages": [message] * max(1, size // (characters + 200))}
    ).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _send(port: int, request: bytes, times: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(times):
        await answer(reader, writer, request)
    writer.close()


async def _short(port: int) -> tuple[float, float, float]:
    """Short requests until it is cancelled: p50, p99 and most, in milliseconds."""
    request = chat(KEY, stream=False)
    times: list[float] = []
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            began = time.perf_counter()
            await answer(reader, writer, request)
            times.append((time.perf_counter() - began) * 1e3)
            await asyncio.sleep(APART_S)
    writer.close()
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100], times[-1]


def _print(row: Figures) -> None:
    middle, high, most = row.short_ms
    print(
        f"{row.what:24}{row.cpu_ms:9.2f}{row.stall_ms:10.1f}{middle:12.2f}{high:8.2f}{most:9.2f}",
        flush=True,
    )


# In the router's process


def serve(config: str) -> int:
    """The server, with a beat in its loop; the longest gap between two beats is written when SIGUSR1 comes."""
    import uvloop  # noqa: PLC0415 - only the child needs these

    from router.config.reader import Options, examine  # noqa: PLC0415
    from router.server.run import serve_until_stopped  # noqa: PLC0415

    parsed = examine(config, Options()).config

    async def run() -> int:
        loop = asyncio.get_running_loop()
        last = time.perf_counter()
        most = 0.0

        def beat() -> None:
            nonlocal last, most
            now = time.perf_counter()
            most = max(most, now - last - BEAT_S)
            last = now
            loop.call_later(BEAT_S, beat)

        def tell() -> None:
            nonlocal most
            _told(config).write_text(f"{most * 1e3:.3f}", encoding="ascii")
            most = 0.0

        loop.add_signal_handler(signal.SIGUSR1, tell)
        beat()
        return await serve_until_stopped(parsed, on_ready=lambda _: None)

    return uvloop.run(run())


def stall_ms(config: Path, pid: int) -> float:
    """The longest gap since it was last asked for."""
    told = _told(str(config))
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return float(told.read_text(encoding="ascii"))
        time.sleep(0.01)
    raise SystemExit("the router says no more")


def _told(config: str) -> Path:
    return Path(f"{config}.stall")


if __name__ == "__main__":
    sys.exit(main())
