"""The files that a benchmark writes its results to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure.page import page
from benchmarks.measure.result import Result, encoded
from benchmarks.measure.sheets import csv_of


class Unwritable(Exception):  # noqa: N818 - the name says the state
    """A file that can't be written; says which and why."""


def look_at(arguments: argparse.Namespace) -> None:
    """Whether the files can be written, before a run that takes minutes. Raises Unwritable."""
    for name in ("json", "csv", "html", "jsonl"):
        path = getattr(arguments, name, None)
        if path is None:
            continue
        if not Path(path).absolute().parent.is_dir():
            raise Unwritable(f"{path}: there is no such folder")
        if Path(path).is_dir():
            raise Unwritable(f"{path}: is a folder")


def write(arguments: argparse.Namespace, results: Sequence[Result]) -> None:
    """Write what ``arguments`` ask for of json, csv and html. Raises Unwritable."""
    if getattr(arguments, "json", None) is not None:
        put(arguments.json, encoded(results[0]))
    if arguments.csv is not None:
        put(arguments.csv, "".join(map(csv_of, results)).encode())
    if arguments.html is not None:
        put(arguments.html, page(results).encode())


def put(path: str, content: bytes) -> None:
    """Write one file. Raises Unwritable."""
    try:
        Path(path).write_bytes(content)
    except OSError as error:
        raise Unwritable(f"{path}: {error.strerror}") from error
