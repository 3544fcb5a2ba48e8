"""What the router adds to a request: CPU time and latency, beside a direct connection and whatever peer is installed.

    python -m benchmarks.overhead [--seconds 3] [--peers nginx,vllm-router,litellm] [--json FILE]

An upstream that answers at once, the router with a limited key, usage records and its log at info, and every peer
found on the PATH are started, and each is driven in turn: whole answers over 32 connections (``whole``), streams of
64 chunks in one write (``stream``), whole answers over one connection (``alone``). CPU is read from /proc for a
process and its children, so it holds on a busy machine where rates don't; compare within one run only. Linux, and
best two cores: those who are measured run on the first, upstream and driver on the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from benchmarks.upstream import free_port

KEY = "sk-overhead-0123456789"
WARM_UP_S = 0.5
UP_WITHIN_S = 60.0
"""Some peers take half a minute to import themselves."""
PROMPT = "Tell me something about load balancing. " * 20
WORKLOADS = {"whole": (False, 32), "stream": (True, 32), "alone": (False, 1)}
"""By name: whether it streams, and over how many connections."""

ROUTER = """server: {{listen: "127.0.0.1:{port}", admin: null}}
accounts: {{database: "{home}/books.db", pepper: "0123456789abcdef"}}
tiers: {{large: {{rpm: 100000000, tpm: 100000000000}}}}
keys: [{{id: bench, secret: {key}, tier: large}}]
providers: {{up: {{base_url: "http://127.0.0.1:{upstream}/v1"}}}}
models: {{m: {{targets: [{{provider: up}}], price: {{input: 0.1, output: 0.2}}}}}}
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
    """A command that prints it."""


class Row(msgspec.Struct, frozen=True):
    """One subject under one workload."""

    name: str
    version: str
    workload: str
    cpu_us: float
    """Of the subject, per request; 0 where nobody stands between."""
    requests_s: float
    p50_ms: float


SUBJECTS = (
    Subject(
        "nenya",
        (sys.executable, "-m", "router.cli", "serve", "{home}/nenya.yaml"),
        ("nenya.yaml", ROUTER),
        (sys.executable, "-m", "router.cli", "--version"),
    ),
    Subject("nginx", ("nginx", "-c", "{home}/nginx.conf"), ("nginx.conf", NGINX), ("nginx", "-v")),
    Subject(
        "vllm-router",
        ("vllm-router", "--host", "127.0.0.1", "--port", "{port}", "--worker-urls", "http://127.0.0.1:{upstream}"),
        version=("vllm-router", "--version"),
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
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of each workload")
    parser.add_argument(
        "--peers", default="nginx,vllm-router,litellm", help="those not found are left out"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures there, too")
    arguments = parser.parse_args(argv)
    wanted = {"nenya", *arguments.peers.split(",")}
    rows = list(_measure([one for one in SUBJECTS if one.name in wanted], arguments.seconds))
    _print(rows)
    if arguments.json is not None:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(rows)))
    return 0


def _measure(subjects: list[Subject], seconds: float) -> Iterator[Row]:
    cores = sorted(os.sched_getaffinity(0))
    upstream = free_port()
    command = (sys.executable, "-m", "benchmarks.upstream", str(upstream))
    os.sched_setaffinity(0, {cores[-1]})
    with (
        tempfile.TemporaryDirectory() as home,
        _process(command, cores[-1], _log(home, "upstream")),
    ):
        yield from _drive("direct", "", upstream, 0, seconds)
        for subject in subjects:
            if shutil.which(subject.command[0]) is None:
                print(f"{subject.name}: not found", file=sys.stderr)
                continue
            port = free_port()
            places = {"home": home, "port": port, "upstream": upstream, "key": KEY}
            file, text = subject.config
            if file:
                Path(home, file).write_text(text.format(**places), encoding="utf-8")
            started = tuple(part.format(**places) for part in subject.command)
            with _process(started, cores[0], _log(home, subject.name)) as pid:
                yield from _drive(subject.name, _version(subject), port, pid, seconds)


def _drive(name: str, version: str, port: int, pid: int, seconds: float) -> Iterator[Row]:
    if not asyncio.run(_is_up(port)):
        print(f"{name}: does not answer", file=sys.stderr)
        return
    for workload, (stream, connections) in WORKLOADS.items():
        asyncio.run(_load(port, _request(stream=stream), connections, WARM_UP_S))
        before = _cpu_s(pid)
        times = asyncio.run(_load(port, _request(stream=stream), connections, seconds))
        cpu_us = (_cpu_s(pid) - before) / len(times) * 1e6
        p50_ms = sorted(times)[len(times) // 2] * 1e3
        yield Row(name, version, workload, cpu_us, len(times) / seconds, p50_ms)


def _print(rows: list[Row]) -> None:
    print(f"{'':14}{'':10}{'CPU µs/request':>16}{'requests/s':>12}{'p50 ms':>9}")
    for row in rows:
        cells = f"{row.cpu_us:16.1f}{row.requests_s:12.0f}{row.p50_ms:9.2f}"
        print(f"{row.name:14}{row.workload:10}{cells}  {row.version}".rstrip())


# Processes


@contextmanager
def _process(command: Sequence[str], core: int, log: Path) -> Iterator[int]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),  # noqa: PLW1509
        )
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _log(home: str, name: str) -> Path:
    return Path(home, f"{name}.out")


def _version(subject: Subject) -> str:
    if not subject.version:
        return ""
    done = subprocess.run(
        subject.version, capture_output=True, text=True, check=False, timeout=UP_WITHIN_S
    )
    said = (done.stdout + done.stderr).strip().splitlines()
    return said[0] if said else ""


def _cpu_s(pid: int) -> float:
    """Seconds of CPU of a process and its children; 0 is nobody."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    total = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    for task in Path(f"/proc/{pid}/task").iterdir():
        total += sum(_cpu_s(int(child)) for child in (task / "children").read_text().split())
    return total


# Requests


def _request(*, stream: bool) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 64}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    )
    return head.encode() + data


async def _is_up(port: int) -> bool:
    until = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < until:
        try:
            await asyncio.wait_for(_ask(port), 10)
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError):
            await asyncio.sleep(0.1)
        else:
            return True
    return False


async def _ask(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await _one(reader, writer, _request(stream=False))
    finally:
        writer.close()


async def _load(port: int, request: bytes, connections: int, seconds: float) -> list[float]:
    """The time of each request that ended within ``seconds``."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
        while (began := time.perf_counter()) < until:
            await _one(reader, writer, request)
            times.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(connections)))
    return times


async def _one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """One request and its whole answer. Raises ValueError unless it is a 200."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b" 200 " not in head[:16]:
        raise ValueError(head.split(b"\r\n")[0].decode())
    length = head.partition(b"content-length: ")[2].partition(b"\r\n")[0]
    if length:
        await reader.readexactly(int(length))
    else:
        await reader.readuntil(b"\r\n0\r\n\r\n")


if __name__ == "__main__":
    sys.exit(main())
