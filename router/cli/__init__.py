"""The command `nenya`: commands, their words, and exit codes. It composes what the layers below offer.

    0    it worked
    1    it failed while it ran: no such server, a port in use, an engine that can't load
    2    it was asked wrongly: usage, or a config with problems
    130  interrupted with Ctrl-C

Nothing is imported here that a command doesn't need, so that `nenya --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (None is the process's own) and return the exit code."""
    import sys
    from importlib import import_module

    from router.cli.arguments import parser

    try:
        arguments = parser().parse_args(argv)
        code: int = import_module(arguments.module).run(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse: help and version with 0, usage with 2
        return stop.code if isinstance(stop.code, int) else USAGE
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return FAILED
    return code


def _forget_output() -> None:
    """Whoever read the output is gone (``| head``); the interpreter must not complain when it flushes."""
    import os
    import sys

    with open(os.devnull, "w", encoding="utf-8") as nowhere:  # noqa: PTH123 - pathlib costs at the start
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
