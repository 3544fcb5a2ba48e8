"""Recorded loads from files: Mooncake's JSONL and the CSV of the Azure LLM inference traces.

Mooncake gives one id per 512-token block of a prompt; equal ids are equal beginnings. Its times stand in buckets of
3 s, which would make bursts that never were, so each seed spreads them anew. Azure's traces have no prefixes.

Source: R. Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 2025 (traces at
github.com/kvcache-ai/Mooncake); P. Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting",
ISCA 2024 (traces at github.com/Azure/AzurePublicDataset).
"""

from __future__ import annotations

import csv
import itertools
import statistics
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from benchmarks.simulate.load import Load, Request

MOONCAKE_BLOCK = 512
SHARED_BY = 2
"""Where on average two requests or more have the same time, times were recorded in buckets."""
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class BadTrace(ValueError):  # noqa: N818 - the name says the state
    """The file isn't a trace that can be read; says where and why."""


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read(path: Path, limit: int | None = None) -> Load:
    """The load in ``path``, its first ``limit`` requests. Raises BadTrace."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            first = file.readline()
            file.seek(0)
            parse = _mooncake if first.lstrip().startswith("{") else _azure
            requests = list(_first(parse(path, file), limit))
    except OSError as error:
        raise BadTrace(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path}: is not UTF-8 text") from error
    if not requests:
        raise BadTrace(f"{path}: there is no request in it")
    requests.sort(key=lambda one: one.at)
    start = requests[0].at
    requests = [msgspec.structs.replace(one, at=one.at - start) for one in requests]
    return Load(path.name, tuple(requests), MOONCAKE_BLOCK, _bucket(requests))


def _first(requests: Iterator[Request], limit: int | None) -> Iterator[Request]:
    for count, request in enumerate(requests):
        if count == limit:
            return
        yield request


def _bucket(requests: list[Request]) -> float:
    """The usual step between recorded times, where several requests share each; else 0."""
    times = sorted({one.at for one in requests})
    if len(times) < 2 or len(requests) < SHARED_BY * len(times):
        return 0.0
    return statistics.median(later - one for one, later in itertools.pairwise(times))


def _mooncake(path: Path, lines: Iterable[str]) -> Iterator[Request]:
    decode = msgspec.json.Decoder(_Mooncake).decode
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = decode(line)
        except msgspec.DecodeError as error:
            raise BadTrace(f"{path}: line {number}: {error}") from None
        full = row.hash_ids[: row.input_length // MOONCAKE_BLOCK]
        yield _request(
            path, number, Request(row.timestamp / 1000, row.input_length, row.output_length, full)
        )


def _azure(path: Path, lines: Iterable[str]) -> Iterator[Request]:
    rows = csv.DictReader(lines)
    missing = [name for name in _AZURE if name not in (rows.fieldnames or ())]
    if missing:
        raise BadTrace(
            f"{path}: line 1: neither a Mooncake trace (JSON lines) nor an Azure one: "
            f"the column {missing[0]} is missing"
        )
    for number, row in enumerate(rows, 2):
        try:
            # Azure writes seven digits of a second; Python reads six.
            at = datetime.fromisoformat(row["TIMESTAMP"].split("+")[0][:26]).timestamp()
            one = Request(at, int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        except (TypeError, ValueError, AttributeError) as error:
            raise BadTrace(f"{path}: line {number}: {error}") from None
        yield _request(path, number, one)


def _request(path: Path, number: int, request: Request) -> Request:
    if request.input_tokens < 1 or request.output_tokens < 1:
        raise BadTrace(f"{path}: line {number}: a request needs at least one token each way")
    return request
