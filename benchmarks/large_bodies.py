"""What long prompts cost, and how long they keep others waiting, beside nginx where it is installed.

    python -m benchmarks.large_bodies [--mib 1,8,31] [--at-once 100] [--json FILE]

A router with a limited key in front of an upstream that answers at once. For each size, once as one message and once
as messages of 5,000 characters: CPU a body, one after another for a second. Then bodies are sent over so many
connections for 3 s while short requests to another upstream go on beside them, one every 10 ms, whose p50, p99 and
most are printed. Of the router there is also the longest time for which its event loop turned to nothing else, taken
by a beat of 1 ms in it, and the most CPU time that it spent between two beats, which nobody else's work adds to; the
line ``bare loop`` is an event loop with such a beat and nothing else, which is the machine's part. Those who send
long bodies and who answers them give way to who measures (nice 19), for they share the last core; the one that is
measured has the first. nginx keeps bodies in memory, as the router does. Linux, best two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.overhead import KEY
from benchmarks.running import answer, chat, cpu_s, keep, options, process, until_up
from benchmarks.upstream import free_port
from router.config.schema import Server

TEXT = 'Tell me something about load balancing, "please".\n'
SERIAL_S = 1.0
"""Bodies one after another."""
AT_ONCE_S = 3.0
"""Bodies over many connections."""
APART_S = 0.01
"""Between short requests."""
QUIET_S = 2.0
BEAT_S = 0.001
MIB = 1 << 20
NICE = ("nice", "-n", "19")
SHAPES = ("one", "many")
"""As one message, and as many of MESSAGE_BYTES."""
MESSAGE_BYTES = 5000

ROUTER = """server: {{listen: "127.0.0.1:{port}", admin: null}}
accounts: {{database: "{home}/books.db", pepper: "0123456789abcdef"}}
tiers: {{large: {{rpm: 100000000, tpm: 100000000000}}}}
keys: [{{id: bench, secret: {key}, tier: large}}]
providers: {{up: {{base_url: "http://127.0.0.1:{up}/v1"}}, quick: {{base_url: "http://127.0.0.1:{quick}/v1"}}}}
models:
  long: {{targets: [{{provider: up}}], price: {{input: 0.1, output: 0.2}}}}
  m: {{targets: [{{provider: quick}}], price: {{input: 0.1, output: 0.2}}}}
