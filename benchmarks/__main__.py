"""What the router costs, one measurement after the other.

    python -m benchmarks [NAME ...] [--out FOLDER]

  micro         the parts of a request, each by itself
  in_process    the whole server without a socket: what its own code takes
  hot_path      choosing among 8 and 1,000 targets
  overhead      the router over sockets, beside nginx, vllm-router and litellm where they are installed
  large_bodies  long prompts, and who waits beside them
  soak          memory over a million requests; only where it is named (two minutes)

Each prints its table, and writes its figures to FOLDER/NAME.json. `python -m benchmarks.NAME --help` tells more of one
and its options. What GPUs can is told by `nenya bench` (docs/capacity.md) and `python -m benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import cast

ALL = ("micro", "in_process", "hot_path", "overhead", "large_bodies")
NAMED = ("soak",)


def main(argv: Sequence[str] | None = None) -> int:
    """Run them; 1 where one failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", default=ALL, help="those wanted, instead of all"
    )
    parser.add_argument(
        "--out", metavar="FOLDER", type=Path, help="write the figures there as JSON"
    )
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in ALL + NAMED]
    if unknown:
        parser.error(
            f"no such benchmark: {', '.join(unknown)} (there are {', '.join(ALL + NAMED)})"
        )
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    worst = 0
    for name in arguments.names:
        print(f"\n{name}\n", flush=True)
        run = cast("Callable[[Sequence[str]], int]", import_module(f"benchmarks.{name}").main)
        worst = max(
            worst,
            run([] if arguments.out is None else ["--json", str(arguments.out / f"{name}.json")]),
        )
    return worst


if __name__ == "__main__":
    sys.exit(main())
