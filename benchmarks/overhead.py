"""What the router adds to a request: CPU time and latency, beside a direct connection and whatever peer is installed.

    python -m benchmarks.overhead [--seconds 3] [--peers nginx,vllm-router,litellm] [--json FILE]

An upstream that answers at once, the router with a limited key, four targets, usage records and its log at info, by
each of two policies, and every peer found on the PATH are started, and each is driven in turn: whole answers over 32
connections (``whole``), streams of 64 chunks in one write (``stream``), whole answers over one connection (``alone``),
many streams of 64 chunks 20 ms apart at once, over new connections (``paced``: all must come whole, p50 is the first
token's, and KiB what memory grew by for each when first so many were open, the text that is kept of it included). CPU
is read from /proc for a process and its children, so it holds on a busy machine where rates don't; compare within one
run only. Linux, and best two cores: those who are measured run on the first, upstream and driver on the last.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.running import (
    answer,
    chat,
    cpu_s,
    keep,
    options,
    process,
    resident_bytes,
    said,
    until_up,
)
from benchmarks.upstream import PACED_EVENTS, free_port

KEY = "sk-overhead-0123456789"
WARM_UP_S = 0.5
WORKLOADS = {"whole": (False, 32), "stream": (True, 32), "alone": (False, 1)}
"""By name: whether it streams, and over how many connections."""
PACE_MS = 20
"""Between two chunks of a paced stream."""
APART_S = 0.001
"""Paced streams begin; all at the same moment would measure that moment."""
LOOK_S = 0.02
"""Between two looks at a process' memory."""

NENYA = {"nenya": "power_of_two", "nenya, cost": "expected_cost"}
"""Its policies that are measured."""
ROUTER = """server: {{listen: "127.0.0.1:{port}", admin: null}}
accounts: {{database: "{home}/books.db", pepper: "0123456789abcdef"}}
tiers: {{large: {{rpm: 100000000, tpm: 100000000000}}}}
keys: [{{id: bench, secret: {key}, tier: large}}]
providers:
  a: &up {{base_url: "http://127.0.0.1:{upstream}/v1"}}
  b: *up
  c: *up
  d: *up
models:
  m:
    targets: [{{provider: a}}, {{provider: b}}, {{provider: c}}, {{provider: d}}]
    policy: power_of_two
    price: {{input: 0.1, output: 0.2}}
"""
NGINX = """worker_processes 1; daemon off; pid {home}/nginx.pid; error_log {home}/nginx.log;
events {{ worker_connections 4096; }}
http {{ access_log off; client_body_temp_path {home}/b; proxy_temp_path {home}/p; fastcgi_temp_path {home}/f;
 uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
 upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 10000000; }}
 server {{ listen 127.0.0.1:{port}; keepalive_requests 10000000; location / {{ proxy_pass http://up;
 proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }} }} }}
"""
LITELLM = """model_list:
  - {{model_name: m, litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{upstream}/v1", api_key: x}}}}
general_settings: {{master_key: {key}}}
"""


class Subject(msgspec.Struct, frozen=True):
    """Somebody who is measured."""

    name: str
    command: tuple[str, ...]
    """Its places {home}, {port} and {upstream} are filled in."""
    config: tuple[str, str] = ("", "")
    """A file's name and its text, with the same places."""
    version: tuple[str, ...] = ()
    """A command that prints it; its place {bin} is the folder of the other."""


class Row(msgspec.Struct, frozen=True):
    """One subject under one workload."""

    name: str
    version: str
    workload: str
    cpu_us: float
    """Of the subject, per request; 0 where nobody stands between."""
    requests_s: float
    p50_ms: float
    """Of the answer; of a paced stream its first token."""
    stream_kib: float = 0.0
    """Memory that a paced stream takes at most, with both its connections."""


