"""`nenya bench simulate`: policies compared on a recorded or made-up load, without a GPU.

The simulator is `benchmarks.simulate`; here its words are read and its results printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import msgspec

from benchmarks.measure.books import read
from benchmarks.measure.result import BadResult
from benchmarks.measure.simulated import result_of
from benchmarks.simulate.compare import Plan, compare
from benchmarks.simulate.gpu import GPUS, Gpu
from benchmarks.simulate.load import Load
from benchmarks.simulate.measures import Slo
from benchmarks.simulate.report import Report, report, table
from benchmarks.simulate.run import Fleet
from benchmarks.simulate.synthetic import poisson, sessions
from benchmarks.simulate.traces import BadTrace
from router import __version__
from router.cli import FAILED, OK, USAGE
from router.cli.bench_calibrate import engine
from router.cli.bench_results import Unwritable, put, write
from router.config.schema import Policy

EVERY: tuple[Policy, ...] = get_args(Policy)
MADE_UP = {"poisson": poisson, "sessions": sessions}
REQUESTS = 2000
"""Of a made-up load: some minutes of traffic, enough for a 99th percentile."""


class Misuse(ValueError):  # noqa: N818 - the name says the state
    """An argument that can't be; says which and why."""


def run(arguments: argparse.Namespace) -> int:
    """Compare. The table goes to standard output, progress and errors to standard error."""
    try:
        plan = planned(arguments)
    except (BadResult, BadTrace, Misuse) as error:
        print(f"nenya bench simulate: {error}", file=sys.stderr)
        return USAGE
    done = report(plan, compare(plan, _tell))
    try:
        _write(arguments, plan, done)
    except Unwritable as error:
        print(f"nenya bench simulate: {error}", file=sys.stderr)
        return FAILED
    print(table(done))
    return OK


def _write(arguments: argparse.Namespace, plan: Plan, done: Report) -> None:
    """What the other benchmarks write, and the table's own figures in the JSON. Raises Unwritable."""
    if (arguments.json, arguments.csv, arguments.html) == (None, None, None):
        return
    result = result_of(plan, done.rows, __version__)
    write(arguments, [result])
    if arguments.json is not None:
        both = msgspec.to_builtins(result) | msgspec.to_builtins(done)
        put(arguments.json, msgspec.json.encode(both) + b"\n")


def planned(arguments: argparse.Namespace) -> Plan:
    """What the command line asks for. Raises BadTrace, Misuse."""
    if arguments.seeds < 1:
        raise Misuse("--seeds: at least 1")
    speeds = _speeds(arguments.speed, arguments.engines)
    if not (arguments.faster > 0 and (arguments.rate is None or arguments.rate > 0)):
        raise Misuse("--rate, --faster: must be above 0")
    load = _load(arguments)
    rate = arguments.rate if arguments.rate is not None else load.rate * arguments.faster
    return Plan(
        load=load,
        fleet=Fleet(_engine(arguments), speeds),
        policies=_policies(arguments.policies),
        seeds=tuple(range(1, arguments.seeds + 1)),
        slo=_slo(arguments.slo),
        rate=rate,
        search=arguments.capacity,
    )


def _engine(arguments: argparse.Namespace) -> Gpu:
    return GPUS[arguments.gpu] if arguments.costs is None else engine(Path(arguments.costs))


def _load(arguments: argparse.Namespace) -> Load:
    limit: int | None = arguments.requests
    if limit is not None and limit < 1:
        raise Misuse("--requests: at least 1")
    make = MADE_UP.get(arguments.load)
    if make is None:
        return read(Path(arguments.load), limit)
    return make(limit or REQUESTS, arguments.rate or float(arguments.engines), seed=0)


def _speeds(text: str | None, engines: int) -> tuple[float, ...]:
    if engines < 1:
        raise Misuse("--engines: at least 1")
    if text is None:
        return (1.0,) * engines
    speeds = tuple(_number("--speed", part) for part in text.split(","))
    if len(speeds) != engines:
        raise Misuse(f"--speed: {len(speeds)} speeds for {engines} engines")
    return speeds


def _policies(text: str | None) -> tuple[Policy, ...]:
    if text is None:
        return EVERY
    chosen: list[Policy] = []
    for name in text.split(","):
        found = [policy for policy in EVERY if policy == name.strip()]
        if not found:
            raise Misuse(f"--policies: there is no {name!r}; there are {', '.join(EVERY)}")
        chosen += found
    return tuple(chosen)


def _slo(text: str) -> Slo:
    given = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        if name not in {"ttft", "tpot"}:
            raise Misuse(f"--slo: {part!r}; write ttft=SECONDS,tpot=SECONDS")
        given[f"{name}_s"] = _number("--slo", value)
    return Slo(**given)


def _number(option: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise Misuse(f"{option}: {text!r} is not a number above 0")
    return value


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
