"""`nenya check FILE`: every problem of a config at once, or a line that says what it holds."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from router.cli import OK, USAGE
from router.config.reader import Options, Reading, examine
from router.config.schema import Config
from router.errors import ConfigError, Problem


class Summary(Struct, frozen=True):
    """How many of each a config has."""

    models: int
    targets: int
    engines: int
    providers: int
    keys: int


class Verdict(Struct, frozen=True):
    """What ``--json`` prints."""

    ok: bool
    file: str
    problems: Sequence[Problem] = ()
    warnings: Sequence[Problem] = ()
    summary: Summary | None = None


def run(arguments: argparse.Namespace) -> int:
    """Check the file. Problems go to standard error, the verdict to standard output."""
    file: str = arguments.file
    try:
        reading = examine(file, Options(files=not arguments.no_files))
    except ConfigError as error:
        if arguments.json:
            _print_json(Verdict(ok=False, file=file, problems=error.problems))
        else:
            print(_told(error), file=sys.stderr)
        return USAGE
    if arguments.json:
        summary = summed_up(reading.config)
        _print_json(Verdict(ok=True, file=file, warnings=reading.warnings, summary=summary))
    else:
        _print_ok(file, reading)
    return OK


def summed_up(config: Config) -> Summary:
    """The counts of ``config``."""
    return Summary(
        models=len(config.models),
        targets=sum(len(model.targets) for model in config.models.values()),
        engines=len(config.engines),
        providers=len(config.providers),
        keys=len(config.keys),
    )


def _told(error: ConfigError) -> str:
    count = len(error.problems)
    return f"{error}\n{count} {'problem' if count == 1 else 'problems'}"


def _print_ok(file: str, reading: Reading) -> None:
    for warning in reading.warnings:
        print(f"{file}: warning: {warning}", file=sys.stderr)
    counts = msgspec.structs.asdict(summed_up(reading.config))
    parts = (f"{count} {name if count != 1 else name[:-1]}" for name, count in counts.items())
    print(f"{file}: ok: {', '.join(parts)}")


def _print_json(verdict: Verdict) -> None:
    print(msgspec.json.format(msgspec.json.encode(verdict), indent=2).decode())