"""
NGINX = """worker_processes 1; daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
 uwsgi_temp_path {home}/u; scgi_temp_path {home}/s; client_max_body_size 64m; client_body_buffer_size 64m;
 proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; keepalive_requests 10000000;
 upstream up {{ server 127.0.0.1:{up}; keepalive 256; keepalive_requests 10000000; }}
 upstream quick {{ server 127.0.0.1:{quick}; keepalive 256; keepalive_requests 10000000; }}
 server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://up; }} }}
 server {{ listen 127.0.0.1:{other}; location / {{ proxy_pass http://quick; }} }} }}
"""


Stall = tuple[float, float] | None


class Row(msgspec.Struct, frozen=True):
    """One subject with one kind of body; ``none`` is short requests alone."""

    name: str
    mib: int
    shape: str
    cpu_ms: float
    """A body, one after another."""
    short_ms: tuple[float, float, float]
    """Short requests beside: p50, p99, most."""
    stall_ms: Stall = None
    """The longest time for which the router's loop turned to nothing else, and the most that it worked meanwhile."""


class Subject(msgspec.Struct, frozen=True):
    """Somebody who is measured, under way."""

    name: str
    pid: int
    port: int
    short_port: int
    stall_ms: Callable[[], Stall]
    """Of its loop, since this was last asked for."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = options("large_bodies", __doc__)
    parser.add_argument("--mib", default="1,8,31", help="sizes of bodies")
    parser.add_argument("--at-once", type=int, default=100, help="connections that send them")
    parser.add_argument("--serve", metavar="CONFIG", help=argparse.SUPPRESS)
    parser.add_argument("--send", nargs=5, metavar="WORD", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.serve:
        return serve(Path(arguments.serve))
    if arguments.send:
        port, size, shape, connections, rounds = arguments.send
        request = body(int(size), shape)
        print(asyncio.run(_send_all(int(port), request, int(connections), float(rounds))))
        return 0
    rows: list[Row] = []
    for row in _measure([int(word) for word in arguments.mib.split(",")], arguments.at_once):
        if not rows:
            print(
                f"{'':36}{'CPU ms':>8}{'stall ms':>10}{'of it CPU':>10}{'short: p50':>12}{'p99':>8}{'most ms':>9}"
            )
        _print(row)
        rows.append(row)
    keep(rows, arguments.json)
    return 0


def _measure(sizes: list[int], at_once: int) -> Iterator[Row]:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})
    up, quick = free_port(), free_port()
    upstream = (sys.executable, "-m", "benchmarks.upstream")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        yield Row("bare loop", 0, "none", 0.0, (0.0, 0.0, 0.0), _bare(home, cores[0]))
        with (
            process((*NICE, *upstream, str(up)), cores[-1], home / "up.out"),
            process((*upstream, str(quick)), cores[-1], home / "quick.out"),
        ):
            for start in (_router, _nginx):
                with start(home, up, quick, cores[0]) as subject:
                    if subject is not None:
                        yield from _rows(subject, sizes, at_once)


def _rows(subject: Subject, sizes: list[int], at_once: int) -> Iterator[Row]:
    if not asyncio.run(until_up(subject.short_port, chat(KEY, stream=False))):
        raise SystemExit(f"{subject.name} does not answer")
    subject.stall_ms()
    quiet = asyncio.run(_beside(subject, ("sleep", str(QUIET_S))))
    yield Row(subject.name, 0, "none", 0.0, quiet, subject.stall_ms())
    for mib, shape in itertools.product(sizes, SHAPES):
        if len(body(mib * MIB, shape).partition(b"\r\n\r\n")[2]) > Server().max_body_bytes:
            print(f"{mib} MiB is more than the router takes by default", file=sys.stderr)
            continue
        send = (*NICE, sys.executable, "-m", "benchmarks.large_bodies", "--send")
        kind = str(subject.port), str(mib * MIB), shape
        asyncio.run(_beside(subject, (*send, *kind, "1", "3")))
        before = cpu_s(subject.pid)
        sent = asyncio.run(_run((*send, *kind, "1", str(-SERIAL_S))))
        cpu_ms = (cpu_s(subject.pid) - before) / int(sent) * 1e3
        subject.stall_ms()
        many = str(max(1, at_once // mib))
        short = asyncio.run(_beside(subject, (*send, *kind, many, str(-AT_ONCE_S))))
        yield Row(subject.name, mib, shape, cpu_ms, short, subject.stall_ms())


def _print(row: Row) -> None:
    what = f"{row.name:10}{f'{row.mib} MiB' if row.mib else 'quiet':>8}  {row.shape:16}"
    stall = "".join(f"{ms:10.1f}" for ms in row.stall_ms or ())
    middle, high, most = row.short_ms
    print(f"{what}{row.cpu_ms:8.2f}{stall:20}{middle:12.2f}{high:8.2f}{most:9.2f}", flush=True)


# Who is measured


@contextmanager
def _router(home: Path, up: int, quick: int, core: int) -> Iterator[Subject]:
    port, config = free_port(), home / "nenya.yaml"
    config.write_text(
        ROUTER.format(port=port, home=home, key=KEY, up=up, quick=quick), encoding="utf-8"
    )
    command = (sys.executable, "-m", "benchmarks.large_bodies", "--serve", str(config))
    with process(command, core, home / "out") as pid:
        yield Subject("nenya", pid, port, port, lambda: stall_ms(config, pid))


@contextmanager
def _nginx(home: Path, up: int, quick: int, core: int) -> Iterator[Subject | None]:
    if shutil.which("nginx") is None:
        print("nginx: not found", file=sys.stderr)
        yield None
        return
    port, other = free_port(), free_port()
    config = home / "nginx.conf"
    config.write_text(
        NGINX.format(port=port, other=other, home=home, up=up, quick=quick), encoding="utf-8"
    )
    with process(("nginx", "-c", str(config)), core, home / "nginx.out") as pid:
        yield Subject("nginx", pid, port, other, lambda: None)


def _bare(home: Path, core: int) -> Stall:
    """Of a loop that has nothing to do."""
    bare = home / BARE
    command = (sys.executable, "-m", "benchmarks.large_bodies", "--serve", str(bare))
    with process(command, core, home / "bare.out") as pid:
        time.sleep(1.0)
        stall_ms(bare, pid)
        time.sleep(QUIET_S)
        return stall_ms(bare, pid)


# Requests


def body(size: int, shape: str) -> bytes:
    """A request whose body has about so many bytes, and not more."""
    data = b'{"model": "long", "messages": [%b]}'
    lines = MESSAGE_BYTES // len(TEXT)
    if shape == "one":  # what is escaped takes two bytes
        lines = (size - len(data) - 50) // len(json.dumps(TEXT).encode())
    message = json.dumps({"role": "user", "content": TEXT * lines}).encode()
    data %= b", ".join([message] * max(1, (size - len(data)) // (len(message) + 2)))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _send_all(port: int, request: bytes, connections: int, rounds: float) -> int:
    """How many were answered: so many over each connection, or as many as go in -``rounds`` seconds."""
    until = time.monotonic() - rounds

    async def send() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = 0
        while sent < rounds or (rounds < 0 and time.monotonic() < until):
            await answer(reader, writer, request)
            sent += 1
        writer.close()
        return sent

    return sum(await asyncio.gather(*(send() for _ in range(connections))))


async def _run(command: Sequence[str]) -> bytes:
    """What ``command`` prints."""
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await child.communicate()
    if child.returncode:
        raise SystemExit(f"{command[-4:]} failed")
    return printed


async def _beside(subject: Subject, command: Sequence[str]) -> tuple[float, float, float]:
    """Short requests while ``command`` runs: p50, p99 and most, in milliseconds."""
    beside = asyncio.create_task(_short(subject.short_port))
    try:
        await _run(command)
    finally:
        beside.cancel()
    return await beside


async def _short(port: int) -> tuple[float, float, float]:
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


# In the router's process

BARE = "bare"
"""The name of a config that is none: nothing is served, and the loop has its beat alone."""


def serve(config: Path) -> int:
    """The server, with a beat in its loop; the longest gap between two beats, and the most CPU time between two, are
    written when SIGUSR1 comes.
    """
    import uvloop  # noqa: PLC0415 - only the child needs these

    from router.cli.serve import keep_freed_memory  # noqa: PLC0415
    from router.config.reader import Options, examine  # noqa: PLC0415
    from router.server.run import serve_until_stopped  # noqa: PLC0415

    async def run() -> int:
        loop = asyncio.get_running_loop()
        last, worked = time.perf_counter(), time.thread_time()
        most = most_worked = 0.0

        def beat() -> None:
            nonlocal last, worked, most, most_worked
            now, work = time.perf_counter(), time.thread_time()
            most, most_worked = max(most, now - last - BEAT_S), max(most_worked, work - worked)
            last, worked = now, work
            loop.call_later(BEAT_S, beat)

        def tell() -> None:
            nonlocal most, most_worked
            _told(config).write_bytes(msgspec.json.encode((most * 1e3, most_worked * 1e3)))
            most = most_worked = 0.0

        loop.add_signal_handler(signal.SIGUSR1, tell)
        beat()
        if config.name == BARE:
            await asyncio.Event().wait()
        parsed = examine(str(config), Options()).config
        return await serve_until_stopped(parsed, on_ready=lambda _: None)

    keep_freed_memory()
    return uvloop.run(run())


def stall_ms(config: Path, pid: int) -> Stall:
    """The longest gap since it was last asked for, and the most work between two beats."""
    told = _told(config)
    told.unlink(missing_ok=True)
    os.kill(pid, signal.SIGUSR1)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            return msgspec.json.decode(told.read_bytes(), type=tuple[float, float])
        time.sleep(0.01)
    raise SystemExit("the router says no more")


def _told(config: Path) -> Path:
    return config.with_suffix(".stall")


if __name__ == "__main__":
    sys.exit(main())
