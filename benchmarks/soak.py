"""Whether the router's memory grows: many requests of all kinds, its resident memory as a curve.

    python -m benchmarks.soak [--requests 1000000] [--json FILE]

Whole answers, streams, streams whose client leaves midway, requests without a key, for a model that isn't there, and
bodies that are no JSON come over connections that are kept and over new ones. The first fifth of the requests is
warm-up: what is cached has to be cached once. What a million requests more would add is told by a line through the
rest, where they are enough to tell; the exit code is 1 where that is more than a MiB. Linux.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from benchmarks.overhead import KEY, ROUTER
from benchmarks.running import answer, chat, keep, options, process, resident_bytes, until_up
from benchmarks.upstream import free_port

CONNECTIONS = 32
POINTS = 50
"""Of the curve."""
WARM_UP = 0.2
MOST_GROWTH_MIB = 1.0
"""For a million requests: less than one byte a request."""
ENOUGH = 200_000
"""With fewer, the noise of a page here and there makes MiBs of a million."""
KEPT = 1000
"""Requests that a connection serves before its client opens another."""
EVERY = {"stream": 10, "leave": 101, "wrong": 53}
"""One request in so many is of that kind."""
BAR = 50
MIB = 2**20


class Point(msgspec.Struct, frozen=True):
    """Of the curve."""

    requests: int
    seconds: float
    resident_mib: float


def main(argv: Sequence[str] | None = None) -> int:
    """Print the curve and what a million requests add."""
    parser = options("soak", __doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    arguments = parser.parse_args(argv)
    if arguments.requests < POINTS:
        parser.error(f"--requests: at least {POINTS}")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    upstream, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as home:
        Path(home, "nenya.yaml").write_text(
            ROUTER.format(port=port, upstream=upstream, home=home, key=KEY), encoding="utf-8"
        )
        up = (sys.executable, "-m", "benchmarks.upstream", str(upstream))
        serve = (sys.executable, "-m", "router.cli", "serve", f"{home}/nenya.yaml")
        with (
            process(up, cores[-1], Path(home, "up.out")),
            process(serve, cores[0], Path(home, "nenya.out")) as pid,
        ):
            curve = asyncio.run(_soak(port, pid, arguments.requests))
    keep(curve, arguments.json)
    if arguments.requests < ENOUGH:
        print(f"\nToo few requests to tell a growth: {ENOUGH} or more do.")
        return 0
    growth = growth_mib(curve)
    print(f"\n{growth:+.2f} MiB for a million requests")
    return 1 if growth > MOST_GROWTH_MIB else 0


def growth_mib(curve: Sequence[Point]) -> float:
    """What a million requests add by the line through the points behind the warm-up that is nearest to them."""
    settled = [one for one in curve if one.requests >= WARM_UP * curve[-1].requests]
    mean_x = sum(one.requests for one in settled) / len(settled)
    mean_y = sum(one.resident_mib for one in settled) / len(settled)
    over = sum((one.requests - mean_x) * (one.resident_mib - mean_y) for one in settled)
    return over / sum((one.requests - mean_x) ** 2 for one in settled) * 1e6


async def _soak(port: int, pid: int, total: int) -> list[Point]:
    if not await until_up(port, chat(KEY, stream=False)):
        sys.exit("the router does not answer")
    curve: list[Point] = []
    done, began = 0, time.monotonic()

    def count() -> int | None:
        """The number of the next request, if one is left; a point of the curve now and then."""
        nonlocal done
        if done >= total:
            return None
        if done >= len(curve) * total / POINTS:
            point = Point(done, time.monotonic() - began, resident_bytes(pid) / MIB)
            curve.append(point)
            bar = "#" * round(point.resident_mib / 100 * BAR)
            print(f"{done:9} {point.seconds:6.0f} s {point.resident_mib:7.1f} MiB {bar}")
        done += 1
        return done

    await asyncio.gather(*(_client(port, count) for _ in range(CONNECTIONS)))
    curve.append(Point(done, time.monotonic() - began, resident_bytes(pid) / MIB))
    return curve


async def _client(port: int, count: Callable[[], int | None]) -> None:
    whole, stream = chat(KEY, stream=False), chat(KEY, stream=True)
    wrong = (
        chat("sk-nobody-0123456789", stream=False),
        whole.replace(b'"model": "m"', b'"model": "x"'),
        whole.replace(b'"messages"', b'messages""'),
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
    while (number := count()) is not None:
        if number % EVERY["leave"] == 0:
            writer.write(stream)
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
        elif number % EVERY["wrong"] == 0:
            writer.write(wrong[number % len(wrong)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            if b"connection: close" in head:
                writer.close()
        else:
            await answer(reader, writer, stream if number % EVERY["stream"] == 0 else whole)
        if writer.is_closing() or number % KEPT == 0:
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MIB)
    writer.close()


if __name__ == "__main__":
    sys.exit(main())
