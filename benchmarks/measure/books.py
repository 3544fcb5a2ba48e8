"""A load from the records that a router keeps of its own requests, or from a recorded trace."""

from __future__ import annotations

from pathlib import Path

import msgspec

from benchmarks.simulate.load import Load, Request
from benchmarks.simulate.traces import BadTrace
from benchmarks.simulate.traces import read as read_trace
from router.accounts.store import Store, StoreError

_MAGIC = b"SQLite format 3\0"
_QUERY = (
    "SELECT at - duration_s, input_tokens, output_tokens FROM usage "
    "WHERE input_tokens > 0 AND output_tokens > 0 ORDER BY 1 LIMIT ?"
)
_NO_LIMIT = -1


def read(path: Path, limit: int | None = None) -> Load:
    """The load in ``path``, a trace or a router's database, its first ``limit`` requests. Raises BadTrace."""
    try:
        with path.open("rb") as file:
            is_database = file.read(len(_MAGIC)) == _MAGIC
    except OSError as error:
        raise BadTrace(f"{path}: can't be read: {error.strerror}") from error
    return _usage(path, limit) if is_database else read_trace(path, limit)


def _usage(path: Path, limit: int | None) -> Load:
    """What was answered, at the time it came. Records say nothing of prompts, so no two share a beginning."""
    try:
        with Store(str(path), must_exist=True) as store:
            rows = store.select(_QUERY, [limit if limit is not None else _NO_LIMIT])
    except StoreError as error:
        raise BadTrace(str(error)) from error
    if not rows:
        raise BadTrace(f"{path}: no request with tokens is recorded in it")
    found = msgspec.convert(rows, list[tuple[float, int, int]])
    start = found[0][0]
    requests = tuple(Request(at - start, input_, output) for at, input_, output in found)
    return Load(path.name, requests)
