"""`nenya bench simulate`: policies compared on a recorded or made-up load, without a GPU.

The simulator is `benchmarks.simulate`; here its words are read and its results printed.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

import msgspec

from benchmarks.simulate.compare import Plan, compare
from benchmarks.simulate.gpu import GPUS
from benchmarks.simulate.load import Load
from benchmarks.simulate.measures import Slo
from benchmarks.simulate.report import report, table
from benchmarks.simulate.run import Fleet
from benchmarks.simulate.synthetic import poisson, sessions
from benchmarks.simulate.traces import BadTrace, read
from router.cli import FAILED, OK, USAGE
from router.config.schema import Policy

EVERY: tuple[Policy, ...] = get_args(Policy)
"""Of engines alone, `local_first` is `expected_cost`, so it isn't compared unless it is named."""
MADE_UP = {"poisson": poisson, "sessions": sessions}
REQUESTS = 2000
"""Of a made-up load: some minutes of traffic, enough for a 99th percentile."""


class Misuse(ValueError):  # noqa: N818 - the name says the state
    """An argument that can't be; says which and why."""


def run(arguments: argparse.Namespace) -> int:
    """Compare. The table goes to standard output, progress and errors to standard error."""
    try:
        plan = planned(arguments)
    except (BadTrace, Misuse) as error:
        print(f"nenya bench simulate: {error}", file=sys.stderr)
        return USAGE
    done = report(plan, compare(plan, _tell))
    if arguments.json is not None:
        try:
            body = msgspec.json.format(msgspec.json.encode(done), indent=2)
            Path(arguments.json).write_bytes(body + b"\n")
        except OSError as error:
            print(f"nenya bench simulate: {arguments.json}: {error.strerror}", file=sys.stderr)
            return FAILED
    print(table(done))
    return OK


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
        fleet=Fleet(GPUS[arguments.gpu], speeds),
        policies=_policies(arguments.policies),
        seeds=tuple(range(1, arguments.seeds + 1)),
        slo=_slo(arguments.slo),
        rate=rate,
        search=arguments.capacity,
    )


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
        return tuple(policy for policy in EVERY if policy != "local_first")
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
