"""`nenya bench simulate`: policies compared on a recorded or made-up load, without a GPU or a provider.

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
from benchmarks.simulate.provider import Account
from benchmarks.simulate.replicas import Replicas
from benchmarks.simulate.report import Report, report, table
from benchmarks.simulate.run import Fleet
from benchmarks.simulate.synthetic import poisson, sessions
from benchmarks.simulate.traces import BadTrace, read
from benchmarks.simulate.upstream import Accounts
from benchmarks.simulate.upstream_report import (
    UpstreamPlan,
    UpstreamReport,
    compare_upstreams,
    full_rate,
    upstream_table,
)
from router.cli import FAILED, OK, USAGE
from router.config.schema import Policy

EVERY: tuple[Policy, ...] = get_args(Policy)
"""Of engines alone, `local_first` is `expected_cost`, so it isn't compared unless it is named."""
FOR_PROVIDERS: tuple[Policy, ...] = ("round_robin", "least_inflight", "power_of_two", "headroom")
"""The others weigh caches and GPUs, of which a provider shows nothing."""
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
    done: Report | UpstreamReport
    if isinstance(plan, Plan):
        done = report(plan, compare(plan, _tell))
        text = table(done)
    else:
        done = compare_upstreams(plan, _tell)
        text = upstream_table(done)
    if arguments.json is not None:
        try:
            body = msgspec.json.format(msgspec.json.encode(done), indent=2)
            Path(arguments.json).write_bytes(body + b"\n")
        except OSError as error:
            print(f"nenya bench simulate: {arguments.json}: {error.strerror}", file=sys.stderr)
            return FAILED
    print(text)
    return OK


def planned(arguments: argparse.Namespace) -> Plan | UpstreamPlan:
    """What the command line asks for. Raises BadTrace, Misuse."""
    if arguments.seeds < 1:
        raise Misuse("--seeds: at least 1")
    if arguments.providers is not None:
        return _upstream_plan(arguments)
    speeds = _speeds(arguments.speed, arguments.engines)
    if not (arguments.faster > 0 and (arguments.rate is None or arguments.rate > 0)):
        raise Misuse("--rate, --faster: must be above 0")
    load = _load(arguments)
    rate = arguments.rate if arguments.rate is not None else load.rate * arguments.faster
    return Plan(
        load=load,
        fleet=Fleet(GPUS[arguments.gpu], speeds, _replicas(arguments)),
        policies=_policies(arguments.policies),
        seeds=tuple(range(1, arguments.seeds + 1)),
        slo=_slo(arguments.slo),
        rate=rate,
        search=arguments.capacity,
    )


def _upstream_plan(arguments: argparse.Namespace) -> UpstreamPlan:
    count: int = arguments.providers
    if count < 1:
        raise Misuse("--providers: at least 1")
    if arguments.capacity:
        raise Misuse("--capacity: is for engines; a provider's is its limits")
    if not 0 <= arguments.size_error < 1:
        raise Misuse("--size-error: a share, at least 0 and below 1")
    if arguments.outage < 0:
        raise Misuse("--outage: at least 0 seconds")
    rpm = _limits("--rpm", arguments.rpm, count)
    tpm = _limits("--tpm", arguments.tpm, count)
    burst_s = _number("--burst", arguments.burst)
    fleet = Accounts(
        accounts=tuple(Account(*limits, burst_s) for limits in zip(rpm, tpm, strict=True)),
        counts=arguments.counts,
        heeds=arguments.heed,
        size_error=arguments.size_error,
        outage_s=arguments.outage,
        replicas=_replicas(arguments),
    )
    seeds = tuple(range(1, arguments.seeds + 1))
    loads = tuple(_load(arguments, seed) for seed in seeds)
    rate = arguments.rate
    if rate is None:
        rate = _number("--share", arguments.share) * full_rate(fleet, loads[0])
    if not 0 < rate < float("inf"):
        raise Misuse("--rate: is needed, above 0, where no limit of --tpm or --rpm says how much")
    return UpstreamPlan(
        loads=loads,
        fleet=fleet,
        policies=_policies(arguments.policies or ",".join(FOR_PROVIDERS)),
        seeds=seeds,
        rate=rate,
    )


def _limits(option: str, text: str | None, count: int) -> tuple[int | None, ...]:
    """One limit for each account; one given is everybody's, `none` is none."""
    parts = ["none"] if text is None else text.split(",")
    if len(parts) == 1:
        parts *= count
    if len(parts) != count:
        raise Misuse(f"{option}: {len(parts)} limits for {count} providers")
    return tuple(
        None if part.strip() == "none" else max(1, round(_number(option, part))) for part in parts
    )


def _replicas(arguments: argparse.Namespace) -> Replicas:
    if arguments.replicas < 1:
        raise Misuse("--replicas: at least 1")
    if arguments.sync_ms is None:
        return Replicas(arguments.replicas)
    return Replicas(arguments.replicas, _number("--sync-ms", arguments.sync_ms) / 1000)


def _load(arguments: argparse.Namespace, seed: int = 0) -> Load:
    limit: int | None = arguments.requests
    if limit is not None and limit < 1:
        raise Misuse("--requests: at least 1")
    make = MADE_UP.get(arguments.load)
    if make is None:
        return read(Path(arguments.load), limit)
    return make(limit or REQUESTS, arguments.rate or float(arguments.engines), seed=seed)


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
