"""`nenya bench report RUN.json ...`: results again, as a table, CSV or a page."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.measure.console import table
from benchmarks.measure.result import BadResult, read
from router.cli import FAILED, OK, USAGE
from router.cli.bench_results import Unwritable, write
from router.cli.terminal import clean


def run(arguments: argparse.Namespace) -> int:
    """Show; the tables go to standard output."""
    try:
        results = [read(Path(path)) for path in arguments.results]
        write(arguments, results)
    except BadResult as error:
        print(f"nenya bench report: {clean(str(error))}", file=sys.stderr)
        return USAGE
    except Unwritable as error:
        print(f"nenya bench report: {clean(str(error))}", file=sys.stderr)
        return FAILED
    print(clean("\n\n".join(map(table, results))))
    return OK
