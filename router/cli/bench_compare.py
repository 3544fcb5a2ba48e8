"""`nenya bench compare A.json B.json`: what changed between two results, and whether that is noise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from benchmarks.measure.compare import Unlike, compare
from benchmarks.measure.console import changes_table, heading
from benchmarks.measure.result import BadResult, Result, read
from router.cli import FAILED, OK, USAGE
from router.cli.bench_results import Unwritable, put
from router.cli.terminal import clean


def run(arguments: argparse.Namespace) -> int:
    """Compare; the table goes to standard output."""
    try:
        one, other = read(Path(arguments.one)), read(Path(arguments.other))
        changes = compare(one, other)
        if arguments.json is not None:
            put(arguments.json, msgspec.json.encode(changes) + b"\n")
    except (BadResult, Unlike) as error:
        print(f"nenya bench compare: {clean(str(error))}", file=sys.stderr)
        return USAGE
    except Unwritable as error:
        print(f"nenya bench compare: {clean(str(error))}", file=sys.stderr)
        return FAILED
    for name, result in (("A", one), ("B", other)):
        print(clean(f"{name}  {_named(result)}{heading(result)}"))
    print("\n" + clean(changes_table(changes, "A", "B")))
    return OK


def _named(result: Result) -> str:
    return f"{result.label}: " if result.label else ""