SUBJECTS = (
    *(
        Subject(
            name,
            (sys.executable, "-m", "router.cli", "serve", "{home}/nenya.yaml"),
            ("nenya.yaml", ROUTER.replace("power_of_two", policy)),
            (sys.executable, "-m", "router.cli", "--version"),
        )
        for name, policy in NENYA.items()
    ),
    Subject("nginx", ("nginx", "-c", "{home}/nginx.conf"), ("nginx.conf", NGINX), ("nginx", "-v")),
    Subject(
        "vllm-router",
        ("vllm-router", "--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "http://127.0.0.1:{upstream}"),
        version=("{bin}/python", "-c", "import importlib.metadata as m; print(m.version('vllm-router'))"),
    ),
    Subject(
        "litellm",
        ("litellm", "--config", "{home}/litellm.yaml", "--host", "127.0.0.1", "--port", "{port}"),
        ("litellm.yaml", LITELLM),
        ("litellm", "--version"),
    ),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = options("overhead", __doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each workload")
    parser.add_argument(
        "--peers", default="nginx,vllm-router,litellm", help="those not found are left out"
    )
    parser.add_argument("--streams", type=int, default=256, help="paced ones at once; 0 for none")
    arguments = parser.parse_args(argv)
    wanted = {*NENYA, *arguments.peers.split(",")}
    subjects = [one for one in SUBJECTS if one.name in wanted]
    rows = list(_measure(subjects, arguments.seconds, arguments.streams))
    _print(rows)
    keep(rows, arguments.json)
    return 0


def _measure(subjects: list[Subject], seconds: float, streams: int) -> Iterator[Row]:
    cores = sorted(os.sched_getaffinity(0))
    quick, paced = free_port(), free_port()
    upstream = (sys.executable, "-m", "benchmarks.upstream")
    os.sched_setaffinity(0, {cores[-1]})
    with (
        tempfile.TemporaryDirectory() as home,
        process((*upstream, str(quick)), cores[-1], _log(home, "upstream")),
        process((*upstream, str(paced), str(PACE_MS)), cores[-1], _log(home, "paced")),
    ):
        yield from _drive("direct", "", quick, 0, seconds)
        yield from _drive_paced("direct", "", paced, 0, streams)
        for subject in subjects:
            if shutil.which(subject.command[0]) is None:
                print(f"{subject.name}: not found", file=sys.stderr)
                continue
            folder = Path(shutil.which(subject.command[0]) or "").parent
            version = said([part.format(bin=folder) for part in subject.version])
            with _started(subject, home, quick, cores[0]) as (port, pid):
                yield from _drive(subject.name, version, port, pid, seconds)
            with _started(subject, home, paced, cores[0]) as (port, pid):
                yield from _drive_paced(subject.name, version, port, pid, streams)


@contextmanager
def _started(subject: Subject, home: str, upstream: int, core: int) -> Iterator[tuple[int, int]]:
    """Its port and its process, in front of the upstream at that port."""
    port = free_port()
    places = {"home": home, "port": port, "upstream": upstream, "key": KEY}
    file, text = subject.config
    if file:
        Path(home, file).write_text(text.format(**places), encoding="utf-8")
    command = tuple(part.format(**places) for part in subject.command)
    with process(command, core, _log(home, subject.name)) as pid:
        yield port, pid


def _drive(name: str, version: str, port: int, pid: int, seconds: float) -> Iterator[Row]:
    if not asyncio.run(until_up(port, chat(KEY, stream=False))):
        print(f"{name}: does not answer", file=sys.stderr)
        return
    for workload, (stream, connections) in WORKLOADS.items():
        request = chat(KEY, stream=stream)
        asyncio.run(_load(port, request, connections, WARM_UP_S))
        before = cpu_s(pid)
        times = asyncio.run(_load(port, request, connections, seconds))
        spent_us = (cpu_s(pid) - before) / len(times) * 1e6
        yield Row(name, version, workload, spent_us, len(times) / seconds, _median_ms(times))


def _drive_paced(name: str, version: str, port: int, pid: int, streams: int) -> Iterator[Row]:
    request = chat(KEY, stream=True)
    if not streams or not asyncio.run(until_up(port, request)):
        return
    kib = asyncio.run(_grown_bytes(pid, _streams(port, request, streams))) / streams / 1024
    before, began = cpu_s(pid), time.perf_counter()
    times = asyncio.run(_streams(port, request, streams))
    spent_us = (cpu_s(pid) - before) / streams * 1e6
    rate = streams / (time.perf_counter() - began)
    yield Row(name, version, "paced", spent_us, rate, _median_ms(times), kib)


def _median_ms(times: list[float]) -> float:
    return sorted(times)[len(times) // 2] * 1e3


def _log(home: str, name: str) -> Path:
    return Path(home, f"{name}.out")


def _print(rows: list[Row]) -> None:
    print(f"{'':14}{'':10}{'CPU µs/request':>16}{'requests/s':>12}{'p50 ms':>9}{'KiB':>7}")
    for row in rows:
        cells = f"{row.cpu_us:16.1f}{row.requests_s:12.0f}{row.p50_ms:9.2f}"
        cells += f"{row.stream_kib:7.1f}" if row.stream_kib else " " * 7
        print(f"{row.name:14}{row.workload:10}{cells}  {row.version}".rstrip())


# Requests


async def _load(port: int, request: bytes, connections: int, seconds: float) -> list[float]:
    """The time of each request that ended within ``seconds``."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        while (began := time.perf_counter()) < until:
            await answer(reader, writer, request)
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


async def _grown_bytes(pid: int, load: Coroutine[None, None, list[float]]) -> int:
    """What a process' memory grew by at most while ``load`` ran. Allocators keep it, so only the first time counts."""
    before = most = resident_bytes(pid)
    running = asyncio.ensure_future(load)
    while not running.done():
        most = max(most, resident_bytes(pid))
        await asyncio.sleep(LOOK_S)
    await running
    return most - before


async def _streams(port: int, request: bytes, count: int) -> list[float]:
    """The time to the first token of each of so many streams at once. Raises ValueError unless all are whole."""
    first: list[float] = []

    async def client(number: int) -> None:
        await asyncio.sleep(number * APART_S)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        body = await reader.readuntil(b"\n\n")
        first.append(time.perf_counter() - began)
        body += await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()
        if b" 200 " not in head[:16] or body.count(b"data: ") != PACED_EVENTS:
            raise ValueError("a stream is not whole")

    await asyncio.gather(*(client(number) for number in range(count)))
    return first


if __name__ == "__main__":
    sys.exit(main())
